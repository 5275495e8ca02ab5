// Q4_K in integers.
struct Raw {
    quants: vec4<u32>,
    scales: vec4<u32>,
}

// 32 elements as they are stored.
fn raw32(row: u32, block: u32) -> Raw {
    return Raw(quants[row * params.blocks + block], scales[row * (params.blocks / 8u) + block / 8u]);
}

// Their sum with a block of x: bytes of its four eights; scale and sum.
fn sum32(raw: Raw, block: u32, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, end: vec2<f32>) -> f32 {
    let part = block % 8u;
    let s = scale_and_min(vec3<u32>(raw.scales.x, select(raw.scales.y, raw.scales.z, part >= 4u), raw.scales.w), part);
    let sum = sum_bytes(even_nibbles(raw.quants), odd_nibbles(raw.quants), a, b, c, d);
    return s.x * end.x * sum - s.y * end.y;
}
