//! Tensors of the CPU adapter: typed vectors behind a lock, and the checks that an operation makes before it is recorded.

use std::ops::Range;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::dtype::{Dtype, Scalar};
use crate::error::{Error, Result};
use crate::kernels::{HeadDims, cache_holds};

/// Keys that are decoded together. Blocks begin at multiples of it, counted from key 0, whatever rows are computed.
pub(super) const KEY_BLOCK: usize = 64;

/// A flat array of scalars in host memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    adapter: Arc<str>,
    label: String,
    scalar: Scalar,
    len: usize,
    storage: RwLock<Storage>,
}

/// The elements. Binary16 are kept as bits: a zeroed `Vec` of integers costs no memory until it is written.
#[derive(Debug)]
pub(super) enum Storage {
    F32(Vec<f32>),
    F16(Vec<u16>),
    U32(Vec<u32>),
}

/// Floats of the K/V cache, in the cache's format.
#[derive(Clone, Copy)]
pub(super) struct Floats<'a> {
    pub dtype: Dtype,
    pub bytes: &'a [u8],
}

impl Tensor {
    /// Zeroed; `available` bytes at most.
    pub(super) fn new(
        adapter: &Arc<str>,
        label: &str,
        scalar: Scalar,
        len: usize,
        available: Option<u64>,
    ) -> Result<Self> {
        let needed = (len as u64).saturating_mul(scalar.bytes() as u64);
        let available = available.unwrap_or(u64::MAX).min(isize::MAX as u64);
        let fits = needed <= available && Vec::<u8>::new().try_reserve_exact(needed as usize).is_ok();
        if !fits {
            return Err(Error::Memory { adapter: adapter.to_string(), what: label.to_owned(), needed, available });
        }
        let storage = match scalar {
            Scalar::F32 => Storage::F32(vec![0.0; len]),
            Scalar::F16 => Storage::F16(vec![0; len]),
            Scalar::U32 => Storage::U32(vec![0; len]),
        };
        let (adapter, label, storage) = (adapter.clone(), label.to_owned(), RwLock::new(storage));
        Ok(Self(Arc::new(Inner { adapter, label, scalar, len, storage })))
    }

    /// Element type.
    pub fn scalar(&self) -> Scalar {
        self.0.scalar
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// An error about this tensor.
    pub(super) fn fault(&self, reason: impl std::fmt::Display) -> Error {
        Error::Adapter { adapter: self.0.adapter.to_string(), reason: format!("tensor `{}`: {reason}", self.0.label) }
    }

    /// An error unless it has one of these types and room for `rows` rows of `width` elements.
    pub(super) fn expect(&self, scalars: &[Scalar], rows: usize, width: usize) -> Result<()> {
        if !scalars.contains(&self.scalar()) {
            return Err(self.fault(format_args!("{:?} where {scalars:?} is needed", self.scalar())));
        }
        match rows.checked_mul(width) {
            Some(needed) if needed <= self.len() => Ok(()),
            _ => Err(self.fault(format_args!("{} elements for {rows} rows of {width}", self.len()))),
        }
    }

    /// Rows of the cache tensors `k` and `v`; an error unless they hold the keys `seen` at once.
    pub(super) fn cached(k: &Tensor, v: &Tensor, width: usize, seen: &Range<usize>, ring: bool) -> Result<usize> {
        let cached = k.len().min(v.len()) / width;
        for cache in [k, v] {
            cache.expect(&[Scalar::F16, Scalar::F32], 0, width)?;
            if !cache_holds(cached, seen, ring, KEY_BLOCK) {
                return Err(cache.fault(format_args!("keys {seen:?} in {cached} rows of {width}")));
            }
        }
        Ok(cached)
    }

    /// An error where an operation would read and write the same tensor, or lock one twice.
    pub(super) fn expect_distinct(tensors: &[&Tensor]) -> Result<()> {
        for (i, a) in tensors.iter().enumerate() {
            if tensors[..i].iter().any(|b| Arc::ptr_eq(&a.0, &b.0)) {
                return Err(a.fault("named twice in one operation"));
            }
        }
        Ok(())
    }

    pub(super) fn read(&self) -> Result<RwLockReadGuard<'_, Storage>> {
        self.0.storage.read().map_err(|_| self.fault("a thread died while it wrote here"))
    }

    pub(super) fn write(&self) -> Result<RwLockWriteGuard<'_, Storage>> {
        self.0.storage.write().map_err(|_| self.fault("a thread died while it wrote here"))
    }
}

impl Storage {
    /// The elements as F32; none of another type (operations check types when they are recorded).
    pub fn f32(&self) -> &[f32] {
        if let Storage::F32(v) = self { v } else { &[] }
    }

    /// As [`f32`](Self::f32), to write.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        if let Storage::F32(v) = self { v } else { &mut [] }
    }

    /// The elements as U32; none of another type.
    pub fn u32(&self) -> &[u32] {
        if let Storage::U32(v) = self { v } else { &[] }
    }

    /// As [`u32`](Self::u32), to write.
    pub fn u32_mut(&mut self) -> &mut [u32] {
        if let Storage::U32(v) = self { v } else { &mut [] }
    }

    /// The elements as floats of either size; none of another type.
    pub fn floats(&self) -> Floats<'_> {
        match self {
            Storage::F32(v) => Floats { dtype: Dtype::F32, bytes: bytemuck::cast_slice(v) },
            Storage::F16(v) => Floats { dtype: Dtype::F16, bytes: bytemuck::cast_slice(v) },
            Storage::U32(_) => Floats { dtype: Dtype::F32, bytes: &[] },
        }
    }

    /// The bytes as they stand in memory.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Storage::F32(v) => bytemuck::cast_slice(v),
            Storage::F16(v) => bytemuck::cast_slice(v),
            Storage::U32(v) => bytemuck::cast_slice(v),
        }
    }

    /// As [`bytes`](Self::bytes), to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Storage::F32(v) => bytemuck::cast_slice_mut(v),
            Storage::F16(v) => bytemuck::cast_slice_mut(v),
            Storage::U32(v) => bytemuck::cast_slice_mut(v),
        }
    }
}

/// An error unless the heads fit together.
pub(super) fn expect_heads(tensor: &Tensor, dims: HeadDims) -> Result<()> {
    let n = dims.heads.checked_mul(2).and_then(|n| n.checked_add(dims.heads)); // kv_heads is at most heads
    let sane = dims.heads > 0 && dims.kv_heads > 0 && dims.head_dim > 0;
    if !sane
        || !dims.heads.is_multiple_of(dims.kv_heads)
        || !dims.head_dim.is_multiple_of(4)
        || n.and_then(|n| n.checked_mul(dims.head_dim.checked_add(2)?)).is_none()
    {
        return Err(tensor.fault(format_args!("{dims:?}")));
    }
    Ok(())
}
