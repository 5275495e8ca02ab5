//! Text to token ids and back: from `tokenizer.json`, or from the metadata of a GGUF file.

use std::borrow::Cow;
use std::path::Path;

use crate::error::{Error, Result};
use crate::weights::gguf::Gguf;

mod gguf;
mod hub;
mod piece;
mod pre;
mod scores;
mod special;

/// The engine of regular expressions remembers a million characters, and takes the rest of a text for one piece when it cannot remember more.
const MAX_WHITE_SPACE: usize = 900_000;

/// Turns text into token ids and back. Immutable; may be shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    bos: Option<u32>,
    eos: Vec<u32>,
}

#[derive(Debug)]
enum Model {
    Hub(Box<hub::Hub>),
    Gguf(Box<gguf::Vocabulary>),
}

impl Tokenizer {
    /// From a `tokenizer.json`; which ids begin and end a sequence stands in other files of the folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`]; [`Error::Unsupported`] for models other than BPE.
    pub fn from_json(path: &Path, bos: Option<u32>, eos: Vec<u32>) -> Result<Self> {
        Ok(Self { model: Model::Hub(Box::new(hub::Hub::open(path)?)), bos, eos })
    }

    /// From a GGUF file's metadata; `None` where it has no tokenizer.
    ///
    /// # Errors
    /// [`Error::BadFile`] where the metadata is damaged; [`Error::Unsupported`] for another tokenizer model or pre-tokenizer.
    pub fn from_gguf(file: &Gguf) -> Result<Option<Self>> {
        let Some(vocabulary) = gguf::Vocabulary::read(file)? else { return Ok(None) };
        let (bos, eos) = (vocabulary.bos(), vocabulary.eos().to_vec());
        Ok(Some(Self { model: Model::Gguf(Box::new(vocabulary)), bos, eos }))
    }

    /// Token ids of a text. Special tokens that stand in the text are recognised. `add_special` adds what the file puts around a text
    /// (most often a begin-of-sequence token); a rendered chat template has it already.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; a text with more than 900,000 characters of white space in a row is one.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let mut run = 0;
        for c in text.chars() {
            run = if c.is_whitespace() { run + 1 } else { 0 };
            if run > MAX_WHITE_SPACE {
                return Err(Error::Tokenizer(format!(
                    "more than {MAX_WHITE_SPACE} characters of white space in a row"
                )));
            }
        }
        match &self.model {
            Model::Hub(hub) => hub.encode(text, add_special),
            Model::Gguf(vocabulary) => vocabulary.encode(text, add_special),
        }
    }

    /// The text of a whole sequence, without its control tokens and without the space that encoding may put in front; bytes that form no
    /// UTF-8 become U+FFFD. For text that continues another, see [`StreamDecoder`].
    ///
    /// # Errors
    /// [`Error::BadToken`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(&self.token_bytes(id)?);
        }
        let strip = match &self.model {
            Model::Hub(hub) => hub.adds_space(),
            Model::Gguf(vocabulary) => vocabulary.adds_space(),
        };
        let text = bytes.strip_prefix(b" ").filter(|_| strip).unwrap_or(&bytes);
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// The bytes that one token stands for, perhaps a part of a character; none for control tokens.
    ///
    /// # Errors
    /// [`Error::BadToken`].
    pub fn token_bytes(&self, id: u32) -> Result<Cow<'_, [u8]>> {
        let bytes = match &self.model {
            Model::Hub(hub) => hub.token_bytes(id),
            Model::Gguf(vocabulary) => vocabulary.token_bytes(id),
        };
        bytes.ok_or(Error::BadToken { id, vocab: self.vocab_len() })
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a sequence or a turn.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// How a token is written in the file, e.g. `<|im_end|>`.
    pub(crate) fn spelling(&self, id: u32) -> Option<String> {
        match &self.model {
            Model::Hub(hub) => hub.spelling(id),
            Model::Gguf(vocabulary) => vocabulary.spelling(id).map(str::to_owned),
        }
    }

    /// One more than the highest token id. The model's embedding table may be longer.
    pub fn vocab_len(&self) -> usize {
        match &self.model {
            Model::Hub(hub) => hub.len(),
            Model::Gguf(vocabulary) => vocabulary.len(),
        }
    }
}

/// Decodes tokens one by one and holds bytes back until they are whole characters. All its texts joined are what
/// [`Tokenizer::decode`] gives, but for the latter's stripped first space.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// At the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// The characters that this token completes; often none or several.
    ///
    /// # Errors
    /// [`Error::BadToken`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.pending.extend_from_slice(&tokenizer.token_bytes(id)?);
        let incomplete =
            self.pending.utf8_chunks().last().map_or(0, |chunk| match std::str::from_utf8(chunk.invalid()) {
                Err(e) if e.error_len().is_none() => chunk.invalid().len(),
                _ => 0,
            });
        let rest = self.pending.split_off(self.pending.len() - incomplete);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        Ok(text)
    }

    /// What is left at the end of the text: U+FFFD where a character was cut.
    pub fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}
