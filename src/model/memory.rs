//! What a model will take on a device, counted before anything is uploaded.

use crate::config::ModelConfig;
use crate::dtype::{KvDtype, Scalar};
use crate::error::{Error, Result};
use crate::kernels::{Kernels, MAX_ROWS_AT_ONCE};
use crate::model::scratch::{HEAD_ROWS, sizes};
use crate::model::{CacheSize, Model, Slots};

/// Bytes of a cache on a device with tiles of `key_tile` keys.
pub fn cache_bytes(config: &ModelConfig, size: CacheSize, kv: KvDtype, key_tile: usize) -> u64 {
    let row = (config.kv_width() * kv.scalar().bytes()) as u64;
    size.rows(config.n_layers, &config.windows(), key_tile).into_iter().map(|rows| 2 * rows as u64 * row).sum()
}

/// Tokens by which a conversation can be cut back in place where a model has windows: an answer and the question before it, or a few.
pub const TAKE_BACK: usize = 1024;

/// Bytes of the activations of a share of `rows` tokens.
pub fn scratch_bytes<K: Kernels>(model: &Model<K>, rows: usize) -> u64 {
    sizes(model, rows).iter().map(|(_, scalar, len)| (scalar.bytes() * len) as u64).sum()
}

/// Says no before the first byte is allocated, where the system tells how much is free.
///
/// # Errors
/// [`Error::Memory`] with both numbers.
pub fn check<K: Kernels>(kernels: &K, what: &str, needed: u64) -> Result<()> {
    match kernels.free_memory() {
        Some(available) if needed > available => {
            Err(Error::Memory { adapter: kernels.name().to_owned(), what: what.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}

/// What a share takes on an adapter, before a model is loaded there: weights as large as in the file, the cache, activations.
#[derive(Clone, Copy, Debug)]
pub struct Estimate<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Bytes of its weights.
    pub weights_bytes: u64,
    /// Tokens of the cache.
    pub context: usize,
    /// Its element type.
    pub kv: KvDtype,
}

impl Estimate<'_> {
    /// Bytes for a share of `rows` tokens that reaches over `span` positions. The adapter that keeps all layers can be cut back by
    /// [`TAKE_BACK`] tokens, where nobody asked for another number.
    pub fn bytes(&self, rows: usize, span: usize, slots: Slots) -> u64 {
        let c = self.config;
        let beside = if slots == Slots::All { span.max(TAKE_BACK) } else { span };
        let cache = cache_bytes(c, CacheSize { tokens: self.context, slots, beside }, self.kv, 1);
        // Activations are f32 on the lowest tier: residual, normed rows, QKV, attention; then the tiled MLP and head.
        let row = 2 * c.hidden + c.qkv_width() + c.q_width();
        let tiled = rows.min(MAX_ROWS_AT_ONCE) * c.ffn + rows.min(HEAD_ROWS) * c.vocab;
        self.weights_bytes + cache + Scalar::F32.bytes() as u64 * (rows * row + tiled) as u64
    }
}
