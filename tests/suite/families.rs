//! Families of models in GGUF files: the tiny reference models, stored as llama.cpp's converter stores them, give the reference's logits.

use std::collections::HashMap;
use std::path::Path;

use half::bf16;
use runahead::Error;
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, Options};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use super::model::{Expected, difference};
use super::weights::{GgufBuilder, reference};

const F32: u32 = 0;
const BF16: u32 = 30;

/// A tensor of a Hugging Face file: rows of bf16 or f32.
struct Rows {
    kind: u32,
    width: usize,
    rows: Vec<Vec<u8>>,
    vector: bool,
}

impl Rows {
    fn floats(&self, plus: f32) -> Vec<u8> {
        let values = self.rows.iter().flatten().copied().collect::<Vec<u8>>();
        let floats: Vec<f32> = match self.kind {
            BF16 => values.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        };
        floats.iter().flat_map(|x| (x + plus).to_le_bytes()).collect()
    }

    /// Rows in another order.
    fn pick(&self, order: impl IntoIterator<Item = usize>) -> Self {
        let rows = order.into_iter().map(|i| self.rows[i].clone()).collect();
        Self { rows, ..*self }
    }
}

fn tensors(folder: &Path) -> HashMap<String, Rows> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let rows = |view: &safetensors::tensor::TensorView<'_>| {
        let (vector, width) = (view.shape().len() == 1, view.shape().get(1).copied().unwrap_or(1));
        let (kind, bytes) = if view.dtype() == Dtype::BF16 { (BF16, 2) } else { (F32, 4) };
        Rows { kind, width, rows: view.data().chunks_exact(bytes * width).map(<[u8]>::to_vec).collect(), vector }
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), rows(view))).collect()
}

/// What the converter calls the tensors of a block.
const LAYER: [(&str, &str); 23] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attention.query_key_value", "attn_qkv"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attention.dense", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("ln_attn", "attn_norm_2"),
    ("ln_mlp", "attn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

fn gguf_name(name: &str, gemma: bool) -> String {
    let (stem, suffix) = name.rsplit_once('.').unwrap();
    let stem = match stem {
        "model.embed_tokens" | "transformer.word_embeddings" | "gpt_neox.embed_in" => "token_embd".to_owned(),
        "model.norm" | "transformer.ln_f" | "gpt_neox.final_layer_norm" => "output_norm".to_owned(),
        "lm_head" | "embed_out" => "output".to_owned(),
        _ => {
            let starts = ["model.layers.", "transformer.h.", "gpt_neox.layers."];
            let block = starts.iter().find_map(|start| stem.strip_prefix(start)).unwrap();
            let (n, part) = block.split_once('.').unwrap();
            let part = match part {
                "post_attention_layernorm" if gemma => "post_attention_norm",
                _ => LAYER.iter().find(|(theirs, _)| *theirs == part).unwrap().1,
            };
            format!("blk.{n}.{part}")
        }
    };
    format!("{stem}.{suffix}")
}

/// Sizes of a model that decide how rows are reordered.
#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Heads {
    /// Queries and keys of Llama's kin: the two halves of a head alternate.
    fn adjacent(self, tensor: &Rows) -> Rows {
        let half = self.head_dim / 2;
        tensor.pick((0..tensor.rows.len()).map(|row| {
            let (head, i) = (row / self.head_dim, row % self.head_dim);
            head * self.head_dim + i % 2 * half + i / 2
        }))
    }

    /// Falcon's groups of queries, key and value: all queries, all keys, all values.
    fn ungrouped(self, tensor: &Rows) -> Rows {
        let per = self.heads / self.kv_heads;
        let head =
            |group: usize, i: usize| (0..self.head_dim).map(move |d| (group * (per + 2) + i) * self.head_dim + d);
        let queries = (0..self.heads).flat_map(|q| head(q / per, q % per));
        let keys = (0..self.kv_heads).flat_map(|group| head(group, per));
        let values = (0..self.kv_heads).flat_map(|group| head(group, per + 1));
        tensor.pick(queries.chain(keys).chain(values))
    }
}

/// The file that llama.cpp's converter would write.
pub fn convert(folder: &Path) -> GgufBuilder {
    let text = std::fs::read(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    let size = |key: &str| config[key].as_u64().map(|n| n as u32);
    let arch = match config["model_type"].as_str().unwrap() {
        "mistral" => "llama",
        "gemma3_text" => "gemma3",
        "gpt_neox" => "gptneox",
        other => other,
    };
    let (hidden, n_heads) = (size("hidden_size").unwrap(), size("num_attention_heads").unwrap());
    let kv_heads = match config["multi_query"].as_bool().filter(|_| config["new_decoder_architecture"] == false) {
        Some(true) => 1,
        _ => size("num_key_value_heads").or(size("num_kv_heads")).unwrap_or(n_heads),
    };
    let head_dim = size("head_dim").unwrap_or(hidden / n_heads);
    let key = |name: &str| format!("{arch}.{name}");
    let rope = &config["rope_parameters"];
    let base = [&rope["rope_theta"], &rope["full_attention"]["rope_theta"], &config["rope_theta"]];
    let base = base.iter().find_map(|base| base.as_f64()).unwrap_or(1e4);
    let mut file = GgufBuilder::new()
        .text("general.architecture", arch)
        .u32(&key("block_count"), size("num_hidden_layers").unwrap())
        .u32(&key("context_length"), size("max_position_embeddings").unwrap())
        .u32(&key("embedding_length"), hidden)
        .u32(&key("feed_forward_length"), size("intermediate_size").or(size("ffn_hidden_size")).unwrap())
        .u32(&key("attention.head_count"), n_heads)
        .u32(&key("attention.head_count_kv"), kv_heads)
        .u32(&key("attention.key_length"), head_dim)
        .u32(&key("attention.value_length"), head_dim)
        .f32(&key("rope.freq_base"), base as f32);
    let layer_norm_eps = config["layer_norm_epsilon"].as_f64().or(config["layer_norm_eps"].as_f64());
    file = match (layer_norm_eps, config["rms_norm_eps"].as_f64()) {
        (None, Some(eps)) => file.f32(&key("attention.layer_norm_rms_epsilon"), eps as f32),
        (eps, _) => file.f32(&key("attention.layer_norm_epsilon"), eps.unwrap() as f32),
    };
    if let Some(window) = size("sliding_window") {
        file = file.u32(&key("attention.sliding_window"), window);
    }
    if arch == "gemma3" {
        // The reference has one layer with a window, one without.
        let pattern = size("sliding_window_pattern").unwrap_or(2);
        let local = config["rope_local_base_freq"].as_f64().unwrap_or(1e4);
        file =
            file.u32(&key("attention.sliding_window_pattern"), pattern).f32(&key("rope.freq_base_swa"), local as f32);
    }
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(value) = config[cap].as_f64() {
            file = file.f32(&key(cap), value as f32);
        }
    }
    if let Some(part) = config["rotary_pct"].as_f64() {
        file = file.u32(&key("rope.dimension_count"), (f64::from(head_dim) * part) as u32);
    }
    if let Some(parallel) = config["use_parallel_residual"].as_bool() {
        file = file.flag(&key("use_parallel_residual"), parallel);
    }
    let scaling = &config["rope_scaling"];
    if scaling["rope_type"] == "linear" {
        file = file.text(&key("rope.scaling.type"), "linear");
        file = file.f32(&key("rope.scaling.factor"), scaling["factor"].as_f64().unwrap() as f32);
    }
    if scaling["rope_type"] == "longrope" {
        let original = size("original_max_position_embeddings").unwrap();
        let stretch = f64::from(size("max_position_embeddings").unwrap()) / f64::from(original);
        let magnitude = (1.0 + stretch.ln() / f64::from(original).ln()).sqrt();
        file = file.u32(&key("rope.scaling.original_context_length"), original);
        file = file.f32(&key("rope.scaling.attn_factor"), magnitude as f32);
        for (ours, theirs) in [("short", "short_factor"), ("long", "long_factor")] {
            let factors = scaling[theirs].as_array().unwrap();
            let bytes = factors.iter().flat_map(|f| (f.as_f64().unwrap() as f32).to_le_bytes()).collect();
            file = file.tensor(&format!("rope_factors_{ours}.weight"), &[factors.len() as u64], F32, bytes);
        }
    }
    if rope["rope_type"] == "llama3" {
        file = file.tensor("rope_freqs.weight", &[u64::from(head_dim / 2)], F32, llama3_factors(rope, head_dim));
    }
    let heads = Heads { heads: n_heads as usize, kv_heads: kv_heads as usize, head_dim: head_dim as usize };
    add_tensors(file, folder, arch, heads)
}

/// The divisors of frequencies, as the converter writes them.
fn llama3_factors(rope: &Value, head_dim: u32) -> Vec<u8> {
    let number = |key: &str| rope[key].as_f64().unwrap();
    let (factor, original) = (number("factor"), number("original_max_position_embeddings"));
    let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
    let divisor = |i: u32| {
        let wavelength = std::f64::consts::TAU * number("rope_theta").powf(f64::from(2 * i) / f64::from(head_dim));
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).flat_map(|i| (divisor(i) as f32).to_le_bytes()).collect()
}

fn add_tensors(mut file: GgufBuilder, folder: &Path, arch: &str, heads: Heads) -> GgufBuilder {
    let gemma = arch.starts_with("gemma");
    for (theirs, tensor) in tensors(folder) {
        let ours = gguf_name(&theirs, gemma);
        let tensor = match () {
            () if matches!(arch, "llama" | "smollm3") && (ours.contains("attn_q.") || ours.contains("attn_k.")) => {
                heads.adjacent(&tensor)
            }
            () if matches!(arch, "falcon" | "gptneox") && ours.contains("attn_qkv") => heads.ungrouped(&tensor),
            () => tensor,
        };
        let n = tensor.rows.len() as u64;
        file = if tensor.vector {
            let plus = if gemma && ours.contains("norm") { 1.0 } else { 0.0 };
            file.tensor(&ours, &[n], F32, tensor.floats(plus))
        } else {
            file.tensor(&ours, &[tensor.width as u64, n], tensor.kind, tensor.rows.concat())
        };
    }
    file
}

fn check(name: &str) {
    let (expected, folder) = (Expected::read(name), TempDir::new().unwrap());
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, convert(&reference(name)).build()).unwrap();
    for devices in [vec![DeviceId::Cpu], vec![DeviceId::Gpu(0); 2]] {
        let engine = Engine::builder(&path).unwrap().devices(devices.clone()).kv(KvDtype::F32).context(256);
        let got = engine.open().unwrap().session().unwrap().logits(&expected.ids, &Options::default()).unwrap();
        let off = difference(&got, &expected.logits);
        assert!(off < 1e-3, "{name} as GGUF on {devices:?}: {off:.2e} of a standard deviation");
    }
}

/// What a file says and nothing computes is an error, by name.
#[test]
fn a_bias_that_no_product_takes_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let file = convert(&reference("qwen2")).tensor("blk.1.attn_sinks.bias", &[4], F32, vec![0; 16]);
    std::fs::write(&path, file.build()).unwrap();
    let error = Engine::builder(&path).unwrap().devices(vec![DeviceId::Cpu]).open().err().unwrap();
    assert!(matches!(&error, Error::Unsupported { what: "bias", name } if name == "blk.1.attn_sinks.bias"), "{error}");
}

#[test]
fn llama_and_mistral() {
    ["llama-mha", "llama-gqa-tied", "llama3-rope", "mistral-window"].into_iter().for_each(check);
}

#[test]
fn qwen() {
    ["qwen2", "qwen3"].into_iter().for_each(check);
}

#[test]
fn gemma3() {
    check("gemma3");
}

#[test]
fn phi3() {
    check("phi3");
}

#[test]
fn falcon() {
    ["falcon-7b-mqa", "falcon-40b-gqa"].into_iter().for_each(check);
}
