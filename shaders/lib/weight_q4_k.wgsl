// Weight planes of Q4_K matrices: nibbles in order of `k`, 32 elements a vec4; and a vec4 of scales and minima for each super-block of 256.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<vec4<u32>>;
const AFTER_WEIGHT: u32 = 4u;

fn eight(q: u32, s: vec2<f32>) -> mat2x4<f32> {
    let codes = nibbles(q);
    return mat2x4<f32>(s.x * whole(codes[0]) - s.y, s.x * whole(codes[1]) - s.y);
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let s = scale_and_min(scales[row * (params.blocks / 8u) + k / 256u], k / 32u % 8u);
    return eight(quants[row * params.blocks + k / 32u][k / 8u % 4u], s);
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let q = quants[row * params.blocks + block];
    let s = scale_and_min(scales[row * (params.blocks / 8u) + block / 8u], block % 8u);
    return array<mat2x4<f32>, 4>(eight(q.x, s), eight(q.y, s), eight(q.z, s), eight(q.w, s));
}
