//! The configuration from a GGUF file's metadata (`<architecture>.*`, the keys of llama.cpp).

use super::family::{Family, Sizes, Windows};
use super::{ModelConfig, NormKind, Residual, Rope, RopeScaling};
use crate::error::{Error, Result};

/// Metadata by key; `None` where the key is absent, an error where the value is of another kind.
pub trait Metadata {
    /// A size.
    fn integer(&self, key: &str) -> Result<Option<usize>>;
    /// A real number.
    fn float(&self, key: &str) -> Result<Option<f64>>;
    /// A string.
    fn text(&self, key: &str) -> Result<Option<&str>>;
    /// A Boolean.
    fn flag(&self, key: &str) -> Result<Option<bool>>;
}

/// What a GGUF file says by its tensors and not by its metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorFacts {
    /// Rows of the embedding table.
    pub embedding_rows: Option<usize>,
    /// Whether there is an output head of its own.
    pub has_output_head: bool,
    /// Whether block 0 has a second norm before attention (Falcon 40B).
    pub has_second_norm: bool,
    /// `rope_freqs.weight`.
    pub rope_factors: Option<Vec<f32>>,
    /// `rope_factors_short.weight` and `rope_factors_long.weight`.
    pub long_rope_factors: Option<[Vec<f32>; 2]>,
    /// Length of the list of tokens.
    pub n_tokens: Option<usize>,
}

/// The keys of one architecture.
struct Keys<'a, M> {
    file: &'a M,
    architecture: &'a str,
}

impl<M: Metadata> Keys<'_, M> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn need(&self, name: &str) -> Result<usize> {
        self.file.integer(&self.key(name))?.ok_or_else(|| missing(&self.key(name)))
    }

    fn or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.file.integer(&self.key(name))?.unwrap_or(default))
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        self.file.float(&self.key(name))
    }
}

/// The configuration of a GGUF file.
///
/// # Errors
/// [`Error::Unsupported`] for another architecture, rope kind or feature; [`Error::Config`] where a key is missing or the values do not fit together.
pub fn model_config(file: &impl Metadata, facts: TensorFacts) -> Result<ModelConfig> {
    let architecture = file.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    let family = Family::find(architecture)?;
    let keys = Keys { file, architecture };
    let sizes = sizes(&keys, family, &facts)?;
    refuse(&keys, &sizes)?;
    let rope = Rope {
        base: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        rotary: keys.or("rope.dimension_count", sizes.head_dim)?,
        pairs: family.gguf_pairs,
        scaling: scaling(&keys, &facts)?,
    };
    let mut config = family.member(sizes, rope);
    config.residual = match (architecture, file.flag(&keys.key("use_parallel_residual"))?) {
        ("falcon", _) => Residual::Parallel { shared_norm: !facts.has_second_norm },
        ("gptneox", None | Some(true)) => Residual::Parallel { shared_norm: false },
        _ => Residual::Sequential,
    };
    gemma(&keys, &mut config)?;
    layers(&keys, family, &mut config)?;
    config.validate()?;
    Ok(config)
}

fn sizes<M: Metadata>(keys: &Keys<'_, M>, family: &Family, facts: &TensorFacts) -> Result<Sizes> {
    let (hidden, n_heads) = (keys.need("embedding_length")?, keys.need("attention.head_count")?);
    let eps = match family.norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    };
    Ok(Sizes {
        n_layers: keys.need("block_count")?,
        hidden,
        n_heads,
        n_kv_heads: keys.or("attention.head_count_kv", n_heads)?,
        head_dim: keys.or("attention.key_length", hidden.checked_div(n_heads).unwrap_or(0))?,
        ffn: keys.need("feed_forward_length")?,
        vocab: vocab(keys, facts)?,
        max_context: keys.need("context_length")?,
        norm_eps: keys.float(eps)?.ok_or_else(|| missing(&keys.key(eps)))? as f32,
        tied_head: !facts.has_output_head,
    })
}

fn refuse<M: Metadata>(keys: &Keys<'_, M>, sizes: &Sizes) -> Result<()> {
    if keys.or("attention.value_length", sizes.head_dim)? != sizes.head_dim {
        return Err(unsupported("attention", "values of another width than keys"));
    }
    if keys.or("expert_count", 0)? > 0 {
        return Err(unsupported("architecture", &format!("{} with experts", keys.architecture)));
    }
    if keys.float("attention.max_alibi_bias")?.is_some_and(|bias| bias > 0.0) {
        return Err(unsupported("attention", "ALiBi in a GGUF file"));
    }
    Ok(())
}

/// What Gemma's files leave to the reader: llama.cpp knows the largest members by their number of layers, and the caps of Gemma 2 by heart.
fn gemma<M: Metadata>(keys: &Keys<'_, M>, config: &mut ModelConfig) -> Result<()> {
    let gemma2 = keys.architecture == "gemma2";
    let cap =
        |name, default| Ok::<_, Error>(keys.float(name)?.or(default).filter(|&cap| cap != 0.0).map(|cap| cap as f32));
    if gemma2 || keys.architecture == "gemma3" {
        config.attention_soft_cap = cap("attn_logit_softcapping", gemma2.then_some(50.0))?;
        config.logit_soft_cap = cap("final_logit_softcapping", gemma2.then_some(30.0))?;
        if config.n_layers == if gemma2 { 46 } else { 62 } {
            config.attention_scale = (config.n_heads as f32 / config.hidden as f32).sqrt();
        }
    }
    if let Some(scale) = keys.float("attention.scale")?.filter(|&scale| scale != 0.0) {
        config.attention_scale = scale as f32;
    }
    Ok(())
}

/// Windows and rotation of each layer.
fn layers<M: Metadata>(keys: &Keys<'_, M>, family: &Family, config: &mut ModelConfig) -> Result<()> {
    let default = if keys.architecture == "gemma2" { 4096 } else { 0 };
    let window = Some(keys.or("attention.sliding_window", default)?).filter(|&window| window > 0);
    let step = match family.windows {
        Windows::Every => None,
        Windows::AllBut(step) => Some(keys.or("attention.sliding_window_pattern", step)?.max(1)),
        Windows::Switched => Some(1),
    };
    if keys.architecture == "gemma3" {
        let base = keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
        config.ropes.push(Rope { base, scaling: RopeScaling::None, ..config.ropes[0].clone() });
    }
    let local = config.ropes.len() - 1;
    for (n, layer) in config.layers.iter_mut().enumerate() {
        layer.window = window.filter(|_| step.is_none_or(|step| !(n + 1).is_multiple_of(step)));
        let rope = if layer.window.is_some() { local } else { 0 };
        layer.rope = family.rotates(n).then_some(rope);
    }
    Ok(())
}

/// Embedding tables may be padded past the last token, but not shorter than the list of tokens.
fn vocab<M: Metadata>(keys: &Keys<'_, M>, facts: &TensorFacts) -> Result<usize> {
    match (facts.embedding_rows, facts.n_tokens) {
        (Some(rows), Some(tokens)) if rows < tokens => {
            Err(Error::Config(format!("{tokens} tokens, but only {rows} rows in the embedding table")))
        }
        (Some(rows), _) => Ok(rows),
        (None, Some(tokens)) => Ok(tokens),
        (None, None) => keys.need("vocab_size"),
    }
}

fn scaling<M: Metadata>(keys: &Keys<'_, M>, facts: &TensorFacts) -> Result<RopeScaling> {
    if let Some([short, long]) = &facts.long_rope_factors {
        return Ok(RopeScaling::Long {
            short: short.clone(),
            long: long.clone(),
            original_context: keys.need("rope.scaling.original_context_length")?,
            magnitude: keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
        });
    }
    let kind = keys.file.text(&keys.key("rope.scaling.type"))?.unwrap_or("linear");
    let factor = match keys.float("rope.scaling.factor")? {
        None => keys.float("rope.scale_linear")?,
        factor => factor,
    };
    // Absent, 0 and 1 all mean: as trained.
    let linear = match kind {
        "none" => None,
        "linear" => factor.filter(|&f| f != 0.0 && f != 1.0),
        other => return Err(unsupported("rope kind", other)),
    };
    match (linear, &facts.rope_factors) {
        (None, None) => Ok(RopeScaling::None),
        (Some(factor), None) => Ok(RopeScaling::Linear { factor }),
        (None, Some(factors)) => Ok(RopeScaling::Factors(factors.clone())),
        (Some(_), Some(_)) => Err(unsupported("rope kind", "linear together with rope_freqs.weight")),
    }
}

fn missing(key: &str) -> Error {
    Error::Config(format!("`{key}` is missing"))
}

fn unsupported(what: &'static str, name: &str) -> Error {
    Error::Unsupported { what, name: name.to_owned() }
}
