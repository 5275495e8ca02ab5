// The index of the largest value of a workgroup, the lowest among equals: within subgroups of LANES, then among those.
const SUBGROUPS: u32 = THREADS / LANES;
var<workgroup> values: array<f32, SUBGROUPS>;
var<workgroup> indices: array<u32, SUBGROUPS>;

// Every thread has it.
fn top_of(value: f32, index: u32, lane: u32) -> u32 {
    let highest = subgroupMax(value);
    let lowest = subgroupMin(select(0xffffffffu, index, value == highest));
    if lane % LANES == 0u {
        values[lane / LANES] = highest;
        indices[lane / LANES] = lowest;
    }
    workgroupBarrier();
    var top = values[0];
    var at = indices[0];
    for (var i = 1u; i < SUBGROUPS; i++) {
        if values[i] > top || (values[i] == top && indices[i] < at) {
            top = values[i];
            at = indices[i];
        }
    }
    return at;
}
