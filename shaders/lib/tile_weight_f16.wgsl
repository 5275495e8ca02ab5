// Weights of F16 matrices for the matrix units: copied into the tile as they are, eight at a time.
alias Run = Packed;

fn run_at(row: u32, k: u32) -> Run {
    return packed8(row, k);
}

fn tile_weight(run: Run, k: u32, eight: u32) -> Octet {
    return octet(run);
}
