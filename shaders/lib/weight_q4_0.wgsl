// Weight planes of Q4_0 matrices: nibbles in order of `k`, a block of 32 a vec4, and one f16 scale for each block, two scales a word.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 3u;

fn scale_in(word: u32, block: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, block % 2u == 1u);
}

// Eight nibbles, and the word that their scale is in.
alias Packed = vec2<u32>;

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    let block = k / 32u;
    return Packed(quants[row * params.blocks + block][k / 8u % 4u], scales[row * ((params.blocks + 1u) / 2u) + block / 2u]);
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    return numbers(nibbles(packed.x), -8.0) * scale_in(packed.y, k / 32u);
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let block = first / 4u;
    let scale = scale_in(scales[row * ((params.blocks + 1u) / 2u) + block / 2u], block);
    let q = quants[row * params.blocks + block];
    let low = dot8(numbers(nibbles(q.x), -8.0), v[0]) + dot8(numbers(nibbles(q.y), -8.0), v[1]);
    let high = dot8(numbers(nibbles(q.z), -8.0), v[2]) + dot8(numbers(nibbles(q.w), -8.0), v[3]);
    return (low + high) * scale;
}
