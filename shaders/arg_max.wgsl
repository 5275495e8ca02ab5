// Index of a row's largest element, the lowest among equals; one workgroup, EACH loads of a thread under way together (the loop over them is unrolled as
// text). On an H200 128,256 elements take 17 us so, 27 one load at a time.
struct Params {
    start: u32,
    width: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

override THREADS: u32; // a power of two
var<workgroup> values: array<f32, THREADS>;
var<workgroup> indices: array<u32, THREADS>;

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
    if lane == 0u {
        out[0] = indices[0];
    }
}
