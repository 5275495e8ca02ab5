// cap * tanh(v / cap), from exp, since WGSL bounds tanh's error loosely; past 15 tanh is 1 in f32.
fn soft_bound(v: vec4<f32>, cap: f32) -> vec4<f32> {
    let x = clamp(v / cap, vec4<f32>(-15.0), vec4<f32>(15.0));
    return cap * (1.0 - 2.0 / (exp(2.0 * x) + 1.0));
}
