// Weight planes of Q5_K matrices, for each super-block of 256: nibbles in order of `k`, eight vec4s, and the fifth bits, two vec4s; and a vec4 of scales
// and minima.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<u32>>;
const AFTER_WEIGHT: u32 = 3u;

fn codes(q: u32, high: u32) -> mat2x4<f32> {
    return numbers(nibbles(q) | (bits(high) << vec4<u32>(4u)), 0.0);
}

// Eight nibbles, the word with their fifth bits, and those that their scale and minimum are in.
struct Packed {
    low: u32,
    high: u32,
    scales: vec3<u32>,
}

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    let super_block = row * (params.blocks / 8u) + k / 256u;
    let q = quants[10u * super_block + k / 32u % 8u][k / 8u % 4u];
    let high = quants[10u * super_block + 8u + k / 128u % 2u][k / 32u % 4u];
    let s = vec3<u32>(scales[super_block].x, scales[super_block][1u + k / 128u % 2u], scales[super_block].w);
    return Packed(q, high, s);
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    let n = codes(packed.low, packed.high >> (k % 32u));
    let s = scale_and_min(packed.scales, k / 32u % 8u);
    return mat2x4<f32>(s.x * n[0] - s.y, s.x * n[1] - s.y);
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let super_block = row * (params.blocks / 8u) + first / 32u;
    let part = first / 4u % 8u;
    let q = quants[10u * super_block + part];
    let high = quants[10u * super_block + 8u + part / 4u][part % 4u];
    let s = scale_and_min(scale_words(super_block, part), part);
    let low = dot8(codes(q.x, high), v[0]) + dot8(codes(q.y, high >> 8u), v[1]);
    let above = dot8(codes(q.z, high >> 16u), v[2]) + dot8(codes(q.w, high >> 24u), v[3]);
    return s.x * (low + above) - s.y * (total.x + total.y);
}
