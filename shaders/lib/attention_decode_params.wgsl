// What the kernels share that attend for one row.
struct Params {
    first: u32,       // key that the row sees
    keys: u32,        // position + 1
    split: u32,       // keys of a split
    heads: u32,
    kv_stride: u32,   // vec4s of a row of the cache
    group: u32,       // query heads that share a K/V head
    scale: f32,
    soft_cap: f32,    // 0: none
    bias_stride: u32, // keys of a head in the bias
    cached: u32,      // rows of the cache, a ring: a key stands in row key % cached
    lap: u32,         // first - first % cached
    rotary4: u32,     // vec4s of a head that turn, where the row is turned on the way
    kv_heads: u32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> qkv: array<act4>;

const LOWEST: f32 = -3.0e38;

// The keys that the row sees go round the ring once at most.
fn cache_row(key: u32) -> u32 {
    let row = key - params.lap;
    return select(row, row - params.cached, row >= params.cached);
}
