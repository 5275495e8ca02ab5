// Q4_1 in integers.
struct Raw {
    quants: vec4<u32>,
    scales: u32,
}

// 32 elements as they are stored.
fn raw_unit(row: u32, block: u32) -> Raw {
    let at = row * params.blocks + block;
    return Raw(quants[at], scales[at]);
}

// Their sum with a block of x.
fn sum_unit(raw: Raw, block: u32, x: Kept) -> f32 {
    let s = unpack2x16float(raw.scales);
    let sum = sum_bytes(even_nibbles(raw.quants), odd_nibbles(raw.quants), x);
    return s.x * x.end.x * sum + s.y * x.end.y;
}
