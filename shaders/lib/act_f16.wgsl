// Activations as f16; stores saturate at ±65504.
alias act = f16;
alias act2 = vec2<f16>;
alias act4 = vec4<f16>;
// Eight elements, read as words.
alias act8 = vec4<u32>;

fn wide(v: act8) -> mat2x4<f32> {
    return mat2x4<f32>(
        vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y)),
        vec4<f32>(unpack2x16float(v.z), unpack2x16float(v.w)),
    );
}

fn to_act(v: f32) -> act {
    return f16(clamp(v, -65504.0, 65504.0));
}

fn to_act2(v: vec2<f32>) -> act2 {
    return act2(clamp(v, vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}

fn to_act4(v: vec4<f32>) -> act4 {
    return act4(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}
