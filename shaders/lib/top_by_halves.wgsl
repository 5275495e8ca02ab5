// The index of the largest value of a workgroup, the lowest among equals: halves of the threads against each other. THREADS is a power of two.
var<workgroup> values: array<f32, THREADS>;
var<workgroup> indices: array<u32, THREADS>;

// Thread 0 has it.
fn top_of(value: f32, index: u32, lane: u32) -> u32 {
    values[lane] = value;
    indices[lane] = index;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            let other = values[lane + half];
            let at = indices[lane + half];
            if other > values[lane] || (other == values[lane] && at < indices[lane]) {
                values[lane] = other;
                indices[lane] = at;
            }
        }
    }
    return indices[0];
}
