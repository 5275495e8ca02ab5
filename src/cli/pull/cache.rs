//! The folder that downloads go to.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runahead::cancel::Cancel;

use crate::cli::failure::Failure;
use crate::cli::output;

/// The cache folder.
pub struct Cache {
    root: PathBuf,
}

/// While this lives, no other process pulls into the cache.
pub struct Held {
    /// The lock ends when the file is closed. `None` where the file system knows no locks.
    _lock: Option<File>,
}

impl Cache {
    /// `$RUNAHEAD_CACHE`, else `runahead` in the user's own cache folder. Nothing is made or written yet.
    pub fn find() -> Result<Self, Failure> {
        if let Some(root) = std::env::var_os("RUNAHEAD_CACHE").filter(|root| !root.is_empty()) {
            return Ok(Self { root: PathBuf::from(root) });
        }
        match dirs::cache_dir() {
            Some(cache) => Ok(Self { root: cache.join("runahead") }),
            None => Err(Failure::Other("the user has no cache folder; RUNAHEAD_CACHE can name one".to_owned())),
        }
    }

    /// Makes the folder where it is missing, and waits while another process pulls into it.
    pub fn hold(&self, cancel: &Cancel) -> Result<Held, Failure> {
        fs::create_dir_all(&self.root).map_err(|e| Failure::io(&self.root, e))?;
        let path = self.join(".lock");
        let file = File::options().create(true).append(true).open(&path).map_err(|e| Failure::io(&path, e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Held { _lock: Some(file) }),
                Err(TryLockError::Error(_)) => return Ok(Held { _lock: None }),
                Err(TryLockError::WouldBlock) if !told => {
                    output::note(&format!("waiting for another process that pulls into {}", self.root.display()));
                    told = true;
                }
                Err(TryLockError::WouldBlock) => {}
            }
            cancel.check()?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The path of a file or folder in the cache.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }
}
