//! Sizes of well-known models, for measurements where no file of theirs is at hand.

use super::ModelConfig;
use super::hf::{HfConfig, Refusal};
use crate::error::{Error, Result};

/// No file limits the context of a model that is measured for its sizes: lengths beyond the trained one are of interest.
const MAX_CONTEXT: usize = 1 << 20;

/// What differs between models.
struct Sizes {
    name: &'static str,
    /// The model's class in Hugging Face files.
    class: &'static str,
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
const SHAPES: [Sizes; 9] = [
    Sizes { name: "llama-2-7b", class: "LlamaForCausalLM", layers: 32, hidden: 4096, heads: 32, kv_heads: 32, head_dim: 128, ffn: 11008, vocab: 32_000, rope_base: 1e4, tied_head: false },
    Sizes { name: "llama-2-13b", class: "LlamaForCausalLM", layers: 40, hidden: 5120, heads: 40, kv_heads: 40, head_dim: 128, ffn: 13824, vocab: 32_000, rope_base: 1e4, tied_head: false },
    Sizes { name: "llama-3-8b", class: "LlamaForCausalLM", layers: 32, hidden: 4096, heads: 32, kv_heads: 8, head_dim: 128, ffn: 14336, vocab: 128_256, rope_base: 5e5, tied_head: false },
    Sizes { name: "llama-3.2-1b", class: "LlamaForCausalLM", layers: 16, hidden: 2048, heads: 32, kv_heads: 8, head_dim: 64, ffn: 8192, vocab: 128_256, rope_base: 5e5, tied_head: true },
    Sizes { name: "tinyllama-1.1b", class: "LlamaForCausalLM", layers: 22, hidden: 2048, heads: 32, kv_heads: 4, head_dim: 64, ffn: 5632, vocab: 32_000, rope_base: 1e4, tied_head: false },
    Sizes { name: "smollm2-135m", class: "LlamaForCausalLM", layers: 30, hidden: 576, heads: 9, kv_heads: 3, head_dim: 64, ffn: 1536, vocab: 49_152, rope_base: 1e5, tied_head: true },
    Sizes { name: "qwen2.5-7b", class: "Qwen2ForCausalLM", layers: 28, hidden: 3584, heads: 28, kv_heads: 4, head_dim: 128, ffn: 18944, vocab: 152_064, rope_base: 1e6, tied_head: false },
    Sizes { name: "falcon-7b", class: "FalconForCausalLM", layers: 32, hidden: 4544, heads: 71, kv_heads: 1, head_dim: 64, ffn: 18176, vocab: 65_024, rope_base: 1e4, tied_head: true },
    Sizes { name: "tiny", class: "LlamaForCausalLM", layers: 2, hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, ffn: 128, vocab: 512, rope_base: 1e4, tied_head: false },
];

/// Names that [`shape`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|sizes| sizes.name)
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
    let s = SHAPES.iter().find(|sizes| sizes.name == name).ok_or_else(unknown)?;
    // Through the same mapping as a file's, so that a shape differs from a model in its weights alone.
    let mut json = serde_json::json!({
        "architectures": [s.class],
        "num_hidden_layers": s.layers,
        "hidden_size": s.hidden,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "intermediate_size": s.ffn,
        "vocab_size": s.vocab,
        "max_position_embeddings": MAX_CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": s.rope_base,
        "tie_word_embeddings": s.tied_head,
    });
    if s.class == "FalconForCausalLM" {
        // The 7B's block: one key and value head, attention and MLP side by side behind one norm.
        for (key, value) in [("multi_query", true), ("parallel_attn", true), ("new_decoder_architecture", false)] {
            json[key] = value.into();
        }
        json["ffn_hidden_size"] = s.ffn.into();
        json["layer_norm_epsilon"] = 1e-5.into();
    }
    let refused = |e: Refusal| Error::Config(format!("shape {name}: {e:?}"));
    HfConfig::parse(json.to_string().as_bytes()).map_err(refused)?.model_config()
}
