// x * weight^T for many rows, in tiles of TILE_M rows by TILE_N columns; a thread computes THREAD_TILE by THREAD_TILE sums, in squares of 4.
// Granule invariant: each output is one chain of fma over ascending k, up to the same padded width, whatever the tile: variants agree in every bit.
@group(0) @binding(0) var<storage, read> x: array<act4>;

override TILE_M: u32;
override TILE_N: u32;
override ROW_GROUPS: u32;    // TILE_M / THREAD_TILE
override COLUMN_GROUPS: u32; // TILE_N / THREAD_TILE
override X_TILE: u32;        // TILE_M * STEP / 4
override W_TILE: u32;        // TILE_N * STEP / 4
// THREAD_TILE (a multiple of 4) and STEP (elements of k in a tile; 8, 16 or 32) come from Rust.
const SQUARES: u32 = THREAD_TILE / 4u;
const STEP4: u32 = STEP / 4u;
const STEP8: u32 = STEP / 8u;

// vec4s along k, `[k / 4][row]`: neighbouring threads read neighbouring vec4s.
var<workgroup> x_tile: array<vec4<f32>, X_TILE>;
var<workgroup> w_tile: array<vec4<f32>, W_TILE>;

// Where a column lies in `w_tile`. Thread `t` computes pairs of columns, 2t and 2t + 1 first, and then those 2 * COLUMN_GROUPS further on, so that
// an epilogue sees whole pairs. Kept COLUMN_GROUPS apart, they let neighbouring threads read neighbouring vec4s.
fn slot(column: u32) -> u32 {
    let pair = column / 2u;
    return (pair / COLUMN_GROUPS * 2u + column % 2u) * COLUMN_GROUPS + pair % COLUMN_GROUPS;
}

// Adds four elements of k, in order, to a square of sums: `sums[row]` holds four columns, `x[row]` and `w[column]` four elements.
fn add4(sums: mat4x4<f32>, x: mat4x4<f32>, w: mat4x4<f32>) -> mat4x4<f32> {
    let v = transpose(w);
    return mat4x4<f32>(
        fma(vec4<f32>(x[0].w), v[3], fma(vec4<f32>(x[0].z), v[2], fma(vec4<f32>(x[0].y), v[1], fma(vec4<f32>(x[0].x), v[0], sums[0])))),
        fma(vec4<f32>(x[1].w), v[3], fma(vec4<f32>(x[1].z), v[2], fma(vec4<f32>(x[1].y), v[1], fma(vec4<f32>(x[1].x), v[0], sums[1])))),
        fma(vec4<f32>(x[2].w), v[3], fma(vec4<f32>(x[2].z), v[2], fma(vec4<f32>(x[2].y), v[1], fma(vec4<f32>(x[2].x), v[0], sums[2])))),
        fma(vec4<f32>(x[3].w), v[3], fma(vec4<f32>(x[3].z), v[2], fma(vec4<f32>(x[3].y), v[1], fma(vec4<f32>(x[3].x), v[0], sums[3])))),
    );
}

fn load_tiles(first_row: u32, first_column: u32, k: u32, lane: u32) {
    let threads = ROW_GROUPS * COLUMN_GROUPS;
    for (var i = lane; i < X_TILE; i += threads) {
        let row = min(first_row + i / STEP4, params.rows - 1u);
        // The padding's weights are 0: any element of the row will do for it.
        let k4 = min(k / 4u + i % STEP4, params.width4 - 1u);
        x_tile[i % STEP4 * TILE_M + i / STEP4] = vec4<f32>(x[params.x_start + row * params.width4 + k4]);
    }
    for (var i = lane; i < STEP8 * TILE_N; i += threads) {
        let w = weight8(min(first_column + i / STEP8, params.n - 1u), k + 8u * (i % STEP8));
        let at = i % STEP8 * (2u * TILE_N) + slot(i / STEP8);
        w_tile[at] = w[0];
        w_tile[at + TILE_N] = w[1];
    }
}

@compute @workgroup_size(COLUMN_GROUPS, ROW_GROUPS)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first_row = group.x * TILE_M;
    let first_column = group.y * TILE_N;
    var sums: array<mat4x4<f32>, SQUARES * SQUARES>;
    for (var i = 0u; i < SQUARES * SQUARES; i++) {
        sums[i] = mat4x4<f32>();
    }
    for (var k = 0u; k < 32u * params.blocks; k += STEP) {
        workgroupBarrier();
        load_tiles(first_row, first_column, k, lane);
        workgroupBarrier();
        for (var k4 = 0u; k4 < STEP4; k4++) {
            var w: array<mat4x4<f32>, SQUARES>;
            for (var j = 0u; j < SQUARES; j++) {
                let at = k4 * TILE_N + id.x + 4u * j * COLUMN_GROUPS;
                w[j] = mat4x4<f32>(
                    w_tile[at],
                    w_tile[at + COLUMN_GROUPS],
                    w_tile[at + 2u * COLUMN_GROUPS],
                    w_tile[at + 3u * COLUMN_GROUPS],
                );
            }
            for (var i = 0u; i < SQUARES; i++) {
                let at = k4 * TILE_M + THREAD_TILE * id.y + 4u * i;
                let rows = mat4x4<f32>(x_tile[at], x_tile[at + 1u], x_tile[at + 2u], x_tile[at + 3u]);
                for (var j = 0u; j < SQUARES; j++) {
                    sums[i * SQUARES + j] = add4(sums[i * SQUARES + j], rows, w[j]);
                }
            }
        }
    }
    for (var i = 0u; i < SQUARES; i++) {
        for (var j = 0u; j < SQUARES; j++) {
            let row = first_row + THREAD_TILE * id.y + 4u * i;
            let column = first_column + 2u * (id.x + 2u * j * COLUMN_GROUPS);
            store_row(row, column, sums[i * SQUARES + j][0]);
            store_row(row + 1u, column, sums[i * SQUARES + j][1]);
            store_row(row + 2u, column, sums[i * SQUARES + j][2]);
            store_row(row + 3u, column, sums[i * SQUARES + j][3]);
        }
    }
}

fn store_row(row: u32, column: u32, sums: vec4<f32>) {
    if row < params.rows {
        if column < params.n {
            finish(row, column, sums.xy);
        }
        if column + 2u * COLUMN_GROUPS < params.n {
            finish(row, column + 2u * COLUMN_GROUPS, sums.zw);
        }
    }
}
