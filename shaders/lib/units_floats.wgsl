// A row of x in workgroup memory as it is, eight elements a unit: the halves of all eights apart, so that neighbours read neighbours.
var<workgroup> halves_of_x: array<act4, 8u * BLOCKS>;

fn keep(eight: u32, v: mat2x4<f32>) {
    halves_of_x[eight] = act4(v[0]);
    halves_of_x[4u * BLOCKS + eight] = act4(v[1]);
}

alias Kept = mat2x4<f32>;

// What a unit of weights is multiplied with; nothing past the end of the row.
fn kept(unit: u32, there: bool) -> Kept {
    let low = vec4<f32>(halves_of_x[unit]);
    let high = vec4<f32>(halves_of_x[4u * BLOCKS + unit]);
    return Kept(select(vec4<f32>(), low, there), select(vec4<f32>(), high, there));
}

alias Raw = Packed;

fn raw_unit(row: u32, unit: u32) -> Raw {
    return packed8(row, 8u * unit);
}

fn sum_unit(raw: Raw, unit: u32, x: Kept) -> f32 {
    return dot8(unpack8(raw, 8u * unit), x);
}
