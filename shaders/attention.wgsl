// Causal attention of many rows with online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): a workgroup takes one query head and 16 rows,
// and walks over the keys in tiles of 32, anchored at key 0.
// Granule invariant: a row's bits depend on its position and the cache alone. Tiles past a row's position are computed for the sake of its
// neighbours and change nothing: the maximum stays, the old sums are multiplied by exactly 1, and masked probabilities are exactly 0.
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> qkv: array<act4>;
@group(0) @binding(1) var<storage, read> k: array<kv4>;
@group(0) @binding(2) var<storage, read> v: array<kv4>;
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<act4>;

// HEAD4 (vec4s of a head) comes from Rust. Heads wider than 64 pass through the tile in chunks of 16 vec4s.
const CHUNKS: u32 = (HEAD4 + 15u) / 16u;
const KEYS: u32 = 32u;
// K as [vec4][key], one vec4 longer than the tile, which spreads the column writes over the banks; then V as [key][vec4].
const K_STRIDE: u32 = KEYS + 1u;
var<workgroup> tile: array<vec4<f32>, 16u * K_STRIDE>;
// Of four rows at a time: [key][quad], and each thread's maximum.
var<workgroup> probabilities: array<vec4<f32>, KEYS * 4u>;
var<workgroup> highest: array<vec4<f32>, 64>;

// Below every score, yet finite: infinities may be assumed away by a shader compiler.
const LOWEST: f32 = -3.0e38;

// Whether rows at `position` see a key. Keys after a row wrap past every window.
fn seen(key: u32, position: vec4<u32>) -> vec4<bool> {
    return position - vec4<u32>(key) < min(vec4<u32>(params.window), position + 1u);
}

fn rescore(score: vec4<f32>, head: u32, key: u32) -> vec4<f32> {
    let s = score * params.scale + key_bias(head, key);
    if params.soft_cap > 0.0 {
        return soft_bound(s, params.soft_cap);
    }
    return s;
}

fn query(at: u32) -> vec4<f32> {
    return vec4<f32>(qkv[at]);
}

@compute @workgroup_size(64)
fn attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = params.first_head + group.y;
    let first = group.x * 16u;
    // A thread computes the scores of four rows for keys `column` and `column + 16`, and then vec4 `column` of each chunk of their outputs.
    let column = lane % 16u;
    let quad = lane / 16u;
    let rows = first + 4u * quad + vec4<u32>(0u, 1u, 2u, 3u);
    let clamped = min(rows, vec4<u32>(params.rows - 1u));
    let at = params.q_start + clamped * params.q_stride + head * HEAD4;
    let position = params.position + clamped;
    // Rows of the cache past `last` may hold anything: they are never read.
    let last = max(params.position + min(first + 15u, params.rows - 1u) + 1u, params.dense_keys) - 1u;
    let kv_head = head / params.group * HEAD4;

    var top = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    var sums: array<vec4<f32>, 4u * CHUNKS>;
    for (var i = 0u; i < 4u * CHUNKS; i++) {
        sums[i] = vec4<f32>(0.0);
    }
    // Tiles that the window has passed for every row here would change nothing.
    let seen_first = params.position + first + 1u;
    let start = (seen_first - min(seen_first, params.window)) / KEYS * KEYS;
    for (var key = start; key <= last; key += KEYS) {
        let ring = ring_start(key);
        var score0 = vec4<f32>(0.0);
        var score1 = vec4<f32>(0.0);
        for (var chunk = 0u; chunk < HEAD4; chunk += 16u) {
            let width = min(16u, HEAD4 - chunk);
            workgroupBarrier();
            if column < width {
                for (var i = quad; i < KEYS; i += 4u) {
                    tile[column * K_STRIDE + i] = unpack_kv(k[(min(key + i, last) - ring) * params.kv_stride + kv_head + chunk + column]);
                }
            }
            workgroupBarrier();
            for (var d = 0u; d < width; d++) {
                let q = transpose(mat4x4<f32>(query(at.x + chunk + d), query(at.y + chunk + d), query(at.z + chunk + d), query(at.w + chunk + d)));
                let k0 = tile[d * K_STRIDE + column];
                let k1 = tile[d * K_STRIDE + column + 16u];
                score0 = fma(q[3], vec4<f32>(k0.w), fma(q[2], vec4<f32>(k0.z), fma(q[1], vec4<f32>(k0.y), fma(q[0], vec4<f32>(k0.x), score0))));
                score1 = fma(q[3], vec4<f32>(k1.w), fma(q[2], vec4<f32>(k1.z), fma(q[1], vec4<f32>(k1.y), fma(q[0], vec4<f32>(k1.x), score1))));
            }
        }
        let seen0 = seen(key + column, position);
        let seen1 = seen(key + column + 16u, position);
        score0 = select(vec4<f32>(LOWEST), rescore(score0, head, min(key + column, last)), seen0);
        score1 = select(vec4<f32>(LOWEST), rescore(score1, head, min(key + column + 16u, last)), seen1);
        highest[lane] = max(score0, score1);
        workgroupBarrier();
        let before = top;
        for (var i = 16u * quad; i < 16u * quad + 16u; i++) {
            top = max(top, highest[i]);
        }
        probabilities[column * 4u + quad] = select(vec4<f32>(0.0), exp(score0 - top), seen0);
        probabilities[column * 4u + 64u + quad] = select(vec4<f32>(0.0), exp(score1 - top), seen1);
        // Exactly 1 where the maximum stays, however a driver approximates exp(0).
        let fade = select(exp(before - top), vec4<f32>(1.0), before == top);
        total *= fade;
        for (var i = 0u; i < CHUNKS; i++) {
            sums[4u * i] *= fade.x;
            sums[4u * i + 1u] *= fade.y;
            sums[4u * i + 2u] *= fade.z;
            sums[4u * i + 3u] *= fade.w;
        }
        for (var i = 0u; i < CHUNKS; i++) {
            workgroupBarrier();
            if 16u * i + column < HEAD4 {
                for (var j = quad; j < KEYS; j += 4u) {
                    tile[j * 16u + column] = unpack_kv(v[(min(key + j, last) - ring) * params.kv_stride + kv_head + 16u * i + column]);
                }
            }
            workgroupBarrier();
            for (var j = 0u; j < KEYS; j++) {
                let p = probabilities[j * 4u + quad];
                let value = tile[j * 16u + column];
                sums[4u * i] = fma(vec4<f32>(p.x), value, sums[4u * i]);
                sums[4u * i + 1u] = fma(vec4<f32>(p.y), value, sums[4u * i + 1u]);
                sums[4u * i + 2u] = fma(vec4<f32>(p.z), value, sums[4u * i + 2u]);
                sums[4u * i + 3u] = fma(vec4<f32>(p.w), value, sums[4u * i + 3u]);
                if i == 0u {
                    total += p;
                }
            }
        }
    }
    for (var i = 0u; i < CHUNKS; i++) {
        if 16u * i + column < HEAD4 {
            let to = params.out_start + rows * params.out_stride + head * HEAD4 + 16u * i + column;
            for (var j = 0u; j < 4u; j++) {
                if rows[j] < params.rows {
                    out[to[j]] = to_act4(sums[4u * i + j] / total[j]);
                }
            }
        }
    }
}
