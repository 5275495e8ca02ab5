// Weight planes of Q2_K matrices, for each super-block of 256: bit pairs in order of `k`, four vec4s; and five words: a byte of scale (low nibble)
// and minimum for each 16 elements, then the f16 factors of both.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 4u;

// Scale and minimum of the 16 elements from `k` on.
fn scale_and_min(row: u32, k: u32) -> vec2<f32> {
    let at = (row * (params.blocks / 8u) + k / 256u) * 5u;
    let byte = scales[at + k / 64u % 4u] >> (8u * (k / 16u % 4u));
    return unpack2x16float(scales[at + 4u]) * vec2<f32>(f32(byte & 15u), f32((byte >> 4u) & 15u));
}

// The products are exact, so that it does not matter whether they are fused with the subtraction. So in all formats of super-blocks.
fn eight(q: u32, s: vec2<f32>) -> mat2x4<f32> {
    let codes = bit_pairs(q);
    return mat2x4<f32>(s.x * whole(codes[0]) - s.y, s.x * whole(codes[1]) - s.y);
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let q = quants[row * (params.blocks / 2u) + k / 64u][k / 16u % 4u];
    return eight(q >> (2u * (k % 16u)), scale_and_min(row, k));
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let four = quants[row * (params.blocks / 2u) + block / 2u];
    let q = select(four.xy, four.zw, block % 2u == 1u);
    let first = scale_and_min(row, 32u * block);
    let second = scale_and_min(row, 32u * block + 16u);
    return array<mat2x4<f32>, 4>(eight(q.x, first), eight(q.x >> 16u, first), eight(q.y, second), eight(q.y >> 16u, second));
}
