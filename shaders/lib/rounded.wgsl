// Unpacked weights as f16. Beyond ±65504 they saturate, once they are halves, which takes half of the instructions.
fn rounded(n: mat2x4<f32>) -> Octet {
    return Octet(saturated(vec4<f16>(n[0])), saturated(vec4<f16>(n[1])));
}

fn saturated(v: vec4<f16>) -> vec4<f16> {
    return clamp(v, vec4<f16>(-65504.0h), vec4<f16>(65504.0h));
}
