// Q5_K in integers.
struct Raw {
    quants: vec4<u32>,
    fifths: u32,
    scales: vec4<u32>,
}

// 32 elements as they are stored.
fn raw_unit(row: u32, block: u32) -> Raw {
    let super_block = row * (params.blocks / 8u) + block / 8u;
    let part = block % 8u;
    let fifths = quants[10u * super_block + 8u + part / 4u][part % 4u];
    return Raw(quants[10u * super_block + part], fifths, scales[super_block]);
}

// Their sum with a block of x.
fn sum_unit(raw: Raw, block: u32, x: Kept) -> f32 {
    let part = block % 8u;
    let s = scale_and_min(vec3<u32>(raw.scales.x, select(raw.scales.y, raw.scales.z, part >= 4u), raw.scales.w), part);
    let bits = fifth_bits(raw.fifths);
    let even = even_nibbles(raw.quants) | even_fifths(bits);
    let odd = odd_nibbles(raw.quants) | odd_fifths(bits);
    return s.x * x.end.x * sum_bytes(even, odd, x) - s.y * x.end.y;
}
