// Weights of Q5_K matrices for the matrix units, 32 at a time, which have one scale and one minimum.
struct Run {
    quants: vec4<u32>,
    high: u32,
    scales: vec4<u32>,
}

// Elements `k .. k + 32` of a row as they are stored; `k` is a multiple of 32.
fn run_at(row: u32, k: u32) -> Run {
    let super_block = row * (params.blocks / 8u) + k / 256u;
    let high = quants[10u * super_block + 8u + k / 128u % 2u][k / 32u % 4u];
    return Run(quants[10u * super_block + k / 32u % 8u], high, scales[super_block]);
}

// Eight of the elements from `k` on.
fn tile_weight(run: Run, k: u32, eight: u32) -> Octet {
    let low = select(run.scales.y, run.scales.z, k / 128u % 2u == 1u);
    let packed = Packed(run.quants[eight], run.high, vec3<u32>(run.scales.x, low, run.scales.w));
    return rounded(unpack8(packed, 32u * (k / 32u) + 8u * eight));
}
