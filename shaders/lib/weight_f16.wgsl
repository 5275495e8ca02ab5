// Weight plane of F16 matrices: rows of `params.blocks` blocks of 32 elements, eight elements a load.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
const AFTER_WEIGHT: u32 = 2u;

alias Packed = vec4<u32>;

// Elements `k .. k + 8` of a row as they are stored; `k` is a multiple of 8.
fn packed8(row: u32, k: u32) -> Packed {
    return weights[row * (params.blocks * 4u) + k / 8u];
}

fn unpack8(q: Packed, k: u32) -> mat2x4<f32> {
    return mat2x4<f32>(
        vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y)),
        vec4<f32>(unpack2x16float(q.z), unpack2x16float(q.w)),
    );
}
