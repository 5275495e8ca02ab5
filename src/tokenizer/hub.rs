//! `tokenizer.json` through the `tokenizers` crate.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Model as _, PostProcessorWrapper};

use super::piece::Spelling;
use crate::error::{Error, Result};

/// A tokenizer of the Hugging Face kind.
#[derive(Debug)]
pub struct Hub {
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    adds_space: bool,
    frame: Frame,
    len: usize,
}

/// What is not left to the crate: how tokens become bytes, and what goes around a text.
#[derive(Deserialize)]
struct Head {
    model: ModelHead,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

/// The tokens around a text. The crate's own post-processor panics where a file names a token that it does not define.
#[derive(Debug, Default)]
struct Frame {
    before: Vec<u32>,
    after: Vec<u32>,
}

#[derive(Deserialize)]
struct ModelHead {
    /// Absent in files from before 2020, all of which are BPE.
    #[serde(rename = "type")]
    kind: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

impl Hub {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`], [`Error::Unsupported`].
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let bad = |e: &dyn ToString| Error::bad_file(path, e.to_string());
        let head: Head = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
        let (spelling, adds_space) = head.check()?;
        let frame = Frame::read(&head.post_processor, &bad)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&text).map_err(|e| bad(&e))?;
        // Training-time settings that some files carry along; here every token of the prompt counts.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| bad(&e))?;
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let added = inner.get_added_vocabulary().get_vocab().values().max().map_or(0, |&id| id as usize + 1);
        let len = inner.get_model().get_vocab_size().max(added);
        Ok(Self { inner, spelling, adds_space, frame, len })
    }

    /// See [`super::Tokenizer::encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let none = Frame::default();
        let frame = if add_special { &self.frame } else { &none };
        Ok([&frame.before, encoding.get_ids(), &frame.after].concat())
    }

    /// See [`super::Tokenizer::token_bytes`].
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'static, [u8]>> {
        let token = self.spelling(id)?;
        let added = self.inner.get_added_vocabulary();
        let bytes = if added.is_special_token(&token) {
            Cow::Borrowed([].as_slice())
        } else if self.spelling == Spelling::ByteLevel && added.simple_id_to_token(id).is_some() {
            Cow::Owned(token.into_bytes())
        } else {
            Cow::Owned(self.spelling.bytes(&token).into_owned())
        };
        Some(bytes)
    }

    /// How the file writes a token.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether decoding takes a space off the front.
    pub fn adds_space(&self) -> bool {
        self.adds_space
    }

    /// One more than the highest id.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Head {
    /// The spelling of tokens, and whether a space is put in front of texts.
    fn check(&self) -> Result<(Spelling, bool)> {
        let unsupported = |what, name: &str| Err(Error::Unsupported { what, name: name.to_owned() });
        if let Some(kind) = self.model.kind.as_deref().filter(|&kind| kind != "BPE") {
            return unsupported("tokenizer model", kind);
        }
        let marks = [&self.model.continuing_subword_prefix, &self.model.end_of_word_suffix];
        if marks.into_iter().flatten().any(|mark| !mark.is_empty()) {
            return unsupported("tokenizer model", "BPE with marks at the edges of words");
        }
        // Of models that are no BPE; its tables are binary and not checked by the crate.
        if steps(&self.normalizer, "normalizers").iter().any(|step| step["type"] == "Precompiled") {
            return unsupported("normalizer", "Precompiled");
        }
        let steps = steps(&self.decoder, "decoders");
        let is = |name: &str| steps.iter().any(|step| step["type"] == name);
        if is("ByteLevel") {
            Ok((Spelling::ByteLevel, false))
        } else if is("Metaspace") || is("ByteFallback") {
            let strips = |step: &&Value| match step["type"].as_str() {
                Some("Strip") => step["start"].as_u64() > Some(0),
                Some("Metaspace") => step["prepend_scheme"] != "never" && step["add_prefix_space"] != false,
                _ => false,
            };
            Ok((Spelling::Spaces, steps.iter().any(strips)))
        } else {
            unsupported(
                "decoder",
                &steps.iter().filter_map(|step| step["type"].as_str()).collect::<Vec<_>>().join(", "),
            )
        }
    }
}

impl Frame {
    fn read(post_processor: &Value, bad: &dyn Fn(&dyn ToString) -> Error) -> Result<Self> {
        let mut frame = Self::default();
        for step in steps(post_processor, "processors") {
            match step["type"].as_str() {
                // Changes offsets into the text only.
                None | Some("ByteLevel") => {}
                Some("TemplateProcessing") => {
                    frame = Self::template(step).ok_or_else(|| bad(&"malformed post-processor"))?
                }
                Some(other) => return Err(Error::Unsupported { what: "post-processor", name: other.to_owned() }),
            }
        }
        Ok(frame)
    }

    /// `None` where the template is malformed, or does not hold the text exactly once.
    fn template(step: &Value) -> Option<Self> {
        let mut parts = vec![Vec::new()];
        for piece in step["single"].as_array()? {
            if piece["Sequence"]["id"] == "A" {
                parts.push(Vec::new());
            } else {
                let ids = step["special_tokens"][piece["SpecialToken"]["id"].as_str()?]["ids"].as_array()?;
                for id in ids {
                    parts.last_mut()?.push(u32::try_from(id.as_u64()?).ok()?);
                }
            }
        }
        let [before, after] = parts.try_into().ok()?;
        Some(Self { before, after })
    }
}

/// The steps of a decoder, normalizer or post-processor in order, those inside sequences (under `key`) included.
fn steps<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value[key].as_array() {
        Some(inner) => inner.iter().flat_map(|step| steps(step, key)).collect(),
        None => vec![value],
    }
}
