// RMSNorm of every query and key head in place, one workgroup a head of a row.
struct Params {
    count: u32,      // workgroups: rows * (heads + kv_heads)
    start4: u32,     // vec4 index of the first row of qkv
    per_row: u32,    // vec4s of a row of qkv
    heads: u32,
    kv_heads: u32,
    head4: u32,      // head_dim / 4
    inverse_width: f32,
    eps: f32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> q_weight: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k_weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> qkv: array<act4>;

const THREADS: u32 = 32u;
var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn head_norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group.y * groups.x + group.x;
    if index >= params.count {
        return;
    }
    let per_row = params.heads + params.kv_heads;
    let head = index % per_row;
    let start = params.start4 + index / per_row * params.per_row + head * params.head4;
    var squares = vec4<f32>(0.0);
    for (var i = lane; i < params.head4; i += THREADS) {
        let v = vec4<f32>(qkv[start + i]);
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
    for (var i = lane; i < params.head4; i += THREADS) {
        var weight = k_weight[i];
        if head < params.heads {
            weight = q_weight[i];
        }
        qkv[start + i] = to_act4(vec4<f32>(qkv[start + i]) * factor * weight);
    }
}
