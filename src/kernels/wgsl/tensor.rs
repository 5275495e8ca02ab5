//! Flat arrays on the device, and the checks that every operation makes of its arguments before anything is recorded.

use std::ops::Range;

use crate::dtype::{KvDtype, Scalar};
use crate::error::{Error, Result};
use crate::gpu::{Binding, Buffer};
use crate::kernels::{HeadDims, cache_holds};

/// Keys that pass through workgroup memory together in attention, counted from key 0; as in the shaders.
pub(super) const KEY_TILE: usize = 32;

/// Scalars on the device. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(in crate::kernels) buffer: Buffer,
    pub(in crate::kernels) scalar: Scalar,
    /// Elements as asked for; the buffer is rounded up to 16 bytes, so that shaders may read it as vec4s.
    pub(super) len: usize,
}

impl Tensor {
    pub(super) fn bytes(scalar: Scalar, len: usize) -> Option<u64> {
        (len.max(1) as u64).checked_mul(scalar.bytes() as u64)?.checked_next_multiple_of(16)
    }

    /// Whether these are rows of a cache of `width` elements each, up to row `end`: in a ring, positions that have not gone round yet.
    #[cfg(feature = "cuda")]
    pub(in crate::kernels) fn reaches(&self, end: usize, width: usize) -> bool {
        end.checked_mul(width).is_some_and(|elements| elements <= self.len)
    }

    pub(super) fn binding(&self) -> Binding<'_> {
        Binding::whole(&self.buffer)
    }

    /// Element type, where the tensor is a cache.
    pub(in crate::kernels) fn kv(&self) -> KvDtype {
        if self.scalar == Scalar::F16 { KvDtype::F16 } else { KvDtype::F32 }
    }
}

/// Checks of one operation's arguments; the errors name it.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Args(pub &'static str);

impl Args {
    pub fn error(self, reason: impl Into<String>) -> Error {
        Error::Shader { name: self.0.to_owned(), reason: reason.into() }
    }

    pub fn ensure(self, holds: bool, reason: impl FnOnce() -> String) -> Result<()> {
        if holds { Ok(()) } else { Err(self.error(reason())) }
    }

    /// `tensor` holds `rows` rows of `width` elements of type `scalar`.
    pub fn holds(self, what: &str, tensor: &Tensor, scalar: Scalar, rows: usize, width: usize) -> Result<()> {
        self.ensure(tensor.scalar == scalar, || format!("`{what}` is {:?}, not {scalar:?}", tensor.scalar))?;
        let fits = rows.checked_mul(width).is_some_and(|needed| needed <= tensor.len);
        self.ensure(fits, || format!("`{what}` has {} elements, not {rows} rows of {width}", tensor.len))
    }

    /// Rows of the cache tensors `k` and `v`, which hold the keys `seen` at once.
    pub fn cache(self, k: &Tensor, v: &Tensor, dims: &HeadDims, seen: &Range<usize>, ring: bool) -> Result<u32> {
        let cached = k.len.min(v.len) / dims.kv_width();
        self.ensure(k.scalar == k.kv().scalar() && v.scalar == k.scalar, || {
            format!("a cache of {:?} and {:?}", k.scalar, v.scalar)
        })?;
        self.ensure(cache_holds(cached, seen, ring, KEY_TILE), || {
            format!("keys {seen:?} in a cache of {cached} rows")
        })?;
        self.u32(cached)
    }

    /// The number of rows in a range that is in order.
    pub fn count(self, rows: &Range<usize>) -> Result<usize> {
        rows.end.checked_sub(rows.start).ok_or_else(|| self.error(format!("rows {rows:?} end before they start")))
    }

    /// `start + count`, which no tensor reaches where it overflows.
    pub fn end(self, start: usize, count: usize) -> Result<usize> {
        start.checked_add(count).ok_or_else(|| self.error(format!("{count} rows from row {start} overflow")))
    }

    /// The heads can be grouped, vec4s divide a head, and the widths that follow from them do not overflow.
    pub fn heads(self, dims: &HeadDims) -> Result<()> {
        let sane = dims.head_dim > 0 && dims.head_dim.is_multiple_of(4) && dims.heads > 0 && dims.kv_heads > 0;
        let width = dims.head_dim.checked_add(2).and_then(|per_head| per_head.checked_mul(dims.heads)?.checked_mul(3));
        let narrow = width.is_some_and(|width| u32::try_from(width).is_ok());
        self.ensure(sane && narrow && dims.heads.is_multiple_of(dims.kv_heads), || format!("heads {dims:?}"))
    }

    pub fn u32(self, value: usize) -> Result<u32> {
        u32::try_from(value).map_err(|_| self.error(format!("{value} is beyond 32 bits")))
    }

    /// The workgroups `0..count` in a grid of two dimensions; a shader finds its number as `y * groups.x + x` and skips what is past the end.
    pub fn grid(self, count: usize, max_per_dim: u32) -> Result<[u32; 3]> {
        let x = self.u32(count.min(max_per_dim as usize))?;
        let y = self.u32(count.div_ceil(x.max(1) as usize))?;
        Ok([x, y, 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_cover_every_workgroup_once() {
        for count in [0, 1, 5, 65_535, 65_536, 200_000] {
            let [x, y, z] = Args("test").grid(count, 65_535).unwrap().map(|n| n as usize);
            assert!(x * y * z >= count && x <= 65_535, "{count}: {x} {y} {z}");
            assert!(count == 0 || x * (y - 1) < count);
        }
    }
}
