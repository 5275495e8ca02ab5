//! What each file format calls a tensor: one table per format. A new family adds rows here and fields to the configuration, nothing else.

use super::{LayerRole, Role};

/// A file format's convention of tensor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// GGUF files, as llama.cpp writes them.
    Gguf,
    /// Hugging Face folders.
    HuggingFace,
}

impl Naming {
    /// The name of a tensor in this convention.
    pub fn name(self, role: Role) -> String {
        match (self, role) {
            (Naming::Gguf, Role::TokenEmbedding) => "token_embd.weight".into(),
            (Naming::Gguf, Role::OutputNorm) => "output_norm.weight".into(),
            (Naming::Gguf, Role::OutputHead) => "output.weight".into(),
            (Naming::Gguf, Role::Layer(n, part)) => format!("blk.{n}.{}.weight", gguf_layer(part)),
            (Naming::HuggingFace, Role::TokenEmbedding) => "model.embed_tokens.weight".into(),
            (Naming::HuggingFace, Role::OutputNorm) => "model.norm.weight".into(),
            (Naming::HuggingFace, Role::OutputHead) => "lm_head.weight".into(),
            (Naming::HuggingFace, Role::Layer(n, part)) => {
                format!("model.layers.{n}.{}.weight", hugging_face_layer(part))
            }
        }
    }
}

const fn gguf_layer(part: LayerRole) -> &'static str {
    match part {
        LayerRole::AttnNorm => "attn_norm",
        LayerRole::Q => "attn_q",
        LayerRole::K => "attn_k",
        LayerRole::V => "attn_v",
        LayerRole::AttnOut => "attn_output",
        LayerRole::MlpNorm => "ffn_norm",
        LayerRole::Gate => "ffn_gate",
        LayerRole::Up => "ffn_up",
        LayerRole::Down => "ffn_down",
    }
}

const fn hugging_face_layer(part: LayerRole) -> &'static str {
    match part {
        LayerRole::AttnNorm => "input_layernorm",
        LayerRole::Q => "self_attn.q_proj",
        LayerRole::K => "self_attn.k_proj",
        LayerRole::V => "self_attn.v_proj",
        LayerRole::AttnOut => "self_attn.o_proj",
        LayerRole::MlpNorm => "post_attention_layernorm",
        LayerRole::Gate => "mlp.gate_proj",
        LayerRole::Up => "mlp.up_proj",
        LayerRole::Down => "mlp.down_proj",
    }
}
