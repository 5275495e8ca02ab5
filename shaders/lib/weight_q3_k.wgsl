// Weight planes of Q3_K matrices, for each super-block of 256: bit pairs in order of `k`, four vec4s, and the third bits, two vec4s; and a vec4 of
// sixteen scales of 6 bits (the low four of scale `j` in byte `j % 8`, the high two in byte `8 + j % 4`) and their f16 factor.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<u32>>;
const AFTER_WEIGHT: u32 = 3u;

// Scale of the 16 elements `j` of a super-block.
fn scale_of(s: vec4<u32>, j: u32) -> f32 {
    let low = (select(s.x, s.y, (j & 4u) != 0u) >> (8u * (j % 4u) + 4u * (j / 8u))) & 15u;
    let high = (s.z >> (8u * (j % 4u) + 2u * (j / 4u))) & 3u;
    return unpack2x16float(s.w).x * (f32(low | (high << 4u)) - 32.0);
}

fn codes(q: u32, high: u32) -> mat2x4<f32> {
    return numbers(bit_pairs(q) | (bits(high) << vec4<u32>(2u)), -4.0);
}

// Elements `k .. k + 8` of a row, unpacked at once; `k` is a multiple of 8.
alias Packed = mat2x4<f32>;

fn packed8(row: u32, k: u32) -> Packed {
    let super_block = row * (params.blocks / 8u) + k / 256u;
    let q = quants[6u * super_block + k / 64u % 4u][k / 16u % 4u];
    let high = quants[6u * super_block + 4u + k / 128u % 2u][k / 32u % 4u];
    return codes(q >> (2u * (k % 16u)), high >> (k % 32u)) * scale_of(scales[super_block], k / 16u % 16u);
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    return packed;
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let super_block = row * (params.blocks / 8u) + first / 32u;
    let part = first / 4u % 8u;
    let four = quants[6u * super_block + part / 2u];
    let q = select(four.xy, four.zw, part % 2u == 1u);
    let high = quants[6u * super_block + 4u + part / 4u][part % 4u];
    let s = scales[super_block];
    let low = dot8(codes(q.x, high), v[0]) + dot8(codes(q.x >> 16u, high >> 8u), v[1]);
    let above = dot8(codes(q.y, high >> 16u), v[2]) + dot8(codes(q.y >> 16u, high >> 24u), v[3]);
    return low * scale_of(s, 2u * part) + above * scale_of(s, 2u * part + 1u);
}
