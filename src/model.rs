//! A model on one device: its weights uploaded, and one share of a prompt recorded through one layer at a time.
//!
//! Generic over the device's [`Kernels`]; knows nothing of other adapters.

use std::sync::Arc;

use crate::config::ModelConfig;
use crate::kernels::{HeadDims, Kernels};

mod batch;
mod forward;
mod kv_cache;
mod load;
pub mod memory;
pub mod pace;
mod scratch;
mod sources;

pub use batch::{Batch, Queue, Recorded};
pub use forward::Scores;
pub use kv_cache::{CacheSize, KvCache, Places, Slots};
pub use load::LoadOptions;
pub use pace::Pace;
pub use scratch::Scratch;

/// Weights on a device and how to use them.
pub struct Model<K: Kernels> {
    kernels: Arc<K>,
    config: Arc<ModelConfig>,
    dims: HeadDims,
    /// How much work of this model goes into one submission.
    pace: Pace,
    /// Tokens that positions are prepared for.
    context: usize,
    embedding: K::Matrix,
    head: Linear<K>,
    output_norm: NormWeights<K>,
    layers: Vec<Layer<K>>,
    /// For each rope F32 `[context, rotary / 2, 2]`: cosine and sine.
    angles: Vec<K::Tensor>,
    /// Stands for angles in layers without rotation.
    no_angles: K::Tensor,
    /// F32 `[heads, context]`: ALiBi.
    score_bias: Option<K::Tensor>,
}

/// A matrix with its bias.
struct Linear<K: Kernels> {
    weight: K::Matrix,
    bias: Option<K::Tensor>,
    /// Elements of the matrix: multiply-adds for a row.
    n_elements: usize,
}

/// A norm's parameters.
struct NormWeights<K: Kernels> {
    weight: K::Tensor,
    bias: Option<K::Tensor>,
}

/// Weights of one block.
struct Layer<K: Kernels> {
    attn_norm: NormWeights<K>,
    qkv: Linear<K>,
    /// Of query and of key heads.
    head_norms: Option<[K::Tensor; 2]>,
    attn_out: Linear<K>,
    attn_post_norm: Option<NormWeights<K>>,
    /// None where the MLP reads what attention reads.
    mlp_norm: Option<NormWeights<K>>,
    /// Gate and up rows alternate where the MLP is gated.
    up: Linear<K>,
    down: Linear<K>,
    mlp_post_norm: Option<NormWeights<K>>,
}

impl<K: Kernels> Model<K> {
    /// The device's operations.
    pub fn kernels(&self) -> &Arc<K> {
        &self.kernels
    }

    /// How much work goes into one submission, by rates that last as long as the model.
    pub fn pace(&self) -> &Pace {
        &self.pace
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
