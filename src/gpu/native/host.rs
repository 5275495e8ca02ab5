//! Host memory that devices can import: whole pages that stay where they are, and never more than one that writes a byte.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex};

use memmap2::{MmapMut, MmapRaw};

use super::copy::touch;
use crate::error::{Error, Result};

/// Zeroed host memory, whose pages are there. A device that copies to or from it by itself imports it once, at the first copy, and keeps it until the memory is dropped.
#[derive(Default)]
pub struct HostMemory(Option<(Arc<Region>, Range<usize>)>);

/// The pages, and what devices made of them. An import ends before the pages do.
pub(super) struct Region {
    pub imports: Mutex<Vec<Import>>,
    map: MmapRaw,
}

/// A region as a buffer of one device.
pub(super) struct Import {
    /// Tells devices apart, as long as the import lives.
    pub device: usize,
    /// The buffer's name at its driver.
    pub buffer: u64,
    /// Ends the import when it is dropped. Without its type, which is deep in the libraries below.
    pub _end: Box<dyn Send>,
}

impl HostMemory {
    /// Sizes are multiples of this many bytes: of the largest pages that systems use by default.
    pub const LEAST: usize = 64 << 10;

    /// At least `bytes` of them: whole pages, none where `bytes` is 0.
    ///
    /// Errors: [`Error::Memory`] where the system gives none.
    pub fn new(bytes: usize) -> Result<Self> {
        Ok(Self::pieces(1, bytes)?.pop().unwrap_or_default())
    }

    /// `n` times as much as [`new`](Self::new) gives, which a device imports at once.
    ///
    /// Errors: as there.
    pub fn pieces(n: usize, bytes: usize) -> Result<Vec<Self>> {
        let refused = |available| Error::Memory {
            adapter: "host".to_owned(),
            what: "memory that devices share".to_owned(),
            needed: bytes.saturating_mul(n) as u64,
            available,
        };
        let whole = bytes.checked_next_multiple_of(Self::LEAST).ok_or_else(|| refused(isize::MAX as u64))?;
        let all = whole.checked_mul(n).ok_or_else(|| refused(isize::MAX as u64))?;
        if all == 0 {
            return Ok((0..n).map(|_| Self::default()).collect());
        }
        let map = MmapRaw::from(MmapMut::map_anon(all).map_err(|_| refused(0))?);
        // Fewer pages to fault in and to pin: whether the system follows is its own affair.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let region = Arc::new(Region { imports: Mutex::default(), map });
        touch(&mut Self(Some((Arc::clone(&region), 0..all))));
        Ok((0..n).map(|i| Self(Some((Arc::clone(&region), i * whole..(i + 1) * whole)))).collect())
    }

    /// A copy of these bytes.
    ///
    /// Errors: as [`new`](Self::new).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut memory = Self::new(bytes.len())?;
        memory[..bytes.len()].copy_from_slice(bytes);
        Ok(memory)
    }

    /// The pages, and which of their bytes these are.
    pub(super) fn place(&self) -> Option<(&Arc<Region>, Range<usize>)> {
        self.0.as_ref().map(|(region, range)| (region, range.clone()))
    }
}

impl Region {
    pub fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    pub fn bytes(&self) -> usize {
        self.map.len()
    }
}

impl Deref for HostMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = |(region, range): &(Arc<Region>, Range<usize>)| {
            // SAFETY: the bytes lie in the region, whose pages are mapped and initialised for as long as it lives. Who writes them, a device included,
            // holds the one `HostMemory` of these bytes mutably meanwhile, or has it for its own, so that there is no such borrow as this one.
            unsafe { std::slice::from_raw_parts(region.start().add(range.start), range.len()) }
        };
        self.0.as_ref().map_or(&[], bytes)
    }
}

impl DerefMut for HostMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        let bytes = |(region, range): &mut (Arc<Region>, Range<usize>)| {
            // SAFETY: as above. Each byte belongs to one `HostMemory`, which is borrowed mutably here, and devices touch it only inside of calls that
            // borrow that, or while they have it.
            unsafe { std::slice::from_raw_parts_mut(region.start().add(range.start), range.len()) }
        };
        self.0.as_mut().map_or(&mut [], bytes)
    }
}

impl std::fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostMemory({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_outlive_each_other() {
        let mut pieces = HostMemory::pieces(5, HostMemory::LEAST + 1).unwrap();
        for (i, piece) in (1..).zip(&mut pieces) {
            assert!(piece.len() == 2 * HostMemory::LEAST && piece.iter().all(|&byte| byte == 0));
            piece.fill(i);
        }
        let last = pieces.pop().unwrap();
        assert!((1..).zip(&pieces).all(|(i, piece)| piece.iter().all(|&byte| byte == i)));
        drop(pieces);
        assert!(last.iter().all(|&byte| byte == 5));
        assert!(HostMemory::pieces(0, 1).unwrap().is_empty());
        assert!(HostMemory::pieces(2, 0).unwrap().iter().all(|none| none.is_empty()));
        for (n, bytes) in [(1, usize::MAX), (usize::MAX, 1), (2, usize::MAX / 2)] {
            assert!(matches!(HostMemory::pieces(n, bytes), Err(Error::Memory { .. })), "{n} of {bytes}");
        }
    }
}
