// Weight planes of Q4_1 matrices: nibbles in order of `k`, a block of 32 a vec4, and for each block an f16 scale and minimum, together a word.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 3u;

// Eight nibbles, their scale and minimum.
alias Packed = vec2<u32>;

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    let at = row * params.blocks + k / 32u;
    return Packed(quants[at][k / 8u % 4u], scales[at]);
}

// The fma is explicit: a compiler that fuses in one kernel and not in another would give prefill variants different weights.
fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    let pair = unpack2x16float(packed.y);
    let scale = vec4<f32>(pair.x);
    let least = vec4<f32>(pair.y);
    let n = numbers(nibbles(packed.x), 0.0);
    return mat2x4<f32>(fma(scale, n[0], least), fma(scale, n[1], least));
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let at = row * params.blocks + first / 4u;
    let s = unpack2x16float(scales[at]);
    let q = quants[at];
    let low = dot8(numbers(nibbles(q.x), 0.0), v[0]) + dot8(numbers(nibbles(q.y), 0.0), v[1]);
    let high = dot8(numbers(nibbles(q.z), 0.0), v[2]) + dot8(numbers(nibbles(q.w), 0.0), v[3]);
    return s.x * (low + high) + s.y * (total.x + total.y);
}
