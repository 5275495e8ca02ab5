// Weight plane of BF16 matrices: rows of `params.blocks` blocks of 32 elements, eight elements a load.
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;
const AFTER_WEIGHT: u32 = 3u;

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let q = weights[row * (params.blocks * 4u) + k / 8u];
    let low = bitcast<vec4<f32>>(q << vec4<u32>(16u));
    let high = bitcast<vec4<f32>>(q & vec4<u32>(0xffff0000u));
    return mat2x4<f32>(vec4<f32>(low.x, high.x, low.y, high.y), vec4<f32>(low.z, high.z, low.w, high.w));
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let k = 32u * block;
    return array<mat2x4<f32>, 4>(weight8(row, k), weight8(row, k + 8u), weight8(row, k + 16u), weight8(row, k + 24u));
}
