//! Work on host memory that is worth more than one thread.

use std::ptr::NonNull;

use crate::threads;

/// Below this many bytes a second thread costs more than it brings.
const WORTH_A_THREAD: usize = 4 << 20;

/// Threads that saturate the paths between memory and bus.
const MAX_THREADS: usize = 4;

/// No system has smaller pages.
const PAGE: usize = 4096;

/// Where a thread writes.
struct Place(NonNull<u8>);

// SAFETY: whoever holds one is the only one to write there, on whichever thread; see `copy_with`.
unsafe impl Send for Place {}

impl Place {
    /// # Safety
    /// The place `i` bytes behind is in the same memory.
    unsafe fn behind(&self, i: usize) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { self.0.add(i) })
    }
}

/// `to.copy_from_slice(from)`, by several threads where it is long: one moves 5 GB/s in a server where four move 18, and 12 where its
/// cores are faster.
///
/// Of slices of different lengths, what both have is copied.
pub fn copy_bytes(to: &mut [u8], from: &[u8]) {
    copy_to(wgpu::WriteOnly::from_mut(to), from);
}

/// As [`copy_bytes`], where reading is forbidden or slow.
pub fn copy_to(to: wgpu::WriteOnly<'_, [u8]>, from: &[u8]) {
    copy_with(threads_for(from.len()), to, from);
}

/// Has the system give memory its pages, which else happens at their first use, on one thread at 3 to 5 GB/s.
pub fn touch(memory: &mut [u8]) {
    let n = threads_for(memory.len());
    let part = memory.len().div_ceil(n).next_multiple_of(PAGE).max(1);
    threads::for_each(n, memory.chunks_mut(part), |part| part.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0));
}

/// Half of the processors at most: workers and couriers of other adapters are at it as well.
fn threads_for(bytes: usize) -> usize {
    let wanted = (bytes / WORTH_A_THREAD).min(MAX_THREADS);
    if wanted <= 1 {
        // Nobody is asked for the number of processors, which takes longer than a short copy: on Linux it is in several files.
        return 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() / 2);
    wanted.min(cores).max(1)
}

fn copy_with(threads: usize, mut to: wgpu::WriteOnly<'_, [u8]>, from: &[u8]) {
    let from = &from[..to.len().min(from.len())];
    let part = from.len().div_ceil(threads).next_multiple_of(PAGE).max(1);
    let start = Place(to.as_raw_element_ptr());
    // SAFETY: each part of `from` begins inside it, and `to` is as long.
    let parts = from.chunks(part).enumerate().map(move |(i, from)| (unsafe { start.behind(i * part) }, from));
    threads::for_each(threads, parts, |(Place(place), from)| {
        // SAFETY: the bytes are part of `to`, which nobody else touches before this function returns; the parts do not overlap, and `from`, which is
        // borrowed beside a mutable borrow of `to`, does not either.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(from).cast(), from.len()) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_once_by_any_number_of_threads() {
        let from = (0..5 * 4096 + 17usize).map(|i| (i % 251) as u8).collect::<Vec<_>>();
        for n in [0, 1, 4095, 4096, 4097, from.len()] {
            for threads in 1..=5 {
                let mut to = vec![255; n + 1];
                copy_with(threads, wgpu::WriteOnly::from_mut(&mut to[..n]), &from[..n]);
                assert!(to[..n] == from[..n] && to[n] == 255, "{n} bytes, {threads} threads");
            }
        }
        let (mut long, mut short) = (vec![0; 9 << 20], [0; 5]);
        long[8 << 20] = 1;
        let mut to = vec![2; 9 << 20];
        copy_bytes(&mut to, &long);
        assert!(to == long);
        copy_bytes(&mut short, &from);
        assert_eq!(short, from[..5]);
    }
}
