//! Lanes of aarch64's NEON.
#![allow(unsafe_code)]
// See `lanes.rs`: one contract for all functions.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::aarch64::*;

use super::formats::u16_at;
use super::lanes::Lanes;

/// Four lanes; NEON belongs to every aarch64.
pub(super) struct Neon;

impl Lanes for Neon {
    const LANES: usize = 4;
    type V = float32x4_t;
    type Block = [float32x4_t; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        vdupq_n_f32(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        vld1q_f32(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        vst1q_f32(p, v);
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vsubq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vdivq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmaxq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vminq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn round(a: float32x4_t) -> float32x4_t {
        vrndnq_f32(a)
    }
    #[inline(always)]
    unsafe fn scale(a: float32x4_t, n: float32x4_t) -> float32x4_t {
        let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
        vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
    }
    #[inline(always)]
    unsafe fn sum(a: float32x4_t) -> f32 {
        vaddvq_f32(a)
    }
    #[inline(always)]
    unsafe fn largest(a: float32x4_t) -> f32 {
        vmaxvq_f32(a)
    }
    #[inline(always)]
    unsafe fn half(p: *const u8) -> float32x4_t {
        widen(vdupq_n_u32(u32::from(u16_at(p))))
    }
    #[inline(always)]
    unsafe fn f32s(p: *const u8) -> [float32x4_t; 8] {
        let mut out = [vdupq_n_f32(0.0); 8];
        for (i, out) in out.iter_mut().enumerate() {
            *out = vreinterpretq_f32_u8(vld1q_u8(p.add(16 * i)));
        }
        out
    }
    #[inline(always)]
    unsafe fn f16s(p: *const u8) -> [float32x4_t; 8] {
        let mut out = [vdupq_n_f32(0.0); 8];
        for (i, out) in out.iter_mut().enumerate() {
            *out = widen(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p.add(8 * i)))));
        }
        out
    }
    #[inline(always)]
    unsafe fn bf16s(p: *const u8) -> [float32x4_t; 8] {
        let mut out = [vdupq_n_f32(0.0); 8];
        for (i, out) in out.iter_mut().enumerate() {
            let wide = vmovl_u16(vreinterpret_u16_u8(vld1_u8(p.add(8 * i))));
            *out = vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide));
        }
        out
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [float32x4_t; 8] {
        let mut out = [vdupq_n_f32(0.0); 8];
        for i in 0..4 {
            let wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p.add(8 * i))));
            out[2 * i] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
            out[2 * i + 1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
        }
        out
    }
    #[inline(always)]
    unsafe fn looked_up(p: *const u8, values: &[i8; 16]) -> [float32x4_t; 8] {
        let (values, bytes) = (vld1q_s8(values.as_ptr()), vld1q_u8(p));
        let mut found = [0i8; 32];
        vst1q_s8(found.as_mut_ptr(), vqtbl1q_s8(values, vandq_u8(bytes, vdupq_n_u8(15))));
        vst1q_s8(found.as_mut_ptr().add(16), vqtbl1q_s8(values, vshrq_n_u8::<4>(bytes)));
        Self::bytes(found.as_ptr().cast())
    }
    #[inline(always)]
    unsafe fn nibbles(p: *const u8, d: float32x4_t, m: float32x4_t) -> [float32x4_t; 8] {
        let bytes = vld1q_u8(p);
        let (low, high) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
        let mut out = [m; 8];
        for (i, q) in
            [vget_low_u8(low), vget_high_u8(low), vget_low_u8(high), vget_high_u8(high)].into_iter().enumerate()
        {
            let wide = vmovl_u8(q);
            out[2 * i] = vfmaq_f32(out[2 * i], d, vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))));
            out[2 * i + 1] = vfmaq_f32(out[2 * i + 1], d, vcvtq_f32_u32(vmovl_u16(vget_high_u16(wide))));
        }
        out
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        let (a, b) = (vld1q_f32(src), vld1q_f32(src.add(src_stride)));
        let (c, d) = (vld1q_f32(src.add(2 * src_stride)), vld1q_f32(src.add(3 * src_stride)));
        let (ab, cd) = (vzip1q_f32(a, b), vzip1q_f32(c, d));
        vst1q_f32(dst, vcombine_f32(vget_low_f32(ab), vget_low_f32(cd)));
        vst1q_f32(dst.add(dst_stride), vcombine_f32(vget_high_f32(ab), vget_high_f32(cd)));
        let (ab, cd) = (vzip2q_f32(a, b), vzip2q_f32(c, d));
        vst1q_f32(dst.add(2 * dst_stride), vcombine_f32(vget_low_f32(ab), vget_low_f32(cd)));
        vst1q_f32(dst.add(3 * dst_stride), vcombine_f32(vget_high_f32(ab), vget_high_f32(cd)));
    }
}

/// Binary16 in the low halves of 32-bit lanes as f32: a multiplication by 2^112 moves the exponent, subnormals included; infinities and NaN
/// get theirs back. (The conversion instruction's intrinsic is not stable in the Rust version that we promise to build with.)
#[inline(always)]
unsafe fn widen(bits: uint32x4_t) -> float32x4_t {
    let magnitude = vshlq_n_u32::<13>(vandq_u32(bits, vdupq_n_u32(0x7fff)));
    let value = vmulq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(f32::from_bits((112 + 127) << 23)));
    let special = vandq_u32(vcgeq_u32(magnitude, vdupq_n_u32(0x7c00 << 13)), vdupq_n_u32(0x7f80_0000));
    let sign = vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000)));
    vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(vreinterpretq_u32_f32(value), special), sign))
}
