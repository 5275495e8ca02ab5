// Weight planes of Q5_0 matrices: nibbles in order of `k`, a block of 32 a vec4; and for two blocks three words: the fifth bits of each, two f16 scales.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 4u;

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

fn eight(q: u32, high: u32, scale: f32) -> mat2x4<f32> {
    let low = nibbles(q);
    let fifth = bits(high);
    return mat2x4<f32>(
        scale * (whole(low[0] | (fifth[0] << vec4<u32>(4u))) - 16.0),
        scale * (whole(low[1] | (fifth[1] << vec4<u32>(4u))) - 16.0),
    );
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let b = block_of(row, k / 32u);
    return eight(quants[row * params.blocks + k / 32u][k / 8u % 4u], b.high >> (k % 32u), b.scale);
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let q = quants[row * params.blocks + block];
    let b = block_of(row, block);
    return array<mat2x4<f32>, 4>(
        eight(q.x, b.high, b.scale),
        eight(q.y, b.high >> 8u, b.scale),
        eight(q.z, b.high >> 16u, b.scale),
        eight(q.w, b.high >> 24u, b.scale),
    );
}
