// Weight planes of Q4_0 matrices: nibbles in order of `k`, a block of 32 a vec4, and one f16 scale for each block, two scales a word.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 4u;

fn scale_of(row: u32, block: u32) -> f32 {
    let pair = unpack2x16float(scales[row * ((params.blocks + 1u) / 2u) + block / 2u]);
    return select(pair.x, pair.y, block % 2u == 1u);
}

fn eight(q: u32, scale: f32) -> mat2x4<f32> {
    let low = vec4<f32>(vec4<i32>((vec4<u32>(q) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u)));
    let high = vec4<f32>(vec4<i32>((vec4<u32>(q) >> vec4<u32>(16u, 20u, 24u, 28u)) & vec4<u32>(15u)));
    return mat2x4<f32>(scale * (low - 8.0), scale * (high - 8.0));
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    return eight(quants[row * params.blocks + k / 32u][k / 8u % 4u], scale_of(row, k / 32u));
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let q = quants[row * params.blocks + block];
    let scale = scale_of(row, block);
    return array<mat2x4<f32>, 4>(eight(q.x, scale), eight(q.y, scale), eight(q.z, scale), eight(q.w, scale));
}
