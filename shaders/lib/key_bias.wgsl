// A bias of scores by head and key.
@group(0) @binding(3) var<storage, read> bias: array<f32>;
const OUT_BINDING: u32 = 4u;

fn key_bias(head: u32, key: u32) -> f32 {
    return bias[head * params.bias_stride + key];
}
