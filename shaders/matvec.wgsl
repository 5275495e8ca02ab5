// x * weight^T for one row: a workgroup computes COLUMNS columns, its threads share the width, 32 elements at a time.
@group(0) @binding(0) var<storage, read> x: array<act8>;

// From Rust: THREADS, a power of two; QUADS, a quarter of the columns; and SPREAD: the 32 elements of a thread are four times eight, with those of the
// other threads between them, so that each load of the workgroup is one run of memory; otherwise they are a block with its scales. Loops marked by
// `//%` are unrolled as text, since an array that a loop indexes lives in memory.
const COLUMNS: u32 = 4u * QUADS;
// Sums of squares that are kept.
const KEPT: u32 = THREADS;
var<workgroup> partial: array<vec4<f32>, THREADS * QUADS>;

// Eight elements of x, 0 past its end. `x` holds whole tiles of rows, so that reading a few more is no harm.
fn x8(eight: u32) -> mat2x4<f32> {
    let left = vec2<bool>(2u * eight < params.width4, 2u * eight + 1u < params.width4);
    let v = wide(x[params.x_start / 2u + min(eight, params.width4 / 2u)]);
    return mat2x4<f32>(select(vec4<f32>(), v[0], left.x), select(vec4<f32>(), v[1], left.y));
}

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
    //% for q in QUADS
    //% for i in FOUR
    var sum_$q_$i = 0.0;
    let row_$q_$i = min(column + 4u * $qu + $iu, params.n - 1u);
    //% end
    //% end
    var square = 0.0;
    let step = select(1u, THREADS, SPREAD);
    for (var first = lane * select(4u, 1u, SPREAD); first < 4u * params.blocks; first += 4u * THREADS) {
        let raw = array<mat2x4<f32>, 4>(x8(first), x8(first + step), x8(first + 2u * step), x8(first + 3u * step));
        square += (squares8(raw[0]) + squares8(raw[1])) + (squares8(raw[2]) + squares8(raw[3]));
        let v = array<mat2x4<f32>, 4>(
            input8(raw[0], first),
            input8(raw[1], first + step),
            input8(raw[2], first + 2u * step),
            input8(raw[3], first + 3u * step),
        );
        // What minima, and numbers added to codes, are multiplied by.
        let total = vec2<f32>(total16(v[0], v[1]), total16(v[2], v[3]));
        //% for q in QUADS
        //% for i in FOUR
        sum_$q_$i += dot32(row_$q_$i, first, step, v, total);
        //% end
        //% end
    }
    //% for i in QUADS
    partial[$iu * THREADS + lane] = vec4<f32>(sum_$i_0, sum_$i_1, sum_$i_2, sum_$i_3);
    //% end
    keep_squares(lane, square);
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            add_squares(lane, lane + half);
            for (var i = 0u; i < QUADS; i++) {
                partial[i * THREADS + lane] += partial[i * THREADS + lane + half];
            }
        }
    }
    workgroupBarrier();
    let factor = input_factor(kept_squares(0u));
    for (var i = lane; i < QUADS; i += THREADS) {
        let at = column + 4u * i;
        let sums = factor * partial[i * THREADS];
        if at < params.n {
            finish(0u, at, sums.xy);
        }
        if at + 2u < params.n {
            finish(0u, at + 2u, sums.zw);
        }
    }
}
