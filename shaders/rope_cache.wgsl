// Rotary embedding of Q in place and of K into the cache; V is copied into the cache. A thread takes two pairs of one head.
struct Params {
    count: u32,      // threads: rows * threads_per_row
    per_row: u32,    // (heads + 2 kv_heads) * head_dim / 4
    start2: u32,     // vec2 index of the first row of qkv
    position: u32,   // of the first row
    heads: u32,
    kv_heads: u32,
    head4: u32,      // head_dim / 4
    rotary4: u32,    // vec4s of a head that turn; the others are copied
    cached: u32,     // rows of the cache, a ring
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> angles: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> qkv: array<act2>;
@group(0) @binding(2) var<storage, read_write> k: array<kv2>;
@group(0) @binding(3) var<storage, read_write> v: array<kv2>;

@compute @workgroup_size(64)
fn rope_cache(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + lane;
    if index >= params.count {
        return;
    }
    let row = index / params.per_row;
    let position = params.position + row;
    let head = (index % params.per_row) / params.head4;
    let t = index % params.head4;
    let turns = t < params.rotary4;
    var pair = vec2<u32>(2u * t, 2u * t + 1u);
    if turns {
        pair = place(t, params.rotary4);
    }
    let source = params.start2 + 2u * (row * params.per_row + head * params.head4) + pair;
    let raw = vec4<f32>(vec2<f32>(qkv[source.x]), vec2<f32>(qkv[source.y]));
    var turned = raw;
    if turns {
        turned = turn(raw, angles[position * params.rotary4 + t]);
    }
    let kv_row = 2u * (position % params.cached) * params.kv_heads * params.head4;
    if head < params.heads {
        qkv[source.x] = to_act2(turned.xy);
        qkv[source.y] = to_act2(turned.zw);
    } else if head < params.heads + params.kv_heads {
        let to = kv_row + 2u * (head - params.heads) * params.head4 + pair;
        k[to.x] = pack_kv(turned.xy);
        k[to.y] = pack_kv(turned.zw);
    } else {
        let to = kv_row + 2u * (head - params.heads - params.kv_heads) * params.head4 + pair;
        v[to.x] = pack_kv(raw.xy);
        v[to.y] = pack_kv(raw.zw);
    }
}
