//! Files that appear under their names only when they are whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Whether something stands there that is written to, not replaced: a device, a pipe.
pub fn is_written_through(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// Where a file is written before it takes its name, each time elsewhere: in the same folder, since a rename does not cross file systems. A link's target is
/// replaced, not the link.
///
/// # Errors
/// [`Error::Io`] for a path without a file's name.
pub fn partial_path(path: &Path) -> Result<PathBuf> {
    let path = &resolved(path);
    let name = path.file_name().ok_or_else(|| Error::io(path, std::io::ErrorKind::IsADirectory.into()))?;
    // Processes have the same number in containers that share a folder.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    Ok(path.with_file_name(format!(".{}.{}.{now:x}", name.to_string_lossy(), std::process::id())))
}

/// The file that a link stands for.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Has `write` fill the file at the path that it gets, which then takes the name: whoever reads sees the old file or the new one. What is
/// [written through](is_written_through) is given to `write` itself.
///
/// # Errors
/// `write`'s, or [`Error::Io`]; the old file stays.
pub fn replace<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    if is_written_through(path) {
        return write(path);
    }
    let partial = partial_path(path)?;
    let renamed = || fs::rename(&partial, resolved(path)).map_err(|e| Error::io(path, e).into());
    let written = write(&partial).and_then(|()| renamed());
    if written.is_err() {
        // A full disk should not stay full; where nothing was made there is nothing to remove.
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn links_stay_and_devices_are_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for text in ["new", "newer"] {
            // At first the link leads nowhere, and becomes the file.
            replace::<Error>(&link, |at| fs::write(at, text).map_err(|e| Error::io(at, e))).unwrap();
            assert_eq!(fs::read_to_string(&link).unwrap(), text);
            if text == "new" {
                fs::remove_file(&link).unwrap();
                fs::write(&file, "old").unwrap();
                std::os::unix::fs::symlink(&file, &link).unwrap();
            }
        }
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "newer");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        let null = Path::new("/dev/null");
        replace::<Error>(null, |at| fs::write(at, "text").map_err(|e| Error::io(at, e))).unwrap();
        assert!(is_written_through(null) && !is_written_through(&file) && !is_written_through(folder.path()));
    }
}
