// Weights of any other format for the matrix units, eight at a time: unpacked in f32, then rounded.
alias Run = Packed;

fn run_at(row: u32, k: u32) -> Run {
    return packed8(row, k);
}

fn tile_weight(run: Run, k: u32, eight: u32) -> Octet {
    return rounded(unpack8(run, k));
}
