// Weight planes of Q6_K matrices, for each super-block of 256: nibbles in order of `k`, eight vec4s, and the high bit pairs, four vec4s; and five words:
// a signed byte of scale for each 16 elements, then their f16 factor.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 4u;

// Scale of the 16 elements from `k` on.
fn scale_of(row: u32, k: u32) -> f32 {
    let at = (row * (params.blocks / 8u) + k / 256u) * 5u;
    let byte = bitcast<i32>(scales[at + k / 64u % 4u] << (24u - 8u * (k / 16u % 4u))) >> 24u;
    return unpack2x16float(scales[at + 4u]).x * f32(byte);
}

fn eight(q: u32, high: u32, scale: f32) -> mat2x4<f32> {
    let low = nibbles(q);
    let pairs = bit_pairs(high);
    return mat2x4<f32>(
        scale * (whole(low[0] | (pairs[0] << vec4<u32>(4u))) - 32.0),
        scale * (whole(low[1] | (pairs[1] << vec4<u32>(4u))) - 32.0),
    );
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let first = 12u * (row * (params.blocks / 8u) + k / 256u);
    let q = quants[first + k / 32u % 8u][k / 8u % 4u];
    let high = quants[first + 8u + k / 64u % 4u][k / 16u % 4u];
    return eight(q, high >> (2u * (k % 16u)), scale_of(row, k));
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let super_block = 12u * (row * (params.blocks / 8u) + block / 8u);
    let q = quants[super_block + block % 8u];
    let four = quants[super_block + 8u + block / 2u % 4u];
    let high = select(four.xy, four.zw, block % 2u == 1u);
    let first = scale_of(row, 32u * block);
    let second = scale_of(row, 32u * block + 16u);
    return array<mat2x4<f32>, 4>(
        eight(q.x, high.x, first),
        eight(q.y, high.x >> 16u, first),
        eight(q.z, high.y, second),
        eight(q.w, high.y >> 16u, second),
    );
}
