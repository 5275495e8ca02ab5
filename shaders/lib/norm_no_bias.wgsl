// A norm without bias.
const OUT_BINDING: u32 = 2u;

fn bias_at(i: u32) -> vec4<f32> {
    return vec4<f32>(0.0);
}
