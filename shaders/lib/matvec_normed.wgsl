// RMSNorm of x on the way: the threads of a workgroup read all of x together, so that its mean square costs a sum more, and the row's factor comes to
// the products' sums at their end (Zhang and Sennrich 2019).
@group(0) @binding(OUT_BINDING + 1u) var<storage, read> gain: array<vec4<f32>>;

override EPS: f32;
var<workgroup> squares: array<f32, KEPT>;

fn input8(v: mat2x4<f32>, eight: u32) -> mat2x4<f32> {
    let last = params.width4 - 1u;
    return mat2x4<f32>(v[0] * gain[min(2u * eight, last)], v[1] * gain[min(2u * eight + 1u, last)]);
}

fn squares8(v: mat2x4<f32>) -> f32 {
    return dot(v[0], v[0]) + dot(v[1], v[1]);
}

fn keep_squares(lane: u32, sum: f32) {
    squares[lane] = sum;
}

fn add_squares(lane: u32, other: u32) {
    squares[lane] += squares[other];
}

fn kept_squares(lane: u32) -> f32 {
    return squares[lane];
}

// Once all squares are added up.
fn input_factor(sum: f32) -> f32 {
    return inverseSqrt(sum / f32(4u * params.width4) + EPS);
}
