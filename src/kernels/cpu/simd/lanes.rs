//! A vector of f32 lanes as a trait, and the routines written over it once for all instruction sets.
//!
//! Everything is `#[inline(always)]`, so that the `#[target_feature]` functions of each level compile the intrinsics with their features on.
#![allow(unsafe_code)]
// The contract of every `unsafe fn` of this file is the same, and said once: the CPU has the instruction set of `S`, and each pointer is valid
// for what the function's documentation says it touches. An inner block per line would say nothing more.
#![allow(unsafe_op_in_unsafe_fn)]

use super::Tile;
use super::formats::*;
use crate::dtype::Dtype;

/// Bytes between what is decoded and what is asked for from memory, in dot products. The hardware's own prefetch ends at each page of 4 KiB:
/// without this, a token of SmolLM2 on one thread took 11.8 ms, with 1 KiB 8.6, 4 KiB 6.3, 8 KiB 6.3.
const AHEAD: usize = 4096;

/// Elements that are decoded together: the block of the quantised formats, or a part of their super-blocks.
pub(super) const BLOCK: usize = 32;

/// A register of f32 lanes.
pub(super) trait Lanes {
    /// Number of lanes; divides [`BLOCK`].
    const LANES: usize;
    /// The register.
    type V: Copy;
    /// [`BLOCK`] elements in order: `[V; BLOCK / LANES]`.
    type Block: Copy + AsRef<[Self::V]> + AsMut<[Self::V]>;

    unsafe fn splat(x: f32) -> Self::V;
    /// Reads `LANES` floats, at any alignment.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes `LANES` floats, at any alignment.
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the instruction set has it.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Nearest integer.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` for whole numbers `n` in -126..=127.
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;
    unsafe fn largest(a: Self::V) -> f32;

    /// The binary16 at `p` in all lanes.
    unsafe fn half(p: *const u8) -> Self::V;
    /// Two binary16 from `p` on, each in all lanes.
    #[inline(always)]
    unsafe fn halves(p: *const u8) -> (Self::V, Self::V) {
        (Self::half(p), Self::half(p.add(2)))
    }
    /// 32 floats, 128 bytes.
    unsafe fn f32s(p: *const u8) -> Self::Block;
    /// 32 binary16, 64 bytes.
    unsafe fn f16s(p: *const u8) -> Self::Block;
    /// 32 upper halves of binary32, 64 bytes.
    unsafe fn bf16s(p: *const u8) -> Self::Block;
    /// 32 signed bytes as floats.
    unsafe fn bytes(p: *const u8) -> Self::Block;
    /// `values[q]` for 32 nibbles in 16 bytes, the low ones first.
    unsafe fn looked_up(p: *const u8, values: &[i8; 16]) -> Self::Block;
    /// `d * q + m` for 32 nibbles in 16 bytes, the low ones first.
    unsafe fn nibbles(p: *const u8, d: Self::V, m: Self::V) -> Self::Block;

    /// Asks for the cache line at `p`, which need not be valid memory.
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    /// Transposes `LANES` rows, `src_stride` apart, of `LANES` floats.
    unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize);
}

/// Decodes the `n` elements that follow the last full block, zeros behind them; only formats without real blocks have such a rest.
#[inline(always)]
unsafe fn rest<S: Lanes, F: Format>(p: *const u8, n: usize) -> S::Block {
    let mut padded = [0u8; 4 * BLOCK];
    std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), n * F::BYTES / BLOCK);
    F::block::<S>(padded.as_ptr(), 0)
}

/// Decodes block `b` of a row, 32 elements.
#[inline(always)]
unsafe fn nth<S: Lanes, F: Format>(row: *const u8, b: usize) -> S::Block {
    F::block::<S>(row.add(b / F::PARTS * F::BYTES), b % F::PARTS)
}

/// Writes a block to `p`, [`BLOCK`] floats.
#[inline(always)]
unsafe fn store<S: Lanes>(p: *mut f32, block: S::Block) {
    for (i, &v) in block.as_ref().iter().enumerate() {
        S::store(p.add(i * S::LANES), v);
    }
}

/// Calls `$f::<S, Format>($args)` for the format that `$dtype` names.
macro_rules! by_format {
    ($dtype:expr, $f:ident::<$s:ident>($($arg:expr),*)) => {
        match $dtype {
            Dtype::F32 => $f::<$s, F32>($($arg),*),
            Dtype::F16 => $f::<$s, F16>($($arg),*),
            Dtype::Bf16 => $f::<$s, Bf16>($($arg),*),
            Dtype::Q8_0 => $f::<$s, Q8_0>($($arg),*),
            Dtype::Q4_0 => $f::<$s, Q4_0>($($arg),*),
            Dtype::Q4_1 => $f::<$s, Q4_1>($($arg),*),
            Dtype::Q5_0 => $f::<$s, Q5_0>($($arg),*),
            Dtype::Q5_1 => $f::<$s, Q5_1>($($arg),*),
            Dtype::Iq4Nl => $f::<$s, Iq4Nl>($($arg),*),
            Dtype::Q2K => $f::<$s, Q2K>($($arg),*),
            Dtype::Q3K => $f::<$s, Q3K>($($arg),*),
            Dtype::Q4K => $f::<$s, Q4K>($($arg),*),
            Dtype::Q5K => $f::<$s, Q5K>($($arg),*),
            Dtype::Q6K => $f::<$s, Q6K>($($arg),*),
        }
    };
}

/// Decodes `out.len()` elements from `p`.
#[inline(always)]
pub(super) unsafe fn decode<S: Lanes>(dtype: Dtype, p: *const u8, out: &mut [f32]) {
    by_format!(dtype, decode_as::<S>(p, out));
}

#[inline(always)]
unsafe fn decode_as<S: Lanes, F: Format>(p: *const u8, out: &mut [f32]) {
    let full = out.len() / BLOCK;
    for b in 0..full {
        store::<S>(out.as_mut_ptr().add(b * BLOCK), nth::<S, F>(p, b));
    }
    let tail = &mut out[full * BLOCK..];
    if !tail.is_empty() {
        let mut padded = [0.0; BLOCK];
        store::<S>(padded.as_mut_ptr(), rest::<S, F>(p.add(full * F::BYTES), tail.len()));
        tail.copy_from_slice(&padded[..tail.len()]);
    }
}

/// `out[i] = row i . x` for rows of `x.len()` elements that start `stride` bytes apart.
#[inline(always)]
pub(super) unsafe fn dots<S: Lanes>(dtype: Dtype, p: *const u8, stride: usize, x: &[f32], out: &mut [f32]) {
    by_format!(dtype, dots_as::<S>(p, stride, x, out));
}

#[inline(always)]
unsafe fn dots_as<S: Lanes, F: Format>(p: *const u8, stride: usize, x: &[f32], out: &mut [f32]) {
    // Two rows at a time: each load of x serves both, and the sums are enough in number to cover the latency of an FMA.
    let mut i = 0;
    while i + 2 <= out.len() {
        let sums = dots_of::<S, F, 2>(p.add(i * stride), stride, x);
        out[i..i + 2].copy_from_slice(&sums);
        i += 2;
    }
    if i < out.len() {
        out[i] = dots_of::<S, F, 1>(p.add(i * stride), stride, x)[0];
    }
}

#[inline(always)]
unsafe fn dots_of<S: Lanes, F: Format, const ROWS: usize>(p: *const u8, stride: usize, x: &[f32]) -> [f32; ROWS] {
    let full = x.len() / BLOCK;
    // BLOCK / LANES sums a row are in use: 2, 4 or 8.
    let mut acc = [[S::splat(0.0); 8]; ROWS];
    for b in 0..full {
        for (r, acc) in acc.iter_mut().enumerate() {
            let row = p.add(r * stride);
            S::prefetch(row.wrapping_add(b * F::BYTES / F::PARTS + AHEAD));
            add_products::<S>(acc, nth::<S, F>(row, b), x.as_ptr().add(b * BLOCK));
        }
    }
    let tail = &x[full * BLOCK..];
    if !tail.is_empty() {
        let mut padded = [0.0; BLOCK];
        padded[..tail.len()].copy_from_slice(tail);
        for (r, acc) in acc.iter_mut().enumerate() {
            let block = rest::<S, F>(p.add(r * stride + full * F::BYTES), tail.len());
            add_products::<S>(acc, block, padded.as_ptr());
        }
    }
    let mut sums = [0.0; ROWS];
    for (sum, acc) in sums.iter_mut().zip(&acc) {
        let mut total = acc[0];
        for &v in &acc[1..BLOCK / S::LANES] {
            total = S::add(total, v);
        }
        *sum = S::sum(total);
    }
    sums
}

/// `acc += block * x`, [`BLOCK`] floats of x.
#[inline(always)]
unsafe fn add_products<S: Lanes>(acc: &mut [S::V; 8], block: S::Block, x: *const f32) {
    for (i, &w) in block.as_ref().iter().enumerate() {
        acc[i] = S::fma(w, S::load(x.add(i * S::LANES)), acc[i]);
    }
}

/// `out += sum over i of p[i] * row i`, for rows of `out.len()` elements that start `stride` bytes apart.
#[inline(always)]
pub(super) unsafe fn mix<S: Lanes>(dtype: Dtype, rows: *const u8, stride: usize, p: &[f32], out: &mut [f32]) {
    by_format!(dtype, mix_as::<S>(rows, stride, p, out));
}

#[inline(always)]
unsafe fn mix_as<S: Lanes, F: Format>(rows: *const u8, stride: usize, p: &[f32], out: &mut [f32]) {
    for (b, out) in out.chunks_mut(BLOCK).enumerate() {
        let n = out.len();
        let mut sums = [0.0; BLOCK];
        sums[..n].copy_from_slice(out);
        let mut acc = [S::splat(0.0); 8];
        for (i, acc) in acc.iter_mut().take(BLOCK / S::LANES).enumerate() {
            *acc = S::load(sums.as_ptr().add(i * S::LANES));
        }
        for (r, &p) in p.iter().enumerate() {
            let (row, p) = (rows.add(r * stride), S::splat(p));
            let block = if n == BLOCK { nth::<S, F>(row, b) } else { rest::<S, F>(row.add(b * F::BYTES), n) };
            for (i, &v) in block.as_ref().iter().enumerate() {
                acc[i] = S::fma(p, v, acc[i]);
            }
        }
        for (i, &acc) in acc.iter().take(BLOCK / S::LANES).enumerate() {
            S::store(sums.as_mut_ptr().add(i * S::LANES), acc);
        }
        out.copy_from_slice(&sums[..n]);
    }
}

/// `LANES` rows of `k` floats become `k` rows of `LANES`.
#[inline(always)]
pub(super) unsafe fn transpose<S: Lanes>(
    src: *const f32,
    src_stride: usize,
    dst: *mut f32,
    dst_stride: usize,
    k: usize,
) {
    let full = k / S::LANES * S::LANES;
    for c in (0..full).step_by(S::LANES) {
        S::transpose(src.add(c), src_stride, dst.add(c * dst_stride), dst_stride);
    }
    for c in full..k {
        for r in 0..S::LANES {
            *dst.add(c * dst_stride + r) = *src.add(r * src_stride + c);
        }
    }
}

/// See [`Tile`]; at most `MR` rows of it in registers at once.
#[inline(always)]
pub(super) unsafe fn tile<S: Lanes, const MR: usize>(t: &mut Tile<'_>) {
    let mut row = 0;
    while row + MR <= t.m {
        tile_rows::<S, MR>(t, row);
        row += MR;
    }
    // The remaining rows in powers of two: few instances, and no row's sum depends on how it was grouped.
    if row + 8 <= t.m {
        tile_rows::<S, 8>(t, row);
        row += 8;
    }
    if row + 4 <= t.m {
        tile_rows::<S, 4>(t, row);
        row += 4;
    }
    if row + 2 <= t.m {
        tile_rows::<S, 2>(t, row);
        row += 2;
    }
    if row < t.m {
        tile_rows::<S, 1>(t, row);
    }
}

/// `M` rows of a tile.
#[inline(always)]
unsafe fn tile_rows<S: Lanes, const M: usize>(t: &mut Tile<'_>, row: usize) {
    let mut column = 0;
    while column + 2 * S::LANES <= t.n {
        tile_block::<S, M, 2>(t, row, column);
        column += 2 * S::LANES;
    }
    if column < t.n {
        tile_block::<S, M, 1>(t, row, column);
    }
}

/// `M` rows of `N` registers: all sums stay in registers, k ascends one by one.
#[inline(always)]
unsafe fn tile_block<S: Lanes, const M: usize, const N: usize>(t: &mut Tile<'_>, row: usize, column: usize) {
    let a = t.a.as_ptr().add(row * t.a_stride);
    let b = t.b.as_ptr().add(column);
    let c = t.c.as_mut_ptr().add(row * t.c_stride + column);
    let mut acc = [[S::splat(0.0); N]; M];
    if t.add {
        for (i, acc) in acc.iter_mut().enumerate() {
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(c.add(i * t.c_stride + j * S::LANES));
            }
        }
    }
    for k in 0..t.k {
        let mut w = [S::splat(0.0); N];
        for (j, w) in w.iter_mut().enumerate() {
            *w = S::load(b.add(k * t.b_stride + j * S::LANES));
        }
        for (i, acc) in acc.iter_mut().enumerate() {
            let x = S::splat(*a.add(i * t.a_stride + k));
            for (acc, &w) in acc.iter_mut().zip(&w) {
                *acc = S::fma(x, w, *acc);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        for (j, &acc) in acc.iter().enumerate() {
            S::store(c.add(i * t.c_stride + j * S::LANES), acc);
        }
    }
}

/// `e^x` to about 2e-7 relative, for x in -87..=88; outside, that of the nearer end.
///
/// Cody and Waite's reduction by multiples of ln 2, then the Taylor polynomial of degree 6 on |r| <= ln 2 / 2 (remainder 1.2e-7).
#[inline(always)]
unsafe fn exp<S: Lanes>(x: S::V) -> S::V {
    let x = S::min(S::max(x, S::splat(-87.0)), S::splat(88.0));
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    let r = S::fma(n, S::splat(-0.693_359_4), x); // 10 bits of ln 2: n times it is exact
    let r = S::fma(n, S::splat(2.121_944_4e-4), r);
    let mut p = S::splat(1.0 / 720.0);
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = S::fma(p, r, S::splat(c));
    }
    S::scale(p, n)
}

/// A function of two values, lane by lane. A trait and not a closure, which would not be compiled with the caller's features.
trait Pointwise {
    unsafe fn of<S: Lanes>(a: S::V, b: S::V) -> S::V;
}

/// `out = f(a, b)` element by element, three slices of one length.
#[inline(always)]
unsafe fn pointwise<S: Lanes, F: Pointwise>(a: &[f32], b: &[f32], out: &mut [f32]) {
    let full = out.len() / S::LANES * S::LANES;
    for i in (0..full).step_by(S::LANES) {
        S::store(out.as_mut_ptr().add(i), F::of::<S>(S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i))));
    }
    // The rest by the same arithmetic, so that a value does not depend on its column's place in a task.
    let (mut x, mut y, rest) = ([0.0; BLOCK], [0.0; BLOCK], out.len() - full);
    x[..rest].copy_from_slice(&a[full..]);
    y[..rest].copy_from_slice(&b[full..]);
    let v = F::of::<S>(S::load(x.as_ptr()), S::load(y.as_ptr()));
    S::store(x.as_mut_ptr(), v);
    out[full..].copy_from_slice(&x[..rest]);
}

/// `z / (1 + e^-x)`.
#[inline(always)]
unsafe fn over_one_plus_exp<S: Lanes>(z: S::V, x: S::V) -> S::V {
    let e = exp::<S>(S::sub(S::splat(0.0), x));
    S::div(z, S::add(S::splat(1.0), e))
}

struct SwiGlu;

impl Pointwise for SwiGlu {
    #[inline(always)]
    unsafe fn of<S: Lanes>(gate: S::V, up: S::V) -> S::V {
        S::mul(over_one_plus_exp::<S>(gate, gate), up)
    }
}

/// z / 2 (1 + tanh(u)) = z / (1 + e^(-2u)).
struct GeGlu;

impl Pointwise for GeGlu {
    #[inline(always)]
    unsafe fn of<S: Lanes>(z: S::V, up: S::V) -> S::V {
        let cubic = S::fma(S::mul(S::splat(0.044_715), z), z, S::splat(1.0));
        let twice_u = S::mul(S::mul(S::splat(1.595_769), z), cubic);
        S::mul(over_one_plus_exp::<S>(z, twice_u), up)
    }
}

/// erf(z) = 1 - tail to 1.5e-7 for z >= 0 (Abramowitz and Stegun 7.1.26).
struct Gelu;

impl Pointwise for Gelu {
    #[inline(always)]
    unsafe fn of<S: Lanes>(x: S::V, _: S::V) -> S::V {
        let zero = S::splat(0.0);
        let size = S::max(x, S::sub(zero, x));
        let z = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(S::splat(1.0), S::fma(S::splat(0.327_591_1), z, S::splat(1.0)));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = S::fma(p, t, S::splat(c));
        }
        let tail = S::mul(S::mul(p, t), exp::<S>(S::sub(zero, S::mul(z, z))));
        // x (1 - tail / 2) above zero and x tail / 2 below.
        S::sub(S::max(x, zero), S::mul(S::mul(S::splat(0.5), size), tail))
    }
}

/// `out = silu(gate) * up`, three slices of one length.
#[inline(always)]
pub(super) unsafe fn swiglu<S: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    pointwise::<S, SwiGlu>(gate, up, out);
}

/// `out = gelu(gate) * up` with GELU's tanh form, three slices of one length.
#[inline(always)]
pub(super) unsafe fn geglu<S: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    pointwise::<S, GeGlu>(gate, up, out);
}

/// `out = gelu(x)`, two slices of one length.
#[inline(always)]
pub(super) unsafe fn gelu<S: Lanes>(x: &[f32], out: &mut [f32]) {
    pointwise::<S, Gelu>(x, x, out);
}

/// Online softmax over one more stretch of scores (Milakov and Gimelshein 2018): `s` becomes `e^(s - max)` with the larger of the running
/// maximum and that of `s`. Returns that maximum and the sum of the new `s`.
#[inline(always)]
pub(super) unsafe fn softmax<S: Lanes>(s: &mut [f32], running: f32) -> (f32, f32) {
    let full = s.len() / S::LANES * S::LANES;
    let mut max = S::splat(running);
    for i in (0..full).step_by(S::LANES) {
        max = S::max(max, S::load(s.as_ptr().add(i)));
    }
    let (mut rest, n_rest) = ([f32::MIN; BLOCK], s.len() - full);
    rest[..n_rest].copy_from_slice(&s[full..]);
    let max = S::largest(S::max(max, S::load(rest.as_ptr())));
    let shift = S::splat(max);
    let mut sum = S::splat(0.0);
    for i in (0..full).step_by(S::LANES) {
        let e = exp::<S>(S::sub(S::load(s.as_ptr().add(i)), shift));
        S::store(s.as_mut_ptr().add(i), e);
        sum = S::add(sum, e);
    }
    S::store(rest.as_mut_ptr(), exp::<S>(S::sub(S::load(rest.as_ptr()), shift)));
    s[full..].copy_from_slice(&rest[..n_rest]);
    let mut sum = S::sum(sum);
    for &e in &s[full..] {
        sum += e;
    }
    (max, sum)
}
