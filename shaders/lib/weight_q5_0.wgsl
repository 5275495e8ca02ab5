// Weight planes of Q5_0 matrices: nibbles in order of `k`, a block of 32 a vec4; and for two blocks three words: the fifth bits of each, two f16 scales.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 3u;

// Fifth bits and scale of a block.
struct Block {
    high: u32,
    scale: f32,
}

fn block_of(row: u32, block: u32) -> Block {
    let at = row * ((params.blocks + 1u) / 2u * 3u) + block / 2u * 3u;
    let pair = unpack2x16float(scales[at + 2u]);
    return Block(scales[at + block % 2u], select(pair.x, pair.y, block % 2u == 1u));
}

fn codes(q: u32, high: u32) -> mat2x4<f32> {
    return numbers(nibbles(q) | (bits(high) << vec4<u32>(4u)), -16.0);
}

// Elements `k .. k + 8` of a row, unpacked at once; `k` is a multiple of 8.
alias Packed = mat2x4<f32>;

fn packed8(row: u32, k: u32) -> Packed {
    let b = block_of(row, k / 32u);
    return codes(quants[row * params.blocks + k / 32u][k / 8u % 4u], b.high >> (k % 32u)) * b.scale;
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    return packed;
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let q = quants[row * params.blocks + first / 4u];
    let b = block_of(row, first / 4u);
    let low = dot8(codes(q.x, b.high), v[0]) + dot8(codes(q.y, b.high >> 8u), v[1]);
    let above = dot8(codes(q.z, b.high >> 16u), v[2]) + dot8(codes(q.w, b.high >> 24u), v[3]);
    return (low + above) * b.scale;
}
