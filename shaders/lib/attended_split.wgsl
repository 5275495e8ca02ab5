// Some keys of a head: what `attention_merge` takes.
@group(0) @binding(OUT_BINDING) var<storage, read_write> partial: array<f32>;

// Element `d4` of a head, in vec4s: the sum of values by probability, relative to the highest score, and the probabilities' sum.
fn leave(split: u32, head: u32, d4: u32, sum: vec4<f32>, highest: f32, total: f32) {
    let to = (split * params.heads + head) * (4u * HEAD4 + 2u);
    let at = to + 4u * d4;
    partial[at] = sum.x;
    partial[at + 1u] = sum.y;
    partial[at + 2u] = sum.z;
    partial[at + 3u] = sum.w;
    if d4 == 0u {
        partial[to + 4u * HEAD4] = highest;
        partial[to + 4u * HEAD4 + 1u] = total;
    }
}
