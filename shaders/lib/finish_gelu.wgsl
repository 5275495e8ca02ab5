// Epilogue: out = gelu(sum), the exact form z / 2 (1 + erf(z / sqrt(2))).
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<output>;

// erf to 1.5e-7 (Abramowitz and Stegun 7.1.26).
fn gelu(z: vec2<f32>) -> vec2<f32> {
    let x = abs(z) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * x);
    let tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * exp(-x * x);
    return 0.5 * z * select(2.0 - tail, tail, z < vec2<f32>(0.0));
}

// The sums of columns `column` (even, below `params.n`) and `column + 1`.
fn finish(row: u32, column: u32, sums: vec2<f32>) {
    let at = params.out_start + row * params.out_stride + column;
    let s = gelu(biased(column, sums));
    out[at] = to_output(s.x);
    if column + 1u < params.n {
        out[at + 1u] = to_output(s.y);
    }
}
