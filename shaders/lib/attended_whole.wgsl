// All keys of a head in one split: its output.
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<act4>;

// Element `d4` of a head, in vec4s: the sum of values by probability, relative to the highest score, and the probabilities' sum.
fn leave(split: u32, head: u32, d4: u32, sum: vec4<f32>, highest: f32, total: f32) {
    out[head * HEAD4 + d4] = to_act4(sum / total);
}
