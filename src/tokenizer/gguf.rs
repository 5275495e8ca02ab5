//! Tokenizers from GGUF metadata (`tokenizer.ggml.*`): byte-level BPE with merges (`gpt2`) and SentencePiece's BPE with scores (`llama`).

use std::borrow::Cow;

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::piece::Spelling;
use super::pre::Pre;
use super::scores::Scores;
use super::special::{Part, Specials};
use crate::config::gguf::Metadata;
use crate::error::{Error, Result};
use crate::weights::gguf::{Gguf, TextTable};

// Values of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Tokens that end a turn of a conversation in the families' templates, and a text or a call in their training. A file names one of them, two at most,
/// and some do not even mark them as control tokens.
const ENDS: [&str; 7] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"];

/// A vocabulary with its encoder.
#[derive(Debug)]
pub struct Vocabulary {
    texts: TextTable,
    /// `token_type` of each; empty where all are normal.
    kinds: Vec<i32>,
    encoder: Encoder,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// Put before a text.
    prefix: Option<u32>,
    /// Put after a text.
    suffix: Option<u32>,
}

#[derive(Debug)]
enum Encoder {
    Merges(Box<tokenizers::Tokenizer>),
    Scores {
        scores: Box<Scores>,
        specials: Box<Specials>,
        add_space: bool,
        /// Special tokens that take the white space after them along.
        strips: Vec<u32>,
    },
}

impl Vocabulary {
    /// From the metadata; `None` where the file has no tokenizer.
    ///
    /// # Errors
    /// [`Error::BadFile`], [`Error::Unsupported`].
    pub fn read(file: &Gguf) -> Result<Option<Self>> {
        let Some(model) = file.text("tokenizer.ggml.model")? else { return Ok(None) };
        let texts =
            file.texts("tokenizer.ggml.tokens")?.ok_or_else(|| file.bad("`tokenizer.ggml.tokens` is missing"))?;
        let mut kinds = file.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        if !kinds.is_empty() && kinds.len() != texts.len() {
            return Err(file.bad(format!("{} token types for {} tokens", kinds.len(), texts.len())));
        }
        let ends: Vec<u32> = strings(&texts).filter(|(_, text)| ENDS.contains(text)).map(|(id, _)| id).collect();
        if !ends.is_empty() {
            kinds.resize(texts.len(), NORMAL);
            ends.iter().for_each(|&id| kinds[id as usize] = CONTROL);
        }
        let ids = Ids::read(file, model, texts.len(), ends)?;
        let (encoder, add_bos) = match model {
            "gpt2" => merges(file, &texts, &kinds)?,
            "llama" => (scores(file, &texts, &kinds, ids.unknown)?, true),
            other => return Err(Error::Unsupported { what: "tokenizer model", name: other.to_owned() }),
        };
        let around = |key: &str, default: bool, id: Option<u32>| match file.flag(key)?.unwrap_or(default) {
            false => Ok(None),
            true => id.map(Some).ok_or_else(|| file.bad(format!("`{key}` asks for a token that has no id"))),
        };
        let prefix = around("tokenizer.ggml.add_bos_token", add_bos, ids.bos)?;
        let suffix = around("tokenizer.ggml.add_eos_token", false, ids.eos.first().copied())?;
        Ok(Some(Self { texts, kinds, encoder, bos: ids.bos, eos: ids.eos, prefix, suffix }))
    }

    /// See [`super::Tokenizer::encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        out.extend(self.prefix.filter(|_| add_special));
        match &self.encoder {
            Encoder::Merges(inner) => {
                let encoding = inner.encode_fast(text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
                out.extend_from_slice(encoding.get_ids());
            }
            Encoder::Scores { scores, specials, add_space, strips } => {
                let (mut after_special, mut strip) = (true, false);
                let text = text.replace(' ', "▁");
                for part in specials.split(&text) {
                    match part {
                        Part::Token(id) => out.push(id),
                        Part::Text(text) => {
                            let space = |c: char| c == '▁' || c.is_whitespace();
                            let text = if strip { text.trim_start_matches(space) } else { text };
                            if text.is_empty() {
                                continue;
                            }
                            let space = if *add_space && after_special { "▁" } else { "" };
                            scores.encode(&self.texts, &format!("{space}{text}"), &mut out)?;
                        }
                    }
                    after_special = matches!(part, Part::Token(_));
                    strip = matches!(part, Part::Token(id) if strips.binary_search(&id).is_ok());
                }
            }
        }
        out.extend(self.suffix.filter(|_| add_special));
        Ok(out)
    }

    /// See [`super::Tokenizer::token_bytes`].
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let text = self.spelling(id)?;
        Some(match (kind(&self.kinds, id as usize), &self.encoder) {
            (CONTROL | UNKNOWN, _) => Cow::Borrowed(&[]),
            (USER_DEFINED, Encoder::Merges(_)) => Cow::Borrowed(text.as_bytes()),
            (_, Encoder::Merges(_)) => Spelling::ByteLevel.bytes(text),
            (_, Encoder::Scores { .. }) => Spelling::Spaces.bytes(text),
        })
    }

    /// How the file writes a token.
    pub fn spelling(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize)
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a sequence or a turn.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Whether decoding takes a space off the front.
    pub fn adds_space(&self) -> bool {
        matches!(self.encoder, Encoder::Scores { add_space: true, .. })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.texts.len()
    }
}

/// Tokens with a duty.
struct Ids {
    bos: Option<u32>,
    eos: Vec<u32>,
    unknown: Option<u32>,
}

impl Ids {
    /// SentencePiece files may leave the ids at their customary values. `ends` are those by their spelling.
    fn read(file: &Gguf, model: &str, n_tokens: usize, ends: Vec<u32>) -> Result<Self> {
        let id = |name: &str, customary: Option<i128>| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            // -1 says that there is none, as signed or as unsigned integer.
            match file.id(&key)?.or(customary.filter(|_| model == "llama")) {
                None => Ok(None),
                Some(id) if id < 0 || id == i128::from(u32::MAX) => Ok(None),
                Some(id) => match u32::try_from(id).ok().filter(|&id| (id as usize) < n_tokens) {
                    None => Err(file.bad(format!("`{key}` is {id}, but there are {n_tokens} tokens"))),
                    id => Ok(id),
                },
            }
        };
        let (bos, end, unknown) = (id("bos", Some(1))?, id("eos", Some(2))?, id("unknown", Some(0))?);
        let mut eos: Vec<u32> = Vec::new();
        for id in end.into_iter().chain(id("eot", None)?).chain(ends) {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        Ok(Self { bos, eos, unknown })
    }
}

fn kind(kinds: &[i32], id: usize) -> i32 {
    kinds.get(id).copied().unwrap_or(NORMAL)
}

fn strings(texts: &TextTable) -> impl Iterator<Item = (u32, &str)> {
    (0..).zip((0..texts.len()).map_while(|id| texts.get(id)))
}

/// Tokens that are recognised in a text as they are written.
fn specials<'a>(texts: &'a TextTable, kinds: &'a [i32]) -> impl Iterator<Item = (&'a str, u32)> {
    let special = |id: u32| matches!(kind(kinds, id as usize), UNKNOWN | CONTROL | USER_DEFINED);
    strings(texts).filter(move |&(id, _)| special(id)).map(|(id, text)| (text, id))
}

/// Byte-level BPE, and whether a begin-of-sequence token belongs before a text by default.
fn merges(file: &Gguf, texts: &TextTable, kinds: &[i32]) -> Result<(Encoder, bool)> {
    let customary = Pre::customary(file.text("general.architecture")?);
    let pre = Pre::named(file.text("tokenizer.ggml.pre")?.unwrap_or(customary))?;
    let lines = file.texts("tokenizer.ggml.merges")?.ok_or_else(|| file.bad("`tokenizer.ggml.merges` is missing"))?;
    let mut merges = Merges::with_capacity(lines.len());
    for (i, line) in strings(&lines) {
        // Neither side is empty, so a space at the very start would belong to the left one.
        let space = line.char_indices().skip(1).find(|&(_, c)| c == ' ');
        let pair = space.and_then(|(at, _)| Some((line.get(..at)?, line.get(at + 1..)?)));
        let (left, right) = pair.ok_or_else(|| file.bad(format!("merge {i} is no pair: `{line}`")))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let vocab: Vocab = strings(texts).map(|(id, text)| (text.to_owned(), id)).collect();
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.whole_words).build();
    let mut inner = tokenizers::Tokenizer::new(model.map_err(|e| file.bad(e.to_string()))?);
    inner.with_normalizer(pre.normalizer());
    inner.with_pre_tokenizer(Some(pre.steps()?));
    let added: Vec<AddedToken> =
        specials(texts, kinds).map(|(text, _)| AddedToken::from(text, true).normalized(false)).collect();
    inner.add_special_tokens(&added);
    Ok((Encoder::Merges(Box::new(inner)), pre.add_bos))
}

/// SentencePiece's BPE. As there, control, unknown and byte tokens are never formed by text.
fn scores(file: &Gguf, texts: &TextTable, kinds: &[i32], unknown: Option<u32>) -> Result<Encoder> {
    let scores = file.floats("tokenizer.ggml.scores")?.ok_or_else(|| file.bad("`tokenizer.ggml.scores` is missing"))?;
    if scores.len() != texts.len() {
        return Err(file.bad(format!("{} scores for {} tokens", scores.len(), texts.len())));
    }
    let is_byte = |id: usize| kind(kinds, id) == BYTE;
    let forms = |id: usize| !matches!(kind(kinds, id), UNKNOWN | CONTROL | BYTE);
    // Phi-3's own tokenizer says so token by token; the metadata has no place for it.
    let phi3 = file.text("general.architecture")? == Some("phi3");
    let keeps = |text: &str| matches!(text, "<unk>" | "<s>" | "<|endoftext|>");
    let mut strips: Vec<u32> =
        specials(texts, kinds).filter(|&(text, _)| phi3 && !keeps(text)).map(|(_, id)| id).collect();
    strips.sort_unstable();
    // They are looked for where spaces are `▁` already, as in SentencePiece; Gemma's runs of spaces are such tokens.
    let spelled: Vec<(String, u32)> = specials(texts, kinds).map(|(text, id)| (text.replace(' ', "▁"), id)).collect();
    Ok(Encoder::Scores {
        strips,
        scores: Box::new(Scores::new(texts, scores, forms, is_byte, unknown)),
        specials: Box::new(Specials::new(spelled.iter().map(|(text, id)| (text.as_str(), *id)))),
        add_space: file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
    })
}
