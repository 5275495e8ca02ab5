// RMSNorm or LayerNorm, one workgroup a row. The order of the sums depends on the width alone.
// LAYER (LayerNorm) and ADD (out += norm, the residual stream) come from Rust.
struct Params {
    rows: u32,
    start: u32,     // vec4 index of the first row
    width4: u32,    // vec4s of a row
    inverse_width: f32,
    eps: f32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<act4>;

override THREADS: u32;
var<workgroup> sums: array<f32, THREADS>;

// The sum over all threads and elements.
fn all_lanes(lane: u32, v: vec4<f32>) -> f32 {
    workgroupBarrier();
    sums[lane] = (v.x + v.y) + (v.z + v.w);
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    workgroupBarrier();
    return sums[0];
}

@compute @workgroup_size(THREADS)
fn norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let start = params.start + row * params.width4;
    var mean = 0.0;
    if LAYER {
        var sum = vec4<f32>(0.0);
        for (var i = lane; i < params.width4; i += THREADS) {
            sum += x[start + i];
        }
        mean = all_lanes(lane, sum) * params.inverse_width;
    }
    var squares = vec4<f32>(0.0);
    for (var i = lane; i < params.width4; i += THREADS) {
        let v = x[start + i] - mean;
        squares = fma(v, v, squares);
    }
    let factor = 1.0 / sqrt(fma(all_lanes(lane, squares), params.inverse_width, params.eps));
    for (var i = lane; i < params.width4; i += THREADS) {
        let v = (x[start + i] - mean) * factor * weight[i] + bias_at(i);
        if ADD {
            out[start + i] = to_act4(vec4<f32>(out[start + i]) + v);
        } else {
            out[start + i] = to_act4(v);
        }
    }
}
