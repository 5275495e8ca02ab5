// A fifth bit for each of 32 codes, a byte for eight, lowest first: as bit 4 of bytes, for elements 0 2 4 6 in bit 0 of each of these and for 1 3 5 7 in bit 1.
fn fifth_bits(high: u32) -> vec4<u32> {
    let eights = (vec4<u32>(high) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
    let fours = (eights | (eights << vec4<u32>(12u))) & vec4<u32>(0x000f000fu);
    return (fours | (fours << vec4<u32>(6u))) & vec4<u32>(0x03030303u);
}

fn even_fifths(bits: vec4<u32>) -> vec4<u32> {
    return (bits & vec4<u32>(0x01010101u)) << vec4<u32>(4u);
}

fn odd_fifths(bits: vec4<u32>) -> vec4<u32> {
    return (bits & vec4<u32>(0x02020202u)) << vec4<u32>(3u);
}
