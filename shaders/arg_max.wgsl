// Index of a row's largest element, the lowest among equals; one workgroup, EACH loads of a thread under way together (the loop over them is unrolled as
// text): one compute unit has to bring in all logits, and the more of them are under way, the sooner they are there.
struct Params {
    start: u32,
    width: u32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(THREADS)
fn arg_max(@builtin(local_invocation_index) lane: u32) {
    // A thread past the width starts from the last element, which is the candidate of another thread as well.
    var index = min(lane, params.width - 1u);
    var value = x[params.start + index];
    for (var first = lane; first < params.width; first += EACH * THREADS) {
        //% for i in EACH
        let at_$i = min(first + $iu * THREADS, params.width - 1u);
        let other_$i = x[params.start + at_$i];
        //% end
        //% for i in EACH
        if other_$i > value {
            value = other_$i;
            index = at_$i;
        }
        //% end
    }
    let top = top_of(value, index, lane);
    if lane == 0u {
        // Where no element is a number, none is the largest.
        out[0] = min(top, params.width - 1u);
    }
}
