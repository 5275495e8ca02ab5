// Weight planes of IQ4_NL matrices: nibbles in order of `k`, a block of 32 a vec4, and one f16 scale for each block, two scales a word.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 4u;

fn scale_of(row: u32, block: u32) -> f32 {
    let pair = unpack2x16float(scales[row * ((params.blocks + 1u) / 2u) + block / 2u]);
    return select(pair.x, pair.y, block % 2u == 1u);
}

// What the nibbles stand for: -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113, as signed bytes. Selected rather than indexed: an
// array that is indexed by a value goes to memory.
fn values(q: vec4<u32>) -> vec4<f32> {
    let low = select(vec4<u32>(0xbfad9881u), vec4<u32>(0xf6eaddcfu), (q & vec4<u32>(4u)) != vec4<u32>());
    let high = select(vec4<u32>(0x26190d01u), vec4<u32>(0x71594535u), (q & vec4<u32>(4u)) != vec4<u32>());
    let four = bitcast<vec4<i32>>(select(low, high, q >= vec4<u32>(8u)));
    return vec4<f32>((four << (vec4<u32>(24u) - 8u * (q & vec4<u32>(3u)))) >> vec4<u32>(24u));
}

fn eight(q: u32, scale: f32) -> mat2x4<f32> {
    let codes = nibbles(q);
    return mat2x4<f32>(scale * values(codes[0]), scale * values(codes[1]));
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    return eight(quants[row * params.blocks + k / 32u][k / 8u % 4u], scale_of(row, k / 32u));
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let q = quants[row * params.blocks + block];
    let scale = scale_of(row, block);
    return array<mat2x4<f32>, 4>(eight(q.x, scale), eight(q.y, scale), eight(q.z, scale), eight(q.w, scale));
}
