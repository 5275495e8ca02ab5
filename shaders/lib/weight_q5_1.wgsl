// Weight planes of Q5_1 matrices: nibbles in order of `k`, a block of 32 a vec4; and for each block two words: the fifth bits, f16 scale and minimum.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec2<u32>>;
const AFTER_WEIGHT: u32 = 3u;

fn codes(q: u32, high: u32) -> mat2x4<f32> {
    return numbers(nibbles(q) | (bits(high) << vec4<u32>(4u)), 0.0);
}

// Elements `k .. k + 8` of a row, unpacked at once; `k` is a multiple of 8.
alias Packed = mat2x4<f32>;

fn packed8(row: u32, k: u32) -> Packed {
    let at = row * params.blocks + k / 32u;
    let s = scales[at];
    let n = codes(quants[at][k / 8u % 4u], s.x >> (k % 32u));
    let pair = unpack2x16float(s.y);
    // The fma is explicit, as in Q4_1.
    return mat2x4<f32>(fma(vec4<f32>(pair.x), n[0], vec4<f32>(pair.y)), fma(vec4<f32>(pair.x), n[1], vec4<f32>(pair.y)));
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    return packed;
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let at = row * params.blocks + first / 4u;
    let q = quants[at];
    let s = scales[at];
    let pair = unpack2x16float(s.y);
    let low = dot8(codes(q.x, s.x), v[0]) + dot8(codes(q.y, s.x >> 8u), v[1]);
    let above = dot8(codes(q.z, s.x >> 16u), v[2]) + dot8(codes(q.w, s.x >> 24u), v[3]);
    return pair.x * (low + above) + pair.y * (total.x + total.y);
}
