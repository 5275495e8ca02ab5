// Q4_1 in integers.
struct Raw {
    quants: vec4<u32>,
    scales: u32,
}

// 32 elements as they are stored.
fn raw32(row: u32, block: u32) -> Raw {
    let at = row * params.blocks + block;
    return Raw(quants[at], scales[at]);
}

// Their sum with a block of x: bytes of its four eights; scale and sum.
fn sum32(raw: Raw, block: u32, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, end: vec2<f32>) -> f32 {
    let s = unpack2x16float(raw.scales);
    let sum = sum_bytes(even_nibbles(raw.quants), odd_nibbles(raw.quants), a, b, c, d);
    return s.x * end.x * sum + s.y * end.y;
}
