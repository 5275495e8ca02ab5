//! Pre-tokenizers of byte-level BPE by the names in `tokenizer.ggml.pre`: regular expressions that cut a text before pairs are merged.
//!
//! The expressions are those of the models' own `tokenizer.json` files; "default" is what llama.cpp does with files older than the key.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use crate::error::{Error, Result};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";

/// How a family of byte-level tokenizers cuts text, and the habits that go with it.
#[derive(Clone, Copy, Debug)]
pub struct Pre {
    expressions: &'static [&'static str],
    /// A cut that is a token as a whole is that token, even where merges lead elsewhere.
    pub whole_words: bool,
    /// Whether a begin-of-sequence token is added where the file does not say.
    pub add_bos: bool,
}

impl Pre {
    /// The pre-tokenizer of this name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the name is unknown: a wrong cut would give plausible but wrong ids.
    pub fn named(name: &str) -> Result<Self> {
        let (expressions, whole_words, add_bos): (&[&str], bool, bool) = match name {
            "default" => (&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE_DIGITS], false, false),
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" => (&[GPT2], false, false),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => (&[DIGIT, GPT2], false, false),
            "falcon" => (&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_DIGITS], false, false),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => (&[LLAMA3], true, true),
            "tekken" => (&[TEKKEN], true, true),
            "qwen2" | "stablelm2" | "deepseek-r1-qwen" => (&[QWEN2], false, false),
            other => return Err(Error::Unsupported { what: "pre-tokenizer", name: other.to_owned() }),
        };
        Ok(Self { expressions, whole_words, add_bos })
    }

    /// The steps as one object: the cuts one after another, then bytes to printable characters.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where an expression does not compile.
    pub fn steps(&self) -> Result<Sequence> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for expression in self.expressions {
            let pattern = SplitPattern::Regex((*expression).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            steps.push(split.map_err(|e| Error::Tokenizer(e.to_string()))?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps))
    }
}
