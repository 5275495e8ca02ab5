// x * weight^T for one row, where subgroups have a known size: each takes COLUMNS (two, or one) columns at a time, its lanes sharing the width.
//
// A workgroup brings x into its memory once and goes on from columns to columns. What a subgroup multiplies next is loaded as soon as what it has is used,
// across the end of a column, and the first of it before x is there. Neighbouring columns go to different workgroups: all of them have the same share,
// give or take one.
//
// From Rust: `params`, which are constants here, LANES, SUBGROUPS, BLOCKS (of a row of x), UNITS, those of a lane to a block of 32 elements, COLUMNS, AHEAD,
// the units of a lane that are loaded together, in a step, and MIDDLE, the steps of a column without the last one. Loops marked by `//%` are unrolled as text, some of them no or one time: PAIRS or ONES
// finish columns; RAGGED where a row of x may end within a block of 32, else WHOLE; the steps are UNROLLED or LOOPED. On an H200 weights of a few bits are
// a fifth slower by a loop, f16 ones 7 % slower without.
//
// A part gives `keep`, which brings eight elements of x to workgroup memory, `kept`, which has a unit of them, and `raw_unit` and `sum_unit` for the
// weights.
@group(0) @binding(0) var<storage, read> x: array<act8>;

const THREADS: u32 = SUBGROUPS * LANES;
const STEP: u32 = AHEAD * LANES;
const LAST: u32 = UNITS * BLOCKS - 1u;

// A lane's unit of a step. Only the last step may go beyond the end of the row: what is there then counts as nothing.
fn unit_at(step: u32, ahead: u32, lane: u32) -> u32 {
    let unit = step * STEP + ahead * LANES + lane;
    return select(unit, min(unit, LAST), step == MIDDLE && (MIDDLE + 1u) * STEP > LAST + 1u);
}

@compute @workgroup_size(THREADS)
fn matvec(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    var column = (subgroup * groups.x + group.x) * COLUMNS;
    //% for c in COLUMNS
    var sum_$c = 0.0;
    var row_$c = min(column + $cu, params.n - 1u);
    var before_$c = standing(row_$c);
    //% for a in AHEAD
    var raw_$c_$a = raw_unit(row_$c, unit_at(0u, $au, lane));
    //% end
    //% end
    var square = 0.0;
    for (var eight = subgroup * LANES + lane; eight < 4u * params.blocks; eight += THREADS) {
        // To look for the end of every row cost a product of 4096 elements 2 us on an H200.
        //% for w in WHOLE
        let v = wide(x[params.x_start / 2u + eight]);
        //% end
        //% for r in RAGGED
        let left = vec2<bool>(2u * eight < params.width4, 2u * eight + 1u < params.width4);
        let some = wide(x[params.x_start / 2u + min(eight, params.width4 / 2u)]);
        let v = mat2x4<f32>(select(vec4<f32>(), some[0], left.x), select(vec4<f32>(), some[1], left.y));
        //% end
        square += squares8(v);
        keep(eight, input8(v, eight));
    }
    let squares = subgroupAdd(square);
    if lane == 0u {
        keep_squares(subgroup, squares);
    }
    workgroupBarrier();
    var some_squares = 0.0;
    //% for s in SHARES
    let share_$s = lane + $su * LANES;
    some_squares += select(0.0, kept_squares(min(share_$s, SUBGROUPS - 1u)), share_$s < SUBGROUPS);
    //% end
    let factor = input_factor(subgroupAdd(some_squares));
    if column >= params.n {
        return;
    }
    //% for l in LOOPED
    var base = 0u;
    //% end
    loop {
        //% for u in UNROLLED
        //% for s in MIDDLE
        //% for a in AHEAD
        let unit_$s_$a = unit_at($su, $au, lane);
        let x_$s_$a = kept(unit_$s_$a, true);
        //% for c in COLUMNS
        sum_$c += sum_unit(raw_$c_$a, unit_$s_$a, x_$s_$a);
        //% end
        //% end
        //% for c in COLUMNS
        //% for a in AHEAD
        raw_$c_$a = raw_unit(row_$c, unit_at($su + 1u, $au, lane));
        //% end
        //% end
        //% end
        //% for a in AHEAD
        let unit_$a = unit_at(MIDDLE, $au, lane);
        let x_$a = kept(unit_$a, MIDDLE * STEP + $au * LANES + lane <= LAST);
        //% for c in COLUMNS
        sum_$c += sum_unit(raw_$c_$a, unit_$a, x_$a);
        //% end
        //% end
        let made = column;
        column += groups.x * SUBGROUPS * COLUMNS;
        //% for c in COLUMNS
        row_$c = min(column + $cu, params.n - 1u);
        //% end
        if column < params.n {
            //% for c in COLUMNS
            //% for a in AHEAD
            raw_$c_$a = raw_unit(row_$c, unit_at(0u, $au, lane));
            //% end
            //% end
        }
        //% end
        //% for l in LOOPED
        //% for a in AHEAD
        let unit_$a = min(base + $au * LANES + lane, LAST);
        let x_$a = kept(unit_$a, base + $au * LANES + lane <= LAST);
        //% for c in COLUMNS
        sum_$c += sum_unit(raw_$c_$a, unit_$a, x_$a);
        //% end
        //% end
        base += STEP;
        let made = column;
        let done = base > LAST;
        if done {
            base = 0u;
            column += groups.x * SUBGROUPS * COLUMNS;
            //% for c in COLUMNS
            row_$c = min(column + $cu, params.n - 1u);
            //% end
        }
        if column < params.n {
            //% for c in COLUMNS
            //% for a in AHEAD
            raw_$c_$a = raw_unit(row_$c, min(base + $au * LANES + lane, LAST));
            //% end
            //% end
        }
        // Written out, a turn of the loop is a column; here only some end one.
        if done {
            //% end
            //% for c in COLUMNS
            let total_$c = before_$c + factor * subgroupAdd(sum_$c);
            sum_$c = 0.0;
            before_$c = standing(row_$c);
            //% end
            if lane == 0u {
                //% for p in PAIRS
                finish(0u, made, vec2<f32>(total_0, total_1));
                //% end
                //% for o in ONES
                finish_one(0u, made, total_$o);
                //% end
            }
            if column >= params.n {
                break;
            }
        //% for l in LOOPED
        }
        //% end
    }
}
