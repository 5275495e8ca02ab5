// Formats with the low four bits of a code in nibbles in order of `k`: elements 0 2 4 6 of eight are the low nibbles of a word's bytes, 1 3 5 7 the high ones.
fn ordered(v: mat2x4<f32>) -> mat2x4<f32> {
    return mat2x4<f32>(vec4<f32>(v[0].xz, v[1].xz), vec4<f32>(v[0].yw, v[1].yw));
}

fn even_nibbles(q: vec4<u32>) -> vec4<u32> {
    return q & vec4<u32>(0x0f0f0f0fu);
}

fn odd_nibbles(q: vec4<u32>) -> vec4<u32> {
    return (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
}

// 32 codes without sign times 32 elements.
fn sum_bytes(even: vec4<u32>, odd: vec4<u32>, x: Kept) -> f32 {
    return whole((dot_bytes(even.x, odd.x, x.a) + dot_bytes(even.y, odd.y, x.b)) + (dot_bytes(even.z, odd.z, x.c) + dot_bytes(even.w, odd.w, x.d)));
}
