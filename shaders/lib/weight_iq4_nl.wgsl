// Weight planes of IQ4_NL matrices: nibbles in order of `k`, a block of 32 a vec4, and one f16 scale for each block, two scales a word.
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 3u;

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

fn codes(q: u32) -> mat2x4<f32> {
    let n = nibbles(q);
    return mat2x4<f32>(values(n & vec4<u32>(15u)), values(n >> vec4<u32>(16u)));
}

// Elements `k .. k + 8` of a row, unpacked at once; `k` is a multiple of 8.
alias Packed = mat2x4<f32>;

fn packed8(row: u32, k: u32) -> Packed {
    return codes(quants[row * params.blocks + k / 32u][k / 8u % 4u]) * scale_of(row, k / 32u);
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    return packed;
}

// A block of a row times 32 elements of `x`; `first` counts eights. The codes are scaled once they are added up.
fn dot32(row: u32, first: u32, step: u32, v: array<mat2x4<f32>, 4>, total: vec2<f32>) -> f32 {
    let q = quants[row * params.blocks + first / 4u];
    let low = dot8(codes(q.x), v[0]) + dot8(codes(q.y), v[1]);
    let high = dot8(codes(q.z), v[2]) + dot8(codes(q.w), v[3]);
    return (low + high) * scale_of(row, first / 4u);
}
