// Weight planes of Q4_K matrices: nibbles in order of `k`, 32 elements a vec4; and a vec4 of scales and minima for each super-block of 256.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<u32>>;
const AFTER_WEIGHT: u32 = 3u;

// Eight nibbles, and the words that their scale and minimum are in.
alias Packed = vec4<u32>;

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    let s = row * (params.blocks / 8u) + k / 256u;
    return Packed(quants[row * params.blocks + k / 32u][k / 8u % 4u], scales[s].x, scales[s][1u + k / 128u % 2u], scales[s].w);
}

// The products are exact, so that it does not matter whether they are fused with the subtraction. So in all formats of super-blocks.
fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    let s = scale_and_min(packed.yzw, k / 32u % 8u);
    let n = numbers(nibbles(packed.x), 0.0);
    return mat2x4<f32>(s.x * n[0] - s.y, s.x * n[1] - s.y);
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let s = scale_and_min(scale_words(row * (params.blocks / 8u) + first / 32u, first / 4u % 8u), first / 4u % 8u);
    let q = quants[row * params.blocks + first / 4u];
    let low = dot8(numbers(nibbles(q.x), 0.0), v[0]) + dot8(numbers(nibbles(q.y), 0.0), v[1]);
    let high = dot8(numbers(nibbles(q.z), 0.0), v[2]) + dot8(numbers(nibbles(q.w), 0.0), v[3]);
    return s.x * (low + high) - s.y * (total.x + total.y);
}
