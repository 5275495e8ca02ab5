// Epilogue: out[c] = gelu(sum[2c]) * sum[2c + 1], with GELU's tanh form; even columns are the gate, odd ones the up projection.
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<output>;

// The sums of columns `column` (even, below `params.n`) and `column + 1`. z / 2 (1 + tanh(u)) = z / (1 + exp(-2u)), without tanh's loose bounds.
fn finish(row: u32, column: u32, sums: vec2<f32>) {
    let at = params.out_start + row * params.out_stride + column / 2u;
    let s = biased(column, sums);
    let twice_u = 1.5957691216 * s.x * fma(0.044715 * s.x, s.x, 1.0);
    out[at] = to_output(s.x / (1.0 + exp(-twice_u)) * s.y);
}
