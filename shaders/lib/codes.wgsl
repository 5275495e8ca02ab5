// Eight neighbouring codes of a few bits each, lowest first, from the low bits of a word.
const LOW: vec4<u32> = vec4<u32>(0u, 1u, 2u, 3u);

fn nibbles(q: u32) -> array<vec4<u32>, 2> {
    return array<vec4<u32>, 2>(
        (vec4<u32>(q) >> (4u * LOW)) & vec4<u32>(15u),
        (vec4<u32>(q) >> (4u * LOW + 16u)) & vec4<u32>(15u),
    );
}

fn bit_pairs(q: u32) -> array<vec4<u32>, 2> {
    return array<vec4<u32>, 2>((vec4<u32>(q) >> (2u * LOW)) & vec4<u32>(3u), (vec4<u32>(q) >> (2u * LOW + 8u)) & vec4<u32>(3u));
}

fn bits(q: u32) -> array<vec4<u32>, 2> {
    return array<vec4<u32>, 2>((vec4<u32>(q) >> LOW) & vec4<u32>(1u), (vec4<u32>(q) >> (LOW + 4u)) & vec4<u32>(1u));
}

// Small whole numbers; the detour over signed ones is what some compilers turn into one instruction.
fn whole(q: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(q));
}
