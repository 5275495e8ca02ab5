//! The CPU adapter's inner loops, for the instruction set that the CPU has: safe functions over slices.
//!
//! Only this module and its children hold `unsafe` code of the CPU adapter. A [`Simd`] exists only for a level that the running CPU has, and
//! each function here checks the lengths that its pointers will run over; callers check them first and return errors.
#![allow(unsafe_code)]

use crate::dtype::Dtype;

mod formats;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

/// An instruction set that the routines are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// The target's baseline.
    Portable,
    /// 256-bit vectors, with FMA and F16C.
    Avx2,
    /// 512-bit vectors (F, BW, VL), with F16C.
    Avx512,
    /// 128-bit vectors of aarch64.
    Neon,
}

impl Level {
    /// All of them, slowest first.
    pub const ALL: [Level; 4] = [Level::Portable, Level::Neon, Level::Avx2, Level::Avx512];

    /// The name that `devices` shows.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
        }
    }

    /// The fastest that this CPU has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rfind(|level| level.available()).unwrap_or(Level::Portable)
    }

    /// Whether this CPU has it.
    pub fn available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && Level::Avx2.available()
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            _ => false,
        }
    }
}

/// A product of small matrices, `c = a * b` or `c += a * b`: `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`, each with its row stride in elements.
/// Each element of `c` is one sum with k ascending, whatever `m` and `n` are.
pub(super) struct Tile<'a> {
    pub a: &'a [f32],
    pub a_stride: usize,
    pub b: &'a [f32],
    pub b_stride: usize,
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub m: usize,
    /// A multiple of [`Simd::lanes`].
    pub n: usize,
    pub k: usize,
    /// Whether `c`'s values are the sums' start.
    pub add: bool,
}

/// Whether `rows` rows of `width` elements, `stride` apart, lie within `len`.
fn holds(len: usize, rows: usize, stride: usize, width: usize) -> bool {
    rows == 0 || (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(width)).is_some_and(|end| end <= len)
}

/// The routines at one level, which the running CPU has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Simd(Level);

/// The routines of `lanes.rs` compiled with a level's features on.
macro_rules! compile {
    ($name:ident, $lanes:ty, rows: $rows:literal $(, $features:literal)?) => {
        mod $name {
            use super::{Dtype, Tile, lanes};

            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn decode(dtype: Dtype, p: *const u8, out: &mut [f32]) {
                // SAFETY: the caller's promise, which is that of `lanes::decode`; so in all functions of this module.
                unsafe { lanes::decode::<$lanes>(dtype, p, out) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn dots(dtype: Dtype, p: *const u8, stride: usize, x: &[f32], out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { lanes::dots::<$lanes>(dtype, p, stride, x, out) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn mix(dtype: Dtype, rows: *const u8, stride: usize, p: &[f32], out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { lanes::mix::<$lanes>(dtype, rows, stride, p, out) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn transpose(src: &[f32], src_stride: usize, dst: &mut [f32], dst_stride: usize, k: usize) {
                // SAFETY: as above.
                unsafe { lanes::transpose::<$lanes>(src.as_ptr(), src_stride, dst.as_mut_ptr(), dst_stride, k) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn tile(tile: &mut Tile<'_>) {
                // SAFETY: as above.
                unsafe { lanes::tile::<$lanes, $rows>(tile) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { lanes::swiglu::<$lanes>(gate, up, out) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn geglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { lanes::geglu::<$lanes>(gate, up, out) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn gelu(x: &[f32], out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { lanes::gelu::<$lanes>(x, out) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn softmax(s: &mut [f32], running: f32) -> (f32, f32) {
                // SAFETY: as above.
                unsafe { lanes::softmax::<$lanes>(s, running) }
            }
        }
    };
}

// The rows of a tile, by two registers of columns: as many sums as the registers hold beside the operands. Of SmolLM2's products of 512 rows,
// one core of an EPYC (Zen 5) does 250 GFLOP/s with AVX-512, 124 with AVX2 (110 with 4 rows), 43 at the baseline (31 with 2 rows).
compile!(portable_level, crate::kernels::cpu::simd::portable::Portable, rows: 4);
#[cfg(target_arch = "x86_64")]
compile!(avx2_level, crate::kernels::cpu::simd::x86::Avx2, rows: 6, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
compile!(avx512_level, crate::kernels::cpu::simd::x86::Avx512, rows: 8, "avx512f,avx512bw,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "aarch64")]
compile!(neon_level, crate::kernels::cpu::simd::neon::Neon, rows: 8, "neon");

/// Calls a routine of the level in `$simd`.
macro_rules! at_level {
    ($simd:expr, $routine:ident($($arg:expr),*)) => {
        match $simd.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Simd` of this level exists only where the CPU has it; the lengths were checked on entry.
            Level::Avx2 => unsafe { avx2_level::$routine($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 => unsafe { avx512_level::$routine($($arg),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Level::Neon => unsafe { neon_level::$routine($($arg),*) },
            // SAFETY: no feature beyond the target's own is needed; the lengths were checked on entry.
            _ => unsafe { portable_level::$routine($($arg),*) },
        }
    };
}

impl Simd {
    /// Routines for `level`, where this CPU has it.
    pub fn new(level: Level) -> Option<Self> {
        level.available().then_some(Self(level))
    }

    /// Routines for the fastest level.
    pub fn best() -> Self {
        Self(Level::best())
    }

    /// The level in use.
    pub fn level(self) -> Level {
        self.0
    }

    /// Floats in a register.
    pub fn lanes(self) -> usize {
        match self.0 {
            Level::Avx512 => 16,
            Level::Avx2 => 8,
            Level::Portable | Level::Neon => 4,
        }
    }

    /// Decodes `out.len()` elements from the start of `bytes`; for block formats whole blocks.
    pub fn decode(self, dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
        assert!(dtype.bytes(out.len()).is_ok_and(|n| n <= bytes.len()));
        at_level!(self, decode(dtype, bytes.as_ptr(), out));
    }

    /// `out[i] = row i . x`, rows of `x.len()` elements that start `stride` bytes apart.
    pub fn dots(self, dtype: Dtype, rows: &[u8], stride: usize, x: &[f32], out: &mut [f32]) {
        assert!(dtype.bytes(x.len()).is_ok_and(|n| holds(rows.len(), out.len(), stride, n)));
        at_level!(self, dots(dtype, rows.as_ptr(), stride, x, out));
    }

    /// `a . b`, two slices of one length.
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        let mut out = [0.0];
        self.dots(Dtype::F32, bytemuck::cast_slice(a), 0, b, &mut out);
        out[0]
    }

    /// `out += sum of p[i] * row i`, rows of `out.len()` elements that start `stride` bytes apart.
    pub fn mix(self, dtype: Dtype, rows: &[u8], stride: usize, p: &[f32], out: &mut [f32]) {
        assert!(dtype.bytes(out.len()).is_ok_and(|n| holds(rows.len(), p.len(), stride, n)));
        at_level!(self, mix(dtype, rows.as_ptr(), stride, p, out));
    }

    /// [`lanes`](Self::lanes) rows of `k` floats become the first columns of `k` rows.
    pub fn transpose(self, src: &[f32], src_stride: usize, dst: &mut [f32], dst_stride: usize, k: usize) {
        assert!(holds(src.len(), self.lanes(), src_stride, k) && holds(dst.len(), k, dst_stride, self.lanes()));
        at_level!(self, transpose(src, src_stride, dst, dst_stride, k));
    }

    /// See [`Tile`].
    pub fn tile(self, mut tile: Tile<'_>) {
        let t = &mut tile;
        assert!(t.n.is_multiple_of(self.lanes()) && holds(t.a.len(), t.m, t.a_stride, t.k));
        assert!(holds(t.b.len(), t.k, t.b_stride, t.n) && holds(t.c.len(), t.m, t.c_stride, t.n));
        at_level!(self, tile(t));
    }

    /// `out = silu(gate) * up`.
    pub fn swiglu(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == out.len() && up.len() == out.len());
        at_level!(self, swiglu(gate, up, out));
    }

    /// `out = gelu(gate) * up`, GELU's tanh form.
    pub fn geglu(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == out.len() && up.len() == out.len());
        at_level!(self, geglu(gate, up, out));
    }

    /// `out = gelu(x)`, the exact form.
    pub fn gelu(self, x: &[f32], out: &mut [f32]) {
        assert!(x.len() == out.len());
        at_level!(self, gelu(x, out));
    }

    /// Online softmax over one more stretch of scores: `s` becomes `e^(s - max)`, where `max` is the larger of `running` and the largest of
    /// `s`. Returns `max` and the sum of the new `s`.
    pub fn softmax(self, s: &mut [f32], running: f32) -> (f32, f32) {
        at_level!(self, softmax(s, running))
    }
}

#[cfg(test)]
mod tests;
