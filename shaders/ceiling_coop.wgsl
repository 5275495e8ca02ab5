// Nothing but products of matrices in registers: what a device's matrix units compute at most. The sums are kept apart, so that none waits for another.
struct Params {
    iterations: u32,
    factor: f32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;

const SUBGROUPS: u32 = THREADS / LANES;
var<workgroup> tile: array<vec4<f16>, 64>;
var<workgroup> sums: array<vec4<f32>, 64u * SUBGROUPS>;

@compute @workgroup_size(THREADS)
fn ceiling(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) own: u32,
) {
    if lane < 64u {
        tile[lane] = vec4<f16>(f16(params.factor * f32(lane)));
    }
    workgroupBarrier();
    let stride = 4u;
    let a = coopLoadT<coop_mat16x16<f16, A>>(&tile[0], stride);
    let b = coopLoad<coop_mat16x16<f16, B>>(&tile[0], stride);
    //% for s in SUMS
    var sum_$s: coop_mat16x16<f32, C>;
    //% end
    for (var i = 0u; i < params.iterations; i++) {
        //% for s in SUMS
        sum_$s = coopMultiplyAdd(a, b, sum_$s);
        //% end
    }
    var total: coop_mat16x16<f32, C>;
    //% for s in SUMS
    total = total + sum_$s;
    //% end
    let at = 64u * subgroup;
    coopStoreT(total, &sums[at], stride);
    workgroupBarrier();
    out[group.x * THREADS + lane] = sums[at + own] + sums[at + own + LANES];
}
