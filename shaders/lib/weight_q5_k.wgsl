// Weight planes of Q5_K matrices, for each super-block of 256: nibbles in order of `k`, eight vec4s, and the fifth bits, two vec4s; and a vec4 of scales
// and minima.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<vec4<u32>>;
const AFTER_WEIGHT: u32 = 4u;

fn eight(q: u32, high: u32, s: vec2<f32>) -> mat2x4<f32> {
    let low = nibbles(q);
    let fifth = bits(high);
    return mat2x4<f32>(
        s.x * whole(low[0] | (fifth[0] << vec4<u32>(4u))) - s.y,
        s.x * whole(low[1] | (fifth[1] << vec4<u32>(4u))) - s.y,
    );
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let super_block = row * (params.blocks / 8u) + k / 256u;
    let q = quants[10u * super_block + k / 32u % 8u][k / 8u % 4u];
    let high = quants[10u * super_block + 8u + k / 128u % 2u][k / 32u % 4u];
    return eight(q, high >> (k % 32u), scale_and_min(scales[super_block], k / 32u % 8u));
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let super_block = row * (params.blocks / 8u) + block / 8u;
    let part = block % 8u;
    let q = quants[10u * super_block + part];
    let high = quants[10u * super_block + 8u + part / 4u][part % 4u];
    let s = scale_and_min(scales[super_block], part);
    return array<mat2x4<f32>, 4>(eight(q.x, high, s), eight(q.y, high >> 8u, s), eight(q.z, high >> 16u, s), eight(q.w, high >> 24u, s));
}
