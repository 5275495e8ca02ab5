// Weight planes of Q8_0 matrices: signed bytes, 16 a vec4, and one f16 scale for each block of 32, two scales a word.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 3u;

fn scale_in(word: u32, block: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, block % 2u == 1u);
}

// Eight signed bytes with 384 added to each: turning the sign bit adds 128, and what they are put behind is 256.
fn bytes384(q: vec2<u32>) -> mat2x4<f32> {
    let words = vec4<u32>(q.x << 2u, q.x >> 6u, q.y << 2u, q.y >> 6u);
    let n = halves((words & vec4<u32>(0x03fc03fcu)) ^ vec4<u32>(0x5e005e00u));
    return mat2x4<f32>(vec4<f32>(n[0].xy, n[1].xy), vec4<f32>(n[0].zw, n[1].zw));
}

// Eight bytes, and the word that their scale is in.
alias Packed = vec3<u32>;

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    let block = k / 32u;
    let at = row * (params.blocks * 2u) + k / 16u;
    let word = k / 4u % 4u;
    return Packed(quants[at][word], quants[at][word + 1u], scales[row * ((params.blocks + 1u) / 2u) + block / 2u]);
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    let n = bytes384(packed.xy);
    return mat2x4<f32>(n[0] - 384.0, n[1] - 384.0) * scale_in(packed.z, k / 32u);
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let block = first / 4u;
    let at = (row * params.blocks + block) * 2u;
    let a = quants[at];
    let b = quants[at + 1u];
    let low = dot8(bytes384(a.xy), v[0]) + dot8(bytes384(a.zw), v[1]);
    let high = dot8(bytes384(b.xy), v[2]) + dot8(bytes384(b.zw), v[3]);
    let scale = scale_in(scales[row * ((params.blocks + 1u) / 2u) + block / 2u], block);
    return (low + high - 384.0 * (total.x + total.y)) * scale;
}
