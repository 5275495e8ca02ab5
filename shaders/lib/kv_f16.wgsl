// Cache elements as f16, two a word.
alias kv2 = u32;
alias kv4 = vec2<u32>;

// Rounds to the nearest f16, ties to even, saturating at ±65504. By hand, since Vulkan leaves the rounding of packHalf2x16 open and llvmpipe
// truncates: normal values round in the integer domain, subnormal ones (steps of 2^-24) by the addition of 0.75, whose last bit is 2^-24.
fn pack_kv(v: vec2<f32>) -> kv2 {
    let x = clamp(v, vec2<f32>(-65504.0), vec2<f32>(65504.0));
    let bits = bitcast<vec2<u32>>(x);
    let normal = bitcast<vec2<f32>>((bits + 0xfffu + ((bits >> vec2<u32>(13u)) & vec2<u32>(1u))) & vec2<u32>(0xffffe000u));
    let subnormal = (x + 0.75) - 0.75;
    return pack2x16float(select(normal, subnormal, abs(x) < vec2<f32>(6.103515625e-5)));
}

fn unpack_kv(v: kv4) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}

fn join_kv(a: kv2, b: kv2) -> kv4 {
    return kv4(a, b);
}
