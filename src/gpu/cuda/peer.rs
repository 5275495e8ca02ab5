//! Copies between the buffers of devices by CUDA, from one device to another without the host: over NVLink or PCIe where the devices reach each
//! other, else staged by the driver.
//!
//! Rows leave a buffer for memory of CUDA's own on the same device, and every reader copies from there into a buffer of its own: between two
//! buffers of Vulkan's the driver goes by way of the host (H200, NVLink: 38 GB/s; 390 GB/s where one end is CUDA's own).
//!
//! The way out is part of a recording, right behind the kernels that made the rows: beside them, on a stream of its own, a copy waits for compute units
//! that the next products hold (two H100, Llama-2-7B, 4,096 tokens: out and in together at 64 GB/s). The way in, as
//! [`copy_from_host`](crate::gpu::Gpu::copy_from_host), is not part of the order of submissions: the caller has waited for those that read last what it
//! touches, and it is over when the call returns.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::Memory;
use super::mixed::Mixed;
use crate::cancel::Wait;
use crate::error::Result;
use crate::gpu::{Gpu, HostCopy};

/// Memory of a device that every CUDA device of the process can copy from. Once dropped, it is used again.
pub struct PeerMemory {
    memory: Option<Arc<Memory>>,
    home: Arc<Idle>,
}

/// Memory that nobody uses, or only copies of the device's that run before any that is recorded from now on; allocation and release would wait for the
/// device.
#[derive(Default)]
pub(super) struct Idle(Mutex<Vec<Arc<Memory>>>);

impl Idle {
    /// The smallest that has so many bytes; where none has, the largest is let go, so that there are never more than were in use at a time.
    fn take(&self, bytes: usize) -> Option<Arc<Memory>> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.sort_unstable_by_key(|memory| memory.bytes());
        let first = idle.partition_point(|memory| memory.bytes() < bytes);
        if first < idle.len() {
            return Some(idle.remove(first));
        }
        let too_small = idle.pop();
        drop(idle);
        drop(too_small);
        None
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
        write!(f, "PeerMemory({} bytes)", self.bytes())
    }
}

impl PeerMemory {
    fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.bytes())
    }
}

impl Gpu {
    /// Records copies of parts of buffers to their places in memory that other devices reach: they are there when the submission has ended. `None`,
    /// with nothing recorded, where this device has no CUDA or no memory for it.
    ///
    /// Errors: [`Error::Adapter`](crate::Error::Adapter) for what does not lie inside, or with CUDA's reason.
    pub fn copy_to_peers(&self, work: &mut Mixed, parts: &[HostCopy<'_>]) -> Result<Option<PeerMemory>> {
        let Some(side) = &self.cuda else { return Ok(None) };
        let bytes = parts.iter().map(|part| part.host_offset.saturating_add(part.bytes)).max().unwrap_or(0);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // A piece of which a window's readers take no row: CUDA refuses memory of no bytes.
        let memory = match (bytes > 0).then(|| side.idle.take(bytes)) {
            None => None,
            Some(Some(memory)) => Some(memory),
            Some(None) => match Memory::allocate(&side.context, bytes).map_err(|reason| self.owner.error(reason))? {
                Some(memory) => Some(Arc::new(memory)),
                None => return Ok(None),
            },
        };
        let peer = PeerMemory { memory, home: side.idle.clone() };
        self.check_parts(parts, &peer)?;
        if let Some(memory) = &peer.memory {
            for part in parts.iter().filter(|part| part.bytes > 0) {
                let from = (part.buffer.cuda_address()? + part.offset, part.buffer);
                work.copy((memory.address() + part.host_offset, memory), from, part.bytes);
            }
        }
        Ok(Some(peer))
    }

    /// Copies from another device's memory, or one's own, into parts of buffers. `false`, with nothing copied, where this device has no CUDA.
    ///
    /// Errors: [`Error::Adapter`](crate::Error::Adapter) for what does not lie inside, or with CUDA's reason; a cancel or a limit, once the copy
    /// is over.
    pub fn copy_from_peer(&self, from: &PeerMemory, parts: &[HostCopy<'_>], wait: &Wait) -> Result<bool> {
        let Some(side) = &self.cuda else { return Ok(false) };
        self.check_parts(parts, from)?;
        let Some(memory) = &from.memory else { return Ok(true) };
        let (stream, failed) = (&side.inward, |reason: String| self.owner.error(reason));
        let start = || -> std::result::Result<(), String> {
            for part in parts.iter().filter(|part| part.bytes > 0) {
                let buffer = part.buffer.imported().ok_or("CUDA: a buffer that it does not see")?;
                stream.copy((buffer, part.offset), (memory, part.host_offset), part.bytes)?;
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
        waited?;
        Ok(true)
    }

    fn check_parts(&self, parts: &[HostCopy<'_>], peer: &PeerMemory) -> Result<()> {
        let has = peer.bytes();
        for part in parts {
            part.buffer.has(&self.owner, part.offset, part.bytes)?;
            if part.host_offset.saturating_add(part.bytes) > has as u64 {
                let (n, at) = (part.bytes, part.host_offset);
                return Err(self.owner.error(format!("{n} bytes at {at} are not inside memory of {has} bytes")));
            }
        }
        Ok(())
    }
}
