// Epilogue: out[c] = silu(sum[2c]) * sum[2c + 1] (Shazeer 2020), two at a time, where rows and parts of them begin at multiples of two.
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<vec2<output>>;

fn before4(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>();
}

// The sums of columns `column .. column + 4`.
fn finish4(row: u32, column: u32, sums: vec4<f32>, before: vec4<f32>) {
    let gated = sums.xz / (1.0 + exp(-sums.xz)) * sums.yw;
    out[(params.out_start + row * params.out_stride + column / 2u) / 2u] = vec2<output>(to_output(gated.x), to_output(gated.y));
}
