// Activations as f32.
alias act = f32;
alias act2 = vec2<f32>;
alias act4 = vec4<f32>;
// Eight elements.
alias act8 = mat2x4<f32>;

fn wide(v: act8) -> mat2x4<f32> {
    return v;
}

fn to_act(v: f32) -> act {
    return v;
}

fn to_act2(v: vec2<f32>) -> act2 {
    return v;
}

fn to_act4(v: vec4<f32>) -> act4 {
    return v;
}
