// The row as `rope_cache` has left it: queries turned in place, key and value in the cache.
fn take_row(index: u32, kv_head: u32, first_head: u32, count: u32, leaves: bool) {}

fn query_of(slot: u32, head: u32, d4: u32) -> vec4<f32> {
    return vec4<f32>(qkv[head * HEAD4 + d4]);
}

// Whether a key is not read from the cache, but given by `own_key` and `own_value`.
fn is_own(key: u32) -> bool {
    return false;
}

fn own_key(d4: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn own_value(d4: u32) -> vec4<f32> {
    return vec4<f32>();
}
