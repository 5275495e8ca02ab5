// Q4_K in integers.
struct Raw {
    quants: vec4<u32>,
    scales: vec4<u32>,
}

// 32 elements as they are stored.
fn raw_unit(row: u32, block: u32) -> Raw {
    return Raw(quants[row * params.blocks + block], scales[row * (params.blocks / 8u) + block / 8u]);
}

// Their sum with a block of x.
fn sum_unit(raw: Raw, block: u32, x: Kept) -> f32 {
    let part = block % 8u;
    let s = scale_and_min(vec3<u32>(raw.scales.x, select(raw.scales.y, raw.scales.z, part >= 4u), raw.scales.w), part);
    let sum = sum_bytes(even_nibbles(raw.quants), odd_nibbles(raw.quants), x);
    return s.x * x.end.x * sum - s.y * x.end.y;
}
