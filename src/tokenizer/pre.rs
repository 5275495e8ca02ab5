//! Pre-tokenizers of byte-level BPE by the names in `tokenizer.ggml.pre`: what cuts a text before pairs are merged.
//!
//! The steps are those of the models' own `tokenizer.json` files; "default" is what llama.cpp does with files older than the key.

use tokenizers::NormalizerWrapper;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
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

/// A step of a pre-tokenizer.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Matches of the expression stand alone.
    Cut(&'static str),
    /// Runs of punctuation stand alone.
    Punctuation,
    /// Runs of numeric characters stand alone.
    Digits,
    /// Bytes become printable characters, after GPT-2's expression has cut.
    Gpt2Bytes,
}

/// How a family of byte-level tokenizers cuts text, and the habits that go with it.
#[derive(Clone, Copy, Debug)]
pub struct Pre {
    steps: &'static [Step],
    /// Whether characters are composed first (Unicode's normalization form C).
    compose: bool,
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
        use Step::{Cut, Digits, Gpt2Bytes, Punctuation};
        let plain = |steps| Self { steps, compose: false, whole_words: false, add_bos: false };
        Ok(match name {
            "default" => plain(&[Cut(r"[\p{P}\$\+<=>\^~\|]+"), Cut(GPT2), Cut(r"\p{N}+"), Cut(THREE_DIGITS)]),
            "gpt-2" | "phi-2" | "mpt" | "jais" => plain(&[Cut(GPT2)]),
            // The vocabulary of GPT-NeoX and of those who took it over.
            "olmo" => Self { compose: true, ..plain(&[Cut(GPT2)]) },
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => plain(&[Cut(DIGIT), Cut(GPT2)]),
            // Digits are looked for among the printable characters, some of which (`²`, `¼`) stand for bytes of other letters.
            "falcon" => plain(&[Punctuation, Gpt2Bytes, Digits, Cut(THREE_DIGITS)]),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => {
                Self { whole_words: true, add_bos: true, ..plain(&[Cut(LLAMA3)]) }
            }
            // Llama 3's vocabulary in models that begin without a token, SmolLM3 among them.
            "smaug-bpe" => Self { whole_words: true, ..plain(&[Cut(LLAMA3)]) },
            "tekken" => Self { whole_words: true, add_bos: true, ..plain(&[Cut(TEKKEN)]) },
            "qwen2" => Self { compose: true, ..plain(&[Cut(QWEN2)]) },
            "stablelm2" | "deepseek-r1-qwen" => plain(&[Cut(QWEN2)]),
            other => return Err(Error::Unsupported { what: "pre-tokenizer", name: other.to_owned() }),
        })
    }

    /// The name for files that were written before the key existed.
    pub fn customary(architecture: Option<&str>) -> &'static str {
        match architecture {
            Some("falcon") => "falcon",
            Some("gptneox") => "olmo",
            Some("qwen2" | "qwen3") => "qwen2",
            Some("phi2") => "phi-2",
            _ => "default",
        }
    }

    /// What a text goes through first.
    pub fn normalizer(&self) -> Option<NormalizerWrapper> {
        self.compose.then(|| NFC.into())
    }

    /// The steps as one object: the cuts one after another, then bytes to printable characters.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where an expression does not compile.
    pub fn steps(&self) -> Result<Sequence> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for step in self.steps {
            steps.push(match *step {
                Step::Cut(expression) => {
                    let pattern = SplitPattern::Regex(expression.to_owned());
                    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                    split.map_err(|e| Error::Tokenizer(e.to_string()))?.into()
                }
                Step::Punctuation => Punctuation::new(SplitDelimiterBehavior::Contiguous).into(),
                Step::Digits => Digits::new(false).into(),
                Step::Gpt2Bytes => ByteLevel::new(false, true, true).into(),
            });
        }
        if !self.steps.iter().any(|step| matches!(step, Step::Gpt2Bytes)) {
            steps.push(ByteLevel::new(false, true, false).into());
        }
        Ok(Sequence::new(steps))
    }
}
