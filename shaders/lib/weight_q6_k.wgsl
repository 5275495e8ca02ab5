// Weight planes of Q6_K matrices, for each super-block of 256: nibbles in order of `k`, eight vec4s, and the high bit pairs, four vec4s; and five words:
// a signed byte of scale for each 16 elements, then their f16 factor.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 3u;

// Scale of the 16 elements from `k` on: their bytes and the factor.
fn scale_in(words: vec2<u32>, k: u32) -> f32 {
    return unpack2x16float(words.y).x * f32(bitcast<i32>(words.x << (24u - 8u * (k / 16u % 4u))) >> 24u);
}

fn scale_words(row: u32, k: u32) -> vec2<u32> {
    let at = (row * (params.blocks / 8u) + k / 256u) * 5u;
    return vec2<u32>(scales[at + k / 64u % 4u], scales[at + 4u]);
}

fn codes(q: u32, high: u32) -> mat2x4<f32> {
    return numbers(nibbles(q) | (bit_pairs(high) << vec4<u32>(4u)), -32.0);
}

// Eight nibbles, the word with their high bits, and those that their scale is in.
alias Packed = vec4<u32>;

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    let first = 12u * (row * (params.blocks / 8u) + k / 256u);
    let q = quants[first + k / 32u % 8u][k / 8u % 4u];
    let high = quants[first + 8u + k / 64u % 4u][k / 16u % 4u];
    return Packed(q, high, scale_words(row, k));
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    return codes(packed.x, packed.y >> (2u * (k % 16u))) * scale_in(packed.zw, k);
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let block = first / 4u;
    let super_block = 12u * (row * (params.blocks / 8u) + block / 8u);
    let q = quants[super_block + block % 8u];
    let four = quants[super_block + 8u + block / 2u % 4u];
    let high = select(four.xy, four.zw, block % 2u == 1u);
    let low = dot8(codes(q.x, high.x), v[0]) + dot8(codes(q.y, high.x >> 16u), v[1]);
    let above = dot8(codes(q.z, high.y), v[2]) + dot8(codes(q.w, high.y >> 16u), v[3]);
    let words = scale_words(row, 32u * block);
    return low * scale_in(words, 32u * block) + above * scale_in(words, 32u * block + 16u);
}
