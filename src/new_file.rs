//! Files that appear under their names only when they are whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where a file is written before it takes its name: in the same folder, since a rename does not cross file systems.
///
/// # Errors
/// [`Error::Io`] for a path without a file's name.
pub fn partial_path(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::io(path, std::io::ErrorKind::IsADirectory.into()))?;
    Ok(path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id())))
}

/// Has `write` fill the file at the path that it gets, which then takes the name: whoever reads sees the old file or the new one.
///
/// # Errors
/// `write`'s, or [`Error::Io`]; the old file stays.
pub fn replace<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let partial = partial_path(path)?;
    let written = write(&partial).and_then(|()| fs::rename(&partial, path).map_err(|e| Error::io(path, e).into()));
    if written.is_err() {
        // A full disk should not stay full; where nothing was made there is nothing to remove.
        let _ = fs::remove_file(&partial);
    }
    written
}
