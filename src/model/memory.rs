//! What a model will take on a device, counted before anything is uploaded.

use crate::dims::round_up;
use crate::dtype::KvDtype;
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::model::scratch::sizes;
use crate::model::{Model, Slots};

/// Bytes of a cache.
pub fn cache_bytes<K: Kernels>(model: &Model<K>, tokens: usize, kv: KvDtype, slots: Slots) -> u64 {
    let c = &model.config;
    let row = (c.kv_width() * kv.scalar().bytes()) as u64;
    2 * slots.count(c.n_layers) as u64 * round_up(tokens, model.kernels.key_tile()) as u64 * row
}

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
