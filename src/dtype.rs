//! Number formats: of weights in files, of tensors on devices, of the K/V cache.

use crate::error::{Error, Result};

/// A weight format as it stands in a file. Quantised formats are ggml's: blocks of 32 elements along the innermost dimension.
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
}

impl Dtype {
    /// All of them, for tests and tables.
    pub const ALL: [Dtype; 6] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1];

    /// Elements in a block; 1 for formats without blocks.
    pub const fn block_len(self) -> usize {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 1,
            Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4_1 => 32,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::Q8_0 => 34,
            Dtype::Q4_0 => 18,
            Dtype::Q4_1 => 20,
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

    /// The usual name, as llama.cpp prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
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
