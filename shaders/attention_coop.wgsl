// Causal attention of many rows on matrix units, online softmax in f32 (Milakov and Gimelshein 2018; Dao et al. 2022): a workgroup takes one
// query head and ROWS rows, 16 * BLOCKS of them a subgroup, and walks over the keys in tiles of KEYS, anchored at key 0.
// Granule invariant: a row's bits depend on its position and the cache alone. Tiles past a row's position are computed for the sake of its
// neighbours and change nothing: its reference stays, its sums are multiplied by exactly 1, and masked probabilities are exactly 0.
// Matrices cannot be scaled by row, so sums go through workgroup memory for that. To make it rare, a row's reference is not its maximum: it
// follows only once the maximum has passed it by SLACK, which leaves probabilities of up to 2^SLACK, well inside f16.
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> qkv: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<u32>>;
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<vec4<f16>>;

// HEAD, KEYS, BLOCKS, SUBGROUPS, LANES, SHORT and IS_PLAIN (no window, bound or bias of scores) come from Rust, and so do the counts of the loops marked by `//%`, which are unrolled as text.
const ROWS: u32 = SUBGROUPS * BLOCKS * 16u;
const THREADS: u32 = SUBGROUPS * LANES;
const HEAD4: u32 = HEAD / 4u;
const HEAD8: u32 = HEAD / 8u;
const IS_EVEN: bool = KEYS * HEAD8 % THREADS == 0u;
// vec4s from one row to the next: eight rows of a matrix load lie in eight different groups of four banks.
const STRIDE: u32 = HEAD4 + 2u;
const V_TILE: u32 = KEYS * STRIDE;
const SCORE_STRIDE: u32 = KEYS / 4u + 1u;
const P_STRIDE: u32 = KEYS / 4u + 2u;
// Lanes that share a row of a subgroup's scores, and the vec4s that each of them takes.
const SHARERS: u32 = LANES / 16u;
const OWN: u32 = KEYS / 4u / SHARERS;
const OWN_OUT: u32 = 4u / SHARERS;

// K, then V; before the first of them, queries.
var<workgroup> tile: array<vec4<f16>, 2u * V_TILE>;
var<workgroup> scores: array<vec4<f32>, SUBGROUPS * BLOCKS * 16u * SCORE_STRIDE>;
var<workgroup> probabilities: array<vec4<f16>, SUBGROUPS * BLOCKS * 16u * P_STRIDE>;
// Whether a subgroup has sums to scale.
var<workgroup> moved: array<u32, SUBGROUPS>;

// Below every score, yet finite: infinities may be assumed away by a shader compiler.
const LOWEST: f32 = -3.0e38;
const SLACK: f32 = 11.0;
const LOG2_E: f32 = 1.44269504;

@compute @workgroup_size(THREADS)
fn attention(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) own: u32,
) {
    // The last rows have the most keys: they start first, those of all heads where the tiles are few, so that the last ones to run are short.
    let index = group.y * groups.x + group.x;
    let is_short = groups.x <= SHORT;
    let head = params.first_head + select(group.y, index % groups.y, is_short);
    let first = (groups.x - 1u - select(group.x, index / groups.y, is_short)) * ROWS;
    let last = max(params.position + min(first + ROWS, params.rows), params.dense_keys) - 1u;
    let kv_head = head / params.group * HEAD8;
    let kv_stride = params.kv_stride / 2u;
    // Tiles that the window has passed for every row here would change nothing.
    var start = 0u;
    var ring = 0u;
    if !IS_PLAIN {
        let seen_first = params.position + first + 1u;
        start = (seen_first - min(seen_first, params.window)) / KEYS * KEYS;
        ring = ring_start(start);
    }
    let scale = params.scale * LOG2_E;
    let r = own % 16u;
    let sharer = own / 16u;

    let score_stride = SCORE_STRIDE;
    if lane < SUBGROUPS {
        moved[lane] = 0u;
    }

    //% for b in BLOCKS
    workgroupBarrier();
    for (var at = lane; at < SUBGROUPS * 16u * HEAD8; at += THREADS) {
        let local = at / HEAD8;
        let row = min(first + (local / 16u * BLOCKS + $bu) * 16u + local % 16u, params.rows - 1u);
        let q = octet(qkv[(params.q_start + row * params.q_stride) / 2u + head * HEAD8 + at % HEAD8]);
        let to = local * STRIDE + 2u * (at % HEAD8);
        tile[to] = q.low;
        tile[to + 1u] = q.high;
    }
    workgroupBarrier();
    //% for d in HEAD_BLOCKS
    let q_$b_$d = coopLoadT<coop_mat16x16<f16, A>>(&tile[subgroup * 16u * STRIDE + 4u * $du], STRIDE);
    //% end
    //% end

    //% for b in BLOCKS
    let position_$b = params.position + min(first + (subgroup * BLOCKS + $bu) * 16u + r, params.rows - 1u);
    // This subgroup's scores and probabilities, and this lane's share of a row of them.
    let scores_$b = (subgroup * BLOCKS + $bu) * 16u * SCORE_STRIDE;
    let own_scores_$b = scores_$b + r * SCORE_STRIDE + sharer * OWN;
    let p_$b = (subgroup * BLOCKS + $bu) * 16u * P_STRIDE;
    let own_p_$b = p_$b + r * P_STRIDE + sharer * OWN;
    var top_$b = LOWEST;
    var total_$b = 0.0;
    var fade_$b = 1.0;
    //% for d in HEAD_BLOCKS
    var sum_$b_$d: coop_mat16x16<f32, C>;
    //% end
    //% end
    //% for i in LOADS
    let key_$i = (lane + $iu * THREADS) / HEAD8;
    let at_$i = (lane + $iu * THREADS) % HEAD8;
    var k_$i = k[(min(start + key_$i, last) - ring) * kv_stride + kv_head + at_$i];
    var v_$i = v[(min(start + key_$i, last) - ring) * kv_stride + kv_head + at_$i];
    //% end
    for (var key = start; key <= last; key += KEYS) {
        workgroupBarrier();
        //% for i in LOADS
        if IS_EVEN || key_$i < KEYS {
            let to = key_$i * STRIDE + 2u * at_$i;
            tile[to] = octet(k_$i).low;
            tile[to + 1u] = octet(k_$i).high;
            tile[V_TILE + to] = octet(v_$i).low;
            tile[V_TILE + to + 1u] = octet(v_$i).high;
        }
        //% end
        workgroupBarrier();
        if !IS_PLAIN {
            ring = ring_start(min(key + KEYS, last));
        }
        //% for i in LOADS
        k_$i = k[(min(key + KEYS + key_$i, last) - ring) * kv_stride + kv_head + at_$i];
        v_$i = v[(min(key + KEYS + key_$i, last) - ring) * kv_stride + kv_head + at_$i];
        //% end

        //% for b in BLOCKS
        //% for j in KEY_BLOCKS
        var product_$b_$j = coop_mat16x16<f32, C>();
        //% end
        //% end
        //% for d in HEAD_BLOCKS
        //% for j in KEY_BLOCKS
        let kt_$d_$j = coopLoad<coop_mat16x16<f16, B>>(&tile[16u * $ju * STRIDE + 4u * $du], STRIDE);
        //% for b in BLOCKS
        product_$b_$j = coopMultiplyAdd(q_$b_$d, kt_$d_$j, product_$b_$j);
        //% end
        //% end
        //% end
        //% for b in BLOCKS
        //% for j in KEY_BLOCKS
        let to_$b_$j = scores_$b + 4u * $ju;
        coopStoreT(product_$b_$j, &scores[to_$b_$j], score_stride);
        //% end
        //% end
        workgroupBarrier();

        var rises = false;
        //% for b in BLOCKS
        {
            //% for o in OWN
            let key_of_$o = key + 4u * (sharer * OWN + $ou) + vec4<u32>(0u, 1u, 2u, 3u);
            var seen_$o = key_of_$o <= vec4<u32>(position_$b);
            var s_$o = scores[own_scores_$b + $ou] * scale;
            if !IS_PLAIN {
                // Keys after the row wrap past every window.
                seen_$o = vec4<u32>(position_$b) - key_of_$o < vec4<u32>(min(params.window, position_$b + 1u));
                s_$o = rescore(scores[own_scores_$b + $ou], head, key_of_$o, last);
            }
            s_$o = select(vec4<f32>(LOWEST), s_$o, seen_$o);
            //% end
            var highest = s_0;
            //% for o in OWN
            highest = max(highest, s_$o);
            //% end
            var peak = max(max(highest.x, highest.y), max(highest.z, highest.w));
            for (var step = 16u; step < LANES; step *= 2u) {
                peak = max(peak, subgroupShuffleXor(peak, step));
            }
            let before = top_$b;
            top_$b = select(before, peak, peak > before + SLACK);
            // Exactly 1 where the reference stays, however a driver approximates exp2(0).
            fade_$b = select(exp2(before - top_$b), 1.0, before == top_$b);
            rises = rises || before != top_$b;
            var sum = vec4<f32>(0.0);
            //% for o in OWN
            let p_$o = vec4<f16>(select(vec4<f32>(0.0), exp2(s_$o - top_$b), seen_$o));
            sum += vec4<f32>(p_$o);
            probabilities[own_p_$b + $ou] = p_$o;
            //% end
            total_$b = fma(total_$b, fade_$b, (sum.x + sum.y) + (sum.z + sum.w));
        }
        //% end
        let any_rises = subgroupAny(rises);
        if own == 0u {
            // Before the first tile the sums are 0.
            moved[subgroup] = u32(any_rises && key > start);
        }
        workgroupBarrier();
        if (0u
            //% for g in SUBGROUPS
            | moved[$gu]
            //% end
        ) != 0u {
            //% for b in BLOCKS
            //% for d in HEAD_BLOCKS
            coopStoreT(sum_$b_$d, &scores[scores_$b], score_stride);
            workgroupBarrier();
            for (var i = 0u; i < OWN_OUT; i++) {
                scores[scores_$b + r * SCORE_STRIDE + sharer * OWN_OUT + i] *= fade_$b;
            }
            workgroupBarrier();
            sum_$b_$d = coopLoadT<coop_mat16x16<f32, C>>(&scores[scores_$b], SCORE_STRIDE);
            workgroupBarrier();
            //% end
            //% end
        }
        //% for j in KEY_BLOCKS
        //% for b in BLOCKS
        let pt_$j_$b = coopLoadT<coop_mat16x16<f16, A>>(&probabilities[p_$b + 4u * $ju], P_STRIDE);
        //% end
        //% for d in HEAD_BLOCKS
        let vt_$j_$d = coopLoadT<coop_mat16x16<f16, B>>(&tile[V_TILE + 16u * $ju * STRIDE + 4u * $du], STRIDE);
        //% for b in BLOCKS
        sum_$b_$d = coopMultiplyAdd(pt_$j_$b, vt_$j_$d, sum_$b_$d);
        //% end
        //% end
        //% end
    }

    //% for b in BLOCKS
    for (var step = 16u; step < LANES; step *= 2u) {
        total_$b += subgroupShuffleXor(total_$b, step);
    }
    //% for d in HEAD_BLOCKS
    workgroupBarrier();
    coopStoreT(sum_$b_$d, &scores[scores_$b], score_stride);
    workgroupBarrier();
    store(first + (subgroup * BLOCKS + $bu) * 16u + r, head * HEAD4 + 4u * $du + sharer * OWN_OUT, scores_$b + r * SCORE_STRIDE + sharer * OWN_OUT, total_$b);
    //% end
    //% end
}

// Scores in powers of 2, after scale, bias and bound.
fn rescore(score: vec4<f32>, head: u32, key: vec4<u32>, last: u32) -> vec4<f32> {
    let at = min(key, vec4<u32>(last));
    let bias = vec4<f32>(key_bias(head, at.x), key_bias(head, at.y), key_bias(head, at.z), key_bias(head, at.w));
    var s = fma(score, vec4<f32>(params.scale), bias);
    if params.soft_cap > 0.0 {
        s = soft_bound(s, params.soft_cap);
    }
    return s * LOG2_E;
}

// Divides a lane's share of a row of sums by the row's total.
fn store(row: u32, at: u32, sums: u32, total: f32) {
    if row < params.rows {
        for (var i = 0u; i < OWN_OUT; i++) {
            let value = scores[sums + i] / total;
            out[params.out_start + row * params.out_stride + at + i] = vec4<f16>(clamp(value, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
        }
    }
}
