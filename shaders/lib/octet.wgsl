// Eight f16 neighbours, the 16 bytes that a thread moves at a time. They are read as words and pass through f32, which changes no bit: a load
// of f16 elements is split by NVIDIA's compiler, and WGSL's bitcast from words to halves is not there yet (naga 30).
struct Octet {
    low: vec4<f16>,
    high: vec4<f16>,
}

fn octet(words: vec4<u32>) -> Octet {
    return Octet(quad(words.x, words.y), quad(words.z, words.w));
}

fn quad(low: u32, high: u32) -> vec4<f16> {
    return vec4<f16>(vec4<f32>(unpack2x16float(low), unpack2x16float(high)));
}
