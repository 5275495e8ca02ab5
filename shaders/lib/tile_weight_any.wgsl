// Weights of any other format for the matrix units: unpacked in f32, then rounded; beyond ±65504 they saturate.
fn fetch_weight(row: u32, k: u32) -> Octet {
    let w = weight8(row, k);
    return Octet(to_act4(w[0]), to_act4(w[1]));
}
