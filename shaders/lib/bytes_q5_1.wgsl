// Q5_1 in integers.
struct Raw {
    quants: vec4<u32>,
    high_and_scales: vec2<u32>,
}

// 32 elements as they are stored.
fn raw_unit(row: u32, block: u32) -> Raw {
    let at = row * params.blocks + block;
    return Raw(quants[at], scales[at]);
}

// Their sum with a block of x.
fn sum_unit(raw: Raw, block: u32, x: Kept) -> f32 {
    let bits = fifth_bits(raw.high_and_scales.x);
    let even = even_nibbles(raw.quants) | even_fifths(bits);
    let odd = odd_nibbles(raw.quants) | odd_fifths(bits);
    let s = unpack2x16float(raw.high_and_scales.y);
    return s.x * x.end.x * sum_bytes(even, odd, x) + s.y * x.end.y;
}
