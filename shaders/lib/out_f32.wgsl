// A product's output as f32.
alias output = f32;

fn to_output(v: f32) -> output {
    return v;
}
