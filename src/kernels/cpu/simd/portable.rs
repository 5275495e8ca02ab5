//! Lanes without intrinsics: what every CPU runs, and the yardstick of the others in tests.
#![allow(unsafe_code)]
// See `lanes.rs`: one contract for all functions.
#![allow(unsafe_op_in_unsafe_fn)]

use super::formats::u16_at;
use super::lanes::Lanes;

/// Four lanes: compilers turn loops over them into the baseline vectors of most targets. No fused multiply-add, which would be a call into
/// the C library where the instruction is missing.
pub(super) struct Portable;

const N: usize = 4;

#[inline(always)]
fn zip(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn block(f: impl Fn(usize) -> f32) -> [[f32; N]; 8] {
    std::array::from_fn(|i| std::array::from_fn(|j| f(i * N + j)))
}

impl Lanes for Portable {
    const LANES: usize = N;
    type V = [f32; N];
    type Block = [[f32; N]; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; N] {
        p.cast::<[f32; N]>().read()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; N]) {
        p.cast::<[f32; N]>().write(v);
    }
    #[inline(always)]
    unsafe fn add(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn round(a: [f32; N]) -> [f32; N] {
        const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves no room for a fraction
        a.map(|x| (x + MAGIC) - MAGIC)
    }
    #[inline(always)]
    unsafe fn scale(a: [f32; N], n: [f32; N]) -> [f32; N] {
        zip(a, n, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: [f32; N]) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn largest(a: [f32; N]) -> f32 {
        a[0].max(a[2]).max(a[1].max(a[3]))
    }
    #[inline(always)]
    unsafe fn half(p: *const u8) -> [f32; N] {
        [widen(u16_at(p)); N]
    }
    #[inline(always)]
    unsafe fn f32s(p: *const u8) -> Self::Block {
        block(|i| f32::from_le_bytes(p.add(4 * i).cast::<[u8; 4]>().read()))
    }
    #[inline(always)]
    unsafe fn f16s(p: *const u8) -> Self::Block {
        block(|i| widen(u16_at(p.add(2 * i))))
    }
    #[inline(always)]
    unsafe fn bf16s(p: *const u8) -> Self::Block {
        block(|i| f32::from_bits(u32::from(u16_at(p.add(2 * i))) << 16))
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::Block {
        block(|i| f32::from(*p.add(i) as i8))
    }
    #[inline(always)]
    unsafe fn looked_up(p: *const u8, values: &[i8; 16]) -> Self::Block {
        block(|i| f32::from(values[usize::from((*p.add(i % 16) >> (i / 16 * 4)) & 15)]))
    }
    #[inline(always)]
    unsafe fn nibbles(p: *const u8, d: [f32; N], m: [f32; N]) -> Self::Block {
        block(|i| {
            let byte = *p.add(i % 16);
            d[0] * f32::from(if i < 16 { byte & 15 } else { byte >> 4 }) + m[0]
        })
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        for r in 0..N {
            for c in 0..N {
                *dst.add(c * dst_stride + r) = *src.add(r * src_stride + c);
            }
        }
    }
}

/// A binary16 as f32, without branches: a multiplication by 2^112 moves the exponent, subnormals included; infinities and NaN get theirs back.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let value = f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23);
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | special | (u32::from(bits & 0x8000) << 16))
}
