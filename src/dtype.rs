//! Number formats: of weights in files, of tensors on devices, of the K/V cache.

use crate::error::{Error, Result};

/// A weight format as it stands in a file. Quantised formats are ggml's (`ggml-common.h`): blocks of 32 elements along the innermost dimension,
/// or, those of the K family, super-blocks of 256 whose 16 or 8 parts have small whole scales of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// `{ d: f16, q: [i8; 32] }`, value `d * q`.
    Q8_0,
    /// `{ d: f16, q: [u8; 16] }`, value `d * (nibble - 8)`; byte `j` holds element `j` (low) and `j + 16` (high).
    Q4_0,
    /// `{ d: f16, m: f16, q: [u8; 16] }`, value `d * nibble + m`; nibble order as in `Q4_0`.
    Q4_1,
    /// `{ d: f16, high: u32, q: [u8; 16] }`, value `d * (nibble + 16 * bit - 16)`; bit `i` of `high` belongs to element `i`.
    Q5_0,
    /// `{ d: f16, m: f16, high: u32, q: [u8; 16] }`, value `d * (nibble + 16 * bit) + m`.
    Q5_1,
    /// As `Q4_0`, but the nibble is an index into [`IQ4_NL_VALUES`].
    Iq4Nl,
    /// `{ s: [u8; 16], q: [u8; 64], d: f16, m: f16 }`, value `d * (s & 15) * q - m * (s >> 4)`, a byte of `s` for 16 elements.
    Q2K,
    /// `{ high: [u8; 32], q: [u8; 64], s: [u8; 12], d: f16 }`, value `d * (s - 32) * (q + 4 * bit - 4)`, 6 bits of `s` for 16 elements.
    Q3K,
    /// `{ d: f16, m: f16, s: [u8; 12], q: [u8; 128] }`, value `d * s * nibble - m * t`, 6 bits each of `s` and `t` for 32 elements.
    Q4K,
    /// `{ d: f16, m: f16, s: [u8; 12], high: [u8; 32], q: [u8; 128] }`, value `d * s * (nibble + 16 * bit) - m * t`.
    Q5K,
    /// `{ low: [u8; 128], high: [u8; 64], s: [i8; 16], d: f16 }`, value `d * s * (nibble + 16 * two bits - 32)`, a byte of `s` for 16 elements.
    Q6K,
}

/// The values that IQ4_NL's nibbles stand for, before the scale: closer together around zero, where most weights lie.
pub const IQ4_NL_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Dtype {
    /// All of them, for tests and tables.
    pub const ALL: [Dtype; 14] = [
        Dtype::F32,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::Q8_0,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::Iq4Nl,
        Dtype::Q2K,
        Dtype::Q3K,
        Dtype::Q4K,
        Dtype::Q5K,
        Dtype::Q6K,
    ];

    /// Elements in a block; 1 for formats without blocks.
    pub const fn block_len(self) -> usize {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 1,
            Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Iq4Nl => 32,
            Dtype::Q2K | Dtype::Q3K | Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::Q8_0 => 34,
            Dtype::Q4_0 | Dtype::Iq4Nl => 18,
            Dtype::Q4_1 => 20,
            Dtype::Q5_0 => 22,
            Dtype::Q5_1 => 24,
            Dtype::Q2K => 84,
            Dtype::Q3K => 110,
            Dtype::Q4K => 144,
            Dtype::Q5K => 176,
            Dtype::Q6K => 210,
        }
    }

    /// Bytes of `len` elements in a row; an error where `len` is no multiple of the block or the count overflows.
    pub fn bytes(self, len: usize) -> Result<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return Err(Error::Config(format!("{len} elements are no multiple of {}'s block", self.name())));
        }
        (len / self.block_len())
            .checked_mul(self.block_bytes())
            .ok_or_else(|| Error::Config(format!("{len} elements of {} overflow", self.name())))
    }

    /// Whether elements are numbers of their own, without scales.
    pub const fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
    }

    /// The usual name, as llama.cpp prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
            Dtype::Q5_0 => "Q5_0",
            Dtype::Q5_1 => "Q5_1",
            Dtype::Iq4Nl => "IQ4_NL",
            Dtype::Q2K => "Q2_K",
            Dtype::Q3K => "Q3_K",
            Dtype::Q4K => "Q4_K",
            Dtype::Q5K => "Q5_K",
            Dtype::Q6K => "Q6_K",
        }
    }
}

/// Element type of a tensor on a device (activations, cache, token ids).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// IEEE binary32.
    F32,
    /// IEEE binary16; stores saturate at ±65504.
    F16,
    /// Token ids and indices.
    U32,
}

impl Scalar {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Scalar::F32 | Scalar::U32 => 4,
            Scalar::F16 => 2,
        }
    }
}

/// Element type of the K/V cache, on devices and on the board.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// Half the memory and half the hand-off; the default.
    #[default]
    F16,
    /// For tests against references computed in f32.
    F32,
}

impl KvDtype {
    /// The scalar that holds it.
    pub const fn scalar(self) -> Scalar {
        match self {
            KvDtype::F16 => Scalar::F16,
            KvDtype::F32 => Scalar::F32,
        }
    }
}
