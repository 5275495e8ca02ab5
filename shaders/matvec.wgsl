// x * weight^T for one row: a workgroup computes COLUMNS columns, its threads share the blocks of the width.
@group(0) @binding(1) var<storage, read> x: array<act4>;

override THREADS: u32; // a power of two
// COLUMNS (a multiple of 4) comes from Rust.
const QUADS: u32 = COLUMNS / 4u;
var<workgroup> partial: array<vec4<f32>, THREADS * QUADS>;

@compute @workgroup_size(THREADS)
fn matvec(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = COLUMNS * (group.y * groups.x + group.x);
    if column >= params.n {
        return;
    }
    var sums: array<f32, COLUMNS>;
    for (var i = 0u; i < COLUMNS; i++) {
        sums[i] = 0.0;
    }
    for (var block = lane; block < params.blocks; block += THREADS) {
        // The padding's weights are 0: any element of x will do for it.
        var v: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            v[i] = vec4<f32>(x[params.x_start + min(8u * block + i, params.width4 - 1u)]);
        }
        for (var i = 0u; i < COLUMNS; i++) {
            let w = weight32(min(column + i, params.n - 1u), block);
            let low = dot(w[0][0], v[0]) + dot(w[0][1], v[1]) + dot(w[1][0], v[2]) + dot(w[1][1], v[3]);
            let high = dot(w[2][0], v[4]) + dot(w[2][1], v[5]) + dot(w[3][0], v[6]) + dot(w[3][1], v[7]);
            sums[i] += low + high;
        }
    }
    for (var i = 0u; i < QUADS; i++) {
        partial[i * THREADS + lane] = vec4<f32>(sums[4u * i], sums[4u * i + 1u], sums[4u * i + 2u], sums[4u * i + 3u]);
    }
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            for (var i = 0u; i < QUADS; i++) {
                partial[i * THREADS + lane] += partial[i * THREADS + lane + half];
            }
        }
    }
    workgroupBarrier();
    for (var i = lane; i < QUADS; i += THREADS) {
        let at = column + 4u * i;
        if at < params.n {
            finish(0u, at, partial[i * THREADS].xy);
        }
        if at + 2u < params.n {
            finish(0u, at + 2u, partial[i * THREADS].zw);
        }
    }
}
