//! Costs from arithmetic alone: a model's operations and an adapter's rates.

use serde::{Deserialize, Serialize};

use crate::config::{Mlp, ModelConfig, shapes};
use crate::error::{Error, Result};
use crate::runahead::cost::{AdapterCost, Curve, Lane};

/// The sizes of a model that decide what a layer costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Whether the MLP has a gate: three products instead of two.
    pub gated: bool,
    /// Number of token ids.
    pub vocab: usize,
    /// The keys that a row sees at most, layer by layer, 0 for all; repeated where it is shorter than the model (`[512, 512, 0]`). Empty: all.
    #[serde(default)]
    pub windows: Vec<usize>,
}

impl Shape {
    /// A shape by name: `falcon-7b`, `llama-7b`, or one of [`shapes::names`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "falcon-7b" => Ok(Self {
                layers: 32,
                hidden: 4544,
                heads: 71,
                kv_heads: 1,
                head_dim: 64,
                ffn: 18_176,
                gated: false,
                vocab: 65_024,
                windows: Vec::new(),
            }),
            // Both generations have the same sizes.
            "llama-7b" => Self::named("llama-2-7b"),
            _ => shapes::shape(name).map(|config| Self::of(&config)),
        }
    }

    /// The shape of a model that was read.
    pub fn of(config: &ModelConfig) -> Self {
        Self {
            layers: config.n_layers,
            hidden: config.hidden,
            heads: config.n_heads,
            kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            ffn: config.ffn,
            gated: config.mlp != Mlp::Gelu,
            vocab: config.vocab,
            windows: if config.layers.iter().any(|layer| layer.window.is_some()) {
                config.windows().into_iter().map(Option::unwrap_or_default).collect()
            } else {
                Vec::new()
            },
        }
    }

    /// Per layer: the keys that a row sees at most; empty where all layers see all.
    pub fn windows(&self) -> Vec<Option<usize>> {
        let n = if self.windows.is_empty() { 0 } else { self.layers };
        self.windows.iter().cycle().take(n).map(|&window| Some(window).filter(|&w| w > 0)).collect()
    }

    /// Checks that no size is 0 or beyond any model's.
    ///
    /// # Errors
    /// [`Error::Config`] names the size.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("layers", self.layers),
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("vocab", self.vocab),
        ];
        match sizes.into_iter().find(|&(_, size)| size == 0 || size > 1 << 24) {
            Some((name, size)) => Err(Error::Config(format!("{name} {size} is outside 1..={}", 1 << 24))),
            None => Ok(()),
        }
    }

    /// Floating-point operations of one token's QKV product in one layer.
    pub fn qkv_flop(&self) -> f64 {
        2.0 * self.hidden as f64 * (self.head_dim * (self.heads + 2 * self.kv_heads)) as f64
    }

    /// Those of its other products in one layer.
    pub fn rest_flop(&self) -> f64 {
        let mlp = if self.gated { 3 } else { 2 } * self.ffn;
        2.0 * self.hidden as f64 * (self.head_dim * self.heads + mlp) as f64
    }

    /// Those of one score and its part of the weighted sum, all heads of a layer together.
    pub fn score_flop(&self) -> f64 {
        4.0 * (self.head_dim * self.heads) as f64
    }

    /// Those of the output head for one row.
    pub fn head_flop(&self) -> f64 {
        2.0 * self.hidden as f64 * self.vocab as f64
    }

    /// Bytes of one token's K and V rows in one layer, at `element_bytes` each.
    pub fn kv_bytes(&self, element_bytes: usize) -> f64 {
        (2 * self.head_dim * self.kv_heads * element_bytes) as f64
    }

    /// Elements of all weight matrices.
    pub fn n_weights(&self) -> f64 {
        (self.qkv_flop() + self.rest_flop()) / 2.0 * self.layers as f64 + 2.0 * self.hidden as f64 * self.vocab as f64
    }
}

/// An adapter on paper.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Its name.
    pub name: String,
    /// Operations per second of long products.
    pub product_flops: f64,
    /// Operations per second of attention.
    pub attention_flops: f64,
    /// Tokens at which a product reaches half of its speed: `n` tokens take the time of `n + half_speed_tokens` at full speed.
    pub half_speed_tokens: f64,
    /// Seconds for one token of decode, where known.
    pub decode_s: Option<f64>,
    /// From the device to host memory.
    pub down: Lane,
    /// From host memory to the device.
    pub up: Lane,
}

impl Rates {
    /// What the model costs at these rates.
    ///
    /// # Errors
    /// [`Error::Config`] for a rate that is not positive.
    pub fn costs(&self, shape: &Shape) -> Result<AdapterCost> {
        let rates = [("products", self.product_flops), ("attention", self.attention_flops)];
        if let Some((what, rate)) = rates.into_iter().find(|(_, r)| !(r.is_finite() && *r > 0.0)) {
            return Err(Error::Config(format!("adapter {}: {what} at {rate} operations per second", self.name)));
        }
        let curve = |flop: f64| {
            let s = |n: f64| (n + self.half_speed_tokens) * flop / self.product_flops;
            Curve::new([(0.0, s(0.0)), (8192.0, s(8192.0))])
        };
        Ok(AdapterCost {
            name: self.name.clone(),
            qkv: curve(shape.qkv_flop())?,
            rest: curve(shape.rest_flop())?,
            score_s: shape.score_flop() / self.attention_flops,
            head_s: (1.0 + self.half_speed_tokens) * shape.head_flop() / self.product_flops,
            decode_s: self.decode_s,
            down: self.down,
            up: self.up,
            queue: None,
            tile_rows: 1,
            busy_workgroups: None,
            fit_error: 0.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_models_have_its_numbers() {
        let llama = Shape::named("llama-7b").unwrap();
        assert!(((llama.qkv_flop() + llama.rest_flop()) / 405e6 - 1.0).abs() < 1e-3);
        assert_eq!((llama.score_flop(), llama.kv_bytes(2)), (16_384.0, 16_384.0));
        // Dense attention over all keys costs what the products cost at about 24.7k tokens.
        let equal = (llama.qkv_flop() + llama.rest_flop()) / llama.score_flop();
        assert!((equal / 24.7e3 - 1.0).abs() < 1e-2);
        assert!((llama.n_weights() / 6.74e9 - 1.0).abs() < 1e-2);
        let falcon = Shape::named("falcon-7b").unwrap();
        assert_eq!(falcon.kv_bytes(2), 256.0);
        assert_eq!(Shape::named("llama-3-8b").unwrap().kv_bytes(2), 4096.0);
        assert!(matches!(Shape::named("bloom"), Err(Error::Unsupported { .. })));
    }
}
