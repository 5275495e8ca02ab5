//! Copies from the device to the host: staging buffers, mapped when their submission has run, and used again.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Staging memory that is kept while nobody uses it.
const MAX_IDLE_BYTES: u64 = 256 << 20;

/// Bytes of a buffer on their way to the host. Made by [`Recording::download`](super::Recording::download), read by
/// [`Gpu::collect`](super::Gpu::collect); dropped without that, it costs its staging buffer and nothing else.
pub struct Download {
    pub(super) staged: Arc<OnceLock<Staged>>,
    /// The bytes asked for, counted from the start of the staged copy.
    pub(super) range: Range<usize>,
}

impl Download {
    /// Number of bytes that `collect` will show.
    pub fn bytes(&self) -> u64 {
        self.range.len() as u64
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Download({} bytes)", self.bytes())
    }
}

/// A staging buffer whose mapping has been asked for.
pub(super) struct Staged {
    pub buffer: wgpu::Buffer,
    /// Bytes mapped, from the start.
    pub bytes: u64,
    /// Says once that they are mapped, or why not. Arrives in a poll, on whichever thread.
    pub mapped: flume::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Staged {
    /// Asks for the mapping. Only after the submit that fills the buffer: a buffer that waits for its mapping cannot be submitted.
    pub fn map(buffer: wgpu::Buffer, bytes: u64) -> Self {
        let (tell, mapped) = flume::bounded(1);
        buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            // Nobody listens where the download was dropped.
            let _ = tell.try_send(result);
        });
        Self { buffer, bytes, mapped }
    }
}

/// Staging buffers that are not in use, by size.
#[derive(Default)]
pub(super) struct StagingPool(Mutex<Idle>);

#[derive(Default)]
struct Idle {
    by_size: HashMap<u64, Vec<wgpu::Buffer>>,
    bytes: u64,
}

impl StagingPool {
    /// A buffer of at least `bytes`.
    pub fn take(&self, device: &wgpu::Device, bytes: u64) -> wgpu::Buffer {
        let size = size_class(bytes);
        {
            let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(buffer) = idle.by_size.get_mut(&size).and_then(Vec::pop) {
                idle.bytes -= size;
                return buffer;
            }
        }
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("download"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Buffers that are not in use.
    #[cfg(test)]
    pub fn n_idle(&self) -> usize {
        self.0.lock().unwrap().by_size.values().map(Vec::len).sum()
    }

    /// Takes back an unmapped buffer.
    pub fn put(&self, buffer: wgpu::Buffer) {
        let size = buffer.size();
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.bytes + size <= MAX_IDLE_BYTES {
            idle.bytes += size;
            idle.by_size.entry(size).or_default().push(buffer);
        }
    }
}

/// `bytes` rounded up to 1, 1.25, 1.5 or 1.75 times a power of two, at least 4 KiB: a fifth is wasted at most, and requests that differ a little
/// share buffers.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(4096);
    let step = (bytes.next_power_of_two() / 8).max(1);
    bytes.next_multiple_of(step)
}

/// A staging buffer that a submission fills, and where to announce it.
pub(super) struct Filled {
    pub buffer: wgpu::Buffer,
    pub bytes: u64,
    pub staged: Arc<OnceLock<Staged>>,
}

impl Filled {
    /// Asks for the mapping; after the submit.
    pub fn map(self) {
        // A recording is submitted once, so the cell is empty.
        let _ = self.staged.set(Staged::map(self.buffer, self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_are_few_and_close() {
        let mut classes = std::collections::BTreeSet::new();
        for bytes in (1..200_000u64).step_by(7) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(4));
            assert!(bytes < 4096 || class - bytes <= bytes / 4, "{bytes} -> {class}");
            assert_eq!(size_class(class), class);
            classes.insert(class);
        }
        assert!(classes.len() <= 4 * 7, "{classes:?}");
    }
}
