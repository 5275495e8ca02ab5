//! HTTP GET for downloads: time-outs on every wait, redirects followed one by one, the body in a bounded channel.
//!
//! A request runs on a thread of its own, since a blocking read cannot see a cancel; dropping the [`Reply`] makes the thread end at its next chunk.
//! Redirects are followed here and not by the client, because the hub tells a file's hash on the hop before the file server, and because the user's token
//! must reach the hub alone.

use std::io::Read;
use std::time::Duration;

use runahead::cancel::{Cancel, Wait};
use ureq::http::{HeaderMap, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::cli::failure::Failure;

/// A server that says nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(15);
const MAX_REDIRECTS: usize = 8;
const CHUNK_BYTES: usize = 128 << 10;

/// A client for one hub.
pub struct Http {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a server answered.
pub struct Reply {
    /// The status of the last hop.
    pub status: StatusCode,
    /// Length of the body that follows, where the server says it.
    pub length: Option<u64>,
    /// First byte of a partial body (status 206).
    pub range_start: Option<u64>,
    /// What the hub calls this version of the file: the same tag means the same bytes.
    pub tag: Option<String>,
    /// SHA-256 of the whole file, where the hub says it.
    pub sha256: Option<String>,
    body: flume::Receiver<Part>,
    wait: Wait,
}

/// Why no answer, or only a part of it, came.
pub enum Trouble {
    /// The network's fault: another try may help.
    Cut(String),
    /// Another try would end in the same way.
    Final(Failure),
}

enum Part {
    Head { status: StatusCode, headers: HeaderMap, tag: Option<String>, sha256: Option<String> },
    Bytes(Vec<u8>),
    End,
    Cut(String),
}

impl Http {
    /// A client of `$HF_ENDPOINT`, else of huggingface.co. `$HF_TOKEN` opens gated repositories; `$SSL_CERT_FILE` replaces the built-in certificates.
    pub fn new() -> Result<Self, Failure> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = env("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if host(&endpoint).is_none() {
            return Err(Failure::Other(format!("HF_ENDPOINT is no http or https address: {endpoint}")));
        }
        let roots = env("SSL_CERT_FILE").map(|path| roots(&path)).transpose()?.unwrap_or(RootCerts::WebPki);
        let agent = ureq::Agent::config_builder()
            .user_agent(concat!("runahead/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build()
            .new_agent();
        Ok(Self { agent, endpoint, token: env("HF_TOKEN") })
    }

    /// The hub's address, without a slash at its end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for `url` from byte `offset` on, and returns once the headers are here.
    pub fn get(&self, url: &str, offset: u64, cancel: &Cancel) -> Result<Reply, Trouble> {
        let (tx, body) = flume::bounded(4);
        let hop = Hop { agent: self.agent.clone(), endpoint: self.endpoint.clone(), token: self.token.clone(), offset };
        let start = url.to_owned();
        let spawned = std::thread::Builder::new().name("download".to_owned()).spawn(move || hop.run(start, &tx));
        spawned.map_err(|e| Trouble::Final(Failure::Other(format!("no thread for a download: {e}"))))?;

        // The client's own time-outs come first; this one is for a host name look-up that hangs.
        let wait = Wait { cancel: cancel.clone(), limit: SILENCE * 4 };
        match wait.recv(&body, url).map_err(|e| Trouble::Final(e.into()))? {
            Some(Part::Head { status, headers, tag, sha256 }) => {
                let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
                let length = text("content-length").and_then(|value| value.parse().ok());
                let range_start = text("content-range").and_then(range_start);
                Ok(Reply { status, length, range_start, tag, sha256, body, wait })
            }
            Some(Part::Cut(reason)) => Err(Trouble::Cut(reason)),
            Some(Part::Bytes(_) | Part::End) | None => Err(Trouble::Cut("the download thread ended".to_owned())),
        }
    }
}

impl Reply {
    /// The next bytes of the body; `None` at its end.
    pub fn chunk(&self) -> Result<Option<Vec<u8>>, Trouble> {
        match self.wait.recv(&self.body, "download").map_err(|e| Trouble::Final(e.into()))? {
            Some(Part::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Part::End) => Ok(None),
            Some(Part::Cut(reason)) => Err(Trouble::Cut(reason)),
            Some(Part::Head { .. }) | None => Err(Trouble::Cut("the download thread ended".to_owned())),
        }
    }

    /// The whole body, which may have at most `limit` bytes.
    pub fn read(self, limit: usize) -> Result<Vec<u8>, Trouble> {
        let mut all = Vec::new();
        while let Some(bytes) = self.chunk()? {
            if all.len() + bytes.len() > limit {
                return Err(Trouble::Final(Failure::Other(format!("the answer is longer than {limit} bytes"))));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

/// One request with its redirects, as it runs on the download thread.
struct Hop {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<String>,
    offset: u64,
}

impl Hop {
    fn run(self, url: String, to: &flume::Sender<Part>) {
        // A send fails where nobody wants the bytes any more.
        if let Err(reason) = self.follow(url, to) {
            let _ = to.send(Part::Cut(reason));
        }
    }

    fn follow(&self, mut url: String, to: &flume::Sender<Part>) -> Result<(), String> {
        let (mut tag, mut sha256) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let at_hub = host(&url).is_some() && host(&url) == host(&self.endpoint);
            let response = self.ask(&url, at_hub).map_err(|e| format!("{}: {e}", without_query(&url)))?;
            let headers = response.headers();
            let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
            // A file server's own ETag is a hash of something else (of chunks, of parts), so only the hub's word counts.
            if let Some(etag) = text("x-linked-etag").or_else(|| text("etag").filter(|_| at_hub)) {
                tag = tag_of(etag).or(tag);
                sha256 = tag.clone().filter(|tag| is_sha256(tag)).or(sha256);
            }
            if response.status().is_redirection()
                && let Some(location) = text("location")
            {
                url = join(&url, location).ok_or_else(|| format!("{}: redirect to {location}", without_query(&url)))?;
                continue;
            }
            let head = Part::Head { status: response.status(), headers: headers.clone(), tag, sha256 };
            if to.send(head).is_ok() {
                pump(response.into_body().into_reader(), to)?;
            }
            return Ok(());
        }
        Err(format!("{}: more than {MAX_REDIRECTS} redirects", without_query(&url)))
    }

    fn ask(&self, url: &str, at_hub: bool) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if self.offset > 0 {
            request = request.header("Range", format!("bytes={}-", self.offset));
        }
        if let Some(token) = self.token.as_ref().filter(|_| at_hub) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call()
    }
}

fn pump(mut body: impl Read, to: &flume::Sender<Part>) -> Result<(), String> {
    loop {
        let mut bytes = vec![0; CHUNK_BYTES];
        let n = body.read(&mut bytes).map_err(|e| e.to_string())?;
        bytes.truncate(n);
        let part = if n == 0 { Part::End } else { Part::Bytes(bytes) };
        if to.send(part).is_err() || n == 0 {
            return Ok(());
        }
    }
}

/// Scheme, host and port of an http or https address.
fn host(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    Some((scheme.to_owned(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// The address that `location` names, seen from `base`. `None` for other schemes, and for a step from https down to http.
fn join(base: &str, location: &str) -> Option<String> {
    let (scheme, authority) = host(base)?;
    let next = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let path = without_query(base);
        let folder = path.rfind('/').filter(|at| *at > scheme.len() + 2).map_or(path, |at| &path[..at]);
        format!("{folder}/{location}")
    };
    let (next_scheme, _) = host(&next)?;
    (scheme == "http" || next_scheme == "https").then_some(next)
}

/// An address for messages: signed queries are long, and are keys to the file.
fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// An ETag without its decoration; `None` where it could not be a part of a file name.
fn tag_of(etag: &str) -> Option<String> {
    let tag = etag.trim().trim_start_matches("W/").trim_matches('"');
    let plain = !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain.then(|| tag.to_ascii_lowercase())
}

fn is_sha256(tag: &str) -> bool {
    tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit())
}

/// `5` of `bytes 5-9/10`.
fn range_start(content_range: &str) -> Option<u64> {
    content_range.trim().strip_prefix("bytes")?.trim().split('-').next()?.trim().parse().ok()
}

fn roots(path: &str) -> Result<RootCerts, Failure> {
    let pem = std::fs::read(path).map_err(|e| Failure::io(path.as_ref(), e))?;
    let mut found = Vec::new();
    for item in parse_pem(&pem) {
        if let Ok(PemItem::Certificate(certificate)) = item {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(Failure::Other(format!("SSL_CERT_FILE={path} holds no certificate")));
    }
    Ok(RootCerts::from(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined_and_never_leave_https() {
        let base = "https://hub.example/a/b?sig=1";
        assert_eq!(join(base, "/c").as_deref(), Some("https://hub.example/c"));
        assert_eq!(join(base, "c").as_deref(), Some("https://hub.example/a/c"));
        assert_eq!(join(base, "//cdn.example/c").as_deref(), Some("https://cdn.example/c"));
        assert_eq!(join(base, "https://cdn.example/c").as_deref(), Some("https://cdn.example/c"));
        assert_eq!(join("http://hub.example", "c").as_deref(), Some("http://hub.example/c"));
        assert_eq!(join(base, "http://cdn.example/c"), None);
        assert_eq!(join(base, "file:///etc/passwd"), None);
    }

    #[test]
    fn only_plain_tags_become_file_names() {
        assert_eq!(tag_of("W/\"AB-12\"").as_deref(), Some("ab-12"));
        assert_eq!(tag_of("\"../x\""), None);
        assert_eq!(tag_of("\"\""), None);
        assert!(is_sha256(&"0f".repeat(32)) && !is_sha256(&"0g".repeat(32)) && !is_sha256("0f"));
    }

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
    }
}
