// Weight plane of F32 matrices: rows of `params.blocks` blocks of 32 elements, four elements a load.
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;
const AFTER_WEIGHT: u32 = 2u;

alias Packed = mat2x4<f32>;

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    let at = row * (params.blocks * 8u) + k / 4u;
    return mat2x4<f32>(weights[at], weights[at + 1u]);
}

fn unpack8(packed: Packed, k: u32) -> mat2x4<f32> {
    return packed;
}
