// Weight planes of Q8_0 matrices: signed bytes, 16 a vec4, and one f16 scale for each block of 32, two scales a word.
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
const AFTER_WEIGHT: u32 = 4u;

fn scale_of(row: u32, block: u32) -> f32 {
    let pair = unpack2x16float(scales[row * ((params.blocks + 1u) / 2u) + block / 2u]);
    return select(pair.x, pair.y, block % 2u == 1u);
}

fn eight(q: vec2<u32>, scale: f32) -> mat2x4<f32> {
    return mat2x4<f32>(scale * vec4<f32>(unpack4xI8(q.x)), scale * vec4<f32>(unpack4xI8(q.y)));
}

// Elements `k .. k + 8` of a row; `k` is a multiple of 8.
fn weight8(row: u32, k: u32) -> mat2x4<f32> {
    let at = row * (params.blocks * 2u) + k / 16u;
    let word = k / 4u % 4u;
    return eight(vec2<u32>(quants[at][word], quants[at][word + 1u]), scale_of(row, k / 32u));
}

// A block of 32 elements, eight at a time.
fn weight32(row: u32, block: u32) -> array<mat2x4<f32>, 4> {
    let at = (row * params.blocks + block) * 2u;
    let low = quants[at];
    let high = quants[at + 1u];
    let scale = scale_of(row, block);
    return array<mat2x4<f32>, 4>(eight(low.xy, scale), eight(low.zw, scale), eight(high.xy, scale), eight(high.zw, scale));
}
