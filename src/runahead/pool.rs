//! Host memory for the board's blocks, kept from one prefill to the next: its pages are there, and devices that import it have done so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::gpu::HostMemory;

/// Memory that no block uses. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct HostPool(Arc<Mutex<Vec<HostMemory>>>);

impl HostPool {
    /// Memory of at least `bytes`: the smallest idle one that has them and is not more than twice as large, else new. What stands in it is of no
    /// meaning.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory).
    pub fn take(&self, bytes: usize) -> Result<HostMemory> {
        let mut idle = self.lock();
        let fits = |m: &HostMemory| m.len() >= bytes && m.len() / 2 <= bytes.max(HostMemory::LEAST);
        let best = idle.iter().enumerate().filter(|(_, m)| fits(m)).min_by_key(|(_, m)| m.len()).map(|(i, _)| i);
        match best {
            Some(i) => Ok(idle.swap_remove(i)),
            None => {
                drop(idle);
                HostMemory::new(bytes)
            }
        }
    }

    /// Takes memory back.
    pub fn put(&self, memory: HostMemory) {
        if !memory.is_empty() {
            self.lock().push(memory);
        }
    }

    /// Bytes that are idle, in pieces of `least` and more.
    pub fn idle_bytes(&self, least: usize) -> u64 {
        self.lock().iter().map(|memory| memory.len()).filter(|&bytes| bytes >= least).map(|bytes| bytes as u64).sum()
    }

    /// Gives the system back what is idle beyond `bytes`, the longest idle first.
    pub fn trim(&self, bytes: u64) {
        let mut idle = self.lock();
        let mut room = bytes;
        let kept = idle.iter().rev().take_while(|m| {
            let left = room.checked_sub(m.len() as u64);
            room = left.unwrap_or(0);
            left.is_some()
        });
        let n_gone = idle.len() - kept.count();
        let gone = idle.drain(..n_gone).collect::<Vec<_>>();
        drop(idle);
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<HostMemory>> {
        // A list of idle memory is sound whatever happened to a thread that held it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1 << 20;

    #[test]
    fn memory_is_used_again_where_it_is_neither_too_small_nor_far_too_large() {
        let pool = HostPool::default();
        let places = [MB, 4 * MB, 3 * MB].map(|n| {
            let memory = HostMemory::new(n).unwrap();
            let place = memory.as_ptr();
            pool.put(memory);
            place
        });
        assert_eq!(pool.idle_bytes(0), 8 * MB as u64);
        assert_eq!(pool.idle_bytes(2 * MB), 7 * MB as u64);
        let three = pool.take(2 * MB + 1).unwrap();
        assert_eq!(three.as_ptr(), places[2]);
        let small = pool.take(100).unwrap();
        assert!(!places.contains(&small.as_ptr()) && small.len() >= 100);
        assert_eq!(pool.take(4 * MB).unwrap().as_ptr(), places[1]);
        assert_eq!(pool.take(0).unwrap().len(), 0);
        pool.put(HostMemory::default());
        assert_eq!(pool.idle_bytes(0), MB as u64);
    }

    #[test]
    fn what_was_idle_longest_goes_first() {
        let pool = HostPool::default();
        for n in [4, 1, 2] {
            pool.put(HostMemory::new(n * MB).unwrap());
        }
        pool.trim(u64::MAX);
        assert_eq!(pool.idle_bytes(0), 7 * MB as u64);
        pool.trim(5 * MB as u64);
        assert_eq!(pool.idle_bytes(0), 3 * MB as u64);
        pool.trim(0);
        assert_eq!(pool.idle_bytes(0), 0);
    }
}
