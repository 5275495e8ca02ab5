// Weight plane of F32 matrices: rows of `params.blocks` blocks of 32 elements, four elements a load.
@group(0) @binding(2) var<storage, read> weights: array<vec4<f32>>;
const AFTER_WEIGHT: u32 = 3u;

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let at = row * (params.blocks * 8u) + k / 4u;
    return mat2x4<f32>(weights[at], weights[at + 1u]);
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let k = 32u * block;
    return array<mat2x4<f32>, 4>(weight8(row, k), weight8(row, k + 8u), weight8(row, k + 16u), weight8(row, k + 24u));
}
