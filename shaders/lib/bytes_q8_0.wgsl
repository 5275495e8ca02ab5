// Q8_0 in integers.
struct Raw {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: u32,
}

// Bytes are in order of `k`.
fn ordered(v: mat2x4<f32>) -> mat2x4<f32> {
    return v;
}

// 32 elements as they are stored.
fn raw_unit(row: u32, block: u32) -> Raw {
    let at = 2u * (row * params.blocks + block);
    return Raw(quants[at], quants[at + 1u], scales[row * ((params.blocks + 1u) / 2u) + block / 2u]);
}

// Their sum with a block of x.
fn sum_unit(raw: Raw, block: u32, x: Kept) -> f32 {
    let low = dot_bytes(raw.low.x, raw.low.y, x.a) + dot_bytes(raw.low.z, raw.low.w, x.b);
    let high = dot_bytes(raw.high.x, raw.high.y, x.c) + dot_bytes(raw.high.z, raw.high.w, x.d);
    return scale_in(raw.scale, block) * x.end.x * whole(low + high);
}
