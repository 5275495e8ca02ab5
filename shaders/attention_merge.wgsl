// Merges the splits of `attention_decode`: each split's output and sum are scaled from its own maximum to the common one.
struct Params {
    splits: u32,
    heads: u32,
    head_dim: u32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> partial: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<act>;

@compute @workgroup_size(64)
fn attention_merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x;
    let stride = params.head_dim + 2u;
    var top = partial[head * stride + params.head_dim];
    for (var i = 1u; i < params.splits; i++) {
        top = max(top, partial[(i * params.heads + head) * stride + params.head_dim]);
    }
    for (var d = lane; d < params.head_dim; d += 64u) {
        var sum = 0.0;
        var total = 0.0;
        for (var i = 0u; i < params.splits; i++) {
            let at = (i * params.heads + head) * stride;
            let fade = exp(partial[at + params.head_dim] - top);
            sum = fma(partial[at + d], fade, sum);
            total = fma(partial[at + params.head_dim + 1u], fade, total);
        }
        out[head * params.head_dim + d] = to_act(sum / total);
    }
}
