//! `runahead logits`: the logits of every position of a prompt, in a safetensors file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runahead::cancel::Cancel;
use runahead::engine::Options;
use runahead::error::Error;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView};

use super::args::LogitsArgs;
use super::failure::Failure;
use super::input;
use super::open::{self, Opening};
use super::output;
use super::progress::Bars;

/// Runs the command.
pub fn run(args: &LogitsArgs, cancel: &Cancel) -> Result<(), Failure> {
    let ids = input::read_ids(&args.tokens, cancel)?;
    let files = open::files(&args.model)?;
    let ids = input::check_ids(ids, &files)?;
    let devices = open::named_or_default(&args.devices);
    let lengths = args.split.split.lengths(0, ids.len(), devices.len())?;
    let context = open::context_for(&files, ids.len(), 0)?;
    // Before the work: a folder that cannot be written would waste it.
    let out = NewFile::begin(&args.out)?;

    let bars = Arc::new(Bars::new());
    let opening = Opening { devices: &devices, context, kv: args.kv.kv.into(), cancel, bars: &bars };
    let engine = open::engine(files, &opening)?;
    let options = Options { split: args.split.split.clone(), ..Options::default() };
    let logits = engine.session()?.logits(&ids, &options);
    bars.clear();
    let logits = logits?;
    let shape = [ids.len(), engine.config().vocab];
    out.finish(&logits, shape)?;
    open::tell_partition(&engine, &lengths);
    output::note(&format!("{} x {} logits in {}", shape[0], shape[1], args.out.display()));
    Ok(())
}

/// A file that appears under its name only when it is whole.
struct NewFile<'a> {
    path: &'a Path,
    partial: PathBuf,
}

impl<'a> NewFile<'a> {
    /// Finds out whether the file can be made; an interrupt of the work to come leaves nothing behind.
    fn begin(path: &'a Path) -> Result<Self, Failure> {
        let name = match path.file_name() {
            Some(name) if !path.is_dir() => name.to_string_lossy().into_owned(),
            _ => return Err(Failure::io(path, std::io::ErrorKind::IsADirectory.into())),
        };
        // In the same folder: a rename does not cross file systems.
        let partial = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let made = std::fs::File::create_new(&partial).and_then(|_| std::fs::remove_file(&partial));
        made.map_err(|e| Failure::io(path, e))?;
        Ok(Self { path, partial })
    }

    fn finish(self, logits: &[f32], shape: [usize; 2]) -> Result<(), Failure> {
        let written = self.write(logits, shape);
        if written.is_err() {
            // A full disk should not stay full; where nothing was made there is nothing to remove.
            let _ = std::fs::remove_file(&self.partial);
        }
        written
    }

    fn write(&self, logits: &[f32], shape: [usize; 2]) -> Result<(), Failure> {
        let failed = |e: SafeTensorError| match e {
            SafeTensorError::IoError(e) => Failure::io(self.path, e),
            other => Error::bad_file(self.path, other.to_string()).into(),
        };
        let tensor = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(logits)).map_err(failed)?;
        safetensors::serialize_to_file([("logits", tensor)], None, &self.partial).map_err(failed)?;
        std::fs::rename(&self.partial, self.path).map_err(|e| Failure::io(self.path, e))
    }
}
