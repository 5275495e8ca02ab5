//! Files that results are written to.

use std::path::{Path, PathBuf};

use runahead::new_file;

use super::failure::Failure;

/// A file that appears under its name only when it is whole.
pub struct NewFile {
    path: PathBuf,
}

impl NewFile {
    /// Finds out whether the file can be made, before the work whose result it holds; an interrupt of that leaves nothing behind.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin(path: &Path) -> Result<Self, Failure> {
        if path.is_dir() {
            return Err(Failure::io(path, std::io::ErrorKind::IsADirectory.into()));
        }
        if new_file::is_written_through(path) {
            return Ok(Self { path: path.to_owned() });
        }
        let partial = new_file::partial_path(path)?;
        let made = std::fs::File::create_new(&partial).and_then(|_| std::fs::remove_file(&partial));
        made.map_err(|e| Failure::io(path, e))?;
        Ok(Self { path: path.to_owned() })
    }

    /// As [`NewFile::begin`] for a file that may not have been asked for.
    ///
    /// # Errors
    /// As there.
    pub fn begin_if(path: Option<&PathBuf>) -> Result<Option<Self>, Failure> {
        path.map(|path| Self::begin(path)).transpose()
    }

    /// Has `write` fill the file at the path that it gets, which then takes its name.
    ///
    /// # Errors
    /// `write`'s, or what the system says.
    pub fn finish(self, write: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
        new_file::replace(&self.path, write)
    }

    /// Fills the file with a text.
    ///
    /// # Errors
    /// What the system says.
    pub fn text(self, text: &str) -> Result<(), Failure> {
        let path = self.path.clone();
        self.finish(|partial| std::fs::write(partial, text).map_err(|e| Failure::io(&path, e)))
    }
}
