// x * weight^T for many rows on matrix units, in tiles of TM rows by TN columns; each subgroup computes WM by WN of them in 16x16 matrices.
// Granule invariant: each output is one accumulator over ascending k in steps of 16, whatever the tile: variants agree in every bit.
// TM, TN, TK, WM, WN, SUBGROUPS, LANES, DEPTH, RUN (elements of a weight row that a thread unpacks at a time) and STAGED (matrices side by side that a
// subgroup stores at a time) come from Rust, and so do the counts of the loops marked by `//%`, which are unrolled as text: a matrix in an array that a loop
// indexes lives in memory, at a fifth of the speed.
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;

const K4: u32 = TK / 4u;
const K8: u32 = TK / 8u;
const RUNS: u32 = TK / RUN;
// vec4s from one row of a tile to the next: 80 bytes for TK = 32, so that the eight rows which a matrix load reads at a time lie in eight
// different groups of four banks.
const STRIDE: u32 = K4 + 2u;
const X_TILE: u32 = TM * STRIDE;
const W_TILE: u32 = TN * STRIDE;
const THREADS: u32 = SUBGROUPS * LANES;
// vec4s from one row of the store's staging area to the next.
const STAGE: u32 = 4u * STAGED + 1u;
// Row tiles that follow one another before the next column tile: what runs at one time shares both operands in the cache.
const BAND: u32 = 16u;

var<workgroup> x_tile: array<vec4<f16>, X_TILE>;
var<workgroup> w_tile: array<vec4<f16>, W_TILE>;
var<workgroup> stage: array<vec4<f32>, SUBGROUPS * 16u * STAGE>;

@compute @workgroup_size(THREADS)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) own: u32,
) {
    let index = group.y * groups.x + group.x;
    let band = index / (BAND * groups.y);
    let in_band = index - band * BAND * groups.y;
    let band_rows = min(BAND, groups.x - band * BAND);
    let first_row = (band * BAND + in_band % band_rows) * TM;
    let first_column = in_band / band_rows * TN;
    let m = subgroup / (TN / WN) * WM;
    let n = subgroup % (TN / WN) * WN;
    let own_k = RUN * (lane % RUNS);
    let x_start = params.x_start / 2u + lane % K8;
    let x_stride = params.width4 / 2u;
    let stage_stride = STAGE;
    let last_row = params.rows - 1u;
    let last_column = params.n - 1u;

    //% for i in M_BLOCKS
    //% for p in N_PARTS
    //% for q in STAGED
    var sum_$i_$p_$q: coop_mat16x16<f32, C>;
    //% end
    //% end
    //% end
    let width = 32u * params.blocks;
    //% for i in X_LOADS
    let x_at_$i = x_start + min(first_row + lane / K8 + $iu * (THREADS / K8), last_row) * x_stride;
    //% end
    //% for i in W_LOADS
    let w_row_$i = min(first_column + lane / RUNS + $iu * (THREADS / RUNS), last_column);
    //% end
    // Loads run DEPTH steps ahead. All workgroups reach a step at about the same time, so that each of its lines comes from memory, not from the
    // cache: one step of products is too short to wait for that.
    //% for d in DEPTH
    let first_$d = min($du * TK, width - TK);
    //% for i in X_LOADS
    var x_$d_$i = x[x_at_$i + first_$d / 8u];
    //% end
    //% for i in W_LOADS
    var w_$d_$i = run_at(w_row_$i, first_$d + own_k);
    //% end
    //% end
    let x_to = lane / K8 * STRIDE + 2u * (lane % K8);
    let w_to = lane / RUNS * STRIDE + RUN / 4u * (lane % RUNS);
    for (var k = 0u; k < width; k += TK * DEPTH) {
        //% for d in DEPTH
        // Where steps come out even, packed weights take loops without exits (Q8_0 222 to 249 TFLOP/s, 4096 x 22016 x 4096 on an H200) and F16 takes those
        // with them (250 to 275): what is in between decides how the driver orders the loads.
        //% for _ in EXITS
        if $du > 0u && k + $du * TK >= width {
            break;
        }
        //% end
        workgroupBarrier();
        //% for i in X_LOADS
        x_tile[x_to + $iu * (THREADS / K8 * STRIDE)] = octet(x_$d_$i).low;
        x_tile[x_to + $iu * (THREADS / K8 * STRIDE) + 1u] = octet(x_$d_$i).high;
        //% end
        // Weights are unpacked here, not where they are loaded: there the thread would wait for them.
        let at_$d = min(k + $du * TK, width - TK) + own_k;
        //% for i in W_LOADS
        //% for e in EIGHTS
        let unpacked_$d_$i_$e = tile_weight(w_$d_$i, at_$d, $eu);
        w_tile[w_to + $iu * (THREADS / RUNS * STRIDE) + 2u * $eu] = unpacked_$d_$i_$e.low;
        w_tile[w_to + $iu * (THREADS / RUNS * STRIDE) + 2u * $eu + 1u] = unpacked_$d_$i_$e.high;
        //% end
        //% end
        workgroupBarrier();
        // Past the end, the last ones again: a branch would keep the loads from overlapping with the products.
        let next_$d = min(k + (DEPTH + $du) * TK, width - TK);
        //% for i in X_LOADS
        x_$d_$i = x[x_at_$i + next_$d / 8u];
        //% end
        //% for i in W_LOADS
        w_$d_$i = run_at(w_row_$i, next_$d + own_k);
        //% end
        //% for s in STEPS
        //% for i in M_BLOCKS
        let a_$d_$s_$i = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[(m + 16u * $iu) * STRIDE + 4u * $su], STRIDE);
        //% end
        //% for p in N_PARTS
        //% for q in STAGED
        let b_$d_$s_$p_$q = coopLoad<coop_mat16x16<f16, B>>(&w_tile[(n + 16u * ($pu * STAGED + $qu)) * STRIDE + 4u * $su], STRIDE);
        //% for i in M_BLOCKS
        sum_$i_$p_$q = coopMultiplyAdd(a_$d_$s_$i, b_$d_$s_$p_$q, sum_$i_$p_$q);
        //% end
        //% end
        //% end
        //% end
        //% end
    }
    // What the epilogue adds to is read before the first matrix is staged: behind each it would be waited for, 11 % of a product of 4096 x 4096 x 4096.
    let stage_row = own / (4u * STAGED);
    let stage_column = own % (4u * STAGED);
    //% for i in M_BLOCKS
    //% for p in N_PARTS
    let column_$i_$p = first_column + n + 16u * $pu * STAGED + 4u * stage_column;
    //% for t in STORES
    let row_$i_$p_$t = first_row + m + 16u * $iu + stage_row + $tu * (LANES / (4u * STAGED));
    var before_$i_$p_$t = vec4<f32>();
    if row_$i_$p_$t < params.rows && column_$i_$p < params.n {
        before_$i_$p_$t = before4(row_$i_$p_$t, column_$i_$p);
    }
    //% end
    //% end
    //% end
    let base = subgroup * 16u * STAGE;
    let staged = base + stage_row * STAGE + stage_column;
    //% for i in M_BLOCKS
    //% for p in N_PARTS
    workgroupBarrier();
    //% for q in STAGED
    let to_$i_$p_$q = base + 4u * $qu;
    coopStoreT(sum_$i_$p_$q, &stage[to_$i_$p_$q], stage_stride);
    //% end
    workgroupBarrier();
    //% for t in STORES
    if row_$i_$p_$t < params.rows && column_$i_$p < params.n {
        finish4(row_$i_$p_$t, column_$i_$p, stage[staged + $tu * (LANES / (4u * STAGED) * STAGE)], before_$i_$p_$t);
    }
    //% end
    //% end
    //% end
}
