//! The configuration from a Hugging Face folder's `config.json`, with the keys of transformers 4 and 5.
//!
//! Transformers 5 (5.17, eager attention) adds ALiBi's biases to the scores of Falcon twice: once as such and once through the mask. A model that it
//! saved is computed as it computes it; files of earlier versions, the published Falcon RW among them, have the biases once, as they were trained.

use serde::Deserialize;

use super::family::{Family, Sizes, Windows};
use super::{Mlp, ModelConfig, Residual, Rope, RopePairs, RopeScaling};
use crate::error::{Error, Result};

/// `config.json`, as far as it matters. Where a size has had two names, the older one follows.
#[derive(Debug, Deserialize)]
pub struct HfConfig {
    #[serde(skip)]
    family: Option<&'static Family>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    n_layer: Option<usize>,
    num_attention_heads: Option<usize>,
    n_head: Option<usize>,
    num_key_value_heads: Option<usize>,
    num_kv_heads: Option<usize>,
    n_head_kv: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    ffn_hidden_size: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    layer_norm_eps: Option<f64>,
    layer_norm_epsilon: Option<f64>,
    /// Gemma's files may hold an old `hidden_act` beside it.
    hidden_activation: Option<String>,
    hidden_act: Option<String>,
    activation: Option<String>,
    tie_word_embeddings: Option<bool>,
    quantization_config: Option<Quantization>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    sliding_window_pattern: Option<usize>,
    #[serde(rename = "_sliding_window_pattern")]
    private_sliding_window_pattern: Option<usize>,
    /// 1 for layers that rotate, whatever the name says.
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    alibi: Option<bool>,
    transformers_version: Option<String>,
    parallel_attn: Option<bool>,
    new_decoder_architecture: Option<bool>,
    multi_query: Option<bool>,
    num_ln_in_parallel_attn: Option<usize>,
    use_parallel_residual: Option<bool>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rotary_emb_base: Option<f64>,
    rotary_pct: Option<f64>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    /// Transformers 4.
    rope_scaling: Option<RopeKeys>,
    /// Transformers 5.
    rope_parameters: Option<RopeKeys>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Debug, Deserialize)]
struct Names {
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
    attention_factor: Option<f64>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    /// In models with two kinds of layers, the keys of each.
    full_attention: Option<Box<RopeKeys>>,
    sliding_attention: Option<Box<RopeKeys>>,
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
        let names: Names = serde_json::from_slice(json).map_err(Refusal::Malformed)?;
        let name = names.architectures.and_then(|names| names.into_iter().next()).or(names.model_type);
        let name = name.ok_or_else(|| Refusal::Other(missing("architectures")))?;
        let family = Family::find(&name).map_err(Refusal::Other)?;
        let config: Self = serde_json::from_slice(json).map_err(Refusal::Malformed)?;
        Ok(Self { family: Some(family), ..config })
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
        let family = self.family.ok_or_else(|| missing("architectures"))?;
        self.refuse()?;
        let sizes = self.sizes(family)?;
        // What the library that reads these files takes where they say nothing.
        let part = if family.name == "gptneox" { 0.25 } else { 1.0 };
        let rope = |keys: &RopeKeys, base: Option<f64>| self.rope(keys, base, part, &sizes);
        let none = RopeKeys::default();
        let keys = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).unwrap_or(&none);
        let global = rope(keys.full_attention.as_deref().unwrap_or(keys), self.rope_theta.or(self.rotary_emb_base))?;
        let mut config = family.member(sizes, global);
        config.norm_plus_one = family.gemma_scales;
        config.residual = self.residual(family);
        config.mlp = self.mlp(family)?;
        config.attention_soft_cap = self.attn_logit_softcapping.map(|cap| cap as f32);
        config.logit_soft_cap = self.final_logit_softcapping.map(|cap| cap as f32);
        if let Some(scalar) = self.query_pre_attn_scalar {
            config.attention_scale = scalar.powf(-0.5) as f32;
        }
        if self.alibi == Some(true) {
            (config.alibi, config.ropes) = (Some(self.alibi_strength()), Vec::new());
        }
        // Layers with a window rotate by a base of their own where the file gives one.
        let local = match (&keys.sliding_attention, self.rope_local_base_freq) {
            (Some(keys), _) => Some(rope(keys, None)?),
            (None, Some(base)) => Some(rope(&none, Some(base))?),
            (None, None) => None,
        };
        config.ropes.extend(local);
        for (n, layer) in config.layers.iter_mut().enumerate() {
            layer.window = self.window(family, n)?;
            let local = layer.window.is_some() && config.ropes.len() > 1;
            layer.rope = (!config.ropes.is_empty() && self.rotates(family, n)).then_some(usize::from(local));
        }
        config.validate()?;
        Ok(config)
    }

    /// See the module's text.
    fn alibi_strength(&self) -> f32 {
        let major =
            self.transformers_version.as_ref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        if major.is_some_and(|major| major >= 5) { 2.0 } else { 1.0 }
    }

    fn sizes(&self, family: &Family) -> Result<Sizes> {
        let need = |value: Option<usize>, name: &str| value.ok_or_else(|| missing(name));
        let hidden = need(self.hidden_size, "hidden_size")?;
        let n_heads = need(self.num_attention_heads.or(self.n_head), "num_attention_heads")?;
        let stated = self.num_key_value_heads.or(self.num_kv_heads).or(self.n_head_kv);
        let n_kv_heads = match (self.new_decoder_architecture, self.multi_query) {
            (Some(true), _) | (None, None) => stated.unwrap_or(n_heads),
            (_, Some(false)) => n_heads,
            (_, Some(true) | None) => 1,
        };
        let eps = self.rms_norm_eps.or(self.layer_norm_eps).or(self.layer_norm_epsilon);
        // Falcon's files leave out what was the same in all models of its time.
        let falcon = family.name == "falcon";
        let ffn = self.intermediate_size.or(self.ffn_hidden_size).or(falcon.then(|| hidden.saturating_mul(4)));
        Ok(Sizes {
            n_layers: need(self.num_hidden_layers.or(self.n_layer), "num_hidden_layers")?,
            hidden,
            n_heads,
            n_kv_heads,
            head_dim: self.head_dim.unwrap_or(hidden.checked_div(n_heads).unwrap_or(0)),
            ffn: need(ffn, "intermediate_size")?,
            vocab: need(self.vocab_size, "vocab_size")?,
            max_context: need(self.max_position_embeddings.or(falcon.then_some(2048)), "max_position_embeddings")?,
            norm_eps: eps.ok_or_else(|| missing("rms_norm_eps"))? as f32,
            tied_head: self.tie_word_embeddings.unwrap_or(family.tied_head),
        })
    }

    fn refuse(&self) -> Result<()> {
        if let Some(method) = &self.quantization_config {
            return Err(unsupported("quantization", method.quant_method.as_deref().unwrap_or("unnamed")));
        }
        if self.use_bidirectional_attention == Some(true) {
            return Err(unsupported("attention", "bidirectional"));
        }
        Ok(())
    }

    /// Both families are parallel unless they say otherwise.
    fn residual(&self, family: &Family) -> Residual {
        let two_norms =
            self.new_decoder_architecture == Some(true) && self.num_ln_in_parallel_attn.is_none_or(|n| n == 2);
        match family.name {
            "falcon" if self.parallel_attn != Some(false) => Residual::Parallel { shared_norm: !two_norms },
            "gptneox" if self.use_parallel_residual != Some(false) => Residual::Parallel { shared_norm: false },
            _ => Residual::Sequential,
        }
    }

    fn mlp(&self, family: &Family) -> Result<Mlp> {
        let name = self.hidden_activation.as_ref().or(self.hidden_act.as_ref()).or(self.activation.as_ref());
        match (family.mlp, name.map(String::as_str)) {
            (mlp, None) => Ok(mlp),
            (Mlp::SwiGlu | Mlp::GeGlu, Some("silu" | "swish")) => Ok(Mlp::SwiGlu),
            (Mlp::SwiGlu | Mlp::GeGlu, Some("gelu_pytorch_tanh")) => Ok(Mlp::GeGlu),
            (Mlp::Gelu, Some("gelu")) => Ok(Mlp::Gelu),
            (_, Some(other)) => Err(unsupported("activation", other)),
        }
    }

    /// The window of layer `n`.
    fn window(&self, family: &Family, n: usize) -> Result<Option<usize>> {
        let Some(window) = self.sliding_window else { return Ok(None) };
        let kind = self.layer_types.as_ref().and_then(|kinds| kinds.get(n));
        let pattern = self.sliding_window_pattern.or(self.private_sliding_window_pattern);
        let has = match (kind.map(String::as_str), family.windows) {
            (Some("sliding_attention"), _) => true,
            (Some("full_attention"), _) => false,
            (Some(other), _) => return Err(unsupported("attention", other)),
            (None, Windows::Every) => true,
            (None, Windows::AllBut(step)) => !(n + 1).is_multiple_of(pattern.unwrap_or(step).max(1)),
            (None, Windows::Switched) => {
                self.use_sliding_window == Some(true) && self.max_window_layers.is_some_and(|first| n >= first)
            }
        };
        Ok(has.then_some(window))
    }

    /// Whether layer `n` rotates its queries and keys.
    fn rotates(&self, family: &Family, n: usize) -> bool {
        match (self.no_rope_layers.as_ref().and_then(|layers| layers.get(n)), self.no_rope_layer_interval) {
            (Some(&rotates), _) => rotates != 0,
            (None, Some(step)) if step > 0 => !(n + 1).is_multiple_of(step),
            (None, _) => family.rotates(n),
        }
    }

    fn rope(&self, keys: &RopeKeys, base: Option<f64>, part: f64, sizes: &Sizes) -> Result<Rope> {
        let need = |value: Option<f64>, name: &str| value.ok_or_else(|| missing(name));
        let original = keys.original_max_position_embeddings.or(self.original_max_position_embeddings);
        let original = || original.ok_or_else(|| missing("original_max_position_embeddings"));
        let scaling = match keys.rope_type.as_deref().or(keys.old_type.as_deref()) {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: need(keys.factor, "factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: need(keys.factor, "factor")?,
                low_freq_factor: need(keys.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(keys.high_freq_factor, "high_freq_factor")?,
                original_context: original()?,
            },
            Some("longrope" | "su") => {
                let original_context = original()?;
                let stretch = sizes.max_context as f64 / original_context as f64;
                let magnitude = match keys.attention_factor {
                    Some(factor) => factor,
                    None if stretch > 1.0 => (1.0 + stretch.ln() / (original_context as f64).ln()).sqrt(),
                    None => 1.0,
                };
                let factors = |list: &Option<Vec<f32>>, name| list.clone().ok_or_else(|| missing(name));
                RopeScaling::Long {
                    short: factors(&keys.short_factor, "short_factor")?,
                    long: factors(&keys.long_factor, "long_factor")?,
                    original_context,
                    magnitude,
                }
            }
            Some(other) => return Err(unsupported("rope kind", other)),
        };
        let part = keys.partial_rotary_factor.or(self.partial_rotary_factor).or(self.rotary_pct).unwrap_or(part);
        let rotary = (sizes.head_dim as f64 * part) as usize;
        let base = keys.rope_theta.or(base).unwrap_or(10_000.0);
        Ok(Rope { base, rotary, pairs: RopePairs::Halves, scaling })
    }
}

fn missing(key: &str) -> Error {
    Error::Config(format!("`{key}` is missing in config.json"))
}

fn unsupported(what: &'static str, name: &str) -> Error {
    Error::Unsupported { what, name: name.to_owned() }
}
