//! Files mapped into memory, so that weights are paged in by the system when they are read, and need no copy.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::Bytes;
use crate::error::{Error, Result};

/// Maps a regular file read-only.
///
/// The mapping trusts that nobody shortens or rewrites the file while it is in use: bytes that change are read as they come (every parser
/// here checks what it reads), but a page that no longer exists ends the process with a signal, as with every memory-mapped loader.
///
/// # Errors
/// [`Error::Io`] where the file cannot be opened or mapped, [`Error::BadFile`] where it is empty or no regular file.
pub fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let about = file.metadata().map_err(|e| Error::io(path, e))?;
    if !about.is_file() {
        return Err(Error::bad_file(path, "is no regular file"));
    }
    if about.len() == 0 {
        return Err(Error::bad_file(path, "is empty"));
    }
    // SAFETY: the mapping is private to this process and read-only; that the file keeps its length is the documented condition above, which
    // no system call can secure.
    let mapping = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    let len = mapping.len();
    Bytes::new(Arc::new(mapping), 0..len).ok_or_else(|| Error::bad_file(path, "changed its length"))
}
