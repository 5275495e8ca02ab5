//! The families of models as rows of one table: what is true of every member, so that files need not say it.

use super::{LayerKind, Mlp, ModelConfig, NormKind, Residual, Rope, RopePairs};
use crate::error::{Error, Result};

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// Its name in GGUF files (`general.architecture`), and ours.
    pub name: &'static str,
    /// The model's class and its `model_type` in Hugging Face files.
    pub hugging_face: [&'static str; 2],
    /// Kind of all norms outside of attention heads.
    pub norm: NormKind,
    /// Nonlinearity of the MLP where the file names none.
    pub mlp: Mlp,
    /// Whether the residual stream starts as `sqrt(hidden)` times the embedding, and norms multiply by one plus what Hugging Face files store.
    pub gemma_scales: bool,
    /// See [`ModelConfig::post_norms`].
    pub post_norms: bool,
    /// See [`ModelConfig::head_norm`].
    pub head_norm: bool,
    /// Whether the head is the embedding where a Hugging Face file does not say.
    pub tied_head: bool,
    /// Layers that have the window which the file gives.
    pub windows: Windows,
    /// Every so many layers one goes without rotation, where the file does not list them (0: none does).
    pub no_rope_step: usize,
    /// Order of rotated elements in GGUF files, whose converter reorders the rows of some families.
    pub gguf_pairs: RopePairs,
    /// Heads of the query, key and value matrix of Hugging Face files that are fused: grouped by K/V head, or queries, keys, values.
    pub grouped_qkv: bool,
}

/// Which layers have a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// All.
    Every,
    /// All but every so many-th.
    AllBut(usize),
    /// Those past `max_window_layers`, where `use_sliding_window` is set.
    Switched,
}

const LLAMA: Family = Family {
    name: "llama",
    hugging_face: ["LlamaForCausalLM", "llama"],
    norm: NormKind::Rms,
    mlp: Mlp::SwiGlu,
    gemma_scales: false,
    post_norms: false,
    head_norm: false,
    tied_head: false,
    windows: Windows::Every,
    no_rope_step: 0,
    gguf_pairs: RopePairs::Adjacent,
    grouped_qkv: false,
};

/// All families.
pub static FAMILIES: [Family; 10] = [
    LLAMA,
    // GGUF files call it `llama`.
    Family { name: "mistral", hugging_face: ["MistralForCausalLM", "mistral"], ..LLAMA },
    Family {
        name: "qwen2",
        hugging_face: ["Qwen2ForCausalLM", "qwen2"],
        windows: Windows::Switched,
        gguf_pairs: RopePairs::Halves,
        ..LLAMA
    },
    Family {
        name: "qwen3",
        hugging_face: ["Qwen3ForCausalLM", "qwen3"],
        head_norm: true,
        windows: Windows::Switched,
        gguf_pairs: RopePairs::Halves,
        ..LLAMA
    },
    Family {
        name: "gemma2",
        hugging_face: ["Gemma2ForCausalLM", "gemma2"],
        mlp: Mlp::GeGlu,
        gemma_scales: true,
        post_norms: true,
        tied_head: true,
        windows: Windows::AllBut(2),
        gguf_pairs: RopePairs::Halves,
        ..LLAMA
    },
    Family {
        name: "gemma3",
        hugging_face: ["Gemma3ForCausalLM", "gemma3_text"],
        mlp: Mlp::GeGlu,
        gemma_scales: true,
        post_norms: true,
        head_norm: true,
        tied_head: true,
        windows: Windows::AllBut(6),
        gguf_pairs: RopePairs::Halves,
        ..LLAMA
    },
    Family { name: "phi3", hugging_face: ["Phi3ForCausalLM", "phi3"], gguf_pairs: RopePairs::Halves, ..LLAMA },
    Family {
        name: "falcon",
        hugging_face: ["FalconForCausalLM", "falcon"],
        norm: NormKind::Layer,
        mlp: Mlp::Gelu,
        tied_head: true,
        gguf_pairs: RopePairs::Halves,
        grouped_qkv: true,
        ..LLAMA
    },
    Family {
        name: "gptneox",
        hugging_face: ["GPTNeoXForCausalLM", "gpt_neox"],
        norm: NormKind::Layer,
        mlp: Mlp::Gelu,
        gguf_pairs: RopePairs::Halves,
        grouped_qkv: true,
        ..LLAMA
    },
    Family {
        name: "smollm3",
        hugging_face: ["SmolLM3ForCausalLM", "smollm3"],
        tied_head: true,
        windows: Windows::Switched,
        no_rope_step: 4,
        ..LLAMA
    },
];

/// What both file formats say in numbers of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub n_layers: usize,
    pub hidden: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub max_context: usize,
    pub norm_eps: f32,
    pub tied_head: bool,
}

impl Family {
    /// The family of this name, in one of the two kinds of files.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names one that is not known.
    pub fn find(name: &str) -> Result<&'static Self> {
        FAMILIES
            .iter()
            .find(|family| family.name == name || family.hugging_face.contains(&name))
            .ok_or_else(|| Error::Unsupported { what: "architecture", name: name.to_owned() })
    }

    /// A member of these sizes: no window, one rope on every layer, and all else as the family has it.
    pub(super) fn member(&self, sizes: Sizes, rope: Rope) -> ModelConfig {
        ModelConfig {
            architecture: self.name.to_owned(),
            n_layers: sizes.n_layers,
            hidden: sizes.hidden,
            n_heads: sizes.n_heads,
            n_kv_heads: sizes.n_kv_heads,
            head_dim: sizes.head_dim,
            ffn: sizes.ffn,
            vocab: sizes.vocab,
            max_context: sizes.max_context,
            norm_eps: sizes.norm_eps,
            norm: self.norm,
            norm_plus_one: false,
            residual: Residual::Sequential,
            post_norms: self.post_norms,
            head_norm: self.head_norm,
            mlp: self.mlp,
            embedding_scale: if self.gemma_scales { (sizes.hidden as f32).sqrt() } else { 1.0 },
            attention_scale: 1.0 / (sizes.head_dim as f32).sqrt(),
            attention_soft_cap: None,
            logit_soft_cap: None,
            alibi: None,
            ropes: vec![rope],
            layers: vec![LayerKind { rope: Some(0), window: None }; sizes.n_layers.min(super::MAX_LAYERS)],
            tied_head: sizes.tied_head,
        }
    }

    /// Whether layer `n` rotates, by the family's rule.
    pub(super) fn rotates(&self, n: usize) -> bool {
        self.no_rope_step == 0 || !(n + 1).is_multiple_of(self.no_rope_step)
    }
}
