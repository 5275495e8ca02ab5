//! Copies between the buffers of devices by CUDA, from one device to another without the host: over NVLink or PCIe where the devices reach each
//! other, else staged by the driver.
//!
//! Rows leave a buffer for memory of CUDA's own on the same device, and every reader copies from there into a buffer of its own: between two
//! buffers of Vulkan's the driver goes by way of the host (H200, NVLink: 38 GB/s; 390 GB/s where one end is CUDA's own).
//!
//! As with [`copy_to_host`](crate::gpu::Gpu::copy_to_host), copies are not part of the order of submissions: the caller has waited for those that
//! wrote, or read last, what a copy touches, and the copy is over when the call returns.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::{Memory, Stream};
use crate::cancel::Wait;
use crate::error::Result;
use crate::gpu::{Gpu, HostCopy};

/// Memory of a device that every CUDA device of the process can copy from. Once dropped, it is used again.
pub struct PeerMemory {
    memory: Option<Memory>,
    home: Arc<Idle>,
}

/// Memory that nobody uses; allocation and release would wait for the device.
#[derive(Default)]
pub(super) struct Idle(Mutex<Vec<Memory>>);

impl Idle {
    /// The smallest that has so many bytes and not more than twice as many.
    fn take(&self, bytes: usize) -> Option<Memory> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |m: &Memory| m.bytes() >= bytes && m.bytes() / 2 <= bytes;
        let best = idle.iter().enumerate().filter(|(_, m)| fits(m)).min_by_key(|(_, m)| m.bytes()).map(|(i, _)| i);
        best.map(|i| idle.swap_remove(i))
    }
}

impl Drop for PeerMemory {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        }
    }
}

impl fmt::Debug for PeerMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerMemory({} bytes)", self.memory.as_ref().map_or(0, Memory::bytes))
    }
}

impl Gpu {
    /// Copies parts of buffers, to their places in memory that other devices reach. `None`, with nothing copied, where this device has no CUDA or
    /// no memory for it.
    ///
    /// Errors: [`Error::Adapter`](crate::Error::Adapter) for what does not lie inside, or with CUDA's reason; a cancel or a limit, once the copy
    /// is over.
    pub fn copy_to_peers(&self, parts: &[HostCopy<'_>], wait: &Wait) -> Result<Option<PeerMemory>> {
        let Some(side) = &self.cuda else { return Ok(None) };
        let bytes = parts.iter().map(|part| part.host_offset.saturating_add(part.bytes)).max().unwrap_or(0);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let failed = |reason: String| self.owner.error(reason);
        // A piece of which a window's readers take no row: CUDA refuses memory of no bytes.
        let memory = match (bytes > 0).then(|| side.idle.take(bytes)) {
            None => None,
            Some(Some(memory)) => Some(memory),
            Some(None) => match Memory::allocate(&side.context, bytes).map_err(failed)? {
                Some(memory) => Some(memory),
                None => return Ok(None),
            },
        };
        let memory = PeerMemory { memory, home: side.idle.clone() };
        self.copy(&side.outward, parts, &memory, true, wait)?;
        Ok(Some(memory))
    }

    /// Copies from another device's memory, or one's own, into parts of buffers. `false`, with nothing copied, where this device has no CUDA.
    ///
    /// Errors: as [`copy_to_peers`](Self::copy_to_peers).
    pub fn copy_from_peer(&self, from: &PeerMemory, parts: &[HostCopy<'_>], wait: &Wait) -> Result<bool> {
        let Some(side) = &self.cuda else { return Ok(false) };
        self.copy(&side.inward, parts, from, false, wait)?;
        Ok(true)
    }

    fn copy(&self, stream: &Stream, parts: &[HostCopy<'_>], peer: &PeerMemory, out: bool, wait: &Wait) -> Result<()> {
        let failed = |reason: String| self.owner.error(reason);
        let has = peer.memory.as_ref().map_or(0, Memory::bytes);
        for part in parts {
            part.buffer.has(&self.owner, part.offset, part.bytes)?;
            if part.host_offset.saturating_add(part.bytes) > has as u64 {
                let (n, at) = (part.bytes, part.host_offset);
                return Err(failed(format!("{n} bytes at {at} are not inside memory of {has} bytes")));
            }
        }
        let Some(memory) = &peer.memory else { return Ok(()) };
        let start = || -> std::result::Result<(), String> {
            for part in parts.iter().filter(|part| part.bytes > 0) {
                let buffer = part.buffer.imported().ok_or("CUDA: a buffer that it does not see")?;
                let (here, there) = ((buffer, part.offset), (memory, part.host_offset));
                let (to, from) = if out { (there, here) } else { (here, there) };
                stream.copy(to, from, part.bytes)?;
            }
            Ok(())
        };
        let started = start();
        let waited = wait.until("a copy between devices", |slice| stream.wait_until_done(slice).map_err(failed));
        if started.is_err() || waited.is_err() {
            // Both ends stay what they are until nothing is under way between them.
            stream.settle();
        }
        started.map_err(failed)?;
        waited
    }
}
