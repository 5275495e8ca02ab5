// A cache that is only read.
@group(0) @binding(1) var<storage, read> k: array<kv4>;
@group(0) @binding(2) var<storage, read> v: array<kv4>;
