//! What users hand in: prompts and token ids, from arguments, files and stdin.

use std::io::Read;
use std::path::Path;

use runahead::cancel::{Cancel, Wait};
use runahead::engine::EngineBuilder;
use runahead::error::Error;
use serde_json::Value;

use super::args::{PromptArgs, TokensArgs};
use super::failure::Failure;

/// A prompt as it was handed in.
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Prompt {
    /// Reads the one source that was named.
    pub fn read(args: &PromptArgs, cancel: &Cancel) -> Result<Self, Failure> {
        if let Some(text) = &args.prompt {
            return Ok(Prompt::Text(text.clone()));
        }
        match &args.file {
            Some(path) => read_text(path, cancel).map(Prompt::Text),
            None => token_ids(args.tokens.as_deref(), args.tokens_file.as_deref(), cancel).map(Prompt::Ids),
        }
    }

    /// The prompt as tokens of the model.
    pub fn tokens(self, model: &EngineBuilder, raw: bool) -> Result<Vec<u32>, Failure> {
        match self {
            Prompt::Text(text) => Ok(model.prompt_tokens(&text, raw)?),
            Prompt::Ids(ids) => check_ids(ids, model),
        }
    }
}

/// Reads the token ids of the one source that was named.
pub fn read_ids(args: &TokensArgs, cancel: &Cancel) -> Result<Vec<u32>, Failure> {
    token_ids(args.tokens.as_deref(), args.tokens_file.as_deref(), cancel)
}

/// Checks before anything is loaded what the engine would find after.
pub fn check_ids(ids: Vec<u32>, model: &EngineBuilder) -> Result<Vec<u32>, Failure> {
    let vocab = model.config().vocab;
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(&id) => Err(Error::BadToken { id, vocab }.into()),
        None if ids.is_empty() => Err(Error::EmptyPrompt.into()),
        None => Ok(ids),
    }
}

fn token_ids(given: Option<&str>, file: Option<&Path>, cancel: &Cancel) -> Result<Vec<u32>, Failure> {
    let ids = match (given, file) {
        (Some(ids), _) => parse_ids(ids),
        (None, Some(path)) => parse_ids(&read_text(path, cancel)?),
        (None, None) => return Err(Failure::Usage("no prompt is given".to_owned())),
    };
    ids.map_err(Failure::Usage)
}

/// Ids in a JSON array, or separated by commas or white space.
fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    let bad = |i: usize, entry: &dyn std::fmt::Display| {
        format!("entry {} of the token ids, `{entry}`, is no token id (a whole number from 0 to {})", i + 1, u32::MAX)
    };
    if text.trim_start().starts_with('[') {
        let entries: Vec<Value> =
            serde_json::from_str(text).map_err(|e| format!("the token ids are no JSON array: {e}"))?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        return entries.iter().enumerate().map(|(i, v)| id(v).ok_or_else(|| bad(i, v))).collect();
    }
    // White space or one comma separates; a comma with nothing before or behind it is a slip that must not pass in silence.
    let entries = text.split(',').flat_map(|part| {
        let words = part.split_whitespace().collect::<Vec<_>>();
        if words.is_empty() { vec![""] } else { words }
    });
    let ids = entries.enumerate().map(|(i, entry)| entry.parse().map_err(|_| bad(i, &entry)));
    if text.trim().is_empty() { Ok(Vec::new()) } else { ids.collect() }
}

/// A text file; `-` is stdin.
/// A file's text, or that of stdin for `-`.
pub fn read_text(path: &Path, cancel: &Cancel) -> Result<String, Failure> {
    let bytes = read(path, cancel)?;
    let what = || if is_stdin(path) { Path::new("stdin") } else { path };
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::bad_file(what(), format!("not UTF-8 text from byte {at} on")).into()
    })
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Reads on a thread of its own: a pipe or a terminal that stays silent must not hold back Ctrl-C.
fn read(path: &Path, cancel: &Cancel) -> Result<Vec<u8>, Failure> {
    let (sender, receiver) = flume::bounded(1);
    let owned = path.to_owned();
    let body = move || {
        let mut bytes = Vec::new();
        let result = match is_stdin(&owned) {
            true => std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes),
            false => std::fs::read(&owned),
        };
        // Nobody listens where Ctrl-C came first.
        let _ = sender.send(result);
    };
    std::thread::Builder::new().name("input".to_owned()).spawn(body).map_err(|e| Failure::io(path, e))?;
    match Wait::new(cancel).recv_patiently(&receiver)? {
        Some(result) => result.map_err(|e| Failure::io(path, e)),
        None => Err(Failure::Other(format!("{}: the reading thread died", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_in_several_shapes() {
        for text in ["1,2,3", "1 2 3", " 1, 2,\n3\n", "1\n2\r\n3", "[1, 2, 3]", "\n[1,2,3]\n"] {
            assert_eq!(parse_ids(text), Ok(vec![1, 2, 3]), "{text:?}");
        }
        for text in ["", " \n", "[]"] {
            assert_eq!(parse_ids(text), Ok(vec![]), "{text:?}");
        }
        assert_eq!(parse_ids("4294967295"), Ok(vec![u32::MAX]));
    }

    #[test]
    fn a_bad_id_is_named() {
        let cases = [
            ("1,x,3", "entry 2 of the token ids, `x`"),
            ("1,,3", "entry 2 of the token ids, ``"),
            ("1,2,", "entry 3 of the token ids, ``"),
            ("1 -2", "entry 2 of the token ids, `-2`"),
            ("4294967296", "entry 1 of the token ids, `4294967296`"),
            ("[1, 2.5]", "entry 2 of the token ids, `2.5`"),
            ("[1, \"2\"]", "entry 2 of the token ids, `\"2\"`"),
            ("[1, 2", "no JSON array"),
        ];
        for (text, expected) in cases {
            let message = parse_ids(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
