//! The configuration from a GGUF file's metadata (`llama.*`).

use super::{ModelConfig, Rope, RopePairs, RopeScaling};
use crate::error::{Error, Result};

/// Metadata by key; `None` where the key is absent, an error where the value is of another kind.
pub trait Metadata {
    /// A size.
    fn integer(&self, key: &str) -> Result<Option<usize>>;
    /// A real number.
    fn float(&self, key: &str) -> Result<Option<f64>>;
    /// A string.
    fn text(&self, key: &str) -> Result<Option<&str>>;
}

/// What a GGUF file says by its tensors and not by its metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorFacts {
    /// Rows of the embedding table.
    pub embedding_rows: Option<usize>,
    /// Whether there is an output head of its own.
    pub has_output_head: bool,
    /// `rope_freqs.weight`.
    pub rope_factors: Option<Vec<f32>>,
    /// Length of the list of tokens.
    pub n_tokens: Option<usize>,
}

/// The configuration of a GGUF file.
///
/// # Errors
/// [`Error::Unsupported`] for another architecture, rope kind or feature; [`Error::Config`] where a key is missing or the values do not fit together.
pub fn model_config(file: &impl Metadata, facts: TensorFacts) -> Result<ModelConfig> {
    let architecture = file.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    if architecture != "llama" {
        return Err(unsupported("architecture", architecture));
    }
    let need = |name: &str| {
        let key = format!("llama.{name}");
        file.integer(&key)?.ok_or_else(|| missing(&key))
    };
    let or = |name: &str, default: usize| Ok::<_, Error>(file.integer(&format!("llama.{name}"))?.unwrap_or(default));
    let (hidden, n_heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = or("attention.key_length", hidden.checked_div(n_heads).unwrap_or(0))?;
    let max_context = need("context_length")?;
    if or("attention.value_length", head_dim)? != head_dim {
        return Err(unsupported("attention", "values of another width than keys"));
    }
    if or("rope.dimension_count", head_dim)? != head_dim {
        return Err(unsupported("rope kind", "rotation of a part of each head"));
    }
    if or("expert_count", 0)? > 0 {
        return Err(unsupported("architecture", "llama with experts"));
    }
    if (1..max_context).contains(&or("attention.sliding_window", 0)?) {
        return Err(unsupported("attention", "sliding window"));
    }
    let config = ModelConfig {
        architecture: architecture.to_owned(),
        n_layers: need("block_count")?,
        hidden,
        n_heads,
        n_kv_heads: or("attention.head_count_kv", n_heads)?,
        head_dim,
        ffn: need("feed_forward_length")?,
        vocab: vocab(file, &facts)?,
        max_context,
        norm_eps: file
            .float("llama.attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| missing("llama.attention.layer_norm_rms_epsilon"))? as f32,
        rope: Rope {
            base: file.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
            pairs: RopePairs::Adjacent,
            scaling: scaling(file, facts.rope_factors)?,
        },
        tied_head: !facts.has_output_head,
    };
    config.validate()?;
    Ok(config)
}

/// Embedding tables may be padded past the last token, but not shorter than the list of tokens.
fn vocab(file: &impl Metadata, facts: &TensorFacts) -> Result<usize> {
    match (facts.embedding_rows, facts.n_tokens) {
        (Some(rows), Some(tokens)) if rows < tokens => {
            Err(Error::Config(format!("{tokens} tokens, but only {rows} rows in the embedding table")))
        }
        (Some(rows), _) => Ok(rows),
        (None, Some(tokens)) => Ok(tokens),
        (None, None) => file.integer("llama.vocab_size")?.ok_or_else(|| missing("llama.vocab_size")),
    }
}

fn scaling(file: &impl Metadata, factors: Option<Vec<f32>>) -> Result<RopeScaling> {
    let kind = file.text("llama.rope.scaling.type")?.unwrap_or("linear");
    let factor = match file.float("llama.rope.scaling.factor")? {
        None => file.float("llama.rope.scale_linear")?,
        factor => factor,
    };
    // Absent, 0 and 1 all mean: as trained.
    let linear = match kind {
        "none" => None,
        "linear" => factor.filter(|&f| f != 0.0 && f != 1.0),
        other => return Err(unsupported("rope kind", other)),
    };
    match (linear, factors) {
        (None, None) => Ok(RopeScaling::None),
        (Some(factor), None) => Ok(RopeScaling::Linear { factor }),
        (None, Some(factors)) => Ok(RopeScaling::Factors(factors)),
        (Some(_), Some(_)) => Err(unsupported("rope kind", "linear together with rope_freqs.weight")),
    }
}

fn missing(key: &str) -> Error {
    Error::Config(format!("`{key}` is missing"))
}

fn unsupported(what: &'static str, name: &str) -> Error {
    Error::Unsupported { what, name: name.to_owned() }
}
