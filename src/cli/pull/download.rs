//! One file from a server into the cache: resumed, hashed, and renamed into place when whole.
//!
//! While it is incomplete a file lies beside its place as `NAME.TAG.part`, where TAG names the version on the server. A part is resumed only by bytes of the
//! same version; a part of another version, or without a tag, is begun anew.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runahead::cancel::Cancel;
use sha2::{Digest, Sha256};

use super::http::{Http, Reply, Trouble};
use crate::cli::failure::Failure;
use crate::cli::output;

/// Tries in a row that bring no byte, before a download is given up.
const TRIES: u32 = 4;
/// Characters of a tag that a part's name carries.
const TAG_LEN: usize = 16;

/// A file to fetch.
pub struct Item {
    /// Where it is.
    pub url: String,
    /// Where it goes.
    pub to: PathBuf,
    /// What is known of it beforehand.
    pub pinned: Option<Pin>,
}

/// Size and hash that the file must have.
#[derive(Clone, Copy)]
pub struct Pin {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: &'static str,
}

/// Fetches the file, unless the one in place has the hash that the server names.
pub fn fetch(http: &Http, item: &Item, cancel: &Cancel) -> Result<(), Failure> {
    let mut fruitless = 0;
    loop {
        let part = Part::find(&item.to)?;
        let before = part.as_ref().map_or(0, |part| part.bytes);
        let reason = match attempt(http, item, part, cancel) {
            Ok(()) => return Ok(()),
            Err(Trouble::Final(failure)) => return Err(failure),
            Err(Trouble::Cut(reason)) => reason,
        };
        let now = Part::find(&item.to)?.map_or(0, |part| part.bytes);
        fruitless = if now > before { 1 } else { fruitless + 1 };
        if fruitless >= TRIES {
            return Err(Failure::Other(format!("{}: {reason}", name(&item.to))));
        }
        pause(Duration::from_millis(100 << fruitless), cancel)?;
    }
}

/// One request, and what it brings.
fn attempt(http: &Http, item: &Item, part: Option<Part>, cancel: &Cancel) -> Result<(), Trouble> {
    let offset = part.as_ref().map_or(0, |part| part.bytes);
    let reply = http.get(&item.url, offset, cancel)?;
    check_status(&reply, item, part.as_ref())?;

    let sha256 = item.pinned.map(|pin| pin.sha256.to_owned()).or_else(|| reply.sha256.clone());
    let tag = sha256.clone().or_else(|| reply.tag.clone()).map(|tag| tag.chars().take(TAG_LEN).collect::<String>());
    let resumed = reply.status.as_u16() == 206;
    if let Some(part) = &part {
        if resumed && part.tag != tag {
            part.remove()?;
            return Err(Trouble::Cut("the file has changed on the server".to_owned()));
        }
        if resumed && reply.range_start != Some(offset) {
            part.remove()?;
            return Err(Trouble::Cut("the server sent another range than the one asked for".to_owned()));
        }
        if !resumed {
            part.remove()?;
        }
    }
    let start = if resumed { offset } else { 0 };
    let total = reply.length.map(|length| start + length).or(item.pinned.map(|pin| pin.bytes));
    if let (Some(pin), Some(total)) = (item.pinned, total)
        && total != pin.bytes
    {
        let text = format!("{}: the server's file has {total} bytes instead of {}", name(&item.to), pin.bytes);
        return Err(Trouble::Final(Failure::Other(text)));
    }
    if let Some(expected) = &sha256
        && is_in_place(&item.to, total, expected, cancel)?
    {
        return Ok(());
    }

    let path = Part::path(&item.to, tag.as_deref());
    let found = receive(&reply, &path, start, total, cancel)?;
    if let Some(expected) = &sha256
        && found != *expected
    {
        fs::remove_file(&path).map_err(|e| io(&path, e))?;
        let text =
            format!("{}: its SHA-256 is {found} instead of {expected}; the download was deleted", name(&item.to));
        return Err(Trouble::Final(Failure::Other(text)));
    }
    fs::rename(&path, &item.to).map_err(|e| io(&item.to, e))
}

fn check_status(reply: &Reply, item: &Item, part: Option<&Part>) -> Result<(), Trouble> {
    let status = reply.status;
    match (status.as_u16(), part) {
        (200, _) | (206, Some(_)) => Ok(()),
        // The part is as long as the file, or longer: it is not what the server has.
        (416, Some(part)) => {
            part.remove()?;
            Err(Trouble::Cut(format!("the server answered {status}")))
        }
        (429 | 500.., _) => Err(Trouble::Cut(format!("the server answered {status}"))),
        _ => Err(refused(status, &item.url)),
    }
}

/// The error of a status that no second try would change.
pub fn refused(status: ureq::http::StatusCode, url: &str) -> Trouble {
    let hint = match status.as_u16() {
        401 | 403 => "; a gated or private repository needs HF_TOKEN",
        _ => "",
    };
    Trouble::Final(Failure::Other(format!("{url}: the server answered {status}{hint}")))
}

/// Writes the body behind the first `start` bytes of the part; the SHA-256 of the whole.
fn receive(reply: &Reply, path: &Path, start: u64, total: Option<u64>, cancel: &Cancel) -> Result<String, Trouble> {
    let mut hash = Sha256::new();
    if start > 0 {
        hash_file(path, &mut hash, cancel)?;
    }
    let mut options = File::options();
    let file = if start > 0 { options.append(true) } else { options.create(true).write(true).truncate(true) };
    let mut file = file.open(path).map_err(|e| io(path, e))?;

    let bar = output::byte_bar(&name(path), total, start);
    let mut done = start;
    while let Some(bytes) = reply.chunk()? {
        file.write_all(&bytes).map_err(|e| io(path, e))?;
        hash.update(&bytes);
        done += bytes.len() as u64;
        bar.set_position(done);
    }
    bar.finish_and_clear();
    if let Some(total) = total.filter(|total| *total != done) {
        return Err(Trouble::Cut(format!("the connection ended after {done} of {total} bytes")));
    }
    file.sync_all().map_err(|e| io(path, e))?;
    Ok(hex(hash))
}

/// Whether the file is there with this size and hash.
pub fn is_in_place(path: &Path, bytes: Option<u64>, sha256: &str, cancel: &Cancel) -> Result<bool, Failure> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(false) };
    if !metadata.is_file() || bytes.is_some_and(|bytes| bytes != metadata.len()) {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    hash_file(path, &mut hash, cancel)?;
    Ok(hex(hash) == sha256)
}

fn hash_file(path: &Path, hash: &mut Sha256, cancel: &Cancel) -> Result<(), Failure> {
    let mut file = File::open(path).map_err(|e| Failure::io(path, e))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        cancel.check()?;
        let n = file.read(&mut buffer).map_err(|e| Failure::io(path, e))?;
        if n == 0 {
            return Ok(());
        }
        hash.update(&buffer[..n]);
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An unfinished download.
struct Part {
    path: PathBuf,
    tag: Option<String>,
    bytes: u64,
}

impl Part {
    fn path(to: &Path, tag: Option<&str>) -> PathBuf {
        let tag = tag.map(|tag| format!(".{tag}")).unwrap_or_default();
        to.with_file_name(format!("{}{tag}.part", name(to)))
    }

    /// The part that lies beside `to` and holds most. Others of the same file are of older versions, and are deleted.
    fn find(to: &Path) -> Result<Option<Self>, Failure> {
        let folder = to.parent().unwrap_or(Path::new("."));
        let prefix = format!("{}.", name(to));
        let mut found: Option<Self> = None;
        for entry in fs::read_dir(folder).map_err(|e| Failure::io(folder, e))? {
            let entry = entry.map_err(|e| Failure::io(folder, e))?;
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let Some(middle) = file_name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("part")) else {
                continue;
            };
            let tag = middle.strip_suffix('.').map(str::to_owned);
            if tag.as_ref().is_some_and(|tag| tag.len() > TAG_LEN || tag.contains('.')) {
                continue;
            }
            let bytes = entry.metadata().map_err(|e| Failure::io(&entry.path(), e))?.len();
            let part = Self { path: entry.path(), tag, bytes };
            // Without a tag nothing says whose bytes these are.
            if part.tag.is_none() || part.bytes == 0 {
                part.remove()?;
            } else if found.as_ref().is_none_or(|best| best.bytes < part.bytes) {
                if let Some(worse) = found.replace(part) {
                    worse.remove()?;
                }
            } else {
                part.remove()?;
            }
        }
        Ok(found)
    }

    fn remove(&self) -> Result<(), Failure> {
        fs::remove_file(&self.path).map_err(|e| Failure::io(&self.path, e))
    }
}

fn pause(time: Duration, cancel: &Cancel) -> Result<(), Failure> {
    let end = std::time::Instant::now() + time;
    while std::time::Instant::now() < end {
        cancel.check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn io(path: &Path, error: std::io::Error) -> Trouble {
    Trouble::Final(Failure::io(path, error))
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Trouble::Final(failure)
    }
}
