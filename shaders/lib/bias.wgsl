// Bias of a product's columns, which are the matrix's rows.
@group(0) @binding(AFTER_WEIGHT) var<storage, read> bias: array<f32>;
const OUT_BINDING: u32 = AFTER_WEIGHT + 1u;

// The sums of columns `column` and `column + 1` of this part of the matrix, the second of which may lie past its end.
fn biased(column: u32, sums: vec2<f32>) -> vec2<f32> {
    let at = params.first + column;
    return sums + vec2<f32>(bias[at], bias[min(at + 1u, params.first + params.n - 1u)]);
}
