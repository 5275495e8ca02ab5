// Codes of a few bits each as whole numbers in f32, by way of f16: put behind the leading one of a power of two, they are a number with it. Integers
// are converted at a quarter of the rate of everything else on NVIDIA's GPUs, and a row of 4-bit weights has more codes than that. Two codes share a
// word, element `i` of eight low and element `i + 4` high.
fn halves(words: vec4<u32>) -> mat2x4<f32> {
    let a = unpack2x16float(words.x);
    let b = unpack2x16float(words.y);
    let c = unpack2x16float(words.z);
    let d = unpack2x16float(words.w);
    return mat2x4<f32>(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}

// Codes below 1024, with `least` added to each.
fn numbers(words: vec4<u32>, least: f32) -> mat2x4<f32> {
    let n = halves(words | vec4<u32>(0x64006400u));
    let zero = vec4<f32>(1024.0 - least);
    return mat2x4<f32>(n[0] - zero, n[1] - zero);
}

// Eight nibbles, lowest first.
fn nibbles(q: u32) -> vec4<u32> {
    return (vec4<u32>(q) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(0x000f000fu);
}

// Eight bit pairs, lowest first, of the low 16 bits.
fn bit_pairs(q: u32) -> vec4<u32> {
    let spread = (q & 0xffu) | ((q & 0xff00u) << 8u);
    return (vec4<u32>(spread) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(0x00030003u);
}

// Eight bits, lowest first, of the low 8.
fn bits(q: u32) -> vec4<u32> {
    let spread = (q & 0xfu) | ((q & 0xf0u) << 12u);
    return (vec4<u32>(spread) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(0x00010001u);
}
