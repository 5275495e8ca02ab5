// Sums that are not added to anything.
fn standing(column: u32) -> f32 {
    return 0.0;
}
