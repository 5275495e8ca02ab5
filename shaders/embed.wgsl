// Row lookup: out[r] = table[ids[r]] * scale, one workgroup a row. A table in several parts takes a dispatch for each; rows of other parts are skipped.
struct Params {
    rows: u32,
    width4: u32,    // vec4s of a row of out
    blocks: u32,    // blocks of 32 elements of a table row
    first: u32,     // the part's first row in the table
    n: u32,         // rows of the part
    scale: f32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(AFTER_WEIGHT) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn embed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    // Below `first` the difference wraps past every `n`.
    let entry = ids[row] - params.first;
    if entry >= params.n {
        return;
    }
    for (var k4 = 2u * lane; k4 < params.width4; k4 += 128u) {
        let w = weight8(entry, 4u * k4);
        out[row * params.width4 + k4] = w[0] * params.scale;
        if k4 + 1u < params.width4 {
            out[row * params.width4 + k4 + 1u] = w[1] * params.scale;
        }
    }
}
