// Weights of Q8_0 matrices for the matrix units, a block at a time. A code and its scale multiply in f16 with one rounding, as they do in f32 before the
// one to f16: the same bits with half of the instructions.
struct Run {
    low: vec4<u32>,
    high: vec4<u32>,
    scales: u32,
}

// Elements `k .. k + 32` of a row as they are stored; `k` is a multiple of 32.
fn run_at(row: u32, k: u32) -> Run {
    let at = 2u * (row * params.blocks + k / 32u);
    return Run(quants[at], quants[at + 1u], scales[row * ((params.blocks + 1u) / 2u) + k / 64u]);
}

// Four signed bytes times their scale.
fn scaled4(q: u32, scale: f16) -> vec4<f16> {
    let n = quad(((q << 2u) & 0x03fc03fcu) ^ 0x5e005e00u, ((q >> 6u) & 0x03fc03fcu) ^ 0x5e005e00u);
    return saturated((n - 384.0h) * scale).xzyw;
}

// Eight of the elements from `k` on.
fn tile_weight(run: Run, k: u32, eight: u32) -> Octet {
    let scale = f16(scale_in(run.scales, k / 32u));
    let four = select(run.low, run.high, eight >= 2u);
    let q = select(four.xy, four.zw, eight % 2u == 1u);
    return Octet(scaled4(q.x, scale), scaled4(q.y, scale));
}
