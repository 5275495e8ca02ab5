// Q5_1 in integers.
struct Raw {
    quants: vec4<u32>,
    high_and_scales: vec2<u32>,
}

// 32 elements as they are stored.
fn raw32(row: u32, block: u32) -> Raw {
    let at = row * params.blocks + block;
    return Raw(quants[at], scales[at]);
}

// Their sum with a block of x: bytes of its four eights; scale and sum.
fn sum32(raw: Raw, block: u32, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, end: vec2<f32>) -> f32 {
    let bits = fifth_bits(raw.high_and_scales.x);
    let even = even_nibbles(raw.quants) | even_fifths(bits);
    let odd = odd_nibbles(raw.quants) | odd_fifths(bits);
    let s = unpack2x16float(raw.high_and_scales.y);
    return s.x * end.x * sum_bytes(even, odd, a, b, c, d) + s.y * end.y;
}
