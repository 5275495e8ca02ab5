//! The architecture's invariants, read from the sources: layers import downwards only, wgpu stays under `src/gpu`, `unsafe` in its modules.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules of each layer, the lowest first. A new top-level module has to be given its place here.
const LAYERS: [&[&str]; 8] = [
    &["dtype", "dims", "dates", "config", "error", "cancel", "threads"],
    &["weights", "tokenizer", "template", "sampler", "new_file"],
    &["gpu"],
    &["kernels"],
    &["model"],
    &["runahead"],
    &["engine"],
    &["main", "cli"],
];

/// What `lib.rs` re-exports from the lowest layer, and every layer may name.
const ROOT_ITEMS: [&str; 2] = ["Error", "Result"];

const UNSAFE_MODULES: [&str; 5] =
    ["src/weights/map.rs", "src/gpu/native", "src/gpu/cuda/driver.rs", "src/gpu/cuda/blas.rs", "src/kernels/cpu/simd"];

/// The GPU layer moves bytes; what they mean is above it.
const MODEL_WORDS: [&str; 8] = ["head", "heads", "layer", "layers", "token", "tokens", "vocab", "vocabulary"];

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Word(String),
    Sign(char),
}

/// A token of Rust outside comments and literals.
#[derive(Debug)]
struct Token {
    line: usize,
    kind: Kind,
}

impl Token {
    fn word(&self) -> Option<&str> {
        if let Kind::Word(word) = &self.kind { Some(word) } else { None }
    }

    fn is(&self, sign: char) -> bool {
        self.kind == Kind::Sign(sign)
    }
}

/// Splits a source into words and signs, leaving out comments, strings, characters and lifetimes.
fn tokens(source: &str) -> Vec<Token> {
    let text = source.chars().collect::<Vec<_>>();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < text.len() {
        let start = i;
        match at(i) {
            '/' if at(i + 1) == '/' => i += text[i..].iter().take_while(|&&c| c != '\n').count(),
            '/' if at(i + 1) == '*' => i = after_block_comment(&text, i),
            '"' => i = after_string(&text, i),
            '\'' if at(i + 1) == '\\' => i += 3 + text[i + 3..].iter().take_while(|&&c| c != '\'').count(),
            '\'' if at(i + 2) == '\'' => i += 3,
            '\'' => i += 1 + text[i + 1..].iter().take_while(|&&c| is_word(c)).count(),
            c if is_word(c) => {
                i += text[i..].iter().take_while(|&&c| is_word(c)).count();
                let word = text[start..i].iter().collect::<String>();
                let hashes = text[i..].iter().take_while(|&&c| c == '#').count();
                if word.ends_with('r') && word.len() <= 2 && at(i + hashes) == '"' {
                    i = after_raw_string(&text, i + hashes + 1, hashes);
                } else {
                    out.push(Token { line, kind: Kind::Word(word) });
                }
            }
            c if c.is_whitespace() => i += 1,
            c => {
                i += 1;
                out.push(Token { line, kind: Kind::Sign(c) });
            }
        }
        line += text[start..i.min(text.len())].iter().filter(|&&c| c == '\n').count();
    }
    out
}

fn after_string(text: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < text.len() && text[i] != '"' {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn after_raw_string(text: &[char], start: usize, hashes: usize) -> usize {
    let ends = |i: usize| text[i] == '"' && text[i + 1..].iter().take_while(|&&c| c == '#').count() >= hashes;
    (start..text.len()).find(|&i| ends(i)).map_or(text.len(), |i| i + 1 + hashes)
}

fn after_block_comment(text: &[char], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0);
    while i < text.len() {
        match (text[i], text.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) if depth == 1 => return i + 2,
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    i
}

/// A top-level module, or item of the crate's root, that a source names.
#[derive(Debug, PartialEq)]
struct Import {
    line: usize,
    name: String,
}

/// Everything that stands after `crate::`, and after enough `super::` at the start of a file to mean the same. `depth` is the module's own: 1
/// for `src/x.rs`, 2 for `src/x/y.rs`.
fn imports(tokens: &[Token], depth: usize) -> Vec<Import> {
    let mut out = Vec::new();
    let (mut i, mut braces) = (0, 0usize);
    while i < tokens.len() {
        braces = if tokens[i].is('{') { braces + 1 } else { braces.saturating_sub(usize::from(tokens[i].is('}'))) };
        let mut path = i;
        let mut supers = 0;
        while tokens[path].word() == Some("super") && is_path(tokens, path + 1) && path + 3 < tokens.len() {
            (path, supers) = (path + 3, supers + 1);
        }
        if tokens[i].word() == Some("crate") && is_path(tokens, i + 1) {
            roots(tokens, i + 3, &mut out);
        } else if supers >= depth && braces == 0 {
            roots(tokens, path, &mut out);
        }
        i = path.max(i + 1);
    }
    out
}

fn is_path(tokens: &[Token], i: usize) -> bool {
    tokens.len() > i + 1 && tokens[i].is(':') && tokens[i + 1].is(':')
}

/// The name at `i`, or each first name of the braced list there.
fn roots(tokens: &[Token], i: usize, out: &mut Vec<Import>) {
    let Some(first) = tokens.get(i) else { return };
    let mut push = |token: &Token| {
        if let Some(name) = token.word() {
            out.push(Import { line: token.line, name: name.to_owned() });
        }
    };
    if !first.is('{') {
        return push(first);
    }
    let (mut depth, mut starts) = (0, true);
    for token in &tokens[i..] {
        match token.kind {
            Kind::Sign('{') => depth += 1,
            Kind::Sign('}') => depth -= 1,
            Kind::Sign(',') if depth == 1 => starts = true,
            _ if starts && depth == 1 => {
                push(token);
                starts = false;
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// Violations of the invariants in one file; `path` is relative to the crate, with `/`.
fn violations(path: &str, source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let parts = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect::<Vec<_>>();
    let module = parts[0];
    let mut out = Vec::new();
    let mut wrong = |line: usize, what: String| out.push(format!("{path}:{line}: {what}"));

    for (i, token) in tokens.iter().enumerate() {
        let Some(word) = token.word() else { continue };
        if module != "gpu" && matches!(word, "wgpu" | "naga" | "ash") && is_path(&tokens, i + 1) {
            wrong(token.line, format!("{word} is known to src/gpu alone"));
        }
        if word == "unsafe" && !UNSAFE_MODULES.iter().any(|allowed| path.starts_with(allowed)) {
            wrong(token.line, "unsafe outside of its modules".to_owned());
        }
        if module == "gpu" && word.to_lowercase().split('_').any(|part| MODEL_WORDS.contains(&part)) {
            wrong(token.line, format!("`{word}` is a word of models"));
        }
    }
    if module == "lib" {
        return out;
    }
    let Some(own) = layer(module) else {
        wrong(1, format!("module `{module}` has no layer"));
        return out;
    };
    for Import { line, name } in imports(&tokens, parts.len()) {
        let allowed = match layer(&name) {
            _ if name == module || ROOT_ITEMS.contains(&name.as_str()) => true,
            Some(other) if module == "gpu" => other == 0,
            Some(other) => other <= own,
            None => false,
        };
        if !allowed {
            wrong(line, format!("`{module}` must not know `{name}`"));
        }
    }
    out
}

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn sources_keep_the_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    assert!(files.len() > 10, "{files:?}");
    let check = |file: &PathBuf| {
        let path = file.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        violations(&path, &fs::read_to_string(file).unwrap())
    };
    let found = files.iter().flat_map(check).collect::<Vec<_>>();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn violations_are_found() {
    let cases = [
        ("src/kernels/wgsl.rs", "fn f(d: &wgpu::Device) {}", "wgpu is known"),
        ("src/model.rs", "use naga::Module;", "naga is known"),
        ("src/gpu/device.rs", "fn f() {\n    unsafe { g() }\n}", "src/gpu/device.rs:2: unsafe"),
        ("src/gpu/buffer.rs", "pub fn token_bytes() {}", "`token_bytes` is a word of models"),
        ("src/gpu.rs", "use crate::weights::Weights;", "`gpu` must not know `weights`"),
        ("src/kernels.rs", "use crate::model::Model;", "`kernels` must not know `model`"),
        ("src/kernels/cpu.rs", "use crate::{dtype::{Dtype, Scalar}, engine::Engine, error::Error};", "know `engine`"),
        ("src/weights/gguf.rs", "/* \" */ fn f(c: char) { let _ = ('\"', c); crate::gpu::enumerate(); }", "know `gpu`"),
        ("src/weights/gguf.rs", "use super::super::kernels::Kernels;", "know `kernels`"),
        ("src/model.rs", "use super::engine::Engine;", "know `engine`"),
        ("src/model.rs", "use crate::Engine;", "know `Engine`"),
        ("src/extras.rs", "", "`extras` has no layer"),
    ];
    for (path, source, expected) in cases {
        let found = violations(path, source);
        assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    let cases = [
        ("src/gpu/native.rs", "use crate::error::Result; fn f() { unsafe { wgpu::f(ash::g()) } }"),
        ("src/kernels/cpu/simd_x86.rs", "use super::dot; unsafe fn f() {}"),
        ("src/weights/map.rs", "fn f() { unsafe { g() } }"),
        ("src/kernels.rs", "use crate::gpu::{Buffer, Gpu}; use crate::Error; mod tests { use super::super::model; }"),
        (
            "src/model.rs",
            "// use wgpu::Device;\n/* unsafe /* wgpu:: */ crate::engine */ const S: &str = \"unsafe \\\" wgpu::\";",
        ),
        ("src/model.rs", "const S: &str = r#\"crate::engine \" unsafe\"#; fn f<'a>(x: &'a str) -> char { '\\'' }"),
        ("src/model/cache.rs", "use super::Model; use crate::kernels::Kernels; #![deny(unsafe_code)]"),
        ("src/lib.rs", "pub mod gpu; pub use engine::Engine;"),
        ("src/cli/generate.rs", "use runahead::engine::Engine; use crate::cli::Args;"),
    ];
    for (path, source) in cases {
        assert_eq!(violations(path, source), Vec::<String>::new(), "{path}: {source}");
    }
}
