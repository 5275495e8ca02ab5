// Nothing but loads: what a device reads at most. Eight of a thread are under way together; the loop over them is unrolled as text.
struct Params {
    count: u32, // vec4s to read
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<u32>>;

@compute @workgroup_size(THREADS)
fn ceiling(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let thread = group.x * THREADS + lane;
    let step = groups.x * THREADS;
    // Whatever is read counts, or nothing would be.
    var mixed = vec4<u32>();
    for (var first = thread; first < params.count; first += LOADS * step) {
        //% for i in LOADS
        let v_$i = x[min(first + $iu * step, params.count - 1u)];
        //% end
        //% for i in LOADS
        mixed ^= v_$i;
        //% end
    }
    out[thread] = mixed;
}
