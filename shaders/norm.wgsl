// RMSNorm, one workgroup a row: out = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019). The order of the sum depends on the width alone.
struct Params {
    rows: u32,
    start: u32,     // vec4 index of the first row
    width4: u32,    // vec4s of a row
    inverse_width: f32,
    eps: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

override THREADS: u32;
var<workgroup> sums: array<f32, THREADS>;

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
    var squares = vec4<f32>(0.0);
    for (var i = lane; i < params.width4; i += THREADS) {
        let v = x[start + i];
        squares = fma(v, v, squares);
    }
    sums[lane] = (squares.x + squares.y) + (squares.z + squares.w);
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    workgroupBarrier();
    let factor = 1.0 / sqrt(fma(sums[0], params.inverse_width, params.eps));
    for (var i = lane; i < params.width4; i += THREADS) {
        out[start + i] = x[start + i] * factor * weight[i];
    }
}
