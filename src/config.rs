//! What a model is, as data: sizes and the choices that tell one family of transformers from another.

use crate::error::{Error, Result};

pub mod gguf;
pub mod hf;
pub mod shapes;

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
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the output head is the embedding table.
    pub tied_head: bool,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies (`rope_theta`).
    pub base: f64,
    /// Which elements of a head turn together.
    pub pairs: RopePairs,
    /// Change of the frequencies for contexts longer than trained.
    pub scaling: RopeScaling,
}

/// Which two elements of a head form one rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(2i, 2i+1)`: the order of GGUF files of Llama.
    Adjacent,
    /// `(i, i + head_dim/2)`: the order of Hugging Face files ("NeoX").
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
}

impl Rope {
    /// Frequencies in radians per token, `[head_dim / 2]`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let f = self.base.powf(-((2 * i) as f64) / head_dim as f64);
                match &self.scaling {
                    RopeScaling::None => f,
                    RopeScaling::Linear { factor } => f / factor,
                    RopeScaling::Factors(factors) => f / f64::from(factors[i]),
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
}

impl ModelConfig {
    /// Elements of one token's K (or V) row in one layer: `n_kv_heads * head_dim`.
    pub const fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Elements of one token's query row: `n_heads * head_dim`.
    pub const fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
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
            ("layers", self.n_layers, 1 << 12),
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
        let finite = |x: f64| x.is_finite() && x > 0.0;
        let sane = match &self.rope.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => finite(*factor),
            RopeScaling::Factors(f) => f.len() == self.head_dim / 2 && f.iter().all(|&x| finite(f64::from(x))),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                finite(*factor)
                    && finite(*low_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_context > 0
            }
        };
        if !finite(self.rope.base) || !sane {
            return fail(format!("rope {:?}", self.rope));
        }
        Ok(())
    }
}
