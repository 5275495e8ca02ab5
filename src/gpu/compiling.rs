//! Pipelines under way in the driver, and what the driver made of them, kept on disk.
//!
//! A driver takes from 20 to 500 ms for a shader, and a layer has some ten of them. Each is compiled by a thread of its own, so that the recording goes on
//! to the next one; the submission that needs them waits.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use super::native;
use crate::error::{Error, Result};

/// What a driver's cache is trusted to be at most; those of all kernels take some MB.
const MAX_CACHE_BYTES: u64 = 256 << 20;

type Made = std::result::Result<wgpu::ComputePipeline, String>;

/// A pipeline that a thread may still be compiling.
pub(super) struct Compiling {
    thread: Mutex<Option<JoinHandle<Made>>>,
    made: OnceLock<Made>,
}

impl Compiling {
    /// Begins.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn begin(name: &str, compile: impl FnOnce() -> Made + Send + 'static) -> Result<Self> {
        let failed = |e| Error::Shader { name: name.to_owned(), reason: format!("no thread to compile it: {e}") };
        let thread = std::thread::Builder::new().name("shader compiler".to_owned()).spawn(compile).map_err(failed)?;
        Ok(Self { thread: Mutex::new(Some(thread)), made: OnceLock::new() })
    }

    /// The pipeline, once it is there. Waits as long as the driver compiles: there is no way to stop it.
    pub fn wait(&self) -> std::result::Result<&wgpu::ComputePipeline, &str> {
        let made = self.made.get_or_init(|| {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            let joined = thread.map(JoinHandle::join);
            joined.and_then(std::result::Result::ok).unwrap_or_else(|| Err("its compiler died".to_owned()))
        });
        made.as_ref().map_err(String::as_str)
    }
}

impl Drop for Compiling {
    fn drop(&mut self) {
        // The thread holds the device: whoever drops a device's last handle may rely on its being gone.
        let _ = self.wait();
    }
}

/// The driver's own cache of what it compiled, in a file.
pub(super) struct DiskCache {
    raw: wgpu::PipelineCache,
    path: PathBuf,
    grown: AtomicBool,
}

impl DiskCache {
    /// Reads the file, if there is one. What the driver does not know again, it compiles anew.
    pub fn open(device: &wgpu::Device, path: PathBuf) -> Self {
        let fits = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_CACHE_BYTES);
        let data = if fits { fs::read(&path).ok().and_then(|file| sealed(&file)) } else { None };
        Self { raw: native::pipeline_cache(device, data.as_deref()), path, grown: AtomicBool::new(false) }
    }

    pub fn raw(&self) -> &wgpu::PipelineCache {
        &self.raw
    }

    /// Something new is in it.
    pub fn grow(&self) {
        self.grown.store(true, Ordering::Relaxed);
    }
}

impl Drop for DiskCache {
    /// Writes what is new. A cache that cannot be written costs the time of compiling again, and nothing else: nobody is told.
    fn drop(&mut self) {
        if !self.grown.load(Ordering::Relaxed) {
            return;
        }
        if let Some(data) = self.raw.get_data() {
            let _ = write(&self.path, &data);
        }
    }
}

/// Through a file of its own, so that whoever reads sees the old or the new one. (This layer knows no other's way to do that.)
fn write(path: &Path, data: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let bytes = [&checksum(data).to_le_bytes(), data].concat();
    // Another each time: two devices of one kind may end together, and what a killed process left is in nobody's way, though processes have the
    // same number in containers that share a folder.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let partial = path.with_extension(format!("{}-{now:x}", std::process::id()));
    let written = fs::File::create_new(&partial).and_then(|mut file| file.write_all(&bytes));
    let written = written.and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

/// What [`write`] wrote, where it is whole: drivers trust it.
fn sealed(file: &[u8]) -> Option<Vec<u8>> {
    let (sum, data) = file.split_first_chunk()?;
    (u64::from_le_bytes(*sum) == checksum(data)).then(|| data.to_vec())
}

/// FNV-1a over words (Fowler, Noll, Vo).
fn checksum(data: &[u8]) -> u64 {
    data.chunks(8).fold(0xcbf2_9ce4_8422_2325, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3)
    }) ^ data.len() as u64
}

/// Where an adapter's cache lies in a folder, where its API has caches.
pub(super) fn cache_path(folder: &Path, adapter: &wgpu::AdapterInfo) -> Option<PathBuf> {
    wgpu::util::pipeline_cache_key(adapter).map(|key| folder.join(format!("{key}.bin")))
}

/// Runs `f`, and gives the first error that the device had with it.
pub(super) fn watched<T>(device: &wgpu::Device, f: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let value = f();
    let errors = [internal, memory, validation].map(|scope| pollster::block_on(scope.pop()));
    (value, errors.into_iter().flatten().next())
}

/// What a compiler thread does: asks the driver, and takes what it says.
pub(super) fn compile(
    device: &wgpu::Device,
    cache: Option<&Arc<DiskCache>>,
    make: impl FnOnce(Option<&wgpu::PipelineCache>) -> wgpu::ComputePipeline,
) -> Made {
    let (pipeline, error) = watched(device, || make(cache.map(|cache| cache.raw())));
    match error {
        None => {
            if let Some(cache) = cache {
                cache.grow();
            }
            Ok(pipeline)
        }
        Some(wgpu::Error::OutOfMemory { .. }) => Err("the driver is out of memory".to_owned()),
        Some(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_given_to_a_driver() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/down/cache.bin");
        write(&path, b"what a driver wrote").unwrap();
        let file = fs::read(&path).unwrap();
        assert_eq!(sealed(&file).unwrap(), b"what a driver wrote");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        for at in 0..file.len() {
            assert_eq!(sealed(&file[..at]), None, "cut at {at}");
            let mut wrong = file.clone();
            wrong[at] ^= 4;
            assert_eq!(sealed(&wrong), None, "changed at {at}");
        }
        assert!(write(folder.path(), b"a folder is in the way").is_err());
    }

    #[test]
    fn a_compiler_that_dies_or_fails_is_told_to_everybody() {
        for (body, reason) in
            [((|| panic!("a planted panic")) as fn() -> Made, "died"), (|| Err("planted".to_owned()), "planted")]
        {
            let compiling = Compiling::begin("planted", body).unwrap();
            for _ in 0..2 {
                assert!(compiling.wait().unwrap_err().contains(reason));
            }
        }
    }
}
