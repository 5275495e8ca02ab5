// Scales of Q4_K and Q5_K, a vec4 for a super-block of 256: the f16 factors of scales and minima; for each 32 elements a byte, the low four bits of
// scale and minimum; for each 32 elements a nibble, the high two bits of both.
fn scale_and_min(s: vec4<u32>, part: u32) -> vec2<f32> {
    let low = select(s.y, s.z, part >= 4u) >> (8u * (part % 4u));
    let high = s.w >> (4u * part);
    let scale = (low & 15u) | ((high & 3u) << 4u);
    let least = ((low >> 4u) & 15u) | (((high >> 2u) & 3u) << 4u);
    return unpack2x16float(s.x) * vec2<f32>(f32(scale), f32(least));
}
