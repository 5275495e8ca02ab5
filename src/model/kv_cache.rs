//! The K/V cache of one device: per layer one K and one V tensor `[tokens, kv_heads, head_dim]`, row = absolute position.

use crate::dims::round_up;
use crate::dtype::KvDtype;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::model::Model;

/// How many layers a cache holds at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// Every layer: the adapter that decodes.
    All,
    /// A ring: an adapter that only prefills works on two layers at a time (the attention of one and the K/V of the next), and a third lets rows
    /// of the layer after arrive early. Llama-7B at 16k tokens: 0.8 GiB instead of 8.
    Ring,
}

impl Slots {
    const RING: usize = 3;

    /// Number of layers held, for a model of `n_layers`.
    pub fn count(self, n_layers: usize) -> usize {
        match self {
            Slots::All => n_layers,
            Slots::Ring => n_layers.min(Self::RING),
        }
    }
}

/// See the module's text. Cloning shares the tensors.
pub struct KvCache<K: Kernels> {
    k: Vec<K::Tensor>,
    v: Vec<K::Tensor>,
    width: usize,
    dtype: KvDtype,
    tokens: usize,
}

impl<K: Kernels> Model<K> {
    /// A zeroed cache for `tokens` tokens.
    ///
    /// # Errors
    /// What the device says where memory is short.
    pub fn cache(&self, tokens: usize, dtype: KvDtype, slots: Slots) -> Result<KvCache<K>> {
        let width = self.config.kv_width();
        // The rows behind the last token stay zero, so that kernels may read whole key tiles.
        let rows = round_up(tokens, self.kernels.key_tile());
        let make = |what: &str| -> Result<Vec<K::Tensor>> {
            (0..slots.count(self.config.n_layers))
                .map(|i| self.kernels.tensor(&format!("{what} cache {i}"), dtype.scalar(), rows * width))
                .collect()
        };
        Ok(KvCache { k: make("K")?, v: make("V")?, width, dtype, tokens })
    }
}

impl<K: Kernels> KvCache<K> {
    /// K of a layer.
    pub fn k(&self, layer: usize) -> &K::Tensor {
        &self.k[layer % self.k.len()]
    }

    /// V of a layer.
    pub fn v(&self, layer: usize) -> &K::Tensor {
        &self.v[layer % self.v.len()]
    }

    /// Elements of one token's row: `kv_heads * head_dim`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes of one token's K row (V's are as many).
    pub fn row_bytes(&self) -> usize {
        self.width * self.dtype.scalar().bytes()
    }

    /// Tokens that fit.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}
