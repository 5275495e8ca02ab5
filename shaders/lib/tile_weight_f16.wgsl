// Weights of F16 matrices for the matrix units: copied into the tile as they are.
fn fetch_weight(row: u32, k: u32) -> Octet {
    return octet(weights[row * (params.blocks * 4u) + k / 8u]);
}
