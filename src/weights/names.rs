//! What each file format calls a tensor: one table per format, with the rows of families that differ. A new family adds rows here and to
//! [`FAMILIES`](crate::config::family::FAMILIES), nothing else.

use super::{LayerRole, Role};
use crate::config::family::Family;
use crate::config::{ModelConfig, Residual};

/// A file's convention of tensor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naming {
    format: Format,
    dialect: Dialect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gguf,
    HuggingFace,
}

/// Families that name things in their own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Llama,
    /// Four norms a block.
    Gemma,
    /// Its members differ in the norms before attention and MLP.
    Falcon {
        two_norms: bool,
    },
    GptNeoX,
}

impl Dialect {
    fn of(config: &ModelConfig) -> Self {
        match config.architecture.as_str() {
            "falcon" => Dialect::Falcon { two_norms: config.residual == Residual::Parallel { shared_norm: false } },
            "gptneox" => Dialect::GptNeoX,
            _ if config.post_norms => Dialect::Gemma,
            _ => Dialect::Llama,
        }
    }
}

impl Naming {
    /// GGUF files, as llama.cpp writes them, before the family is known: tensors outside of blocks have the same names in all.
    pub const GGUF: Self = Self { format: Format::Gguf, dialect: Dialect::Llama };

    /// GGUF files of this model.
    pub fn gguf(config: &ModelConfig) -> Self {
        Self { format: Format::Gguf, dialect: Dialect::of(config) }
    }

    /// Hugging Face folders of this model.
    pub fn hugging_face(config: &ModelConfig) -> Self {
        Self { format: Format::HuggingFace, dialect: Dialect::of(config) }
    }

    /// The name of a tensor in this convention, less `.weight` or `.bias`.
    pub fn stem(self, role: Role) -> String {
        match (self.format, role) {
            (Format::Gguf, Role::TokenEmbedding) => "token_embd".into(),
            (Format::Gguf, Role::OutputNorm) => "output_norm".into(),
            (Format::Gguf, Role::OutputHead) => "output".into(),
            (Format::Gguf, Role::Layer(n, part)) => format!("blk.{n}.{}", gguf_layer(self.dialect, part)),
            (Format::HuggingFace, role) => hugging_face(self.dialect, role),
        }
    }

    /// Whether a fused query, key and value matrix is grouped by K/V head: its queries, its key, its value; otherwise all queries come first,
    /// then keys, then values.
    pub fn grouped_qkv(self, architecture: &str) -> bool {
        self.format == Format::HuggingFace && Family::find(architecture).is_ok_and(|family| family.grouped_qkv)
    }
}

const fn gguf_layer(dialect: Dialect, part: LayerRole) -> &'static str {
    match (dialect, part) {
        (Dialect::Falcon { two_norms: true }, LayerRole::AttnNorm) => "attn_norm_2",
        (Dialect::Falcon { two_norms: true }, LayerRole::MlpNorm) => "attn_norm",
        (_, LayerRole::AttnNorm) => "attn_norm",
        (_, LayerRole::Q) => "attn_q",
        (_, LayerRole::K) => "attn_k",
        (_, LayerRole::V) => "attn_v",
        (_, LayerRole::Qkv) => "attn_qkv",
        (_, LayerRole::QNorm) => "attn_q_norm",
        (_, LayerRole::KNorm) => "attn_k_norm",
        (_, LayerRole::AttnOut) => "attn_output",
        (_, LayerRole::AttnPostNorm) => "post_attention_norm",
        (_, LayerRole::MlpNorm) => "ffn_norm",
        (_, LayerRole::Gate) => "ffn_gate",
        (_, LayerRole::Up | LayerRole::GateUp) => "ffn_up",
        (_, LayerRole::Down) => "ffn_down",
        (_, LayerRole::MlpPostNorm) => "post_ffw_norm",
    }
}

fn hugging_face(dialect: Dialect, role: Role) -> String {
    let [embedding, norm, head, layers] = match dialect {
        Dialect::Llama | Dialect::Gemma => ["model.embed_tokens", "model.norm", "lm_head", "model.layers"],
        Dialect::Falcon { .. } => ["transformer.word_embeddings", "transformer.ln_f", "lm_head", "transformer.h"],
        Dialect::GptNeoX => ["gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out", "gpt_neox.layers"],
    };
    match role {
        Role::TokenEmbedding => embedding.into(),
        Role::OutputNorm => norm.into(),
        Role::OutputHead => head.into(),
        Role::Layer(n, part) => format!("{layers}.{n}.{}", hugging_face_layer(dialect, part)),
    }
}

const fn hugging_face_layer(dialect: Dialect, part: LayerRole) -> &'static str {
    match (dialect, part) {
        (Dialect::Falcon { two_norms: true }, LayerRole::AttnNorm) => "ln_attn",
        (Dialect::Falcon { two_norms: true }, LayerRole::MlpNorm) => "ln_mlp",
        (Dialect::Falcon { .. }, LayerRole::Qkv) => "self_attention.query_key_value",
        (Dialect::Falcon { .. }, LayerRole::AttnOut) => "self_attention.dense",
        (Dialect::GptNeoX, LayerRole::Qkv) => "attention.query_key_value",
        (Dialect::GptNeoX, LayerRole::AttnOut) => "attention.dense",
        (Dialect::Falcon { .. } | Dialect::GptNeoX, LayerRole::Up) => "mlp.dense_h_to_4h",
        (Dialect::Falcon { .. } | Dialect::GptNeoX, LayerRole::Down) => "mlp.dense_4h_to_h",
        (Dialect::Gemma, LayerRole::MlpNorm) => "pre_feedforward_layernorm",
        (_, LayerRole::AttnNorm) => "input_layernorm",
        (_, LayerRole::Q) => "self_attn.q_proj",
        (_, LayerRole::K) => "self_attn.k_proj",
        (_, LayerRole::V) => "self_attn.v_proj",
        (_, LayerRole::Qkv) => "self_attn.qkv_proj",
        (_, LayerRole::QNorm) => "self_attn.q_norm",
        (_, LayerRole::KNorm) => "self_attn.k_norm",
        (_, LayerRole::AttnOut) => "self_attn.o_proj",
        (_, LayerRole::AttnPostNorm | LayerRole::MlpNorm) => "post_attention_layernorm",
        (_, LayerRole::Gate) => "mlp.gate_proj",
        (_, LayerRole::Up) => "mlp.up_proj",
        (_, LayerRole::GateUp) => "mlp.gate_up_proj",
        (_, LayerRole::Down) => "mlp.down_proj",
        (_, LayerRole::MlpPostNorm) => "post_feedforward_layernorm",
    }
}
