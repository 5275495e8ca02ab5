//! Device memory with shared ownership.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::native::Handles;
use crate::error::{Error, Result};

/// Bytes on the device. Clones share the memory, which is freed once the last clone is gone and the device is done with it.
#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

struct Inner {
    /// Of a shared buffer. Dropped before `raw`, which keeps the device alive.
    handles: Option<Arc<Handles>>,
    raw: wgpu::Buffer,
    id: u64,
    bytes: u64,
    label: String,
    /// The memory as CUDA sees it, where it does.
    #[cfg(feature = "cuda")]
    imported: std::sync::OnceLock<super::cuda::driver::Memory>,
    owner: Arc<Owner>,
}

/// The device that buffers, pipelines and recordings belong to: tells those of different devices apart, and knows which buffers are gone.
///
/// A cached bind group keeps its buffers' memory alive, so the cache must hear of a buffer's end. A buffer only notes its id here when it is
/// dropped, since that may happen anywhere and under any lock; the next submission or allocation lets go of the bind groups.
pub(super) struct Owner {
    pub adapter: String,
    next_id: AtomicU64,
    gone: Mutex<Vec<u64>>,
}

impl Owner {
    pub fn new(adapter: &str) -> Arc<Self> {
        Arc::new(Self { adapter: adapter.to_owned(), next_id: AtomicU64::new(0), gone: Mutex::default() })
    }

    /// Ids of the buffers that were dropped since the last call.
    pub fn take_gone(&self) -> Vec<u64> {
        std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An error that names the adapter.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::Adapter { adapter: self.adapter.clone(), reason: reason.into() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.owner.gone.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}

impl Buffer {
    pub(super) fn new(raw: wgpu::Buffer, bytes: u64, label: &str, owner: &Arc<Owner>) -> Self {
        Self::made(raw, None, bytes, label, owner)
    }

    /// A buffer which the driver knows under these names, too.
    pub(super) fn shared(
        raw: wgpu::Buffer,
        handles: Arc<Handles>,
        bytes: u64,
        label: &str,
        owner: &Arc<Owner>,
    ) -> Self {
        Self::made(raw, Some(handles), bytes, label, owner)
    }

    fn made(raw: wgpu::Buffer, handles: Option<Arc<Handles>>, bytes: u64, label: &str, owner: &Arc<Owner>) -> Self {
        let id = owner.next_id.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Inner {
            handles,
            raw,
            id,
            bytes,
            label: label.to_owned(),
            #[cfg(feature = "cuda")]
            imported: std::sync::OnceLock::new(),
            owner: owner.clone(),
        }))
    }

    /// Notes where CUDA sees the memory; once.
    #[cfg(feature = "cuda")]
    pub(super) fn set_imported(&self, memory: super::cuda::driver::Memory) {
        let _ = self.0.imported.set(memory);
    }

    #[cfg(feature = "cuda")]
    pub(super) fn imported(&self) -> Option<&super::cuda::driver::Memory> {
        self.0.imported.get()
    }

    #[cfg(feature = "cuda")]
    pub(super) fn owner(&self) -> &Owner {
        &self.0.owner
    }

    /// Size as it was asked for, in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// What it was called when it was made.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Different for each buffer of a device; not used again.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    pub(super) fn handles(&self) -> Option<&Handles> {
        self.0.handles.as_deref()
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        &self.0.raw
    }

    /// Bytes that the device sets aside: a multiple of 4, not 0.
    pub(super) fn padded_bytes(bytes: u64) -> u64 {
        bytes.max(1).next_multiple_of(4)
    }

    /// An error unless the buffer is `owner`'s and has bytes `offset..offset + bytes`.
    pub(super) fn has(&self, owner: &Arc<Owner>, offset: u64, bytes: u64) -> Result<()> {
        if !Arc::ptr_eq(&self.0.owner, owner) {
            return Err(owner.error(format!("buffer `{}` belongs to another device", self.label())));
        }
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes() => Ok(()),
            _ => Err(owner.error(format!(
                "{bytes} bytes at {offset} are not inside buffer `{}` of {} bytes",
                self.label(),
                self.bytes()
            ))),
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} `{}`, {} bytes)", self.id(), self.label(), self.bytes())
    }
}

/// The part of a buffer that a shader sees at one binding.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte, a multiple of [`Caps::min_storage_offset`](super::Caps::min_storage_offset).
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl<'a> Binding<'a> {
    /// All of a buffer.
    pub fn whole(buffer: &'a Buffer) -> Self {
        Self { buffer, offset: 0, bytes: buffer.bytes() }
    }
}

/// A [`Binding`] that owns its buffer.
pub(super) struct Bound {
    pub buffer: Buffer,
    pub offset: u64,
    pub bytes: u64,
}
