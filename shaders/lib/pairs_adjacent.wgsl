// Rotary pairs (2i, 2i + 1): the thread `t` of a head turns pairs 2t and 2t + 1, which are the vec2s of these numbers.
fn place(t: u32, rotary4: u32) -> vec2<u32> {
    return vec2<u32>(2u * t, 2u * t + 1u);
}

// Turns both pairs; `angle` holds cosine and sine of the first, then of the second. In and out: the two vec2s of `place`, one after the other.
fn turn(v: vec4<f32>, angle: vec4<f32>) -> vec4<f32> {
    let real = fma(v.xz, angle.xz, -(v.yw * angle.yw));
    let imaginary = fma(v.yw, angle.xz, v.xz * angle.yw);
    return vec4<f32>(real.x, imaginary.x, real.y, imaginary.y);
}
