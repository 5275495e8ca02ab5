// Q5_0 in integers.
struct Raw {
    quants: vec4<u32>,
    block: Block,
}

// 32 elements as they are stored.
fn raw_unit(row: u32, block: u32) -> Raw {
    return Raw(quants[row * params.blocks + block], block_of(row, block));
}

// Their sum with a block of x.
fn sum_unit(raw: Raw, block: u32, x: Kept) -> f32 {
    let bits = fifth_bits(raw.block.high);
    let even = even_nibbles(raw.quants) | even_fifths(bits);
    let odd = odd_nibbles(raw.quants) | odd_fifths(bits);
    return raw.block.scale * (x.end.x * sum_bytes(even, odd, x) - 16.0 * x.end.y);
}
