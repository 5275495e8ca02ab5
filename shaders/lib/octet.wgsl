// Eight f16 neighbours, the 16 bytes that a thread moves at a time. They are read as words and pass through f32, which changes no bit: a load
// of f16 elements is split by NVIDIA's compiler, and WGSL's bitcast from words to halves is not there yet (naga 30).
struct Octet {
    low: vec4<f16>,
    high: vec4<f16>,
}

fn octet(words: vec4<u32>) -> Octet {
    return Octet(
        vec4<f16>(vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y))),
        vec4<f16>(vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w))),
    );
}
