//! Host memory that devices can import: whole pages that stay where they are, and never more than one that writes.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use memmap2::{MmapMut, MmapRaw};

use super::copy::touch;
use crate::error::{Error, Result};

/// Zeroed host memory, whose pages are there. A device that copies to or from it by itself imports it once, at the first copy, and keeps it until the memory is dropped.
#[derive(Default)]
pub struct HostMemory(Option<Arc<Region>>);

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
        if bytes == 0 {
            return Ok(Self::default());
        }
        let refused = |available| Error::Memory {
            adapter: "host".to_owned(),
            what: "memory that devices share".to_owned(),
            needed: bytes as u64,
            available,
        };
        let whole = bytes.checked_next_multiple_of(Self::LEAST).ok_or_else(|| refused(isize::MAX as u64))?;
        let map = MmapRaw::from(MmapMut::map_anon(whole).map_err(|_| refused(0))?);
        // Fewer pages to fault in and to pin: whether the system follows is its own affair.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let mut memory = Self(Some(Arc::new(Region { imports: Mutex::default(), map })));
        touch(&mut memory);
        Ok(memory)
    }

    /// A copy of these bytes.
    ///
    /// Errors: as [`new`](Self::new).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut memory = Self::new(bytes.len())?;
        memory[..bytes.len()].copy_from_slice(bytes);
        Ok(memory)
    }

    pub(super) fn region(&self) -> Option<&Arc<Region>> {
        self.0.as_ref()
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
        // SAFETY: the pages are mapped, initialised and of this length for as long as the region lives. Who writes them, a device included, holds
        // the one `HostMemory` of the region mutably meanwhile, so that there is no such borrow as this one.
        self.0.as_ref().map_or(&[], |r| unsafe { std::slice::from_raw_parts(r.start(), r.bytes()) })
    }
}

impl DerefMut for HostMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above. A region has one `HostMemory`, which is borrowed mutably here, and devices touch the pages only inside of calls that
        // borrow it.
        self.0.as_mut().map_or(&mut [], |r| unsafe { std::slice::from_raw_parts_mut(r.start(), r.bytes()) })
    }
}

impl std::fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostMemory({} bytes)", self.len())
    }
}
