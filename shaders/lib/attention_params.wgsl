// Parameters that the tile kernels of attention share, with matrix units and without.
struct Params {
    rows: u32,
    position: u32,    // of the first row
    q_start: u32,     // vec4 index of the first row's first query
    q_stride: u32,    // vec4s of a row of qkv
    kv_stride: u32,   // vec4s of a row of the cache
    out_start: u32,   // vec4 index of the first row of out
    out_stride: u32,  // vec4s of a row of out
    group: u32,       // query heads that share a K/V head
    scale: f32,
    window: u32,      // keys that a row sees at most
    soft_cap: f32,    // 0: none
    bias_stride: u32, // keys of a head in the bias
    dense_keys: u32,  // keys whose scores are computed although no row may see them; 0: none
    first_head: u32,  // query head of the first workgroups
    cached: u32,      // rows of the cache, a ring: a key stands in row key % cached
}

// What a key of the tile at `key` has to be lowered by to give its row of the cache: a tile is never torn by the end of the ring.
fn ring_start(key: u32) -> u32 {
    return key - key % params.cached;
}
