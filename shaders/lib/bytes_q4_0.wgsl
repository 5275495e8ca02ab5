// Q4_0 in integers.
struct Raw {
    quants: vec4<u32>,
    scale: u32,
}

// 32 elements as they are stored.
fn raw_unit(row: u32, block: u32) -> Raw {
    return Raw(quants[row * params.blocks + block], scales[row * ((params.blocks + 1u) / 2u) + block / 2u]);
}

// Their sum with a block of x.
fn sum_unit(raw: Raw, block: u32, x: Kept) -> f32 {
    let sum = sum_bytes(even_nibbles(raw.quants), odd_nibbles(raw.quants), x);
    return scale_in(raw.scale, block) * (x.end.x * sum - 8.0 * x.end.y);
}
