//! A model's files as a whole: what lies at a path, and everything that is read from it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::gguf::Gguf;
use super::{Naming, Role, Weights, safetensors};
use crate::config::ModelConfig;
use crate::config::gguf::{Metadata, TensorFacts, model_config};
use crate::config::hf::{GenerationConfig, HfConfig, Refusal};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// A model on disk, opened: the configuration is checked, the weights are mapped, not read.
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelFiles {
    /// What the model is.
    pub config: ModelConfig,
    /// Its tensors.
    pub weights: Weights,
    /// Text to ids and back; some folders have none.
    pub tokenizer: Option<Tokenizer>,
    /// How a conversation becomes a prompt.
    pub template: Option<ChatTemplate>,
    /// Tokens that end a sequence or a turn.
    pub eos: Vec<u32>,
    /// Size of the weights' files.
    pub file_bytes: u64,
}

impl ModelFiles {
    /// Opens a `.gguf` file, a folder with `config.json` and safetensors, or a folder that holds exactly one `.gguf`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::BadFile`] name the file; [`Error::Unsupported`] what this version cannot do; [`Error::Config`] a contradiction.
    pub fn open(path: &Path) -> Result<Self> {
        if !std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir() {
            return from_gguf(path);
        }
        if path.join("config.json").exists() {
            return from_folder(path);
        }
        match ggufs(path)?.as_slice() {
            [file] => from_gguf(file),
            files => Err(Error::bad_file(
                path,
                format!("has no config.json, and {} .gguf files instead of one", files.len()),
            )),
        }
    }
}

fn ggufs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            files.push(path);
        }
    }
    Ok(files)
}

fn from_gguf(path: &Path) -> Result<ModelFiles> {
    let file = Gguf::open(path)?;
    let weights = file.weights();
    let tokens = file.texts("tokenizer.ggml.tokens");
    let facts = TensorFacts {
        embedding_rows: weights.get(Role::TokenEmbedding).ok().and_then(|t| t.shape.first().copied()),
        has_output_head: weights.has(Role::OutputHead),
        has_second_norm: weights.tensors.contains_key("blk.0.attn_norm_2.weight"),
        rope_factors: rope_factors(&weights, "rope_freqs.weight")?,
        long_rope_factors: rope_factors(&weights, "rope_factors_short.weight")?
            .zip(rope_factors(&weights, "rope_factors_long.weight")?)
            .map(|(short, long)| [short, long]),
        n_tokens: tokens?.map(|tokens| tokens.len()),
    };
    let config = model_config(&file, facts)?;
    let weights = weights.with_naming(Naming::gguf(&config));
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let spelling = |id: Option<u32>| id.zip(tokenizer.as_ref()).and_then(|(id, t)| t.spelling(id)).unwrap_or_default();
    let eos = tokenizer.as_ref().map(|t| t.eos().to_vec()).unwrap_or_default();
    let bos = spelling(tokenizer.as_ref().and_then(Tokenizer::bos));
    let template = file
        .text("tokenizer.chat_template")?
        .map(|source| ChatTemplate::new(source, bos, spelling(eos.first().copied())));
    Ok(ModelFiles { config, weights, tokenizer, template, eos, file_bytes: file.file_bytes() })
}

/// The divisors of the rotary frequencies that a GGUF file may bring as a tensor.
fn rope_factors(weights: &Weights, name: &str) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = weights.named(name)? else { return Ok(None) };
    if tensor.dtype != Dtype::F32 {
        return Err(Error::Unsupported {
            what: "tensor type",
            name: format!("{} (tensor `{}`)", tensor.dtype.name(), tensor.name),
        });
    }
    Ok(Some(tensor.data.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect()))
}

/// `tokenizer_config.json`, as far as it matters.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    /// `Some(None)`: there is said to be none.
    #[serde(default, deserialize_with = "said")]
    bos_token: Option<Option<Token>>,
    #[serde(default, deserialize_with = "said")]
    eos_token: Option<Option<Token>>,
}

fn said<'de, D: serde::Deserializer<'de>>(value: D) -> std::result::Result<Option<Option<Token>>, D::Error> {
    Option::deserialize(value).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

fn from_folder(folder: &Path) -> Result<ModelFiles> {
    let path = folder.join("config.json");
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let hf = HfConfig::parse(&text).map_err(|refusal| match refusal {
        Refusal::Malformed(e) => Error::bad_file(&path, e.to_string()),
        Refusal::Other(e) => e,
    })?;
    let config = hf.model_config()?;
    let (weights, file_bytes) = safetensors::open(folder, Naming::hugging_face(&config))?;
    let mut eos = hf.eos();
    let generation: GenerationConfig = json(&folder.join("generation_config.json"))?.unwrap_or_default();
    eos.extend(generation.eos());
    let mut seen = std::collections::HashSet::new();
    eos.retain(|&id| seen.insert(id));
    let path = folder.join("tokenizer.json");
    let tokenizer = path.exists().then(|| Tokenizer::from_json(&path, hf.bos(), eos.clone())).transpose()?;
    let template = template(folder, tokenizer.as_ref())?;
    Ok(ModelFiles { config, weights, tokenizer, template, eos, file_bytes })
}

/// `chat_template.jinja`, or else what `tokenizer_config.json` holds.
fn template(folder: &Path, tokenizer: Option<&Tokenizer>) -> Result<Option<ChatTemplate>> {
    let settings: TokenizerConfig = json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let path = folder.join("chat_template.jinja");
    let source = match settings.chat_template {
        _ if path.exists() => Some(std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?),
        Some(Templates::One(source)) => Some(source),
        Some(Templates::Named(list)) => list.into_iter().find(|t| t.name == "default").map(|t| t.template),
        None => None,
    };
    let spelling = |token: Option<Option<Token>>, id: Option<u32>| match token {
        Some(Some(Token::Text(content) | Token::Object { content })) => content,
        Some(None) => String::new(),
        None => id.zip(tokenizer).and_then(|(id, t)| t.spelling(id)).unwrap_or_default(),
    };
    let bos = spelling(settings.bos_token, tokenizer.and_then(Tokenizer::bos));
    let eos = spelling(settings.eos_token, tokenizer.and_then(|t| t.eos().first().copied()));
    Ok(source.map(|source| ChatTemplate::new(source, bos, eos)))
}

/// A JSON file that may be absent.
fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| Error::bad_file(path, e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}
