//! A model on one device: its weights uploaded, and one share of a prompt recorded through one layer at a time.
//!
//! Generic over the device's [`Kernels`]; knows nothing of other adapters.

use std::sync::Arc;

use crate::config::ModelConfig;
use crate::kernels::{HeadDims, Kernels};

mod forward;
mod kv_cache;
mod load;
pub mod memory;
mod scratch;

pub use kv_cache::{KvCache, Slots};
pub use load::LoadOptions;
pub use scratch::Scratch;

/// Weights on a device and how to use them.
pub struct Model<K: Kernels> {
    kernels: Arc<K>,
    config: Arc<ModelConfig>,
    dims: HeadDims,
    /// Tokens that positions are prepared for.
    context: usize,
    embedding: K::Matrix,
    head: K::Matrix,
    output_norm: K::Tensor,
    layers: Vec<Layer<K>>,
    /// F32 `[context, head_dim / 2, 2]`: cosine and sine.
    angles: K::Tensor,
}

/// Weights of one block.
struct Layer<K: Kernels> {
    attn_norm: K::Tensor,
    qkv: K::Matrix,
    attn_out: K::Matrix,
    mlp_norm: K::Tensor,
    gate_up: K::Matrix,
    down: K::Matrix,
}

impl<K: Kernels> Model<K> {
    /// The device's operations.
    pub fn kernels(&self) -> &Arc<K> {
        &self.kernels
    }

    /// What the model is.
    pub fn config(&self) -> &Arc<ModelConfig> {
        &self.config
    }

    /// Longest context in tokens that it was loaded for.
    pub fn context(&self) -> usize {
        self.context
    }
}
