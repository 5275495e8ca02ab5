// Nothing but multiply-adds in registers: what a device computes at most without matrix units. The sums are kept apart, so that none waits for another.
struct Params {
    iterations: u32,
    factor: f32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(THREADS)
fn ceiling(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let factor = vec4<f32>(params.factor);
    let start = vec4<f32>(f32(lane));
    //% for s in SUMS
    var sum_$s = start + $s.0;
    //% end
    for (var i = 0u; i < params.iterations; i++) {
        //% for s in SUMS
        sum_$s = fma(sum_$s, factor, start);
        //% end
    }
    var total = vec4<f32>();
    //% for s in SUMS
    total += sum_$s;
    //% end
    out[group.x * THREADS + lane] = total;
}
