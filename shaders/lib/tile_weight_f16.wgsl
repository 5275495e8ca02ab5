// Weights of F16 matrices for the matrix units: copied into the tile as they are.
fn tile_weight(packed: Packed, k: u32) -> Octet {
    return octet(packed);
}
