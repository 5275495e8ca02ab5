// Q4_0 in integers.
struct Raw {
    quants: vec4<u32>,
    scale: u32,
}

// 32 elements as they are stored.
fn raw32(row: u32, block: u32) -> Raw {
    return Raw(quants[row * params.blocks + block], scales[row * ((params.blocks + 1u) / 2u) + block / 2u]);
}

// Their sum with a block of x: bytes of its four eights; scale and sum.
fn sum32(raw: Raw, block: u32, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, end: vec2<f32>) -> f32 {
    let sum = sum_bytes(even_nibbles(raw.quants), odd_nibbles(raw.quants), a, b, c, d);
    return scale_in(raw.scale, block) * (end.x * sum - 8.0 * end.y);
}
