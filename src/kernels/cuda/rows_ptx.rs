//! The text of the small kernels between products and attention, in PTX: norms and rotation, with the epilogues of products in one module.
//!
//! They do what `shaders/norm.wgsl` and `shaders/rope_cache.wgsl` do, and [`epilogues_ptx`] what the epilogues of `shaders/product.wgsl` do, so that a
//! layer need not change sides for them. Stores to f16 saturate at 65504.

use std::fmt::Write;

use super::epilogues_ptx::{self, LIMITS};

/// Threads of a block of every kernel here.
pub const THREADS: u32 = 256;

/// One module: `rms_norm`, `layer_norm`, `saturate`, `add_bias`, `gelu`, `add_bias_wide`, `swiglu`, `geglu`, `rope_halves`, `rope_adjacent`.
pub fn source() -> String {
    let mut text = ".version 7.0\n.target sm_80\n.address_size 64\n".to_owned();
    text += &norm("rms_norm", false);
    text += &norm("layer_norm", true);
    text += &epilogues_ptx::source();
    // Where a thread's two pairs lie in a head, and which of their four elements turn with which.
    text += &rope("rope_halves", "mov.u32 %r10, %r8; add.u32 %r11, %r8, %rotary4;", ["0", "1", "2", "3"]);
    text += &rope("rope_adjacent", "shl.b32 %r10, %r8, 1; add.u32 %r11, %r10, 1;", ["0", "2", "1", "3"]);
    text
}

/// RMSNorm or LayerNorm, one block a row of f32; f16 out. A bias whose address is 0 is none.
fn norm(name: &str, layer: bool) -> String {
    let mut text = format!(
        "
.visible .entry {name}(
    .param .u64 x, .param .u64 weight, .param .u64 bias, .param .u64 out, .param .u32 width4, .param .f32 inverse, .param .f32 eps)
.maxntid 256, 1, 1
{{
    .reg .b32 %most, %least;
    .reg .pred %p, %biased;
    .reg .u32 %i, %width, %row, %lane, %warp;
    .reg .u64 %x, %w, %bias, %out, %at;
    .reg .f32 %a<4>, %b<4>, %c<4>, %sum, %t, %mean, %inverse, %eps;
    .reg .b32 %h<2>, %place;
    .shared .align 16 .f32 sums[16];
{LIMITS}    ld.param.u64 %x, [x];
    ld.param.u64 %w, [weight];
    ld.param.u64 %bias, [bias];
    ld.param.u64 %out, [out];
    ld.param.u32 %width, [width4];
    ld.param.f32 %inverse, [inverse];
    ld.param.f32 %eps, [eps];
    setp.ne.u64 %biased, %bias, 0;
    cvta.to.global.u64 %x, %x;
    cvta.to.global.u64 %w, %w;
    cvta.to.global.u64 %bias, %bias;
    cvta.to.global.u64 %out, %out;
    mov.u32 %row, %ctaid.x;
    mul.wide.u32 %at, %row, %width;
    shl.b64 %at, %at, 3;
    add.u64 %out, %out, %at;
    shl.b64 %at, %at, 1;
    add.u64 %x, %x, %at;
    mov.f32 %mean, 0f00000000;
    mov.f32 %c0, 0f00000000;
    mov.f32 %c1, 0f00000000;
    mov.f32 %c2, 0f00000000;
    mov.f32 %c3, 0f00000000;
"
    );
    if layer {
        text += &sum_of("MEAN", "add.f32 %sum, %sum, %a{};", 0);
        text += "    mul.f32 %mean, %sum, %inverse;\n";
    }
    text += &sum_of("SQUARES", "sub.f32 %a{}, %a{}, %mean;\n    fma.rn.f32 %sum, %a{}, %a{}, %sum;", 32);
    text += "    fma.rn.f32 %sum, %sum, %inverse, %eps;
    sqrt.rn.f32 %sum, %sum;
    rcp.rn.f32 %sum, %sum;
    mov.u32 %i, %tid.x;
STORE:
    setp.ge.u32 %p, %i, %width;
    @%p bra END;
    mul.wide.u32 %at, %i, 16;
    add.u64 %at, %x, %at;
    ld.global.v4.f32 {%a0, %a1, %a2, %a3}, [%at];
    mul.wide.u32 %at, %i, 16;
    add.u64 %at, %w, %at;
    ld.global.v4.f32 {%b0, %b1, %b2, %b3}, [%at];
    mul.wide.u32 %at, %i, 16;
    add.u64 %at, %bias, %at;
    @%biased ld.global.v4.f32 {%c0, %c1, %c2, %c3}, [%at];
";
    for i in 0..4 {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "    sub.f32 %a{i}, %a{i}, %mean;
    mul.f32 %a{i}, %a{i}, %sum;
    fma.rn.f32 %a{i}, %a{i}, %b{i}, %c{i};
"
        );
    }
    text += "    cvt.rn.f16x2.f32 %h0, %a1, %a0;
    cvt.rn.f16x2.f32 %h1, %a3, %a2;
    min.f16x2 %h0, %h0, %most;
    min.f16x2 %h1, %h1, %most;
    max.f16x2 %h0, %h0, %least;
    max.f16x2 %h1, %h1, %least;
    mul.wide.u32 %at, %i, 8;
    add.u64 %at, %out, %at;
    st.global.v2.b32 [%at], {%h0, %h1};
    add.u32 %i, %i, 256;
    bra STORE;
END:
    ret;
}
";
    text
}

/// `%sum` over a row of what `term` adds for each of its elements `%a{}`, the same in every thread of the block; `at` is where in `sums` the warps put
/// theirs.
fn sum_of(label: &str, term: &str, at: u32) -> String {
    let terms: String = (0..4).map(|i| format!("    {}\n", term.replace("{}", &i.to_string()))).collect();
    let lanes = [16, 8, 4, 2, 1].map(|lane| {
        format!(
            "    shfl.sync.bfly.b32 %t, %sum, {lane}, 31, 0xffffffff;
    add.f32 %sum, %sum, %t;
"
        )
    });
    format!(
        "    mov.f32 %sum, 0f00000000;
    mov.u32 %i, %tid.x;
{label}:
    setp.ge.u32 %p, %i, %width;
    @%p bra {label}_OF_ALL;
    mul.wide.u32 %at, %i, 16;
    add.u64 %at, %x, %at;
    ld.global.v4.f32 {{%a0, %a1, %a2, %a3}}, [%at];
{terms}    add.u32 %i, %i, 256;
    bra {label};
{label}_OF_ALL:
    bar.warp.sync 0xffffffff;
{}    mov.u32 %i, %tid.x;
    and.b32 %lane, %i, 31;
    shr.u32 %warp, %i, 5;
    shl.b32 %warp, %warp, 2;
    mov.u32 %place, sums;
    add.u32 %warp, %warp, %place;
    setp.eq.u32 %p, %lane, 0;
    @%p st.shared.f32 [%warp+{at}], %sum;
    bar.sync 0;
    ld.shared.v4.f32 {{%a0, %a1, %a2, %a3}}, [sums+{at}];
    ld.shared.v4.f32 {{%b0, %b1, %b2, %b3}}, [sums+{}];
    add.f32 %a0, %a0, %a1;
    add.f32 %a2, %a2, %a3;
    add.f32 %b0, %b0, %b1;
    add.f32 %b2, %b2, %b3;
    add.f32 %a0, %a0, %a2;
    add.f32 %b0, %b0, %b2;
    add.f32 %sum, %a0, %b0;
",
        lanes.concat(),
        at + 16
    )
}

/// A thread takes two pairs of one head, as in `shaders/rope_cache.wgsl`; `place` gives their words in `%r10` and `%r11` from the thread's number
/// `%r8` in the head, `order` names the elements that are x of the first and second pair, then y. The grid is `[rows, blocks of a row]`.
fn rope(name: &str, place: &str, order: [&str; 4]) -> String {
    let [x0, x1, y0, y1] = order;
    format!(
        "
.visible .entry {name}(
    .param .u64 angles, .param .u64 qkv, .param .u64 k, .param .u64 v,
    .param .u32 per_row, .param .u32 position, .param .u32 heads, .param .u32 kv_heads, .param .u32 head4, .param .u32 rotary4)
.maxntid 256, 1, 1
{{
    .reg .b32 %most, %least;
    .reg .pred %p, %turns;
    .reg .u32 %r<16>, %per_row, %position, %heads, %kv_heads, %head4, %rotary4;
    .reg .u64 %angles, %qkv, %to, %at, %first, %second;
    .reg .b32 %w<2>;
    .reg .b16 %h<4>;
    .reg .f32 %a<4>, %e<4>, %n<4>;
{LIMITS}    ld.param.u32 %per_row, [per_row];
    mov.u32 %r0, %ctaid.y;
    mov.u32 %r1, %tid.x;
    mad.lo.u32 %r1, %r0, 256, %r1;
    setp.ge.u32 %p, %r1, %per_row;
    @%p ret;
    ld.param.u64 %angles, [angles];
    ld.param.u64 %qkv, [qkv];
    ld.param.u32 %position, [position];
    ld.param.u32 %heads, [heads];
    ld.param.u32 %kv_heads, [kv_heads];
    ld.param.u32 %head4, [head4];
    ld.param.u32 %rotary4, [rotary4];
    cvta.to.global.u64 %angles, %angles;
    cvta.to.global.u64 %qkv, %qkv;
    mov.u32 %r2, %ctaid.x;
    add.u32 %position, %position, %r2;
    div.u32 %r3, %r1, %head4;
    mul.lo.u32 %r4, %r3, %head4;
    sub.u32 %r8, %r1, %r4;
    shl.b32 %r10, %r8, 1;
    add.u32 %r11, %r10, 1;
    setp.lt.u32 %turns, %r8, %rotary4;
    @!%turns bra READ;
    {place}
READ:
    mul.wide.u32 %at, %r2, %per_row;
    cvt.u64.u32 %to, %r4;
    add.u64 %at, %at, %to;
    shl.b64 %at, %at, 3;
    add.u64 %qkv, %qkv, %at;
    mul.wide.u32 %first, %r10, 4;
    mul.wide.u32 %second, %r11, 4;
    add.u64 %to, %qkv, %first;
    ld.global.b32 %w0, [%to];
    add.u64 %to, %qkv, %second;
    ld.global.b32 %w1, [%to];
    add.u32 %r5, %heads, %kv_heads;
    setp.ge.u32 %p, %r3, %r5;
    @%p bra VALUES;
    @!%turns bra PLACE;
    mov.b32 {{%h0, %h1}}, %w0;
    mov.b32 {{%h2, %h3}}, %w1;
    cvt.f32.f16 %e0, %h0;
    cvt.f32.f16 %e1, %h1;
    cvt.f32.f16 %e2, %h2;
    cvt.f32.f16 %e3, %h3;
    mul.wide.u32 %at, %position, %rotary4;
    cvt.u64.u32 %to, %r8;
    add.u64 %at, %at, %to;
    shl.b64 %at, %at, 4;
    add.u64 %at, %angles, %at;
    ld.global.v4.f32 {{%a0, %a1, %a2, %a3}}, [%at];
    mul.f32 %n{x0}, %e{y0}, %a1;
    neg.f32 %n{x0}, %n{x0};
    fma.rn.f32 %n{x0}, %e{x0}, %a0, %n{x0};
    mul.f32 %n{y0}, %e{x0}, %a1;
    fma.rn.f32 %n{y0}, %e{y0}, %a0, %n{y0};
    mul.f32 %n{x1}, %e{y1}, %a3;
    neg.f32 %n{x1}, %n{x1};
    fma.rn.f32 %n{x1}, %e{x1}, %a2, %n{x1};
    mul.f32 %n{y1}, %e{x1}, %a3;
    fma.rn.f32 %n{y1}, %e{y1}, %a2, %n{y1};
    cvt.rn.f16x2.f32 %w0, %n1, %n0;
    cvt.rn.f16x2.f32 %w1, %n3, %n2;
    min.f16x2 %w0, %w0, %most;
    min.f16x2 %w1, %w1, %most;
    max.f16x2 %w0, %w0, %least;
    max.f16x2 %w1, %w1, %least;
PLACE:
    setp.ge.u32 %p, %r3, %heads;
    @%p bra KEYS;
    @!%turns ret;
    mov.u64 %to, %qkv;
    bra STORE;
KEYS:
    sub.u32 %r5, %r3, %heads;
    ld.param.u64 %to, [k];
    bra ROW;
VALUES:
    sub.u32 %r5, %r3, %r5;
    ld.param.u64 %to, [v];
ROW:
    cvta.to.global.u64 %to, %to;
    mul.lo.u32 %r6, %kv_heads, %head4;
    mul.wide.u32 %at, %position, %r6;
    mul.lo.u32 %r5, %r5, %head4;
    cvt.u64.u32 %qkv, %r5;
    add.u64 %at, %at, %qkv;
    shl.b64 %at, %at, 3;
    add.u64 %to, %to, %at;
STORE:
    add.u64 %first, %to, %first;
    add.u64 %second, %to, %second;
    st.global.b32 [%first], %w0;
    st.global.b32 [%second], %w1;
    ret;
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cuda::ptx_check::check;

    #[test]
    fn the_text_names_what_it_declares() {
        check(&source());
    }

    #[test]
    #[should_panic(expected = "is not declared")]
    fn a_misspelt_register_is_found() {
        check(&source().replacen("add.f32 %sum, %sum, %t;", "add.f32 %sum, %sum, %tt;", 1));
    }
}
