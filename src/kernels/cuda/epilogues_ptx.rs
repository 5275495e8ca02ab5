//! The text of what cuBLASLt's products lack, in PTX: biases, activations and saturation, as the epilogues of `shaders/product.wgsl` have them.
//!
//! Flat kernels of 256 threads a block, without memory that threads share. Stores to f16 saturate at 65504.

use std::fmt::Write;

/// `saturate`, `add_bias`, `gelu`, `add_bias_wide`, `swiglu`, `geglu`, for a module with a head of its own.
pub fn source() -> String {
    let mut text = saturate();
    text += &finished("add_bias", |_| String::new());
    text += &finished("gelu", gelu);
    text += &add_bias_wide();
    // z / (1 + exp(-z)) and z / (1 + exp(-2 u)), u = sqrt(2 / pi) (z + 0.044715 z^3).
    text += &gated("swiglu", "mul.f32 %f2, %f0, 0fBFB8AA3B;");
    text += &gated(
        "geglu",
        "mul.f32 %f2, %f0, 0f3D372713;
    fma.rn.f32 %f2, %f2, %f0, 0f3F800000;
    mul.f32 %f2, %f2, %f0;
    mul.f32 %f2, %f2, 0fC0135761;",
    );
    text
}

/// The number of the thread, `%i`; those that are not among `count` end here.
const PLACE: &str = "    mov.u32 %block, %ctaid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %i, %block, 256, %thread;
    ld.param.u32 %n, [count];
    setp.ge.u32 %p, %i, %n;
    @%p ret;
";

/// The bounds of pairs in f16, which kernels that store them declare.
pub const LIMITS: &str = "    mov.b32 %most, 0x7bff7bff;
    mov.b32 %least, 0xfbfffbff;
";

/// A pair in f16 within these bounds.
fn clamped(pair: &str) -> String {
    format!("    min.f16x2 {pair}, {pair}, %most;\n    max.f16x2 {pair}, {pair}, %least;\n")
}

/// A number as PTX writes it.
fn hex(value: f32) -> String {
    format!("0f{:08X}", value.to_bits())
}

/// What a product left beyond f16 becomes its largest value; 8 elements a thread, written only where one was.
fn saturate() -> String {
    format!(
        "
.visible .entry saturate(.param .u64 x, .param .u32 count)
.maxntid 256, 1, 1
{{
    .reg .b32 %most, %least;
    .reg .pred %p, %q;
    .reg .u32 %i, %n, %block, %thread;
    .reg .u64 %x, %at;
    .reg .b32 %v<4>, %w<4>;
{LIMITS}{PLACE}    ld.param.u64 %x, [x];
    cvta.to.global.u64 %x, %x;
    mul.wide.u32 %at, %i, 16;
    add.u64 %at, %x, %at;
    ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%at];
    min.f16x2 %w0, %v0, %most;
    min.f16x2 %w1, %v1, %most;
    min.f16x2 %w2, %v2, %most;
    min.f16x2 %w3, %v3, %most;
    max.f16x2 %w0, %w0, %least;
    max.f16x2 %w1, %w1, %least;
    max.f16x2 %w2, %w2, %least;
    max.f16x2 %w3, %w3, %least;
    setp.ne.b32 %p, %v0, %w0;
    setp.ne.or.b32 %p, %v1, %w1, %p;
    setp.ne.or.b32 %p, %v2, %w2, %p;
    setp.ne.or.b32 %p, %v3, %w3, %p;
    @%p st.global.v4.b32 [%at], {{%w0, %w1, %w2, %w3}};
    ret;
}}
"
    )
}

/// A bias in f32 for every column of rows in f16, none where its address is 0, and an activation of the sum in a register; the results saturate.
/// 8 elements a thread, `columns8` threads a row.
fn finished(name: &str, activation: impl Fn(&str) -> String) -> String {
    let mut text = format!(
        "
.visible .entry {name}(.param .u64 x, .param .u64 bias, .param .u32 count, .param .u32 columns8)
.maxntid 256, 1, 1
{{
    .reg .b32 %most, %least;
    .reg .pred %p, %biased;
    .reg .u32 %i, %n, %block, %thread, %column;
    .reg .u64 %x, %bias, %at;
    .reg .b32 %v<4>;
    .reg .b16 %low, %high;
    .reg .f32 %b<8>, %f<2>, %g<3>;
{LIMITS}{PLACE}    ld.param.u64 %x, [x];
    ld.param.u64 %bias, [bias];
    ld.param.u32 %n, [columns8];
    setp.ne.u64 %biased, %bias, 0;
    cvta.to.global.u64 %x, %x;
    cvta.to.global.u64 %bias, %bias;
    rem.u32 %column, %i, %n;
    mul.wide.u32 %at, %column, 32;
    add.u64 %bias, %bias, %at;
"
    );
    for i in 0..8 {
        let _ = writeln!(text, "    mov.f32 %b{i}, 0f00000000;");
    }
    text += "    @%biased ld.global.v4.f32 {%b0, %b1, %b2, %b3}, [%bias];
    @%biased ld.global.v4.f32 {%b4, %b5, %b6, %b7}, [%bias+16];
    mul.wide.u32 %at, %i, 16;
    add.u64 %at, %x, %at;
    ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%at];
";
    for i in 0..4 {
        let clamped = clamped(&format!("%v{i}"));
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{clamped}    mov.b32 {{%low, %high}}, %v{i};
    cvt.f32.f16 %f0, %low;
    cvt.f32.f16 %f1, %high;
    add.f32 %f0, %f0, %b{};
    add.f32 %f1, %f1, %b{};
{}{}    cvt.rn.f16x2.f32 %v{i}, %f1, %f0;
{clamped}",
            2 * i,
            2 * i + 1,
            activation("%f0"),
            activation("%f1")
        );
    }
    text += "    st.global.v4.b32 [%at], {%v0, %v1, %v2, %v3};
    ret;
}
";
    text
}

/// `z / 2 (1 + erf(z / sqrt(2)))` by the polynomial of `shaders/lib/finish_gelu.wgsl`.
fn gelu(z: &str) -> String {
    let mut text = String::new();
    let mut put = |instruction: String| {
        let _ = writeln!(text, "    {instruction}");
    };
    put(format!("abs.f32 %g0, {z};"));
    put(format!("mul.f32 %g0, %g0, {};", hex(std::f32::consts::FRAC_1_SQRT_2)));
    put(format!("fma.rn.f32 %g1, %g0, {}, {};", hex(0.327_591_1), hex(1.0)));
    put("rcp.approx.f32 %g1, %g1;".to_owned());
    put(format!("fma.rn.f32 %g2, %g1, {}, {};", hex(1.061_405_4), hex(-1.453_152)));
    for coefficient in [1.421_413_7, -0.284_496_74, 0.254_829_6] {
        put(format!("fma.rn.f32 %g2, %g2, %g1, {};", hex(coefficient)));
    }
    put("mul.f32 %g2, %g2, %g1;".to_owned());
    put("mul.f32 %g0, %g0, %g0;".to_owned());
    put(format!("mul.f32 %g0, %g0, {};", hex(-std::f32::consts::LOG2_E)));
    put("ex2.approx.f32 %g0, %g0;".to_owned());
    put("mul.f32 %g2, %g2, %g0;".to_owned());
    put(format!("sub.f32 %g1, {}, %g2;", hex(2.0)));
    put(format!("setp.lt.f32 %p, {z}, {};", hex(0.0)));
    put("selp.f32 %g2, %g2, %g1, %p;".to_owned());
    put(format!("mul.f32 {z}, {z}, {};", hex(0.5)));
    put(format!("mul.f32 {z}, {z}, %g2;"));
    text
}

/// A bias in f32 for every column of rows in f32; 4 elements a thread, `columns4` threads a row.
fn add_bias_wide() -> String {
    format!(
        "
.visible .entry add_bias_wide(.param .u64 x, .param .u64 bias, .param .u32 count, .param .u32 columns4)
.maxntid 256, 1, 1
{{
    .reg .pred %p;
    .reg .u32 %i, %n, %block, %thread, %column;
    .reg .u64 %x, %bias, %at;
    .reg .f32 %b<4>, %f<4>;
{PLACE}    ld.param.u64 %x, [x];
    ld.param.u64 %bias, [bias];
    ld.param.u32 %n, [columns4];
    cvta.to.global.u64 %x, %x;
    cvta.to.global.u64 %bias, %bias;
    rem.u32 %column, %i, %n;
    mul.wide.u32 %at, %column, 16;
    add.u64 %bias, %bias, %at;
    ld.global.v4.f32 {{%b0, %b1, %b2, %b3}}, [%bias];
    mul.wide.u32 %at, %i, 16;
    add.u64 %at, %x, %at;
    ld.global.v4.f32 {{%f0, %f1, %f2, %f3}}, [%at];
    add.f32 %f0, %f0, %b0;
    add.f32 %f1, %f1, %b1;
    add.f32 %f2, %f2, %b2;
    add.f32 %f3, %f3, %b3;
    st.global.v4.f32 [%at], {{%f0, %f1, %f2, %f3}};
    ret;
}}
"
    )
}

/// Eight outputs a thread, each from a pair of neighbours (gate, up). `exponent` gives in `%f2` the power of two whose sum with 1 divides the gate
/// `%f0`.
fn gated(name: &str, exponent: &str) -> String {
    let mut text = format!(
        "
.visible .entry {name}(.param .u64 pairs, .param .u64 out, .param .u32 count)
.maxntid 256, 1, 1
{{
    .reg .b32 %most, %least;
    .reg .pred %p;
    .reg .u32 %i, %n, %block, %thread;
    .reg .u64 %x, %out, %at;
    .reg .b32 %v<8>, %w<4>;
    .reg .b16 %gate, %up;
    .reg .f32 %f<5>;
{LIMITS}{PLACE}    ld.param.u64 %x, [pairs];
    ld.param.u64 %out, [out];
    cvta.to.global.u64 %x, %x;
    cvta.to.global.u64 %out, %out;
    mul.wide.u32 %at, %i, 32;
    add.u64 %at, %x, %at;
    ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%at];
    ld.global.v4.b32 {{%v4, %v5, %v6, %v7}}, [%at+16];
"
    );
    for i in 0..8 {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{}    mov.b32 {{%gate, %up}}, %v{i};
    cvt.f32.f16 %f0, %gate;
    cvt.f32.f16 %f1, %up;
    {exponent}
    ex2.approx.f32 %f2, %f2;
    add.f32 %f2, %f2, 0f3F800000;
    div.full.f32 %f0, %f0, %f2;
    mul.f32 %f{}, %f0, %f1;
",
            clamped(&format!("%v{i}")),
            3 + i % 2
        );
        if i % 2 == 1 {
            let word = format!("%w{}", i / 2);
            let _ = write!(text, "    cvt.rn.f16x2.f32 {word}, %f4, %f3;\n{}", clamped(&word));
        }
    }
    text += "    mul.wide.u32 %at, %i, 16;
    add.u64 %at, %out, %at;
    st.global.v4.b32 [%at], {%w0, %w1, %w2, %w3};
    ret;
}
";
    text
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::kernels::cuda::ptx_run::run;

    /// Two rows of 16: a bias for each column, the same columns without, and the rows behind them untouched.
    #[test]
    fn biases_and_activations_are_those_of_their_column() {
        let x: Vec<f32> = (0..48)
            .map(|i| [(i as f32 - 20.0) / 4.0, 65504.0, -65504.0][usize::from(i == 3) + 2 * usize::from(i == 4)])
            .collect();
        let bias: Vec<f32> = (0..16).map(|i| 0.125 * i as f32 - 1.0).collect();
        // erf by its series.
        let erf = |x: f64| {
            let terms = (0..60).scan(x, |t, n| {
                let term = *t / f64::from(2 * n + 1);
                *t *= -x * x / f64::from(n + 1);
                Some(term)
            });
            if x.abs() > 4.0 { x.signum() } else { terms.sum::<f64>() * std::f64::consts::FRAC_2_SQRT_PI }
        };
        let gelu = |z: f64| z / 2.0 * (1.0 + erf(z / std::f64::consts::SQRT_2));
        for (kernel, wide, biased) in
            [("add_bias", false, true), ("gelu", false, true), ("gelu", false, false), ("add_bias_wide", true, true)]
        {
            let mut memory: Vec<u8> = if wide {
                x.iter().flat_map(|v| v.to_le_bytes()).collect()
            } else {
                x.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
            };
            let at = memory.len();
            memory.extend(bias.iter().flat_map(|v| v.to_le_bytes()));
            let each = if wide { 4 } else { 8 };
            let address = if biased { at as u64 } else { 0 };
            run(&source(), kernel, &[0, address, 32 / each, 16 / each], &mut memory, 10);
            for (i, &x) in x.iter().enumerate() {
                let got = if wide {
                    f64::from(f32::from_le_bytes(memory[4 * i..][..4].try_into().unwrap()))
                } else {
                    f16::from_le_bytes(memory[2 * i..][..2].try_into().unwrap()).to_f64()
                };
                let sum = f64::from(x) + if biased { f64::from(bias[i % 16]) } else { 0.0 };
                let want = match i {
                    32.. => f64::from(x),
                    _ if kernel == "gelu" => gelu(sum),
                    _ => sum,
                };
                let want = if wide { want } else { want.clamp(-65504.0, 65504.0) };
                assert!((got - want).abs() <= 1e-3 * want.abs() + 2e-6, "{kernel} {biased} [{i}]: {got}, not {want}");
            }
        }
    }
}
