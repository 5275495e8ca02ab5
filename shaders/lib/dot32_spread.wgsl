// A row's elements times 32 of `x`: four times eight, `step` eights apart, the last of which may lie past the end, where `v` is 0.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let last = 4u * params.blocks - 1u;
    let a = weight8(row, 8u * first);
    let b = weight8(row, 8u * min(first + step, last));
    let c = weight8(row, 8u * min(first + 2u * step, last));
    let d = weight8(row, 8u * min(first + 3u * step, last));
    return (dot8(a, v[0]) + dot8(b, v[1])) + (dot8(c, v[2]) + dot8(d, v[3]));
}
