// Weight planes of Q2_K matrices, for each super-block of 256: bit pairs in order of `k`, four vec4s; and five words: a byte of scale (low nibble)
// and minimum for each 16 elements, then the f16 factors of both.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 3u;

// Scale and minimum of the 16 elements from `k` on.
fn scale_and_min(row: u32, k: u32) -> vec2<f32> {
    let at = (row * (params.blocks / 8u) + k / 256u) * 5u;
    let byte = scales[at + k / 64u % 4u] >> (8u * (k / 16u % 4u));
    return unpack2x16float(scales[at + 4u]) * vec2<f32>(f32(byte & 15u), f32((byte >> 4u) & 15u));
}

// Elements `k .. k + 8` of a row, unpacked at once; `k` is a multiple of 8.
alias Packed = mat2x4<f32>;

fn packed8(row: u32, k: u32) -> Packed {
    let q = quants[row * (params.blocks / 2u) + k / 64u][k / 16u % 4u];
    let n = numbers(bit_pairs(q >> (2u * (k % 16u))), 0.0);
    let s = scale_and_min(row, k);
    // The products are exact, so that it does not matter whether they are fused with the subtraction. So in all formats of super-blocks.
    return mat2x4<f32>(s.x * n[0] - s.y, s.x * n[1] - s.y);
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    return packed;
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let block = first / 4u;
    let four = quants[row * (params.blocks / 2u) + block / 2u];
    let q = select(four.xy, four.zw, block % 2u == 1u);
    let a = scale_and_min(row, 32u * block);
    let b = scale_and_min(row, 32u * block + 16u);
    let low = dot8(numbers(bit_pairs(q.x), 0.0), v[0]) + dot8(numbers(bit_pairs(q.x >> 16u), 0.0), v[1]);
    let high = dot8(numbers(bit_pairs(q.y), 0.0), v[2]) + dot8(numbers(bit_pairs(q.y >> 16u), 0.0), v[3]);
    return (a.x * low - a.y * total.x) + (b.x * high - b.y * total.y);
}
