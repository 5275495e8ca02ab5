// A product's output as f16, saturating at ±65504.
alias output = f16;

fn to_output(v: f32) -> output {
    return f16(clamp(v, -65504.0, 65504.0));
}
