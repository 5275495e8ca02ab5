// Weight planes of Q4_1 matrices: nibbles in order of `k`, a block of 32 a vec4, and for each block an f16 scale and minimum, together a word.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 4u;

// The fma is explicit: a compiler that fuses in one kernel and not in another would give prefill variants different weights.
fn eight(q: u32, scale_and_min: u32) -> mat2x4<f32> {
    let pair = unpack2x16float(scale_and_min);
    let scale = vec4<f32>(pair.x);
    let least = vec4<f32>(pair.y);
    let low = vec4<f32>(vec4<i32>((vec4<u32>(q) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u)));
    let high = vec4<f32>(vec4<i32>((vec4<u32>(q) >> vec4<u32>(16u, 20u, 24u, 28u)) & vec4<u32>(15u)));
    return mat2x4<f32>(fma(scale, low, least), fma(scale, high, least));
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let at = row * params.blocks + k / 32u;
    return eight(quants[at][k / 8u % 4u], scales[at]);
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let at = row * params.blocks + block;
    let q = quants[at];
    let s = scales[at];
    return array<mat2x4<f32>, 4>(eight(q.x, s), eight(q.y, s), eight(q.z, s), eight(q.w, s));
}
