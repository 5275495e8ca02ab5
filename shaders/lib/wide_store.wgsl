// Epilogue: out = sum, four at a time, where rows and parts of them begin at multiples of four.
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<vec4<output>>;

fn before4(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>();
}

// The sums of columns `column .. column + 4`.
fn finish4(row: u32, column: u32, sums: vec4<f32>, before: vec4<f32>) {
    out[(params.out_start + row * params.out_stride + column) / 4u] =
        vec4<output>(to_output(sums.x), to_output(sums.y), to_output(sums.z), to_output(sums.w));
}
