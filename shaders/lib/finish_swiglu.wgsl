// Epilogue: out[c] = silu(sum[2c]) * sum[2c + 1]; even columns are the gate, odd ones the up projection (Shazeer 2020).
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<output>;

// The sums of columns `column` (even, below `params.n`) and `column + 1`.
fn finish(row: u32, column: u32, sums: vec2<f32>) {
    let at = params.out_start + row * params.out_stride + column / 2u;
    let s = biased(column, sums);
    out[at] = to_output(s.x / (1.0 + exp(-s.x)) * s.y);
}
