// Attention of one row over a share of the keys: a workgroup takes HEADS query heads of one K/V head and one split, and leaves their unnormalised
// outputs, maxima and sums to `attention_merge`. Keys and values are loaded once for all of its heads.
@group(0) @binding(OUT_BINDING) var<storage, read_write> partial: array<f32>;

// HEAD4 (vec4s of a head), HEADS and THREADS (16, 32 or 64) come from Rust.
const CHUNKS: u32 = (HEAD4 + 15u) / 16u;
const KEYS: u32 = 64u; // of a tile
const KEYS_EACH: u32 = KEYS / THREADS;
const SHARES: u32 = THREADS / 16u;
var<workgroup> query: array<vec4<f32>, HEADS * HEAD4>;
var<workgroup> probabilities: array<f32, HEADS * KEYS>;
var<workgroup> exchange: array<f32, HEADS * THREADS>;
var<workgroup> merge: array<vec4<f32>, THREADS>;

@compute @workgroup_size(THREADS)
fn attention_decode(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // The last workgroup of a group that HEADS does not divide repeats its last head.
    let tiles = (params.group + HEADS - 1u) / HEADS;
    let kv_head = group.y / tiles;
    let first = group.y % tiles * HEADS;
    let count = min(HEADS, params.group - first);
    let first_head = kv_head * params.group + first;
    let start = params.first + group.x * params.split;
    let end = min(start + params.split, params.keys);
    // A thread computes the scores of keys `lane`, `lane + THREADS` …; of the outputs, vec4 `column` of each chunk for one in SHARES keys.
    let column = lane % 16u;
    let share = lane / 16u;
    for (var i = lane; i < HEADS * HEAD4; i += THREADS) {
        query[i] = vec4<f32>(qkv[(first_head + min(i / HEAD4, count - 1u)) * HEAD4 + i % HEAD4]);
    }
    var top: array<f32, HEADS>;
    var total: array<f32, HEADS>;
    var sums: array<vec4<f32>, HEADS * CHUNKS>;
    for (var h = 0u; h < HEADS; h++) {
        top[h] = LOWEST;
        total[h] = 0.0;
        for (var i = 0u; i < CHUNKS; i++) {
            sums[h * CHUNKS + i] = vec4<f32>(0.0);
        }
    }
    for (var key = start; key < end; key += KEYS) {
        workgroupBarrier();
        var products: array<vec4<f32>, HEADS * KEYS_EACH>;
        for (var i = 0u; i < HEADS * KEYS_EACH; i++) {
            products[i] = vec4<f32>(0.0);
        }
        for (var d = 0u; d < HEAD4; d++) {
            var element: array<vec4<f32>, KEYS_EACH>;
            for (var i = 0u; i < KEYS_EACH; i++) {
                // Keys past the end are computed and masked below.
                let row = cache_row(min(key + lane + i * THREADS, end - 1u));
                element[i] = unpack_kv(k[row * params.kv_stride + kv_head * HEAD4 + d]);
            }
            for (var h = 0u; h < HEADS; h++) {
                let q = query[h * HEAD4 + d];
                for (var i = 0u; i < KEYS_EACH; i++) {
                    products[h * KEYS_EACH + i] = fma(q, element[i], products[h * KEYS_EACH + i]);
                }
            }
        }
        var score: array<f32, HEADS * KEYS_EACH>;
        for (var h = 0u; h < HEADS; h++) {
            var highest = LOWEST;
            for (var i = 0u; i < KEYS_EACH; i++) {
                let product = products[h * KEYS_EACH + i];
                let at = key + lane + i * THREADS;
                let bias = key_bias(first_head + min(h, count - 1u), min(at, end - 1u));
                var sum = ((product.x + product.y) + (product.z + product.w)) * params.scale + bias;
                if params.soft_cap > 0.0 {
                    sum = soft_bound(vec4<f32>(sum), params.soft_cap).x;
                }
                score[h * KEYS_EACH + i] = select(LOWEST, sum, at < end);
                highest = max(highest, score[h * KEYS_EACH + i]);
            }
            exchange[h * THREADS + lane] = highest;
        }
        workgroupBarrier();
        for (var h = 0u; h < HEADS; h++) {
            let before = top[h];
            for (var i = 0u; i < THREADS; i++) {
                top[h] = max(top[h], exchange[h * THREADS + i]);
            }
            let fade = exp(before - top[h]);
            total[h] *= fade;
            for (var i = 0u; i < CHUNKS; i++) {
                sums[h * CHUNKS + i] *= fade;
            }
            for (var i = 0u; i < KEYS_EACH; i++) {
                let seen = key + lane + i * THREADS < end;
                let p = select(0.0, exp(score[h * KEYS_EACH + i] - top[h]), seen);
                total[h] += p;
                probabilities[h * KEYS + lane + i * THREADS] = p;
            }
        }
        workgroupBarrier();
        for (var j = share; j < min(KEYS, end - key); j += SHARES) {
            let source = cache_row(key + j) * params.kv_stride + kv_head * HEAD4 + column;
            for (var i = 0u; i < CHUNKS; i++) {
                if 16u * i + column < HEAD4 {
                    let element = unpack_kv(v[source + 16u * i]);
                    for (var h = 0u; h < HEADS; h++) {
                        let p = vec4<f32>(probabilities[h * KEYS + j]);
                        sums[h * CHUNKS + i] = fma(p, element, sums[h * CHUNKS + i]);
                    }
                }
            }
        }
    }
    for (var h = 0u; h < HEADS; h++) {
        exchange[h * THREADS + lane] = total[h];
    }
    for (var h = 0u; h < HEADS; h++) {
        let to = (group.x * params.heads + first_head + h) * (4u * HEAD4 + 2u);
        for (var i = 0u; i < CHUNKS; i++) {
            workgroupBarrier();
            merge[lane] = sums[h * CHUNKS + i];
            workgroupBarrier();
            if h < count && share == 0u && 16u * i + column < HEAD4 {
                var sum = merge[column];
                for (var j = 1u; j < SHARES; j++) {
                    sum += merge[column + 16u * j];
                }
                let at = to + 64u * i + 4u * column;
                partial[at] = sum.x;
                partial[at + 1u] = sum.y;
                partial[at + 2u] = sum.z;
                partial[at + 3u] = sum.w;
            }
        }
        if h < count && lane == 0u {
            var sum = 0.0;
            for (var i = 0u; i < THREADS; i++) {
                sum += exchange[h * THREADS + i];
            }
            partial[to + 4u * HEAD4] = top[h];
            partial[to + 4u * HEAD4 + 1u] = sum;
        }
    }
}
