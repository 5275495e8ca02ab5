//! The weight formats, decoded 32 elements at a time straight from the file's blocks; layouts as in [`Dtype`](crate::dtype::Dtype).
//!
//! Codes that are put together from low and high bits are made as bytes, by loops over arrays that compilers turn into the level's vectors. The
//! K formats' products of factor, scale and code have at most 24 bits: they are exact, and all levels agree in every bit.
#![allow(unsafe_code)]
// See `lanes.rs`: one contract for all functions.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::Lanes;
use crate::dtype::IQ4_NL_VALUES;

/// A weight format as a type, so that inner loops are compiled for it.
pub(super) trait Format {
    /// Bytes of a block, or of 32 elements where the format has none.
    const BYTES: usize;
    /// Runs of 32 elements in a block.
    const PARTS: usize = 1;
    /// Decodes run `part` of the block at `p`, at any alignment.
    unsafe fn block<S: Lanes>(p: *const u8, part: usize) -> S::Block;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct Q8_0;
pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Iq4Nl;
pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// Two bytes, little endian.
#[inline(always)]
pub(super) unsafe fn u16_at(p: *const u8) -> u16 {
    u16::from_le_bytes(p.cast::<[u8; 2]>().read())
}

#[inline(always)]
unsafe fn u32_at(p: *const u8) -> u32 {
    u32::from_le_bytes(p.cast::<[u8; 4]>().read())
}

/// `N` bytes.
#[inline(always)]
unsafe fn bytes_at<const N: usize>(p: *const u8) -> [u8; N] {
    p.cast::<[u8; N]>().read()
}

/// `d * q` for 32 codes.
#[inline(always)]
unsafe fn scaled<S: Lanes>(mut block: S::Block, d: S::V) -> S::Block {
    for v in block.as_mut() {
        *v = S::mul(d, *v);
    }
    block
}

/// `d * q + m` for 32 codes.
#[inline(always)]
unsafe fn scaled_from<S: Lanes>(mut block: S::Block, d: S::V, m: S::V) -> S::Block {
    for v in block.as_mut() {
        *v = S::fma(d, *v, m);
    }
    block
}

/// As [`scaled_from`], each 16 codes with factors of their own.
#[inline(always)]
unsafe fn halves_scaled_from<S: Lanes>(mut block: S::Block, d: [S::V; 2], m: [S::V; 2]) -> S::Block {
    for (i, v) in block.as_mut().iter_mut().enumerate() {
        let half = i * S::LANES / 16;
        *v = S::fma(d[half], *v, m[half]);
    }
    block
}

#[inline(always)]
unsafe fn floats<S: Lanes>(codes: [u8; 32]) -> S::Block {
    S::bytes(codes.as_ptr())
}

/// `d * n`.
#[inline(always)]
unsafe fn times<S: Lanes>(d: S::V, n: i32) -> S::V {
    S::mul(d, S::splat(n as f32))
}

impl Format for F32 {
    const BYTES: usize = 128;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        S::f32s(p)
    }
}

impl Format for F16 {
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        S::f16s(p)
    }
}

impl Format for Bf16 {
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        S::bf16s(p)
    }
}

impl Format for Q8_0 {
    const BYTES: usize = 34;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        scaled::<S>(S::bytes(p.add(2)), S::half(p))
    }
}

impl Format for Q4_0 {
    const BYTES: usize = 18;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        let d = S::half(p);
        S::nibbles(p.add(2), d, S::mul(S::splat(-8.0), d)) // d has 11 bits and the nibble 4: exact whether fused or not
    }
}

impl Format for Q4_1 {
    const BYTES: usize = 20;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        let (d, m) = S::halves(p);
        S::nibbles(p.add(4), d, m)
    }
}

impl Format for Iq4Nl {
    const BYTES: usize = 18;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        scaled::<S>(S::looked_up(p.add(2), &IQ4_NL_VALUES), S::half(p))
    }
}

/// Codes of 5 bits: 32 nibbles in 16 bytes, the low ones first, and their fifth bits.
#[inline(always)]
unsafe fn five_bits(q: *const u8, high: u32) -> [u8; 32] {
    let q: [u8; 16] = bytes_at(q);
    let mut codes = [0; 32];
    for (i, code) in codes.iter_mut().enumerate() {
        *code = ((high >> i) as u8 & 1) << 4;
    }
    let (low, upper) = codes.split_at_mut(16);
    for ((low, upper), q) in low.iter_mut().zip(upper).zip(q) {
        *low |= q & 15;
        *upper |= q >> 4;
    }
    codes
}

impl Format for Q5_0 {
    const BYTES: usize = 22;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        let d = S::half(p);
        let codes = floats::<S>(five_bits(p.add(6), u32_at(p.add(2))));
        scaled_from::<S>(codes, d, times::<S>(d, -16))
    }
}

impl Format for Q5_1 {
    const BYTES: usize = 24;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, _: usize) -> S::Block {
        let (d, m) = S::halves(p);
        scaled_from::<S>(floats::<S>(five_bits(p.add(8), u32_at(p.add(4)))), d, m)
    }
}

/// `(q >> shift) & mask`, byte by byte.
#[inline(always)]
fn shifted(q: [u8; 32], shift: usize, mask: u8) -> [u8; 32] {
    let mut out = q;
    for q in &mut out {
        *q = (*q >> shift) & mask;
    }
    out
}

/// `low | high << shift`, byte by byte.
#[inline(always)]
fn joined(low: [u8; 32], high: [u8; 32], shift: usize) -> [u8; 32] {
    let mut out = low;
    for (out, high) in out.iter_mut().zip(high) {
        *out |= high << shift;
    }
    out
}

/// Codes of 2 bits from 64 bytes: byte `l` of a half holds elements `l`, `l + 32`, `l + 64`, `l + 96` of 128.
#[inline(always)]
unsafe fn bit_pairs(q: *const u8, part: usize) -> [u8; 32] {
    shifted(bytes_at(q.add(part / 4 * 32)), part % 4 * 2, 3)
}

/// Codes of 4 bits from 128 bytes: byte `l` of a quarter holds elements `l` and `l + 32` of 64.
#[inline(always)]
unsafe fn nibbles(q: *const u8, part: usize) -> [u8; 32] {
    shifted(bytes_at(q.add(part / 2 * 32)), part % 2 * 4, 15)
}

impl Format for Q2K {
    const BYTES: usize = 84;
    const PARTS: usize = 8;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, part: usize) -> S::Block {
        let (d, m) = S::halves(p.add(80));
        let s: [u8; 2] = bytes_at(p.add(2 * part));
        let s = s.map(i32::from);
        halves_scaled_from::<S>(
            floats::<S>(bit_pairs(p.add(16), part)),
            [times::<S>(d, s[0] & 15), times::<S>(d, s[1] & 15)],
            [times::<S>(m, -(s[0] >> 4)), times::<S>(m, -(s[1] >> 4))],
        )
    }
}

impl Format for Q3K {
    const BYTES: usize = 110;
    const PARTS: usize = 8;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, part: usize) -> S::Block {
        let d = S::half(p.add(108));
        // Scale `j`: four bits in byte `j % 8`, two more in byte `8 + j % 4`.
        let scale = |j: usize| {
            let low = (*p.add(96 + j % 8) >> (j / 8 * 4)) & 15;
            let high = (*p.add(104 + j % 4) >> (j / 4 * 2)) & 3;
            i32::from(low | (high << 4)) - 32
        };
        let (a, b) = (times::<S>(d, scale(2 * part)), times::<S>(d, scale(2 * part + 1)));
        let codes = joined(bit_pairs(p.add(32), part), shifted(bytes_at(p), part, 1), 2);
        halves_scaled_from::<S>(floats::<S>(codes), [a, b], [times::<S>(a, -4), times::<S>(b, -4)])
    }
}

/// Scale and negated minimum of 32 elements of Q4_K and Q5_K: six bits each, the first four pairs in bytes of their own, whose upper bits complete the
/// last four pairs' nibbles.
#[inline(always)]
unsafe fn scale_and_min<S: Lanes>(p: *const u8, part: usize) -> (S::V, S::V) {
    let (d, m) = S::halves(p);
    let s = |i: usize| i32::from(*p.add(4 + i));
    let (scale, least) = if part < 4 {
        (s(part) & 63, s(part + 4) & 63)
    } else {
        ((s(part + 4) & 15) | (s(part - 4) >> 6 << 4), (s(part + 4) >> 4) | (s(part) >> 6 << 4))
    };
    (times::<S>(d, scale), times::<S>(m, -least))
}

impl Format for Q4K {
    const BYTES: usize = 144;
    const PARTS: usize = 8;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, part: usize) -> S::Block {
        let (d, m) = scale_and_min::<S>(p, part);
        scaled_from::<S>(floats::<S>(nibbles(p.add(16), part)), d, m)
    }
}

impl Format for Q5K {
    const BYTES: usize = 176;
    const PARTS: usize = 8;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, part: usize) -> S::Block {
        let (d, m) = scale_and_min::<S>(p, part);
        let codes = joined(nibbles(p.add(48), part), shifted(bytes_at(p.add(16)), part, 1), 4);
        scaled_from::<S>(floats::<S>(codes), d, m)
    }
}

impl Format for Q6K {
    const BYTES: usize = 210;
    const PARTS: usize = 8;
    #[inline(always)]
    unsafe fn block<S: Lanes>(p: *const u8, part: usize) -> S::Block {
        let d = S::half(p.add(208));
        let scale = |j: usize| i32::from(*p.add(192 + j) as i8);
        let (a, b) = (times::<S>(d, scale(2 * part)), times::<S>(d, scale(2 * part + 1)));
        // Byte `l` of a half of 64 bytes holds elements `l` and `l + 64` of 128.
        let low = shifted(bytes_at(p.add(part / 4 * 64 + part % 2 * 32)), part / 2 % 2 * 4, 15);
        let codes = joined(low, bit_pairs(p.add(128), part), 4);
        halves_scaled_from::<S>(floats::<S>(codes), [a, b], [times::<S>(a, -32), times::<S>(b, -32)])
    }
}
