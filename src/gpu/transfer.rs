//! Copies between [shared buffers](Gpu::shared_buffer) and host memory beside the compute queue, for devices that were opened with
//! [`Transfers`](super::Transfers).
//!
//! They are not part of the order of submissions. The caller has waited for the submissions that wrote, or read last, what a copy touches, and the
//! copy is over when the call returns: what is submitted then sees it.

use std::sync::Arc;

use super::buffer::{Buffer, Owner};
use super::device::Gpu;
use super::info::Transfers;
use super::native::{CopyJob, CopyPart, Fault, HostMemory, Pending};
use crate::cancel::Wait;
use crate::error::{Error, Result};

/// Bytes of a buffer and their place in host memory.
#[derive(Clone, Copy, Debug)]
pub struct HostCopy<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte in the buffer.
    pub offset: u64,
    /// First byte in the host memory.
    pub host_offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl Gpu {
    /// Copies buffers to host memory. `false`, with nothing copied, where this device cannot: it was not opened for that, a buffer is no shared
    /// one, or the driver does not take the memory.
    ///
    /// Errors: [`Error::Adapter`] for what does not lie inside, [`Error::AdapterLost`], a cancel or a limit; the latter two come once the copy is
    /// over.
    pub fn copy_to_host(&self, parts: &[HostCopy<'_>], to: &mut HostMemory, wait: &Wait) -> Result<bool> {
        let copied = self.transfer(true, parts, to, wait);
        if self.shared.as_ref().is_some_and(|shared| shared.hangs()) {
            // The device may still write there: the memory is given up, not given back.
            let _ = std::mem::take(to);
        }
        copied
    }

    /// Copies host memory to buffers; results and errors are those of [`copy_to_host`](Self::copy_to_host).
    pub fn copy_from_host(&self, from: &HostMemory, parts: &[HostCopy<'_>], wait: &Wait) -> Result<bool> {
        self.transfer(false, parts, from, wait)
    }

    /// Whether this device copies to and from a buffer beside its queue, as far as it knows.
    pub fn reaches(&self, buffer: &Buffer) -> bool {
        buffer.handles().is_some() && self.opened_with().transfers != Transfers::None
    }

    /// Begins to copy pieces of host memory, each to the places beside it, as one submission, and does not wait for it. The memory comes back at once
    /// where [`copy_to_host`](Self::copy_to_host) would say `false`, else from [`Fetch::finish`].
    ///
    /// Errors: as there; the memory is given up then.
    pub fn fetch(
        &self,
        from: Vec<(HostMemory, Vec<HostCopy<'_>>)>,
    ) -> Result<std::result::Result<Fetch, Vec<HostMemory>>> {
        let jobs: Vec<_> = from.iter().map(|(memory, parts)| (memory, &parts[..])).collect();
        let begun = self.begin(false, &jobs)?;
        let memory = from.into_iter().map(|(memory, _)| memory).collect();
        let pending = match begun {
            Begun::Refused => return Ok(Err(memory)),
            Begun::Nothing => None,
            Begun::Pending(pending) => Some(pending),
        };
        Ok(Ok(Fetch { pending, memory, owner: self.owner.clone() }))
    }

    fn transfer(&self, to_host: bool, parts: &[HostCopy<'_>], memory: &HostMemory, wait: &Wait) -> Result<bool> {
        match self.begin(to_host, &[(memory, parts)])? {
            Begun::Refused => Ok(false),
            Begun::Nothing => Ok(true),
            Begun::Pending(pending) => pending.wait(wait).map(|()| true).map_err(|fault| told(fault, &self.owner)),
        }
    }

    fn begin(&self, to_host: bool, jobs: &[(&HostMemory, &[HostCopy<'_>])]) -> Result<Begun> {
        let all = || jobs.iter().flat_map(|(memory, parts)| parts.iter().map(move |part| (*memory, part)));
        for (memory, part) in all() {
            part.buffer.has(&self.owner, part.offset, part.bytes)?;
            let end = part.host_offset.checked_add(part.bytes);
            if end.is_none_or(|end| end > memory.len() as u64) {
                let (n, at, has) = (part.bytes, part.host_offset, memory.len());
                return Err(self.owner.error(format!("{n} bytes at {at} are not inside host memory of {has} bytes")));
            }
        }
        self.health.check_lost()?;
        let Some(shared) = &self.shared else { return Ok(Begun::Refused) };
        let parts = || all().filter(|(_, part)| part.bytes > 0);
        let raw_parts = parts().map(|(memory, part)| {
            let HostCopy { buffer, offset, host_offset, bytes } = *part;
            Some(CopyPart { handles: buffer.handles()?, offset, memory, host_offset, bytes })
        });
        let Some(raw_parts) = raw_parts.collect::<Option<Vec<_>>>() else { return Ok(Begun::Refused) };
        if raw_parts.is_empty() {
            return Ok(Begun::Nothing);
        }
        let keep = parts().map(|(_, part)| part.buffer.clone()).collect();
        let job = CopyJob { to_host, parts: &raw_parts, keep };
        // Where the copies share wgpu's queue, the order lock keeps its submissions away.
        match shared.begin(job, || shared.on_compute_queue().then(|| self.order())) {
            Ok(pending) => Ok(Begun::Pending(pending)),
            Err(Fault::Refused) => Ok(Begun::Refused),
            Err(fault) => Err(told(fault, &self.owner)),
        }
    }
}

/// How a copy began.
enum Begun {
    /// Not at all.
    Refused,
    /// There was nothing to copy.
    Nothing,
    Pending(Pending),
}

/// Host memory that a device copies to its buffers. Dropping it waits for the copy's end.
pub struct Fetch {
    /// Dropped before the memory is.
    pending: Option<Pending>,
    memory: Vec<HostMemory>,
    owner: Arc<Owner>,
}

impl Fetch {
    /// Blocks until the copy has ended, and gives the memory back.
    ///
    /// Errors: those of [`Gpu::copy_to_host`].
    pub fn finish(self, wait: &Wait) -> Result<Vec<HostMemory>> {
        let Self { pending, memory, owner } = self;
        match pending.map_or(Ok(()), |pending| pending.wait(wait)) {
            Ok(()) => Ok(memory),
            Err(fault) => Err(told(fault, &owner)),
        }
    }
}

/// What a fault is to the caller.
fn told(fault: Fault, owner: &Owner) -> Error {
    match fault {
        Fault::Waiting(e) => e,
        Fault::Driver(reason) => owner.error(reason),
        Fault::Lost(reason) => Error::AdapterLost { adapter: owner.adapter.clone(), reason },
        Fault::Refused => owner.error("the driver does not take the memory"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gpu::Opening;
    use crate::gpu::tests::{adapter, double, double_spec, read, wait};

    /// A device with transfers, wherever its driver can.
    fn gpu() -> Gpu {
        adapter().open_with(Opening { transfers: Transfers::Anywhere, export: false }).unwrap()
    }

    /// Vulkan drivers without the extension, and other APIs, have no such way; what they say then is tested, too.
    fn can(gpu: &Gpu) -> bool {
        gpu.opened_with().transfers != Transfers::None
    }

    fn settle(gpu: &Gpu) {
        gpu.wait(&gpu.submit(gpu.recording()).unwrap(), &wait()).unwrap();
    }

    fn pattern(n: usize, seed: usize) -> Vec<u8> {
        (0..n).map(|i| ((i * 31 + seed * 7 + i / 251) % 251) as u8).collect()
    }

    #[test]
    fn bytes_arrive_exactly_on_both_ways_at_odd_sizes_and_places() {
        let gpu = gpu();
        for (n, offset, host_offset) in [(1, 0, 0), (3, 5, 7), (4096, 4, 1), (65_537, 3, 65_535), (3_000_001, 16, 0)] {
            let buffer = gpu.shared_buffer("rows", (n + offset + 9) as u64).unwrap();
            let mut memory = HostMemory::new(n + host_offset + 3).unwrap();
            let bytes = pattern(n, offset);
            memory[host_offset..host_offset + n].copy_from_slice(&bytes);
            settle(&gpu);
            let part =
                HostCopy { buffer: &buffer, offset: offset as u64, host_offset: host_offset as u64, bytes: n as u64 };
            assert_eq!(gpu.copy_from_host(&memory, &[part], &wait()).unwrap(), can(&gpu));
            if !can(&gpu) {
                return;
            }
            let all = read(&gpu, &buffer, 0..buffer.bytes());
            assert!(all[offset..offset + n] == bytes, "{n} bytes to {offset}");
            assert!(all[..offset].iter().chain(&all[offset + n..]).all(|&b| b == 0), "{n} bytes: more than them");
            memory.fill(0xee);
            assert!(gpu.copy_to_host(&[part], &mut memory, &wait()).unwrap());
            assert!(memory[host_offset..host_offset + n] == bytes, "{n} bytes from {offset}");
            assert!(memory[..host_offset].iter().chain(&memory[host_offset + n..]).all(|&b| b == 0xee));
        }
    }

    #[test]
    fn two_devices_use_the_same_memory_and_see_their_queues_work() {
        let (a, b) = (gpu(), gpu());
        let n = 5000;
        let [on_a, on_b] = [&a, &b].map(|gpu| gpu.shared_buffer("rows", 4 * n).unwrap());
        let mut memory = HostMemory::new(8 * n as usize).unwrap();
        a.write(&on_a, 0, bytemuck::cast_slice(&vec![0.5f32; n as usize])).unwrap();
        settle(&b);
        for round in 0..20 {
            let mut recording = a.recording();
            double(&mut recording, &a.pipeline(&double_spec()).unwrap(), &on_a, n as u32);
            a.wait(&a.submit(recording).unwrap(), &wait()).unwrap();
            // Two parts, the halves changed round.
            let half = 2 * n;
            let part = |buffer, i: u64| HostCopy { buffer, offset: i * half, host_offset: (1 - i) * half, bytes: half };
            if !a.copy_to_host(&[part(&on_a, 0), part(&on_a, 1)], &mut memory, &wait()).unwrap() {
                return assert!(!can(&a));
            }
            assert!(b.copy_from_host(&memory, &[part(&on_b, 1), part(&on_b, 0)], &wait()).unwrap());
            let mut recording = b.recording();
            double(&mut recording, &b.pipeline(&double_spec()).unwrap(), &on_b, n as u32);
            b.submit(recording).unwrap();
            let values = bytemuck::pod_collect_to_vec::<u8, f32>(&read(&b, &on_b, 0..4 * n));
            assert!(values.iter().all(|&x| x == 2f32.powi(round + 1)), "round {round}: {:?}", &values[..4]);
        }
        // The memory keeps what it needs of a device whose owner is gone.
        drop((a, on_a));
        assert!(memory[..4 * n as usize].iter().any(|&x| x != 0));
        drop(memory);
        settle(&b);
    }

    #[test]
    fn several_pieces_are_fetched_at_once_and_come_back() {
        let gpu = gpu();
        let (n, of_each) = (HostMemory::LEAST as u64, 3000);
        let buffer = gpu.shared_buffer("rows", 4 * n).unwrap();
        settle(&gpu);
        let mut pieces = HostMemory::pieces(4, n as usize).unwrap();
        pieces.iter_mut().enumerate().for_each(|(i, piece)| piece.copy_from_slice(&pattern(n as usize, i)));
        // The first and last bytes of each, in the opposite order.
        let copy = |i: u64, at| HostCopy { buffer: &buffer, offset: (3 - i) * n + at, host_offset: at, bytes: of_each };
        let copies = |i| vec![copy(i, 0), copy(i, n - of_each)];
        let fetch = gpu.fetch((0..).zip(pieces).map(|(i, piece)| (piece, copies(i))).collect()).unwrap();
        assert_eq!(fetch.is_ok(), can(&gpu));
        let pieces = fetch.map_or_else(|refused| refused, |fetch| fetch.finish(&wait()).unwrap());
        for (i, piece) in pieces.iter().enumerate() {
            assert!(piece[..] == pattern(n as usize, i), "piece {i}");
        }
        let expected = |i: u64| {
            let mut bytes = pattern(n as usize, 3 - i as usize);
            bytes[of_each as usize..(n - of_each) as usize].fill(0);
            bytes
        };
        if can(&gpu) {
            assert!(read(&gpu, &buffer, 0..4 * n) == (0..4).flat_map(expected).collect::<Vec<_>>());
            // One that is dropped is over.
            let piece = HostMemory::from_bytes(&pattern(n as usize, 9)).unwrap();
            drop(gpu.fetch(vec![(piece, vec![HostCopy { bytes: n, ..copy(3, 0) }])]).unwrap());
            assert!(read(&gpu, &buffer, 0..n) == pattern(n as usize, 9));
        }
        let outside = vec![(HostMemory::new(64).unwrap(), vec![HostCopy { bytes: 5 * n, ..copy(3, 0) }])];
        assert!(matches!(gpu.fetch(outside), Err(Error::Adapter { .. })));
        assert!(
            gpu.fetch(Vec::new()).unwrap().is_ok_and(|none| none.finish(&wait()).unwrap().is_empty()) || !can(&gpu)
        );
    }

    #[test]
    fn what_is_no_shared_buffer_or_lies_outside_is_refused() {
        let (gpu, other) = (gpu(), gpu());
        let (plain, shared) = (gpu.buffer("plain", 64).unwrap(), gpu.shared_buffer("shared", 64).unwrap());
        let memory = HostMemory::new(64).unwrap();
        let part = |buffer, offset, host_offset, bytes| [HostCopy { buffer, offset, host_offset, bytes }];
        assert!(!gpu.copy_from_host(&memory, &part(&plain, 0, 0, 4), &wait()).unwrap());
        assert!(!gpu.copy_from_host(&HostMemory::default(), &part(&shared, 0, 0, 0), &wait()).unwrap() || can(&gpu));
        let end = memory.len() as u64;
        for wrong in [part(&shared, 61, 0, 4), part(&shared, 0, end - 3, 4), part(&shared, 0, u64::MAX, 4)] {
            assert!(matches!(gpu.copy_from_host(&memory, &wrong, &wait()), Err(Error::Adapter { .. })), "{wrong:?}");
        }
        assert!(other.copy_from_host(&memory, &part(&shared, 0, 0, 4), &wait()).is_err());
        let without = adapter().open().unwrap();
        let buffer = without.shared_buffer("rows", 64).unwrap();
        assert!(!without.copy_from_host(&memory, &part(&buffer, 0, 0, 4), &wait()).unwrap());
    }

    #[test]
    fn a_copy_that_was_given_up_is_over_before_it_is_told() {
        let gpu = gpu();
        let buffer = gpu.shared_buffer("rows", 1 << 20).unwrap();
        let mut memory = HostMemory::from_bytes(&pattern(1 << 20, 1)).unwrap();
        settle(&gpu);
        let part = [HostCopy { buffer: &buffer, offset: 0, host_offset: 0, bytes: 1 << 20 }];
        let wait = Wait { limit: Duration::ZERO, ..wait() };
        wait.cancel.cancel();
        match gpu.copy_from_host(&memory, &part, &wait) {
            Ok(false) => return assert!(!can(&gpu)),
            given_up => assert!(matches!(given_up, Err(Error::Cancelled)), "{given_up:?}"),
        }
        memory.fill(0);
        assert!(read(&gpu, &buffer, 0..1 << 20) == pattern(1 << 20, 1));
        assert!(gpu.copy_to_host(&part, &mut memory, &crate::gpu::tests::wait()).unwrap());
        assert!(memory[..1 << 20] == pattern(1 << 20, 1));
    }
}
