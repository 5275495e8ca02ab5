// Weights of any other format for the matrix units: unpacked in f32, then rounded; beyond ±65504 they saturate.
fn tile_weight(packed: Packed, k: u32) -> Octet {
    let w = unpack8(packed, k);
    return Octet(to_act4(w[0]), to_act4(w[1]));
}
