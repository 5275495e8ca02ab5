// Scales of Q4_K and Q5_K, a vec4 for a super-block of 256: the f16 factors of scales and minima; for each 32 elements a byte, the low four bits of
// scale and minimum; for each 32 elements a nibble, the high two bits of both. `s` are the factors, the word with the byte, and the nibbles.
fn scale_and_min(s: vec3<u32>, part: u32) -> vec2<f32> {
    let low = s.y >> (8u * (part % 4u));
    let high = s.z >> (4u * part);
    let scale = (low & 15u) | ((high & 3u) << 4u);
    let least = ((low >> 4u) & 15u) | (((high >> 2u) & 3u) << 4u);
    return unpack2x16float(s.x) * vec2<f32>(f32(scale), f32(least));
}

// The three words for 32 elements. Read together: three loads made a matrix-vector product 4 to 8 % slower on an H200.
fn scale_words(super_block: u32, part: u32) -> vec3<u32> {
    let s = scales[super_block];
    return vec3<u32>(s.x, select(s.y, s.z, part >= 4u), s.w);
}
