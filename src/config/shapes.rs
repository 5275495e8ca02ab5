//! Sizes of well-known models, for measurements where no file of theirs is at hand.

use super::{ModelConfig, Rope, RopePairs, RopeScaling};
use crate::error::{Error, Result};

/// No file limits the context of a model that is measured for its sizes: lengths beyond the trained one are of interest.
const MAX_CONTEXT: usize = 1 << 20;

/// What differs between models of one block.
struct Sizes {
    name: &'static str,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    rope_base: f64,
    tied_head: bool,
}

/// As in the models' own `config.json`; `tiny` is nobody's, and small enough for any test.
#[rustfmt::skip]
const LLAMA: [Sizes; 7] = [
    Sizes { name: "llama-2-7b", layers: 32, hidden: 4096, heads: 32, kv_heads: 32, head_dim: 128, ffn: 11008, vocab: 32_000, rope_base: 1e4, tied_head: false },
    Sizes { name: "llama-2-13b", layers: 40, hidden: 5120, heads: 40, kv_heads: 40, head_dim: 128, ffn: 13824, vocab: 32_000, rope_base: 1e4, tied_head: false },
    Sizes { name: "llama-3-8b", layers: 32, hidden: 4096, heads: 32, kv_heads: 8, head_dim: 128, ffn: 14336, vocab: 128_256, rope_base: 5e5, tied_head: false },
    Sizes { name: "llama-3.2-1b", layers: 16, hidden: 2048, heads: 32, kv_heads: 8, head_dim: 64, ffn: 8192, vocab: 128_256, rope_base: 5e5, tied_head: true },
    Sizes { name: "tinyllama-1.1b", layers: 22, hidden: 2048, heads: 32, kv_heads: 4, head_dim: 64, ffn: 5632, vocab: 32_000, rope_base: 1e4, tied_head: false },
    Sizes { name: "smollm2-135m", layers: 30, hidden: 576, heads: 9, kv_heads: 3, head_dim: 64, ffn: 1536, vocab: 49_152, rope_base: 1e5, tied_head: true },
    Sizes { name: "tiny", layers: 2, hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, ffn: 128, vocab: 512, rope_base: 1e4, tied_head: false },
];

/// Names that [`shape`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    LLAMA.iter().map(|sizes| sizes.name)
}

/// The configuration of a model by name.
///
/// # Errors
/// [`Error::Unsupported`] with the names that there are.
pub fn shape(name: &str) -> Result<ModelConfig> {
    let unknown = || {
        let names = names().collect::<Vec<_>>().join(", ");
        Error::Unsupported { what: "shape", name: format!("`{name}`; there are: {names}") }
    };
    let s = LLAMA.iter().find(|sizes| sizes.name == name).ok_or_else(unknown)?;
    Ok(ModelConfig {
        architecture: "llama".to_owned(),
        n_layers: s.layers,
        hidden: s.hidden,
        n_heads: s.heads,
        n_kv_heads: s.kv_heads,
        head_dim: s.head_dim,
        ffn: s.ffn,
        vocab: s.vocab,
        max_context: MAX_CONTEXT,
        norm_eps: 1e-5,
        rope: Rope { base: s.rope_base, pairs: RopePairs::Adjacent, scaling: RopeScaling::None },
        tied_head: s.tied_head,
    })
}
