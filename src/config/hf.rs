//! The configuration from a Hugging Face folder's `config.json`, with the keys of transformers 4 and 5.

use serde::Deserialize;

use super::{ModelConfig, Rope, RopePairs, RopeScaling};
use crate::error::{Error, Result};

/// `config.json`, as far as it matters.
#[derive(Debug, Deserialize)]
pub struct HfConfig {
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    quantization_config: Option<Quantization>,
    rope_theta: Option<f64>,
    /// Transformers 4.
    rope_scaling: Option<RopeKeys>,
    /// Transformers 5.
    rope_parameters: Option<RopeKeys>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Debug, Deserialize)]
struct Family {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Quantization {
    quant_method: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct RopeKeys {
    rope_type: Option<String>,
    /// The name of `rope_type` until 2024.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    partial_rotary_factor: Option<f64>,
}

/// One id or several; negative ones mean "none".
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(i64),
    Many(Vec<i64>),
}

impl Ids {
    fn list(&self) -> Vec<u32> {
        let ids = match self {
            Ids::One(id) => std::slice::from_ref(id),
            Ids::Many(ids) => ids,
        };
        ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect()
    }
}

/// `generation_config.json`, as far as it matters.
#[derive(Debug, Default, Deserialize)]
pub struct GenerationConfig {
    eos_token_id: Option<Ids>,
}

impl GenerationConfig {
    /// Ids that end a sequence.
    pub fn eos(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map(Ids::list).unwrap_or_default()
    }
}

/// Why a `config.json` was not accepted.
#[derive(Debug)]
pub enum Refusal {
    /// It is no JSON, or a value is of another kind than expected.
    Malformed(serde_json::Error),
    /// It is sound, but not for us.
    Other(Error),
}

impl HfConfig {
    /// Parses the file. The architecture is looked at first, so that a foreign model is named as such, whatever its other keys hold.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn parse(json: &[u8]) -> Result<Self, Refusal> {
        let family: Family = serde_json::from_slice(json).map_err(Refusal::Malformed)?;
        let name = family.architectures.and_then(|names| names.into_iter().next()).or(family.model_type);
        match name.as_deref() {
            Some("LlamaForCausalLM" | "llama") => serde_json::from_slice(json).map_err(Refusal::Malformed),
            Some(other) => Err(Refusal::Other(unsupported("architecture", other))),
            None => Err(Refusal::Other(missing("architectures"))),
        }
    }

    /// The id that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos_token_id.as_ref().and_then(|ids| ids.list().first().copied())
    }

    /// Ids that end a sequence.
    pub fn eos(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map(Ids::list).unwrap_or_default()
    }

    /// The configuration of the model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another rope kind or feature; [`Error::Config`] where a key is missing or the values do not fit together.
    pub fn model_config(&self) -> Result<ModelConfig> {
        self.refuse()?;
        let need = |value: Option<usize>, name: &str| value.ok_or_else(|| missing(name));
        let hidden = need(self.hidden_size, "hidden_size")?;
        let n_heads = need(self.num_attention_heads, "num_attention_heads")?;
        let config = ModelConfig {
            architecture: "llama".to_owned(),
            n_layers: need(self.num_hidden_layers, "num_hidden_layers")?,
            hidden,
            n_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(n_heads),
            head_dim: self.head_dim.unwrap_or(hidden.checked_div(n_heads).unwrap_or(0)),
            ffn: need(self.intermediate_size, "intermediate_size")?,
            vocab: need(self.vocab_size, "vocab_size")?,
            max_context: need(self.max_position_embeddings, "max_position_embeddings")?,
            norm_eps: self.rms_norm_eps.ok_or_else(|| missing("rms_norm_eps"))? as f32,
            rope: self.rope()?,
            tied_head: self.tie_word_embeddings.unwrap_or(false),
        };
        config.validate()?;
        Ok(config)
    }

    fn refuse(&self) -> Result<()> {
        if let Some(method) = &self.quantization_config {
            return Err(unsupported("quantization", method.quant_method.as_deref().unwrap_or("unnamed")));
        }
        for (flag, name) in [(self.attention_bias, "attention_bias"), (self.mlp_bias, "mlp_bias")] {
            if flag == Some(true) {
                return Err(unsupported("bias", name));
            }
        }
        match self.hidden_act.as_deref() {
            None | Some("silu") => Ok(()),
            Some(other) => Err(unsupported("activation", other)),
        }
    }

    fn rope(&self) -> Result<Rope> {
        let none = RopeKeys::default();
        let keys = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).unwrap_or(&none);
        if keys.partial_rotary_factor.is_some_and(|part| part != 1.0) {
            return Err(unsupported("rope kind", "rotation of a part of each head"));
        }
        let need = |value: Option<f64>, name: &str| value.ok_or_else(|| missing(name));
        let scaling = match keys.rope_type.as_deref().or(keys.old_type.as_deref()) {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: need(keys.factor, "factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: need(keys.factor, "factor")?,
                low_freq_factor: need(keys.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(keys.high_freq_factor, "high_freq_factor")?,
                original_context: keys
                    .original_max_position_embeddings
                    .ok_or_else(|| missing("original_max_position_embeddings"))?,
            },
            Some(other) => return Err(unsupported("rope kind", other)),
        };
        let base = keys.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        Ok(Rope { base, pairs: RopePairs::Halves, scaling })
    }
}

fn missing(key: &str) -> Error {
    Error::Config(format!("`{key}` is missing in config.json"))
}

fn unsupported(what: &'static str, name: &str) -> Error {
    Error::Unsupported { what, name: name.to_owned() }
}
