// Weights of Q4_K matrices for the matrix units, 32 at a time, which have one scale and one minimum.
struct Run {
    quants: vec4<u32>,
    scales: vec4<u32>,
}

// Elements `k .. k + 32` of a row as they are stored; `k` is a multiple of 32.
fn run_at(row: u32, k: u32) -> Run {
    return Run(quants[row * params.blocks + k / 32u], scales[row * (params.blocks / 8u) + k / 256u]);
}

// Eight of the elements from `k` on.
fn tile_weight(run: Run, k: u32, eight: u32) -> Octet {
    let low = select(run.scales.y, run.scales.z, k / 128u % 2u == 1u);
    return rounded(unpack8(Packed(run.quants[eight], run.scales.x, low, run.scales.w), k));
}
