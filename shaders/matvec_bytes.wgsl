// x * weight^T for one row and weights of a few bits, in integers: a block of 32 elements of x is a scale times numbers of 16 bits, kept as two signed
// bytes each (number = 256 high + low), and the device's products of four bytes with four take code and byte as they are. An element is off by at most
// 1/65278 of its block's largest, which is less than what f16 takes from the largest ones.
//
// Each workgroup makes such a row of x for itself, which costs as much as dozens of columns; so workgroups are few and take columns in turn, a
// subgroup COLUMNS (two) of them at a time, its lanes sharing the width.
@group(0) @binding(1) var<storage, read> x: array<act8>;

// From Rust: LANES, SUBGROUPS, BLOCKS (room for a row of x), COLUMNS and AHEAD, the blocks of a lane that are loaded together.
const THREADS: u32 = SUBGROUPS * LANES;
// The bytes of eight elements, as `ordered` has them: high bytes of both fours, then low ones. One place more than there are blocks keeps eights of a
// block out of the same banks.
var<workgroup> bytes: array<vec4<u32>, 4u * (BLOCKS + 1u)>;
// Scale of a block, and the sum of its elements.
var<workgroup> ends: array<vec2<f32>, BLOCKS>;

// Numbers of at most 15 bits and a sign with 128 added, from the last bits of 1.5 * 2^23 + number: conversions of integers are slow.
fn integers(v: vec4<f32>, inverse: f32) -> vec4<u32> {
    return bitcast<vec4<u32>>(fma(v, vec4<f32>(inverse), vec4<f32>(12583040.0)));
}

fn packed(v: vec4<u32>) -> u32 {
    let b = v & vec4<u32>(0xffu);
    return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}

fn high_bytes(v: vec4<u32>) -> u32 {
    return packed(v >> vec4<u32>(8u));
}

fn low_bytes(v: vec4<u32>) -> u32 {
    return packed(v) ^ 0x80808080u;
}

fn largest4(v: vec4<f32>) -> f32 {
    let a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}

// Eight codes times eight elements: the sums of high and of low products. `even` and `odd` are the codes as `ordered` has them.
fn dot_bytes(even: u32, odd: u32, v: vec4<u32>) -> vec2<i32> {
    return vec2<i32>(
        dot4I8Packed(even, v.x) + dot4I8Packed(odd, v.y),
        dot4I8Packed(even, v.z) + dot4I8Packed(odd, v.w),
    );
}

fn whole(sum: vec2<i32>) -> f32 {
    return f32((sum.x << 8u) + sum.y);
}

@compute @workgroup_size(THREADS)
fn matvec(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    var square = 0.0;
    for (var eight = subgroup * LANES + lane; eight < 4u * params.blocks; eight += THREADS) {
        let raw = wide(x[params.x_start / 2u + eight]);
        square += squares8(raw);
        let v = input8(raw, eight);
        // Four neighbours have a block.
        var largest = max(largest4(v[0]), largest4(v[1]));
        largest = max(largest, subgroupShuffleXor(largest, 1u));
        largest = max(largest, subgroupShuffleXor(largest, 2u));
        var total = dot(v[0] + v[1], vec4<f32>(1.0));
        total += subgroupShuffleXor(total, 1u);
        total += subgroupShuffleXor(total, 2u);
        // 127 * 256 + 127. What is far below f16's least counts as 0.
        let inverse = select(0.0, 32639.0 / largest, largest > 1e-30);
        let four = ordered(v);
        let even = integers(four[0], inverse);
        let odd = integers(four[1], inverse);
        bytes[eight % 4u * (BLOCKS + 1u) + eight / 4u] =
            vec4<u32>(high_bytes(even), high_bytes(odd), low_bytes(even), low_bytes(odd));
        if eight % 4u == 0u {
            ends[eight / 4u] = vec2<f32>(largest / 32639.0, total);
        }
    }
    let squares = subgroupAdd(square);
    if lane == 0u {
        keep_squares(subgroup, squares);
    }
    workgroupBarrier();
    var all_squares = 0.0;
    for (var i = 0u; i < SUBGROUPS; i++) {
        all_squares += kept_squares(i);
    }
    let factor = input_factor(all_squares);
    let last = params.blocks - 1u;
    let step = groups.x * SUBGROUPS * COLUMNS;
    for (var column = (group.x * SUBGROUPS + subgroup) * COLUMNS; column < params.n; column += step) {
        //% for c in COLUMNS
        var sum_$c = 0.0;
        let row_$c = min(column + $cu, params.n - 1u);
        //% end
        for (var first = lane; first < params.blocks; first += AHEAD * LANES) {
            //% for a in AHEAD
            let block_$a = min(first + $au * LANES, last);
            //% for c in COLUMNS
            let raw_$a_$c = raw32(row_$c, block_$a);
            //% end
            //% end
            //% for a in AHEAD
            let v_$a_0 = bytes[block_$a];
            let v_$a_1 = bytes[BLOCKS + 1u + block_$a];
            let v_$a_2 = bytes[2u * (BLOCKS + 1u) + block_$a];
            let v_$a_3 = bytes[3u * (BLOCKS + 1u) + block_$a];
            let end_$a = select(vec2<f32>(), ends[block_$a], first + $au * LANES <= last);
            //% for c in COLUMNS
            sum_$c += sum32(raw_$a_$c, block_$a, v_$a_0, v_$a_1, v_$a_2, v_$a_3, end_$a);
            //% end
            //% end
        }
        //% for c in COLUMNS
        let total_$c = factor * subgroupAdd(sum_$c);
        //% end
        if lane == 0u {
            finish(0u, column, vec2<f32>(total_0, total_1));
        }
    }
}
