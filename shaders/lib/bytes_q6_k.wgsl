// Q6_K in integers.
struct Raw {
    quants: vec4<u32>,
    high: vec2<u32>,
    scales: vec2<u32>,
}

// 32 elements as they are stored.
fn raw_unit(row: u32, block: u32) -> Raw {
    let first = 12u * (row * (params.blocks / 8u) + block / 8u);
    let four = quants[first + 8u + block / 2u % 4u];
    let high = select(four.xy, four.zw, block % 2u == 1u);
    return Raw(quants[first + block % 8u], high, scale_words(row, 32u * block));
}

// Codes of six bits less 32, as signed bytes: no byte borrows from the next while the highest bit of each is turned.
fn signed6(codes: vec2<u32>) -> vec2<u32> {
    return ((codes | vec2<u32>(0x80808080u)) - vec2<u32>(0x20202020u)) ^ vec2<u32>(0x80808080u);
}

// Eight codes, those of elements 0 2 4 6 and those of 1 3 5 7; the low 16 bits of `high` are their high pairs.
fn codes6(q: u32, high: u32) -> vec2<u32> {
    let fours = ((high & 0xffu) | (high << 8u)) & 0x00ff00ffu;
    let pairs = (fours | (fours << 4u)) & 0x0f0f0f0fu;
    let even = (q & 0x0f0f0f0fu) | ((pairs & 0x03030303u) << 4u);
    let odd = ((q >> 4u) & 0x0f0f0f0fu) | ((pairs & 0x0c0c0c0cu) << 2u);
    return signed6(vec2<u32>(even, odd));
}

// Their sum with a block of x.
fn sum_unit(raw: Raw, block: u32, x: Kept) -> f32 {
    let q0 = codes6(raw.quants.x, raw.high.x);
    let q1 = codes6(raw.quants.y, raw.high.x >> 16u);
    let q2 = codes6(raw.quants.z, raw.high.y);
    let q3 = codes6(raw.quants.w, raw.high.y >> 16u);
    let low = whole(dot_bytes(q0.x, q0.y, x.a) + dot_bytes(q1.x, q1.y, x.b));
    let above = whole(dot_bytes(q2.x, q2.y, x.c) + dot_bytes(q3.x, q3.y, x.d));
    return x.end.x * (low * scale_in(raw.scales, 32u * block) + above * scale_in(raw.scales, 32u * block + 16u));
}
