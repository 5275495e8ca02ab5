// A row of x in workgroup memory for weights of a few bits, a block of 32 elements a unit: a scale times numbers of 16 bits, kept as two signed bytes
// each (number = 256 high + low), and the device's products of four bytes with four take code and byte as they are. An element is off by at most
// 1/65278 of its block's largest, which is less than what f16 takes from the largest ones.
// The bytes of eight elements, as `ordered` has them: high bytes of both fours, then low ones. One place more than there are blocks keeps eights of a
// block out of the same banks.
var<workgroup> bytes: array<vec4<u32>, 4u * (BLOCKS + 1u)>;
// Scale of a block, and the sum of its elements.
var<workgroup> ends: array<vec2<f32>, BLOCKS>;

// Numbers of at most 15 bits and a sign with 128 added, from the last bits of 1.5 * 2^23 + number: conversions of integers are slow.
fn integers(v: vec4<f32>, inverse: f32) -> vec4<u32> {
    return bitcast<vec4<u32>>(fma(v, vec4<f32>(inverse), vec4<f32>(12583040.0)));
}

// The low halves of four numbers, two a word.
fn low_halves(v: vec4<u32>) -> vec2<u32> {
    return (v.xy & vec2<u32>(0xffffu)) | (v.zw << vec2<u32>(16u));
}

fn high_bytes(halves: vec2<u32>) -> u32 {
    return ((halves.x >> 8u) & 0x00ff00ffu) | (halves.y & 0xff00ff00u);
}

fn low_bytes(halves: vec2<u32>) -> u32 {
    return ((halves.x & 0x00ff00ffu) | ((halves.y << 8u) & 0xff00ff00u)) ^ 0x80808080u;
}

fn largest4(v: vec4<f32>) -> f32 {
    let a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}

// Four neighbours, which have a block, call this together.
fn keep(eight: u32, v: mat2x4<f32>) {
    var largest = max(largest4(v[0]), largest4(v[1]));
    largest = max(largest, subgroupShuffleXor(largest, 1u));
    largest = max(largest, subgroupShuffleXor(largest, 2u));
    var total = dot(v[0] + v[1], vec4<f32>(1.0));
    total += subgroupShuffleXor(total, 1u);
    total += subgroupShuffleXor(total, 2u);
    // 127 * 256 + 127. What is far below f16's least counts as 0.
    let inverse = select(0.0, 32639.0 / largest, largest > 1e-30);
    let four = ordered(v);
    let even = low_halves(integers(four[0], inverse));
    let odd = low_halves(integers(four[1], inverse));
    bytes[eight % 4u * (BLOCKS + 1u) + eight / 4u] =
        vec4<u32>(high_bytes(even), high_bytes(odd), low_bytes(even), low_bytes(odd));
    if eight % 4u == 0u {
        ends[eight / 4u] = vec2<f32>(largest / 32639.0, total);
    }
}

// Bytes of a block's four eights; scale and sum.
struct Kept {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
    end: vec2<f32>,
}

// What a unit of weights is multiplied with; nothing past the end of the row.
fn kept(unit: u32, there: bool) -> Kept {
    return Kept(
        bytes[unit],
        bytes[BLOCKS + 1u + unit],
        bytes[2u * (BLOCKS + 1u) + unit],
        bytes[3u * (BLOCKS + 1u) + unit],
        select(vec2<f32>(), ends[unit], there),
    );
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
