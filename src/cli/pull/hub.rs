//! A model repository of the Hugging Face hub: which of its files a model needs, and where they go.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use runahead::cancel::Cancel;
use serde_json::Value;

use super::cache::Cache;
use super::download::{self, Item};
use super::http::{Http, Trouble};
use crate::cli::failure::Failure;

/// The listing of a repository with very many files is about 2 MiB.
const MAX_LISTING_BYTES: usize = 32 << 20;
/// An index has a line of about 80 bytes per tensor.
const MAX_INDEX_BYTES: u64 = 64 << 20;
const INDEX: &str = "model.safetensors.index.json";
/// What is taken along with the weights, where it is there.
const SIDE_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    INDEX,
];

/// `ORG/REPO`, or `ORG/REPO:FILE`.
#[derive(Debug, PartialEq, Eq)]
pub struct Repo {
    org: String,
    repo: String,
    file: Option<String>,
}

impl Repo {
    /// Checks the form; whether the repository exists only the hub knows.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let usage = || Failure::Usage(format!("`{text}` is neither `smollm2` nor ORG/REPO nor ORG/REPO:FILE.gguf"));
        let (name, file) = match text.split_once(':') {
            Some((name, file)) => (name, Some(file)),
            None => (text, None),
        };
        let (org, repo) = name.split_once('/').ok_or_else(usage)?;
        let plain = |part: &str| {
            let chars = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            chars && !part.is_empty() && !part.starts_with('.')
        };
        let file_ok = file.is_none_or(|file| is_inside(file) && file.ends_with(".gguf"));
        if !plain(org) || !plain(repo) || !file_ok {
            return Err(usage());
        }
        Ok(Self { org: org.to_owned(), repo: repo.to_owned(), file: file.map(str::to_owned) })
    }
}

/// Fetches the model: the folder of a safetensors model, the file of a GGUF one.
pub fn pull(cache: &Cache, repo: &Repo, cancel: &Cancel) -> Result<PathBuf, Failure> {
    let hub = Hub { http: Http::new()?, repo, folder: cache.join(&repo.org).join(&repo.repo), cancel };
    let listing = hub.listing()?;
    let _held = cache.hold(cancel)?;
    if let Some(gguf) = which_gguf(repo, &listing)? {
        return hub.fetch(&gguf);
    }
    for name in SIDE_FILES.iter().filter(|name| listing.contains(**name)) {
        hub.fetch(name)?;
    }
    for name in hub.weights(&listing)? {
        hub.fetch(&name)?;
    }
    Ok(hub.folder)
}

/// The GGUF file to fetch; `None` for a repository with safetensors.
fn which_gguf(repo: &Repo, listing: &BTreeSet<String>) -> Result<Option<String>, Failure> {
    let found: Vec<&String> = listing.iter().filter(|name| name.ends_with(".gguf")).collect();
    let names = || found.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let Repo { org, repo, file } = repo;
    match (file, found.as_slice()) {
        (Some(file), _) if listing.contains(file) => Ok(Some(file.clone())),
        (Some(file), []) => Err(Failure::Other(format!("{org}/{repo} has no `{file}`, nor any other GGUF file"))),
        (Some(file), _) => Err(Failure::Other(format!("{org}/{repo} has no `{file}`; there are: {}", names()))),
        (None, _) if listing.iter().any(|name| is_safetensors(name)) => Ok(None),
        (None, [one]) => Ok(Some((*one).clone())),
        (None, []) => Err(Failure::Other(format!("{org}/{repo} has neither safetensors nor GGUF files"))),
        (None, _) => Err(Failure::Other(format!(
            "{org}/{repo} has several GGUF files; name one as {org}/{repo}:FILE: {}",
            names()
        ))),
    }
}

struct Hub<'a> {
    http: Http,
    repo: &'a Repo,
    folder: PathBuf,
    cancel: &'a Cancel,
}

impl Hub<'_> {
    /// The names of the repository's files. One that would lead out of the cache spoils the whole listing: no honest server sends it.
    fn listing(&self) -> Result<BTreeSet<String>, Failure> {
        let Repo { org, repo, .. } = self.repo;
        let url = format!("{}/api/models/{org}/{repo}", self.http.endpoint());
        let unreadable = || Failure::Other(format!("{url}: the answer is no listing of a repository"));
        let body = self.read(&url)?;
        let json: Value = serde_json::from_slice(&body).map_err(|_| unreadable())?;
        let siblings = json.get("siblings").and_then(Value::as_array).ok_or_else(unreadable)?;
        siblings
            .iter()
            .map(|sibling| {
                let name = sibling.get("rfilename").and_then(Value::as_str).ok_or_else(unreadable)?;
                checked(name)
            })
            .collect()
    }

    fn read(&self, url: &str) -> Result<Vec<u8>, Failure> {
        let body = self.http.get(url, 0, self.cancel).and_then(|reply| match reply.status.as_u16() {
            200 => reply.read(MAX_LISTING_BYTES),
            // The hub answers 401 for a repository that does not exist, too.
            _ => Err(download::refused(reply.status, url)),
        });
        body.map_err(|trouble| match trouble {
            Trouble::Cut(reason) => Failure::Other(reason),
            Trouble::Final(failure) => failure,
        })
    }

    /// The weight files: the shards that the index names, else `model.safetensors`, else the only one.
    fn weights(&self, listing: &BTreeSet<String>) -> Result<BTreeSet<String>, Failure> {
        if listing.contains(INDEX) {
            return shards(&self.folder.join(INDEX));
        }
        let found: Vec<&String> = listing.iter().filter(|name| is_safetensors(name)).collect();
        let model = found.iter().find(|name| name.as_str() == "model.safetensors");
        match (model, found.as_slice()) {
            (Some(one), _) | (None, [one]) => Ok(BTreeSet::from([(*one).clone()])),
            _ => {
                let Repo { org, repo, .. } = self.repo;
                Err(Failure::Other(format!("{org}/{repo} has {} safetensors files and no {INDEX}", found.len())))
            }
        }
    }

    fn fetch(&self, name: &str) -> Result<PathBuf, Failure> {
        let Repo { org, repo, .. } = self.repo;
        let to = self.folder.join(name);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(|e| Failure::io(folder, e))?;
        }
        let url = format!("{}/{org}/{repo}/resolve/main/{}", self.http.endpoint(), encoded(name));
        download::fetch(&self.http, &Item { url, to: to.clone(), pinned: None }, self.cancel)?;
        Ok(to)
    }
}

/// The files that an index names.
fn shards(path: &Path) -> Result<BTreeSet<String>, Failure> {
    let bad = |reason: &str| Failure::Library(runahead::Error::bad_file(path, reason));
    if fs::metadata(path).map_err(|e| Failure::io(path, e))?.len() > MAX_INDEX_BYTES {
        return Err(bad("longer than any index of a model"));
    }
    let text = fs::read(path).map_err(|e| Failure::io(path, e))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| bad(&e.to_string()))?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("no `weight_map`"))?;
    map.values().map(|file| file.as_str().ok_or_else(|| bad("a shard's name is no text")).and_then(checked)).collect()
}

/// Weights lie at the top of a repository; folders hold other models' or other programs' files.
fn is_safetensors(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains('/')
}

fn checked(name: &str) -> Result<String, Failure> {
    if is_inside(name) {
        Ok(name.to_owned())
    } else {
        Err(Failure::Other(format!(
            "the server names a file `{}`, which would lead out of the cache",
            name.escape_debug()
        )))
    }
}

/// Whether a relative name stays below its folder, on every platform.
fn is_inside(name: &str) -> bool {
    let part_ok = |part: &str| {
        let chars = part.chars().all(|c| !c.is_control() && !matches!(c, '\\' | ':'));
        chars && !part.is_empty() && part != "." && part != ".."
    };
    name.split('/').all(part_ok)
}

/// The name as a path of an address.
fn encoded(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'/');
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_two_plain_names() {
        let repo = Repo::parse("org/re.po-1:a/b.gguf").unwrap();
        assert_eq!((repo.org.as_str(), repo.repo.as_str(), repo.file.as_deref()), ("org", "re.po-1", Some("a/b.gguf")));
        for bad in ["", "org", "a/b/c", "../b", "a/..", "a/.b", "a/b:../c.gguf", "a/b:c.bin", "a /b", "a/b?x", "/b"] {
            assert!(matches!(Repo::parse(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn names_that_leave_the_folder_are_seen() {
        for good in ["config.json", "a/b.gguf", "..a", "a b"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["..", "a/../b", "/a", "a//b", "", "a\\b", "C:a", "a\nb", "./a", "a/"] {
            assert!(!is_inside(bad), "{bad}");
        }
        assert_eq!(encoded("a b/ü.gguf"), "a%20b/%C3%BC.gguf");
    }
}
