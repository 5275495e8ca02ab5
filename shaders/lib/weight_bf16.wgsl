// Weight plane of BF16 matrices: rows of `params.blocks` blocks of 32 elements, eight elements a load.
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;
const AFTER_WEIGHT: u32 = 3u;

alias Packed = vec4<u32>;

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    return weights[row * (params.blocks * 4u) + k / 8u];
}

fn unpack8(q: Packed, k: u32) -> mat2x4<f32> {
    let low = bitcast<vec4<f32>>(q << vec4<u32>(16u));
    let high = bitcast<vec4<f32>>(q & vec4<u32>(0xffff0000u));
    return mat2x4<f32>(vec4<f32>(low.x, high.x, low.y, high.y), vec4<f32>(low.z, high.z, low.w, high.w));
}

// A row's elements times 32 of `x`: four times eight, `step` eights apart, the last of which may lie past the end, where `v` is 0.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let last = 4u * params.blocks - 1u;
    let a = weight8(row, 8u * first);
    let b = weight8(row, 8u * min(first + step, last));
    let c = weight8(row, 8u * min(first + 2u * step, last));
    let d = weight8(row, 8u * min(first + 3u * step, last));
    return (dot8(a, v[0]) + dot8(b, v[1])) + (dot8(c, v[2]) + dot8(d, v[3]));
}
