// Sums of products with eight elements of `x`, and sums of its elements.
fn dot8(a: mat2x4<f32>, v: mat2x4<f32>) -> f32 {
    return dot(a[0], v[0]) + dot(a[1], v[1]);
}

fn total16(a: mat2x4<f32>, b: mat2x4<f32>) -> f32 {
    return dot((a[0] + a[1]) + (b[0] + b[1]), vec4<f32>(1.0));
}
