// Cache elements as f32.
alias kv2 = vec2<f32>;
alias kv4 = vec4<f32>;

fn pack_kv(v: vec2<f32>) -> kv2 {
    return v;
}

fn unpack_kv(v: kv4) -> vec4<f32> {
    return v;
}

fn join_kv(a: kv2, b: kv2) -> kv4 {
    return kv4(a, b);
}
