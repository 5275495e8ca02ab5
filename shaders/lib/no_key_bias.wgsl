// Scores without bias.
const OUT_BINDING: u32 = 3u;

fn key_bias(head: u32, key: u32) -> f32 {
    return 0.0;
}
