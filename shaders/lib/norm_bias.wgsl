// Bias of a norm.
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
const OUT_BINDING: u32 = 3u;

fn bias_at(i: u32) -> vec4<f32> {
    return bias[i];
}
