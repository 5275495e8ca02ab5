// Weights of Q4_0 matrices for the matrix units, a block at a time.
struct Run {
    quants: vec4<u32>,
    scales: u32,
}

// Elements `k .. k + 32` of a row as they are stored; `k` is a multiple of 32.
fn run_at(row: u32, k: u32) -> Run {
    return Run(quants[row * params.blocks + k / 32u], scales[row * ((params.blocks + 1u) / 2u) + k / 64u]);
}

// Eight of the elements from `k` on.
fn tile_weight(run: Run, k: u32, eight: u32) -> Octet {
    return rounded(unpack8(Packed(run.quants[eight], run.scales), k));
}
