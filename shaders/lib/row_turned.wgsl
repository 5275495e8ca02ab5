// The row as the product left it: each workgroup turns its queries and their key for itself, as `rope_cache` does, and one of those that share a K/V
// head leaves key and value in the cache. What another one reads there at the same time it does not use: see `is_own`.
@group(0) @binding(1) var<storage, read_write> k: array<kv4>;
@group(0) @binding(2) var<storage, read_write> v: array<kv4>;
@group(0) @binding(OUT_BINDING + 1u) var<storage, read> angles: array<vec4<f32>>;

// The queries of HEADS heads, the key and the value, rounded as activations and cache elements are.
var<workgroup> row_heads: array<vec2<f32>, (HEADS + 2u) * 2u * HEAD4>;

fn pair_of(at: u32) -> vec2<f32> {
    let four = vec4<f32>(qkv[at / 2u]);
    return select(four.xy, four.zw, at % 2u == 1u);
}

fn four_of(slot: u32, d4: u32) -> vec4<f32> {
    let at = 2u * (slot * HEAD4 + d4);
    return vec4<f32>(row_heads[at], row_heads[at + 1u]);
}

// `leaves`: whether key and value go to the cache from here. All threads of the workgroup call this together.
fn take_row(index: u32, kv_head: u32, first_head: u32, count: u32, leaves: bool) {
    for (var i = index; i < (HEADS + 2u) * HEAD4; i += THREADS) {
        let slot = i / HEAD4;
        let t = i % HEAD4;
        let query_head = first_head + min(slot, count - 1u);
        let head = select(params.heads + (slot - HEADS) * params.kv_heads + kv_head, query_head, slot < HEADS);
        let turns = slot <= HEADS && t < params.rotary4;
        var pair = vec2<u32>(2u * t, 2u * t + 1u);
        if turns {
            pair = place(t, params.rotary4);
        }
        let raw = vec4<f32>(pair_of(2u * head * HEAD4 + pair.x), pair_of(2u * head * HEAD4 + pair.y));
        var turned = raw;
        if turns {
            turned = turn(raw, angles[(params.keys - 1u) * params.rotary4 + t]);
        }
        let as_query = vec4<f32>(to_act4(turned));
        let as_cached = unpack_kv(join_kv(pack_kv(turned.xy), pack_kv(turned.zw)));
        let rounded = select(as_cached, as_query, slot < HEADS);
        row_heads[2u * slot * HEAD4 + pair.x] = rounded.xy;
        row_heads[2u * slot * HEAD4 + pair.y] = rounded.zw;
    }
    workgroupBarrier();
    for (var d4 = index; leaves && d4 < HEAD4; d4 += THREADS) {
        let to = cache_row(params.keys - 1u) * params.kv_stride + kv_head * HEAD4 + d4;
        let key = four_of(HEADS, d4);
        let value = four_of(HEADS + 1u, d4);
        k[to] = join_kv(pack_kv(key.xy), pack_kv(key.zw));
        v[to] = join_kv(pack_kv(value.xy), pack_kv(value.zw));
    }
}

fn query_of(slot: u32, head: u32, d4: u32) -> vec4<f32> {
    return four_of(slot, d4);
}

fn is_own(key: u32) -> bool {
    return key == params.keys - 1u;
}

fn own_key(d4: u32) -> vec4<f32> {
    return four_of(HEADS, d4);
}

fn own_value(d4: u32) -> vec4<f32> {
    return four_of(HEADS + 1u, d4);
}
