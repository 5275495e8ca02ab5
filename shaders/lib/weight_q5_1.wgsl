// Weight planes of Q5_1 matrices: nibbles in order of `k`, a block of 32 a vec4; and for each block two words: the fifth bits, f16 scale and minimum.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<vec2<u32>>;
const AFTER_WEIGHT: u32 = 4u;

// The fma is explicit, as in Q4_1.
fn eight(q: u32, high: u32, scale_and_min: vec2<f32>) -> mat2x4<f32> {
    let low = nibbles(q);
    let fifth = bits(high);
    let scale = vec4<f32>(scale_and_min.x);
    let least = vec4<f32>(scale_and_min.y);
    return mat2x4<f32>(
        fma(scale, whole(low[0] | (fifth[0] << vec4<u32>(4u))), least),
        fma(scale, whole(low[1] | (fifth[1] << vec4<u32>(4u))), least),
    );
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let at = row * params.blocks + k / 32u;
    let s = scales[at];
    return eight(quants[at][k / 8u % 4u], s.x >> (k % 32u), unpack2x16float(s.y));
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let at = row * params.blocks + block;
    let q = quants[at];
    let s = scales[at];
    let pair = unpack2x16float(s.y);
    return array<mat2x4<f32>, 4>(
        eight(q.x, s.x, pair),
        eight(q.y, s.x >> 8u, pair),
        eight(q.z, s.x >> 16u, pair),
        eight(q.w, s.x >> 24u, pair),
    );
}
