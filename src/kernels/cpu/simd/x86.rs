//! Lanes of AVX2 (with FMA and F16C) and of AVX-512.
#![allow(unsafe_code)]
// See `lanes.rs`: one contract for all functions.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

use super::formats::u16_at;
use super::lanes::Lanes;

/// Eight lanes: `avx2`, `fma`, `f16c`.
pub(super) struct Avx2;

/// Sixteen lanes: `avx512f`, `avx512bw`, `avx512vl`, `f16c`.
pub(super) struct Avx512;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl Lanes for Avx2 {
    const LANES: usize = 8;
    type V = __m256;
    type Block = [__m256; 4];

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        _mm256_storeu_ps(p, v);
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        _mm256_round_ps::<NEAREST>(a)
    }
    #[inline(always)]
    unsafe fn scale(a: __m256, n: __m256) -> __m256 {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
    }
    #[inline(always)]
    unsafe fn largest(a: __m256) -> f32 {
        let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
    }
    #[inline(always)]
    unsafe fn half(p: *const u8) -> __m256 {
        _mm256_cvtph_ps(_mm_set1_epi16(u16_at(p) as i16))
    }
    #[inline(always)]
    unsafe fn halves(p: *const u8) -> (__m256, __m256) {
        // One broadcast and one conversion for both.
        let both = _mm256_cvtph_ps(_mm_set1_epi32(p.cast::<i32>().read_unaligned()));
        (_mm256_moveldup_ps(both), _mm256_movehdup_ps(both))
    }
    #[inline(always)]
    unsafe fn f32s(p: *const u8) -> [__m256; 4] {
        let p = p.cast::<f32>();
        [Self::load(p), Self::load(p.add(8)), Self::load(p.add(16)), Self::load(p.add(24))]
    }
    #[inline(always)]
    unsafe fn f16s(p: *const u8) -> [__m256; 4] {
        let mut out = [_mm256_setzero_ps(); 4];
        for (i, out) in out.iter_mut().enumerate() {
            *out = _mm256_cvtph_ps(_mm_loadu_si128(p.add(16 * i).cast()));
        }
        out
    }
    #[inline(always)]
    unsafe fn bf16s(p: *const u8) -> [__m256; 4] {
        let mut out = [_mm256_setzero_ps(); 4];
        for (i, out) in out.iter_mut().enumerate() {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16 * i).cast()));
            *out = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide));
        }
        out
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [__m256; 4] {
        let mut out = [_mm256_setzero_ps(); 4];
        for (i, out) in out.iter_mut().enumerate() {
            *out = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * i).cast())));
        }
        out
    }
    #[inline(always)]
    unsafe fn looked_up(p: *const u8, values: &[i8; 16]) -> [__m256; 4] {
        let values = _mm_loadu_si128(values.as_ptr().cast());
        let (mask, bytes) = (_mm_set1_epi8(15), _mm_loadu_si128(p.cast()));
        let low = _mm_shuffle_epi8(values, _mm_and_si128(bytes, mask));
        let high = _mm_shuffle_epi8(values, _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask));
        let mut out = [_mm256_setzero_ps(); 4];
        for (out, q) in out.iter_mut().zip([low, _mm_srli_si128::<8>(low), high, _mm_srli_si128::<8>(high)]) {
            *out = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
        }
        out
    }
    #[inline(always)]
    unsafe fn nibbles(p: *const u8, d: __m256, m: __m256) -> [__m256; 4] {
        let mask = _mm_set1_epi8(15);
        let bytes = _mm_loadu_si128(p.cast());
        let low = _mm_and_si128(bytes, mask);
        let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
        let mut out = [m; 4];
        for (out, q) in out.iter_mut().zip([low, _mm_srli_si128::<8>(low), high, _mm_srli_si128::<8>(high)]) {
            *out = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(q)), m);
        }
        out
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        let mut r = [_mm256_setzero_ps(); 8];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm256_loadu_ps(src.add(i * src_stride));
        }
        let mut u = [_mm256_setzero_ps(); 8];
        for j in 0..2 {
            // 4x4 transposes within each 128-bit lane: u[4j + c] holds columns c and 4 + c of rows 4j..4j + 4.
            let (a, b, c, d) = (r[4 * j], r[4 * j + 1], r[4 * j + 2], r[4 * j + 3]);
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            u[4 * j] = _mm256_shuffle_ps::<0x44>(ab, cd);
            u[4 * j + 1] = _mm256_shuffle_ps::<0xee>(ab, cd);
            let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            u[4 * j + 2] = _mm256_shuffle_ps::<0x44>(ab, cd);
            u[4 * j + 3] = _mm256_shuffle_ps::<0xee>(ab, cd);
        }
        for c in 0..4 {
            _mm256_storeu_ps(dst.add(c * dst_stride), _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]));
            _mm256_storeu_ps(dst.add((4 + c) * dst_stride), _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]));
        }
    }
}

impl Lanes for Avx512 {
    const LANES: usize = 16;
    type V = __m512;
    type Block = [__m512; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        _mm512_storeu_ps(p, v);
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        _mm512_roundscale_ps::<NEAREST>(a)
    }
    #[inline(always)]
    unsafe fn scale(a: __m512, n: __m512) -> __m512 {
        _mm512_scalef_ps(a, n)
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        _mm512_reduce_add_ps(a)
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        _mm512_reduce_max_ps(a)
    }
    #[inline(always)]
    unsafe fn half(p: *const u8) -> __m512 {
        _mm512_cvtph_ps(_mm256_set1_epi16(u16_at(p) as i16))
    }
    #[inline(always)]
    unsafe fn halves(p: *const u8) -> (__m512, __m512) {
        // One broadcast and one conversion for both.
        let both = _mm512_cvtph_ps(_mm256_set1_epi32(p.cast::<i32>().read_unaligned()));
        (_mm512_moveldup_ps(both), _mm512_movehdup_ps(both))
    }
    #[inline(always)]
    unsafe fn f32s(p: *const u8) -> [__m512; 2] {
        [_mm512_loadu_ps(p.cast()), _mm512_loadu_ps(p.add(64).cast())]
    }
    #[inline(always)]
    unsafe fn f16s(p: *const u8) -> [__m512; 2] {
        let (a, b) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast()));
        [_mm512_cvtph_ps(a), _mm512_cvtph_ps(b)]
    }
    #[inline(always)]
    unsafe fn bf16s(p: *const u8) -> [__m512; 2] {
        let mut out = [_mm512_setzero_ps(); 2];
        for (i, out) in out.iter_mut().enumerate() {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.add(32 * i).cast()));
            *out = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide));
        }
        out
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [__m512; 2] {
        let mut out = [_mm512_setzero_ps(); 2];
        for (i, out) in out.iter_mut().enumerate() {
            *out = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.add(16 * i).cast())));
        }
        out
    }
    #[inline(always)]
    unsafe fn looked_up(p: *const u8, values: &[i8; 16]) -> [__m512; 2] {
        // As in `nibbles`: the sixteen values form a register.
        let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(values.as_ptr().cast())));
        let index = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        [_mm512_permutexvar_ps(index, values), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(index), values)]
    }
    #[inline(always)]
    unsafe fn nibbles(p: *const u8, d: __m512, m: __m512) -> [__m512; 2] {
        // The block's sixteen values form a register, and the nibbles permute it: an index uses the low four bits of its lane alone.
        let steps = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
        let values = _mm512_fmadd_ps(d, steps, m);
        let index = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        [_mm512_permutexvar_ps(index, values), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(index), values)]
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        let mut r = [_mm512_setzero_ps(); 16];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm512_loadu_ps(src.add(i * src_stride));
        }
        let mut u = [_mm512_setzero_ps(); 16];
        for j in 0..4 {
            // 4x4 transposes within each 128-bit lane L: u[4j + c] holds columns 4L + c of rows 4j..4j + 4.
            let (a, b, c, d) = (r[4 * j], r[4 * j + 1], r[4 * j + 2], r[4 * j + 3]);
            let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
            u[4 * j] = _mm512_shuffle_ps::<0x44>(ab, cd);
            u[4 * j + 1] = _mm512_shuffle_ps::<0xee>(ab, cd);
            let (ab, cd) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
            u[4 * j + 2] = _mm512_shuffle_ps::<0x44>(ab, cd);
            u[4 * j + 3] = _mm512_shuffle_ps::<0xee>(ab, cd);
        }
        for c in 0..4 {
            let even = _mm512_shuffle_f32x4::<0x88>(u[c], u[4 + c]); // lanes 0 and 2 of both
            let odd = _mm512_shuffle_f32x4::<0xdd>(u[c], u[4 + c]);
            let (even2, odd2) =
                (_mm512_shuffle_f32x4::<0x88>(u[8 + c], u[12 + c]), _mm512_shuffle_f32x4::<0xdd>(u[8 + c], u[12 + c]));
            _mm512_storeu_ps(dst.add(c * dst_stride), _mm512_shuffle_f32x4::<0x88>(even, even2));
            _mm512_storeu_ps(dst.add((4 + c) * dst_stride), _mm512_shuffle_f32x4::<0x88>(odd, odd2));
            _mm512_storeu_ps(dst.add((8 + c) * dst_stride), _mm512_shuffle_f32x4::<0xdd>(even, even2));
            _mm512_storeu_ps(dst.add((12 + c) * dst_stride), _mm512_shuffle_f32x4::<0xdd>(odd, odd2));
        }
    }
}
