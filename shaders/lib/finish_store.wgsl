// Epilogue: out = sum.
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<output>;

// The sums of columns `column` (even, below `params.n`) and `column + 1`.
fn finish(row: u32, column: u32, sums: vec2<f32>) {
    let s = biased(column, sums);
    let at = params.out_start + row * params.out_stride + column;
    out[at] = to_output(s.x);
    if column + 1u < params.n {
        out[at + 1u] = to_output(s.y);
    }
}

// The sum of one column.
fn finish_one(row: u32, column: u32, sum: f32) {
    out[params.out_start + row * params.out_stride + column] = to_output(biased(column, vec2<f32>(sum)).x);
}
