// x as it is.
fn input8(v: mat2x4<f32>, eight: u32) -> mat2x4<f32> {
    return v;
}

fn squares8(v: mat2x4<f32>) -> f32 {
    return 0.0;
}

fn keep_squares(lane: u32, sum: f32) {}

fn add_squares(lane: u32, other: u32) {}

fn kept_squares(lane: u32) -> f32 {
    return 0.0;
}

fn input_factor(sum: f32) -> f32 {
    return 1.0;
}
