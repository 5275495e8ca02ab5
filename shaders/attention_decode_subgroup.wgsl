// Attention of one row over a share of the keys, for subgroups of LANES: KEY_LANES lanes take a key together, each some of its elements, and go through
// every so manieth key with a maximum and sums of their own, so that the loop has no barrier; what they have is merged at the end. A workgroup takes
// HEADS query heads of one K/V head and one split.

// HEAD4 (vec4s of a head), HEADS, LANES, KEY_LANES, SUBGROUPS and KEYS come from Rust. Loops marked by `//%` are unrolled as text: loads of all KEYS and values of a step
// are under way together.
const THREADS: u32 = SUBGROUPS * LANES;
const TOGETHER: u32 = THREADS / KEY_LANES;
const STEP: u32 = KEYS * TOGETHER;
var<workgroup> sums: array<vec4<f32>, SUBGROUPS * HEADS * HEAD4>;
// Maximum and sum of probabilities.
var<workgroup> ends: array<vec2<f32>, SUBGROUPS * HEADS>;

// The sum of what the lanes of a key have.
fn of_key(part: f32) -> f32 {
    var sum = part;
    //% for s in KEY_STEPS
    sum += subgroupShuffleXor(sum, 1u << $su);
    //% end
    return sum;
}

@compute @workgroup_size(THREADS)
fn attention_decode(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    // The last workgroup of a group that HEADS does not divide repeats its last head.
    let tiles = (params.group + HEADS - 1u) / HEADS;
    let kv_head = group.y / tiles;
    let first = group.y % tiles * HEADS;
    let count = min(HEADS, params.group - first);
    let first_head = kv_head * params.group + first;
    let start = params.first + group.x * params.split;
    let end = min(start + params.split, params.keys);
    let share = (subgroup * LANES + lane) / KEY_LANES;
    //% for c in CHUNKS
    let column_$c = $cu * KEY_LANES + lane % KEY_LANES;
    let at_$c = min(column_$c, HEAD4 - 1u);
    //% end
    // The first step's loads are under way while the row is taken.
    var key = start;
    //% for i in KEYS
    // Keys past the end are computed and masked.
    var row_$i = cache_row(min(key + $iu * TOGETHER + share, end - 1u)) * params.kv_stride + kv_head * HEAD4;
    //% for c in CHUNKS
    var k_$i_$c = k[row_$i + at_$c];
    //% end
    //% end
    //% for i in KEYS
    //% for c in CHUNKS
    var v_$i_$c = v[row_$i + at_$c];
    //% end
    //% end
    take_row(index, kv_head, first_head, count, first == 0u && end == params.keys);
    //% for h in HEADS
    let head_$h = first_head + min($hu, count - 1u);
    var top_$h = LOWEST;
    var total_$h = 0.0;
    //% for c in CHUNKS
    let query_$h_$c = select(vec4<f32>(), query_of($hu, head_$h, at_$c), column_$c < HEAD4);
    var sum_$h_$c = vec4<f32>();
    //% end
    //% end
    //% for c in CHUNKS
    let own_key_$c = own_key(at_$c);
    let own_value_$c = own_value(at_$c);
    //% end
    loop {
        //% for i in KEYS
        let key_$i = key + $iu * TOGETHER + share;
        let seen_$i = min(key_$i, end - 1u);
        //% for c in CHUNKS
        let wide_k_$i_$c = select(unpack_kv(k_$i_$c), own_key_$c, is_own(seen_$i));
        let wide_v_$i_$c = select(unpack_kv(v_$i_$c), own_value_$c, is_own(seen_$i));
        //% end
        //% end
        //% for h in HEADS
        //% for i in KEYS
        var score_$h_$i = 0.0;
        //% for c in CHUNKS
        score_$h_$i += dot(query_$h_$c, wide_k_$i_$c);
        //% end
        score_$h_$i = of_key(score_$h_$i) * params.scale + key_bias(head_$h, seen_$i);
        if params.soft_cap > 0.0 {
            score_$h_$i = soft_bound(vec4<f32>(score_$h_$i), params.soft_cap).x;
        }
        score_$h_$i = select(LOWEST, score_$h_$i, key_$i < end);
        //% end
        //% end
        //% for h in HEADS
        let before_$h = top_$h;
        //% for i in KEYS
        top_$h = max(top_$h, score_$h_$i);
        //% end
        let fade_$h = exp(before_$h - top_$h);
        total_$h *= fade_$h;
        //% for c in CHUNKS
        sum_$h_$c *= fade_$h;
        //% end
        //% for i in KEYS
        let p_$h_$i = select(0.0, exp(score_$h_$i - top_$h), key_$i < end);
        total_$h += p_$h_$i;
        //% for c in CHUNKS
        sum_$h_$c = fma(vec4<f32>(p_$h_$i), wide_v_$i_$c, sum_$h_$c);
        //% end
        //% end
        //% end
        key += STEP;
        if key >= end {
            break;
        }
        //% for i in KEYS
        row_$i = cache_row(min(key + $iu * TOGETHER + share, end - 1u)) * params.kv_stride + kv_head * HEAD4;
        //% for c in CHUNKS
        k_$i_$c = k[row_$i + at_$c];
        //% end
        //% end
        //% for i in KEYS
        //% for c in CHUNKS
        v_$i_$c = v[row_$i + at_$c];
        //% end
        //% end
    }
    //% for h in HEADS
    var highest_$h = top_$h;
    //% for s in REST_STEPS
    highest_$h = max(highest_$h, subgroupShuffleXor(highest_$h, KEY_LANES << $su));
    //% end
    let last_fade_$h = exp(top_$h - highest_$h);
    total_$h *= last_fade_$h;
    //% for s in REST_STEPS
    total_$h += subgroupShuffleXor(total_$h, KEY_LANES << $su);
    //% end
    if lane == 0u {
        ends[subgroup * HEADS + $hu] = vec2<f32>(highest_$h, total_$h);
    }
    //% for c in CHUNKS
    sum_$h_$c *= last_fade_$h;
    //% for s in REST_STEPS
    sum_$h_$c += subgroupShuffleXor(sum_$h_$c, KEY_LANES << $su);
    //% end
    if lane == column_$c % KEY_LANES && column_$c < HEAD4 {
        sums[(subgroup * HEADS + $hu) * HEAD4 + column_$c] = sum_$h_$c;
    }
    //% end
    //% end
    workgroupBarrier();
    for (var i = index; i < count * HEAD4; i += THREADS) {
        let h = i / HEAD4;
        //% for s in SUBGROUPS
        let end_$s = ends[$su * HEADS + h];
        //% end
        var highest = LOWEST;
        //% for s in SUBGROUPS
        highest = max(highest, end_$s.x);
        //% end
        var sum = vec4<f32>();
        var total = 0.0;
        //% for s in SUBGROUPS
        let scale_$s = exp(end_$s.x - highest);
        total = fma(end_$s.y, scale_$s, total);
        sum = fma(sums[($su * HEADS + h) * HEAD4 + i % HEAD4], vec4<f32>(scale_$s), sum);
        //% end
        leave(group.x, first_head + h, i % HEAD4, sum, highest, total);
    }
}
