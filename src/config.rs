//! What a model is, as data: sizes and the choices that tell one family of transformers from another.

use crate::error::{Error, Result};

pub mod family;
pub mod gguf;
pub mod hf;
pub mod shapes;

/// More layers than any model has.
const MAX_LAYERS: usize = 1 << 12;

/// One decoder-only transformer. Families differ in the values of these fields, never in code of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family's name in the file (`llama`).
    pub architecture: String,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads` (1: multi-query).
    pub n_kv_heads: usize,
    /// Width of one head; `n_heads * head_dim` need not equal `hidden`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Longest context that the model was made for, in tokens.
    pub max_context: usize,
    /// Epsilon inside the norms' square root.
    pub norm_eps: f32,
    /// What the norms compute.
    pub norm: NormKind,
    /// Whether the file stores the norms' weights less 1 (Gemma in Hugging Face files; GGUF files store them whole).
    pub norm_plus_one: bool,
    /// How attention and MLP of a block join the residual stream.
    pub residual: Residual,
    /// Whether a norm follows attention and MLP each, before they join the residual stream (Gemma 2 and 3: four norms a block).
    pub post_norms: bool,
    /// RMSNorm of every query and key head before the rotation.
    pub head_norm: bool,
    /// The MLP's nonlinearity.
    pub mlp: Mlp,
    /// Multiplies the embedding (Gemma: `sqrt(hidden)`).
    pub embedding_scale: f32,
    /// Multiplies every attention score (`head_dim^-1/2` in most families).
    pub attention_scale: f32,
    /// Attention scores are bounded to this by tanh (Gemma 2).
    pub attention_soft_cap: Option<f32>,
    /// Logits are bounded to this by tanh (Gemma 2).
    pub logit_soft_cap: Option<f32>,
    /// Linear biases of attention scores by distance (ALiBi, Falcon RW): how often they are added. See [`hf`] on values other than 1.
    pub alibi: Option<f32>,
    /// The rotary embeddings that layers choose from; none where no layer rotates.
    pub ropes: Vec<Rope>,
    /// What differs from layer to layer, `[n_layers]`.
    pub layers: Vec<LayerKind>,
    /// Whether the output head is the embedding table.
    pub tied_head: bool,
}

/// What tells one layer from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// Its rotary embedding, an index into [`ModelConfig::ropes`]; none for layers without (every fourth of SmolLM 3).
    pub rope: Option<usize>,
    /// The row at position `p` attends to `p + 1 - window ..= p` alone.
    pub window: Option<usize>,
}

/// What a norm computes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// RMSNorm: `x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019).
    Rms,
    /// LayerNorm: `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` (Ba, Kiros, Hinton 2016).
    Layer,
}

/// How a block's two halves join the residual stream `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `y = x + attention(norm(x))`, then `y + mlp(norm(y))`.
    Sequential,
    /// `x + attention(norm(x)) + mlp(norm(x))`.
    Parallel {
        /// Whether attention and MLP share one norm.
        shared_norm: bool,
    },
}

/// The MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate) * up)`.
    SwiGlu,
    /// `down(gelu(gate) * up)`, GELU's tanh form.
    GeGlu,
    /// `down(gelu(up))`, GELU's exact form.
    Gelu,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies (`rope_theta`).
    pub base: f64,
    /// The leading elements of each head that turn, a multiple of 4.
    pub rotary: usize,
    /// Which elements of a head turn together.
    pub pairs: RopePairs,
    /// Change of the frequencies for contexts longer than trained.
    pub scaling: RopeScaling,
}

/// Which two elements of a head form one rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// `(2i, 2i+1)`: the order of GGUF files of Llama.
    Adjacent,
    /// `(i, i + rotary/2)`: the order of Hugging Face files ("NeoX").
    Halves,
}

/// Change of the rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: long wavelengths divided, short ones kept, smooth between (as `rope_type: llama3` in Hugging Face transformers).
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the original training, in tokens.
        original_context: usize,
    },
    /// Factors per pair that the file supplies (GGUF's `rope_freqs.weight`): frequency `i` is divided by `factors[i]`.
    Factors(Vec<f32>),
    /// LongRoPE (Ding et al. 2024; `longrope` of Phi-3): one set of factors for contexts as long as those trained first, another for longer ones.
    Long {
        /// Divisors up to `original_context` tokens.
        short: Vec<f32>,
        /// Divisors beyond.
        long: Vec<f32>,
        /// Context length of the original training, in tokens.
        original_context: usize,
        /// Multiplies cosine and sine.
        magnitude: f64,
    },
}

impl Rope {
    /// Frequencies in radians per token, `[rotary / 2]`, for contexts of up to `context` tokens.
    pub fn frequencies(&self, context: usize) -> Vec<f64> {
        (0..self.rotary / 2)
            .map(|i| {
                let f = self.base.powf(-((2 * i) as f64) / self.rotary as f64);
                match &self.scaling {
                    RopeScaling::None => f,
                    RopeScaling::Linear { factor } => f / factor,
                    RopeScaling::Factors(factors) => f / f64::from(factors[i]),
                    RopeScaling::Long { short, long, original_context, .. } => {
                        f / f64::from(if context > *original_context { long[i] } else { short[i] })
                    }
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        let turns = *original_context as f64 * f / std::f64::consts::TAU;
                        if turns < *low_freq_factor {
                            f / factor
                        } else if turns > *high_freq_factor {
                            f
                        } else {
                            let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            (1.0 - keep) * f / factor + keep * f
                        }
                    }
                }
            })
            .collect()
    }

    /// Multiplies cosine and sine.
    pub fn magnitude(&self) -> f64 {
        if let RopeScaling::Long { magnitude, .. } = self.scaling { magnitude } else { 1.0 }
    }

    /// Whether the numbers make sense together.
    fn sane(&self, head_dim: usize) -> bool {
        let finite = |x: f64| x.is_finite() && x > 0.0;
        let factors = |f: &[f32]| f.len() == self.rotary / 2 && f.iter().all(|&x| finite(f64::from(x)));
        let scaling = match &self.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => finite(*factor),
            RopeScaling::Factors(f) => factors(f),
            RopeScaling::Long { short, long, original_context, magnitude } => {
                factors(short) && factors(long) && *original_context > 0 && finite(*magnitude)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                finite(*factor)
                    && finite(*low_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_context > 0
            }
        };
        let rotary = self.rotary > 0 && self.rotary <= head_dim && self.rotary.is_multiple_of(4);
        finite(self.base) && scaling && rotary
    }
}

impl ModelConfig {
    /// `n` token ids without a pattern, others for each seed: a prompt for measurements, which no model can make use of.
    pub fn any_tokens(&self, n: usize, seed: u64) -> Vec<u32> {
        // Marsaglia's xorshift; its state must not be 0.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (((state >> 32) * self.vocab as u64) >> 32) as u32
        };
        (0..n).map(|_| next()).collect()
    }

    /// Elements of one token's K (or V) row in one layer: `n_kv_heads * head_dim`.
    pub const fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Elements of one token's query row: `n_heads * head_dim`.
    pub const fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Per layer: the keys that a row sees at most.
    pub fn windows(&self) -> Vec<Option<usize>> {
        self.layers.iter().map(|layer| layer.window).collect()
    }

    /// Elements of one row of the fused product: Q, then K, then V.
    pub const fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Checks that sizes are sane and fit together, so that later code may multiply them without fear. Every loader calls it.
    ///
    /// # Errors
    /// [`Error::Config`] names the first contradiction.
    pub fn validate(&self) -> Result<()> {
        let fail = |text: String| Err(Error::Config(text));
        let sizes = [
            ("layers", self.n_layers, MAX_LAYERS),
            ("hidden size", self.hidden, 1 << 20),
            ("heads", self.n_heads, 1 << 12),
            ("K/V heads", self.n_kv_heads, 1 << 12),
            ("head size", self.head_dim, 1 << 10),
            ("MLP size", self.ffn, 1 << 20),
            ("vocabulary", self.vocab, 1 << 24),
            ("context length", self.max_context, 1 << 28),
        ];
        for (name, value, most) in sizes {
            if value == 0 || value > most {
                return fail(format!("{name} {value} is outside 1..={most}"));
            }
        }
        for (name, value) in [("hidden size", self.hidden), ("head size", self.head_dim), ("MLP size", self.ffn)] {
            if !value.is_multiple_of(4) {
                return fail(format!("{name} {value} is no multiple of 4, which the kernels' vector loads need"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return fail(format!("{} heads cannot share {} K/V heads evenly", self.n_heads, self.n_kv_heads));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return fail(format!("norm epsilon {}", self.norm_eps));
        }
        let sizes = [
            ("embedding scale", self.embedding_scale),
            ("attention scale", self.attention_scale),
            ("ALiBi", self.alibi.unwrap_or(1.0)),
        ];
        let caps = [("attention soft-cap", self.attention_soft_cap), ("logit soft-cap", self.logit_soft_cap)];
        let caps = caps.into_iter().filter_map(|(name, cap)| Some((name, cap?)));
        if let Some((name, value)) = sizes.into_iter().chain(caps).find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return fail(format!("{name} {value}"));
        }
        if let Some(rope) = self.ropes.iter().find(|rope| !rope.sane(self.head_dim)) {
            return fail(format!("rope {rope:?}"));
        }
        let known = |layer: &LayerKind| layer.rope.is_none_or(|i| i < self.ropes.len()) && layer.window != Some(0);
        if self.layers.len() != self.n_layers || !self.layers.iter().all(known) {
            return fail(format!("{} layers of kinds {:?}", self.n_layers, self.layers));
        }
        Ok(())
    }
}
