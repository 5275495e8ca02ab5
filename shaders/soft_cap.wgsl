// Bounds elements in place: x = cap * tanh(x / cap).
struct Params {
    count: u32,
    cap: f32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn soft_cap(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + lane;
    if index < params.count {
        x[index] = soft_bound(vec4<f32>(x[index]), params.cap).x;
    }
}
