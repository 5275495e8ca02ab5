// Rotary pairs (i, i + rotary / 2): the thread `t` of a head turns pairs 2t and 2t + 1, which lie in the vec2s t and rotary / 4 + t.
fn place(t: u32, rotary4: u32) -> vec2<u32> {
    return vec2<u32>(t, rotary4 + t);
}

// Turns both pairs; `angle` holds cosine and sine of the first, then of the second. In and out: the two vec2s of `place`, one after the other.
fn turn(v: vec4<f32>, angle: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        fma(v.xy, angle.xz, -(v.zw * angle.yw)),
        fma(v.zw, angle.xz, v.xy * angle.yw),
    );
}
