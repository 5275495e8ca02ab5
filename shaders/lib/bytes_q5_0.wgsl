// Q5_0 in integers.
struct Raw {
    quants: vec4<u32>,
    block: Block,
}

// 32 elements as they are stored.
fn raw32(row: u32, block: u32) -> Raw {
    return Raw(quants[row * params.blocks + block], block_of(row, block));
}

// Their sum with a block of x: bytes of its four eights; scale and sum.
fn sum32(raw: Raw, block: u32, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, end: vec2<f32>) -> f32 {
    let bits = fifth_bits(raw.block.high);
    let even = even_nibbles(raw.quants) | even_fifths(bits);
    let odd = odd_nibbles(raw.quants) | odd_fifths(bits);
    return raw.block.scale * (end.x * sum_bytes(even, odd, a, b, c, d) - 16.0 * end.y);
}
