//! A transformer as naive formulas in f64 that reads `config.json` by itself: for families and options of which no other implementation's results
//! are at hand. It is held against those that are.

use std::collections::HashMap;
use std::path::Path;

use half::bf16;
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, Options};
use runahead::error::Error;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::kernels::reference::Random;
use super::model::{Expected, difference};
use super::weights::reference;

type Row = Vec<f64>;

struct Naive {
    config: Value,
    tensors: HashMap<String, Vec<Row>>,
}

impl Naive {
    fn open(folder: &Path) -> Self {
        let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let rows = |view: &TensorView<'_>| -> Vec<Row> {
            let values: Vec<f64> = match view.dtype() {
                Dtype::BF16 => view.data().as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
                _ => view.data().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            };
            values.chunks_exact(*view.shape().last().unwrap()).map(<[f64]>::to_vec).collect()
        };
        let tensors = file.tensors().iter().map(|(name, view)| (name.clone(), rows(view))).collect();
        Self { config, tensors }
    }

    fn kind(&self) -> &str {
        self.config["model_type"].as_str().unwrap()
    }

    fn gemma(&self) -> bool {
        self.kind().starts_with("gemma")
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.config[key].as_f64()
    }

    fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize
    }

    fn heads(&self) -> usize {
        self.size("num_attention_heads")
    }

    fn kv_heads(&self) -> usize {
        match (self.config["new_decoder_architecture"].as_bool(), self.config["multi_query"].as_bool()) {
            (Some(true), _) => self.size("num_kv_heads"),
            (_, Some(true)) => 1,
            _ if self.config["num_key_value_heads"].is_u64() => self.size("num_key_value_heads"),
            _ => self.heads(),
        }
    }

    fn head_dim(&self) -> usize {
        self.number("head_dim").map_or(self.size("hidden_size") / self.heads(), |d| d as usize)
    }

    fn names(&self) -> [&str; 4] {
        match self.kind() {
            "falcon" => ["transformer.word_embeddings", "transformer.ln_f", "lm_head", "transformer.h"],
            "gpt_neox" => ["gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out", "gpt_neox.layers"],
            _ => ["model.embed_tokens", "model.norm", "lm_head", "model.layers"],
        }
    }

    fn has(&self, stem: &str) -> bool {
        self.tensors.contains_key(&format!("{stem}.weight"))
    }

    fn linear(&self, stem: &str, x: &[f64]) -> Row {
        let mut out: Row = self.tensors[&format!("{stem}.weight")].iter().map(|row| dot(row, x)).collect();
        if let Some(bias) = self.tensors.get(&format!("{stem}.bias")) {
            out.iter_mut().zip(&bias[0]).for_each(|(y, b)| *y += b);
        }
        out
    }

    fn norm(&self, stem: &str, x: &[f64]) -> Row {
        let n = x.len() as f64;
        let eps =
            ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"].iter().find_map(|key| self.number(key)).unwrap();
        let bias = self.tensors.get(&format!("{stem}.bias"));
        let mean = if bias.is_some() { x.iter().sum::<f64>() / n } else { 0.0 };
        let factor = 1.0 / (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + eps).sqrt();
        let plus = if self.gemma() { 1.0 } else { 0.0 };
        let weight = &self.tensors[&format!("{stem}.weight")][0];
        let element = |i: usize| (x[i] - mean) * factor * (weight[i] + plus) + bias.map_or(0.0, |b| b[0][i]);
        (0..x.len()).map(element).collect()
    }

    /// Heads of queries, keys and values of one row.
    fn qkv(&self, prefix: &str, x: &[f64]) -> [Vec<Row>; 3] {
        let (heads, kv, d) = (self.heads(), self.kv_heads(), self.head_dim());
        let split = |row: &[f64]| row.chunks_exact(d).map(<[f64]>::to_vec).collect::<Vec<_>>();
        for stem in ["self_attention.query_key_value", "attention.query_key_value"] {
            let stem = format!("{prefix}.{stem}");
            if self.has(&stem) {
                let (all, per) = (split(&self.linear(&stem, x)), heads / kv);
                let group = |g: usize| g * (per + 2);
                let queries = (0..heads).map(|h| all[group(h / per) + h % per].clone()).collect();
                let pick = |i: usize| (0..kv).map(|g| all[group(g) + i].clone()).collect();
                return [queries, pick(per), pick(per + 1)];
            }
        }
        let fused = format!("{prefix}.self_attn.qkv_proj");
        if self.has(&fused) {
            let all = split(&self.linear(&fused, x));
            return [all[..heads].to_vec(), all[heads..heads + kv].to_vec(), all[heads + kv..].to_vec()];
        }
        let mut parts = ["q", "k", "v"].map(|part| split(&self.linear(&format!("{prefix}.self_attn.{part}_proj"), x)));
        for (part, heads) in ["q", "k"].iter().zip(&mut parts) {
            let stem = format!("{prefix}.self_attn.{part}_norm");
            if self.has(&stem) {
                heads.iter_mut().for_each(|head| *head = self.norm(&stem, head));
            }
        }
        parts
    }

    fn windowed(&self, layer: usize) -> bool {
        let pattern = self.number("sliding_window_pattern").unwrap_or(if self.kind() == "gemma2" { 2.0 } else { 6.0 });
        match self.config["layer_types"][layer].as_str() {
            Some(kind) => kind == "sliding_attention",
            None if self.gemma() => !(layer + 1).is_multiple_of(pattern as usize),
            None if self.kind() == "mistral" => true,
            None => self.config["use_sliding_window"] == true && layer >= self.size("max_window_layers"),
        }
    }

    /// Angle of every pair at position 1 and the factor of cosine and sine; none for layers that do not rotate.
    fn rope(&self, layer: usize, context: usize) -> Option<(Row, f64)> {
        if self.config["alibi"] == true || self.kind() == "smollm3" && (layer + 1).is_multiple_of(4) {
            return None;
        }
        let all = [&self.config["rope_parameters"], &self.config["rope_scaling"]].into_iter().find(|v| v.is_object());
        let none = json!({});
        let mut keys = all.unwrap_or(&none);
        let mut base = self.number("rope_theta");
        if self.gemma() && self.windowed(layer) && self.number("rope_local_base_freq").is_some() {
            (keys, base) = (&none, self.number("rope_local_base_freq"));
        }
        let nested = if self.windowed(layer) { "sliding_attention" } else { "full_attention" };
        keys = if keys[nested].is_object() { &keys[nested] } else { keys };
        let base = keys["rope_theta"].as_f64().or(base).unwrap_or(1e4);
        let part = keys["partial_rotary_factor"].as_f64().or(self.number("rotary_pct")).unwrap_or(1.0);
        let rotary = (self.head_dim() as f64 * part) as usize;
        let mut angles: Row = (0..rotary / 2).map(|i| base.powf(-2.0 * i as f64 / rotary as f64)).collect();
        let number = |key: &str| keys[key].as_f64().unwrap();
        let mut magnitude = 1.0;
        match keys["rope_type"].as_str().unwrap_or("default") {
            "default" => {}
            "linear" => angles.iter_mut().for_each(|a| *a /= number("factor")),
            "llama3" => angles.iter_mut().for_each(|a| {
                let turns = number("original_max_position_embeddings") * *a / std::f64::consts::TAU;
                let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                *a *= keep + (1.0 - keep) / number("factor");
            }),
            "longrope" => {
                let original = self.size("original_max_position_embeddings");
                let list = if context > original { "long_factor" } else { "short_factor" };
                angles.iter_mut().enumerate().for_each(|(i, a)| *a /= keys[list][i].as_f64().unwrap());
                let stretch = self.size("max_position_embeddings") as f64 / original as f64;
                magnitude = (1.0 + stretch.ln() / (original as f64).ln()).sqrt();
            }
            other => panic!("{other}"),
        }
        Some((angles, magnitude))
    }

    fn attention(&self, layer: usize, qkv: &[[Vec<Row>; 3]], context: usize) -> Vec<Row> {
        let (heads, kv, d) = (self.heads(), self.kv_heads(), self.head_dim());
        let mut qkv = qkv.to_vec();
        if let Some((angles, magnitude)) = self.rope(layer, context) {
            for (position, row) in qkv.iter_mut().enumerate() {
                for head in row[..2].iter_mut().flatten() {
                    for (i, angle) in angles.iter().enumerate() {
                        let (sin, cos) = (position as f64 * angle).sin_cos();
                        let (a, b) = (head[i], head[i + angles.len()]);
                        head[i] = magnitude * (a * cos - b * sin);
                        head[i + angles.len()] = magnitude * (b * cos + a * sin);
                    }
                }
            }
        }
        let scale = self.number("query_pre_attn_scalar").unwrap_or(d as f64).powf(-0.5);
        let window = self.number("sliding_window").filter(|_| self.windowed(layer)).unwrap_or(f64::MAX);
        let score = |head: usize, p: usize, key: usize| {
            let mut s = dot(&qkv[p][0][head], &qkv[key][1][head / (heads / kv)]) * scale;
            if self.config["alibi"] == true {
                s += scale * self.alibi(head, key);
            }
            self.number("attn_logit_softcapping").map_or(s, |cap| cap * (s / cap).tanh())
        };
        let row = |p: usize| {
            let first = (p as f64 + 1.0 - window).max(0.0) as usize;
            let one = |head: usize| {
                let scores: Row = (first..=p).map(|key| score(head, p, key)).collect();
                let most = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
                let weights: Row = scores.iter().map(|s| (s - most).exp()).collect();
                let total: f64 = weights.iter().sum();
                let column = |i: usize| {
                    let values = (first..=p).map(|key| qkv[key][2][head / (heads / kv)][i]);
                    values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / total
                };
                (0..d).map(column).collect::<Row>()
            };
            (0..heads).flat_map(one).collect()
        };
        (0..qkv.len()).map(row).collect()
    }

    /// With the roundings of Hugging Face transformers, and twice where its version 5 saved the model.
    fn alibi(&self, head: usize, key: usize) -> f64 {
        let whole = self.heads().next_power_of_two() / if self.heads().is_power_of_two() { 1 } else { 2 };
        let (i, n) = if head < whole { (head + 1, whole) } else { (2 * (head - whole) + 1, 2 * whole) };
        let round = |x: f64| bf16::from_f64(x).to_f64();
        let twice = self.config["transformers_version"].as_str().is_some_and(|v| v.starts_with('5'));
        round(round((-8.0 * i as f64 / n as f64).exp2()) * round(key as f64)) * if twice { 2.0 } else { 1.0 }
    }

    fn mlp(&self, prefix: &str, x: &[f64]) -> Row {
        let plain = format!("{prefix}.mlp.dense_h_to_4h");
        if self.has(&plain) {
            let hidden = self.linear(&plain, x).iter().map(|&z| gelu(z)).collect::<Row>();
            return self.linear(&format!("{prefix}.mlp.dense_4h_to_h"), &hidden);
        }
        let fused = format!("{prefix}.mlp.gate_up_proj");
        let (gate, up) = if self.has(&fused) {
            let both = self.linear(&fused, x);
            (both[..both.len() / 2].to_vec(), both[both.len() / 2..].to_vec())
        } else {
            (self.linear(&format!("{prefix}.mlp.gate_proj"), x), self.linear(&format!("{prefix}.mlp.up_proj"), x))
        };
        let act = |z: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
            if self.gemma() { z / 2.0 * (1.0 + u.tanh()) } else { z / (1.0 + (-z).exp()) }
        };
        let hidden: Row = gate.iter().zip(&up).map(|(g, u)| act(*g) * u).collect();
        self.linear(&format!("{prefix}.mlp.down_proj"), &hidden)
    }

    fn block(&self, layer: usize, xs: &mut [Row], context: usize) {
        let prefix = format!("{}.{layer}", self.names()[3]);
        let name = |stem: &str| format!("{prefix}.{stem}");
        let before = if self.has(&name("ln_attn")) { name("ln_attn") } else { name("input_layernorm") };
        let qkv: Vec<_> = xs.iter().map(|x| self.qkv(&prefix, &self.norm(&before, x))).collect();
        let out = ["self_attn.o_proj", "self_attention.dense", "attention.dense"].map(name);
        let out = out.iter().find(|stem| self.has(stem)).unwrap();
        for (x, heads) in xs.iter_mut().zip(self.attention(layer, &qkv, context)) {
            let attended = self.linear(out, &heads);
            let shared = self.config["parallel_attn"] == true;
            let parallel = shared || self.config["use_parallel_residual"] == true;
            if self.gemma() {
                add(x, &self.norm(&name("post_attention_layernorm"), &attended));
                let y = self.mlp(&prefix, &self.norm(&name("pre_feedforward_layernorm"), x));
                add(x, &self.norm(&name("post_feedforward_layernorm"), &y));
                continue;
            }
            let norms = [name("ln_mlp"), if shared { before.clone() } else { name("post_attention_layernorm") }];
            let norm = norms.iter().find(|stem| self.has(stem)).unwrap();
            let y = parallel.then(|| self.mlp(&prefix, &self.norm(norm, x)));
            add(x, &attended);
            let y = y.unwrap_or_else(|| self.mlp(&prefix, &self.norm(norm, x)));
            add(x, &y);
        }
    }

    fn logits(&self, ids: &[u32], context: usize) -> Vec<f32> {
        let [embedding, norm, head, _] = self.names();
        let scale = if self.gemma() { self.number("hidden_size").unwrap().sqrt() } else { 1.0 };
        let table = &self.tensors[&format!("{embedding}.weight")];
        let embed = |&id: &u32| table[id as usize].iter().map(|v| v * scale).collect::<Row>();
        let mut xs: Vec<Row> = ids.iter().map(embed).collect();
        (0..self.size("num_hidden_layers")).for_each(|layer| self.block(layer, &mut xs, context));
        let head = if self.has(head) { head } else { embedding };
        let cap = |z: f64| self.number("final_logit_softcapping").map_or(z, |cap| cap * (z / cap).tanh());
        let row =
            |x: &Row| self.linear(head, &self.norm(norm, x)).into_iter().map(|z| cap(z) as f32).collect::<Vec<_>>();
        xs.iter().flat_map(row).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn gelu(z: f64) -> f64 {
    let sum = super::kernels::reference::Value { want: z, scale: 0.0 };
    super::kernels::reference::gelu(&[sum])[0].want
}

/// Logits of every row `[ids, vocab]` of the model in a folder, opened for `context` tokens.
pub fn logits(folder: &Path, ids: &[u32], context: usize) -> Vec<f32> {
    Naive::open(folder).logits(ids, context)
}

#[test]
fn the_naive_model_agrees_with_other_implementations() {
    for name in [
        "llama-gqa-tied",
        "llama3-rope",
        "mistral-window",
        "qwen2",
        "qwen3",
        "gemma3",
        "phi3",
        "falcon-7b-mqa",
        "falcon-40b-gqa",
        "falcon-rw-alibi",
    ] {
        let expected = Expected::read(name);
        let (n, vocab) = (32, expected.logits.len() / expected.ids.len());
        let got = Naive::open(&reference(name)).logits(&expected.ids[..n], 256);
        let off = difference(&got, &expected.logits[..n * vocab]);
        assert!(off < 1e-4, "{name}: {off:.2e} of a standard deviation");
    }
}

/// Tensors of a model of this configuration, with random content.
pub fn write_model(config: &Value, seed: u64) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut random = Random::new(seed);
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let centre = if name.contains("norm") && name.ends_with("weight") { 0.8 } else { 0.0 };
            let size = if shape.len() == 2 { 1.6 / (shape[1] as f32).sqrt() } else { 0.3 };
            let values = (0..shape.iter().product()).flat_map(|_| (centre + size * random.symmetric()).to_le_bytes());
            (name, shape, values.collect())
        })
        .collect();
    let views =
        data.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(folder.path().join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    folder
}

fn shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let model = Naive { config: config.clone(), tensors: HashMap::new() };
    let [embedding, norm, head, layers] = model.names();
    let (hidden, vocab) = (model.size("hidden_size"), model.size("vocab_size"));
    let ffn = model.size(if model.kind() == "falcon" { "ffn_hidden_size" } else { "intermediate_size" });
    let (q, kv) = (model.heads() * model.head_dim(), model.kv_heads() * model.head_dim());
    let biased = config["bias"] == true || model.kind() == "gpt_neox";
    let layer_norm = matches!(model.kind(), "falcon" | "gpt_neox");
    let mut all = vec![(format!("{embedding}.weight"), vec![vocab, hidden]), (format!("{norm}.weight"), vec![hidden])];
    let mut push = |name: String, shape: Vec<usize>, bias: bool| {
        if bias {
            all.push((format!("{name}.bias"), vec![shape[0]]));
        }
        all.push((format!("{name}.weight"), shape));
    };
    if config["tie_word_embeddings"] == false {
        push(head.to_owned(), vec![vocab, hidden], false);
    }
    for n in 0..model.size("num_hidden_layers") {
        let mut push = |stem: &str, shape: &[usize], bias| push(format!("{layers}.{n}.{stem}"), shape.to_vec(), bias);
        push("input_layernorm", &[hidden], layer_norm);
        push("post_attention_layernorm", &[hidden], layer_norm);
        if layer_norm {
            let attention = if model.kind() == "falcon" { "self_attention" } else { "attention" };
            push(&format!("{attention}.query_key_value"), &[q + 2 * kv, hidden], biased);
            push(&format!("{attention}.dense"), &[hidden, q], biased);
            push("mlp.dense_h_to_4h", &[ffn, hidden], biased);
            push("mlp.dense_4h_to_h", &[hidden, ffn], biased);
            continue;
        }
        if model.gemma() {
            push("pre_feedforward_layernorm", &[hidden], false);
            push("post_feedforward_layernorm", &[hidden], false);
        }
        if model.kind() == "gemma3_text" {
            push("self_attn.q_norm", &[model.head_dim()], false);
            push("self_attn.k_norm", &[model.head_dim()], false);
        }
        if model.kind() == "phi3" {
            push("self_attn.qkv_proj", &[q + 2 * kv, hidden], false);
            push("mlp.gate_up_proj", &[2 * ffn, hidden], false);
        } else {
            let bias = model.kind() == "qwen2";
            push("self_attn.q_proj", &[q, hidden], bias);
            push("self_attn.k_proj", &[kv, hidden], bias);
            push("self_attn.v_proj", &[kv, hidden], bias);
            push("mlp.gate_proj", &[ffn, hidden], false);
            push("mlp.up_proj", &[ffn, hidden], false);
        }
        push("self_attn.o_proj", &[hidden, q], false);
        push("mlp.down_proj", &[hidden, ffn], false);
    }
    if layer_norm {
        all.push((format!("{norm}.bias"), vec![hidden]));
    }
    all
}

fn check(what: &str, seed: u64, config: Value) {
    let folder = write_model(&config, seed);
    check_files(what, seed, folder.path(), folder.path());
    // ALiBi has no form in GGUF files, nor have Qwen's windows.
    if !matches!(config["model_type"].as_str().unwrap(), "falcon" | "qwen2") {
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, super::families::convert(folder.path()).build()).unwrap();
        check_files(&format!("{what} as GGUF"), seed, folder.path(), &path);
    }
}

/// The engine on the files at `path` against the naive model of `folder`.
fn check_files(what: &str, seed: u64, folder: &Path, path: &Path) {
    const CONTEXT: usize = 64;
    let naive = Naive::open(folder);
    let mut random = Random::new(seed + 100);
    let ids: Vec<u32> = (0..53).map(|_| random.below(naive.size("vocab_size")) as u32).collect();
    let want = naive.logits(&ids, CONTEXT);
    for devices in [vec![DeviceId::Cpu], vec![DeviceId::Gpu(0); 2], vec![DeviceId::Gpu(0), DeviceId::Cpu]] {
        let engine = Engine::builder(path).unwrap().devices(devices.clone()).kv(KvDtype::F32).context(CONTEXT);
        let engine = engine.open().unwrap_or_else(|e| panic!("{what}: {e}"));
        let got = engine.session().unwrap().logits(&ids, &Options::default()).unwrap();
        let off = difference(&got, &want);
        assert!(off < 1e-3, "{what} on {devices:?}: {off:.2e} of a standard deviation");
        // The decode kernels: the arg-max continuation of all but a few tokens.
        let options = Options { max_tokens: 6, stop_at_end: false, ..Options::default() };
        let mut session = engine.session().unwrap();
        let answer: Vec<u32> = session.generate(&ids[..40], &options).unwrap().map(|t| t.unwrap().id).collect();
        let all: Vec<u32> = ids[..40].iter().chain(&answer[..5]).copied().collect();
        let vocab = naive.size("vocab_size");
        let rows = naive.logits(&all, CONTEXT);
        for (i, &token) in answer.iter().enumerate() {
            let row = &rows[(39 + i) * vocab..(40 + i) * vocab];
            let best = row.iter().copied().fold(f32::MIN, f32::max);
            let deficit = f64::from(best - row[token as usize]);
            assert!(deficit < 1e-2, "{what} on {devices:?}: token {i} is not the best by {deficit:.2e}");
        }
    }
}

/// Sizes that are multiples of nothing but 4.
pub fn sized(changes: Value) -> Value {
    let mut config = json!({
        "hidden_size": 44, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12,
        "intermediate_size": 68, "vocab_size": 131, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

#[test]
fn gemma2() {
    let config = sized(json!({
        "model_type": "gemma2", "sliding_window": 9, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0, "num_key_value_heads": 1, "head_dim": 20,
    }));
    check("gemma2", 1, config);
}

#[test]
fn gemma3_with_the_keys_of_transformers_4() {
    let config = sized(json!({
        "model_type": "gemma3_text", "sliding_window": 11, "sliding_window_pattern": 3, "query_pre_attn_scalar": 12,
        "rope_theta": 1e6, "rope_local_base_freq": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }));
    check("gemma3", 2, config);
}

#[test]
fn smollm3() {
    check("smollm3", 3, sized(json!({"model_type": "smollm3", "rope_theta": 5e4})));
}

fn neox(parallel: bool, rotary: f64) -> Value {
    sized(json!({
        "model_type": "gpt_neox", "rotary_pct": rotary, "num_key_value_heads": null, "use_parallel_residual": parallel,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": false, "hidden_size": 72, "head_dim": null, "hidden_act": "gelu",
    }))
}

#[test]
fn gpt_neox() {
    for (parallel, rotary) in [(true, 0.34), (false, 0.67)] {
        check("gpt_neox", 4, neox(parallel, rotary));
    }
}

#[test]
fn a_causal_mask_that_is_called_a_bias_is_none() {
    let mut config = neox(true, 0.25);
    config["hidden_size"] = json!(96);
    let folder = write_model(&config, 4);
    let path = folder.path().join("model.safetensors");
    let written = std::fs::read(&path).unwrap();
    let open = |extra: &str| {
        let mask = TensorView::new(Dtype::U8, vec![1, 1, 4, 4], &[1; 16]).unwrap();
        let all = SafeTensors::deserialize(&written).unwrap().tensors().into_iter().chain([(extra.to_owned(), mask)]);
        std::fs::write(&path, serialize(all, None).unwrap()).unwrap();
        Engine::builder(folder.path()).unwrap().devices([DeviceId::Cpu]).context(64).open()
    };
    let whole = open("gpt_neox.layers.1.attention.bias").unwrap().config().clone();
    let error = open("gpt_neox.layers.1.mlp.bias").err();
    assert!(matches!(&error, Some(Error::Unsupported { what: "bias", .. })), "{error:?}");
    // Both are what the library that reads these files takes where they say nothing.
    config["use_parallel_residual"] = Value::Null;
    config["rotary_pct"] = Value::Null;
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(&path, written).unwrap();
    assert_eq!(*Engine::builder(folder.path()).unwrap().config(), whole);
}

#[test]
fn phi3_with_longrope() {
    for original in [32, 96] {
        let config = sized(json!({
            "model_type": "phi3", "original_max_position_embeddings": original, "tie_word_embeddings": false,
            "rope_scaling": {
                "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.5, 1.6, 2.0],
                "long_factor": [1.0, 2.0, 4.0, 5.0, 8.0, 16.0],
            },
        }));
        check("phi3", 5, config);
    }
}

#[test]
fn windows_of_some_layers_and_of_all() {
    let mistral =
        json!({"model_type": "mistral", "sliding_window": 5, "num_attention_heads": 5, "num_key_value_heads": 1});
    check("mistral", 6, sized(mistral));
    let qwen2 =
        json!({"model_type": "qwen2", "sliding_window": 20, "use_sliding_window": true, "max_window_layers": 2});
    check("qwen2", 7, sized(qwen2));
}

#[test]
fn falcon_rw_with_a_number_of_heads_that_is_no_power_of_two() {
    let config = sized(json!({
        "model_type": "falcon", "alibi": true, "bias": true, "multi_query": false, "new_decoder_architecture": false,
        "parallel_attn": false, "hidden_size": 72, "head_dim": null, "ffn_hidden_size": 100, "layer_norm_epsilon": 1e-5,
        "num_key_value_heads": null, "intermediate_size": null, "transformers_version": "4.27.4",
    }));
    check("falcon-rw", 8, config);
}
