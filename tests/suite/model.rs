//! Whole models against results that other implementations computed: tiny random ones from Hugging Face transformers, and SmolLM2.

use std::path::Path;

use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, Options};
use safetensors::SafeTensors;
use serde_json::Value;

use super::chain::reference;
use DeviceId::{Cpu, Gpu};

/// Largest absolute difference over the standard deviation of `want`.
pub fn difference(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let n = want.len() as f64;
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let most = got.iter().zip(want).map(|(&g, &w)| (f64::from(g) - f64::from(w)).abs());
    // A NaN must not pass as a small difference.
    most.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) }) / variance.sqrt()
}

/// A chain for every kind of hand-off, and the tolerance of each cache type.
const CHAINS: [&[DeviceId]; 5] = [&[Gpu(0)], &[Cpu], &[Gpu(0); 3], &[Cpu; 2], &[Gpu(0), Cpu]];
const CACHES: [(KvDtype, f64); 2] = [(KvDtype::F32, 1e-3), (KvDtype::F16, 2e-2)];

/// What another implementation computed.
pub struct Expected {
    pub ids: Vec<u32>,
    /// `[ids, vocab]`.
    pub logits: Vec<f32>,
    /// The arg-max continuation.
    pub greedy: Vec<u32>,
}

impl Expected {
    pub fn read(name: &str) -> Self {
        let file = std::fs::read(reference(name).join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let numbers = |name: &str| bytemuck::pod_collect_to_vec::<u8, u32>(file.tensor(name).unwrap().data());
        let logits = bytemuck::pod_collect_to_vec(file.tensor("logits").unwrap().data());
        Self { ids: numbers("input_ids"), logits, greedy: numbers("greedy") }
    }
}

fn check_reference(family: &str) {
    let Expected { ids, logits: want, greedy } = Expected::read(family);
    for devices in CHAINS {
        for (kv, tolerance) in CACHES {
            let engine = Engine::builder(reference(family)).unwrap().devices(devices.to_vec()).kv(kv).context(256);
            let engine = engine.open().unwrap();
            let got = engine.session().unwrap().logits(&ids, &Options::default()).unwrap();
            let off = difference(&got, &want);
            assert!(off < tolerance, "{family} {devices:?} {kv:?}: {off:.2e} of a standard deviation");
            if kv == KvDtype::F32 {
                let options = Options { max_tokens: greedy.len(), stop_at_end: false, ..Options::default() };
                let mut session = engine.session().unwrap();
                let got: Vec<u32> = session.generate(&ids, &options).unwrap().map(|t| t.unwrap().id).collect();
                assert_eq!(got, greedy, "{family} {devices:?}");
            }
        }
    }
}

#[test]
fn llama_mha() {
    check_reference("llama-mha");
}

#[test]
fn llama_gqa_tied() {
    check_reference("llama-gqa-tied");
}

#[test]
fn llama3_rope() {
    check_reference("llama3-rope");
}

#[test]
fn mistral_window() {
    check_reference("mistral-window");
}

#[test]
fn qwen2() {
    check_reference("qwen2");
}

#[test]
fn qwen3() {
    check_reference("qwen3");
}

#[test]
fn gemma3() {
    check_reference("gemma3");
}

#[test]
fn phi3() {
    check_reference("phi3");
}

#[test]
fn falcon_7b_mqa() {
    check_reference("falcon-7b-mqa");
}

#[test]
fn falcon_40b_gqa() {
    check_reference("falcon-40b-gqa");
}

#[test]
fn falcon_rw_alibi() {
    check_reference("falcon-rw-alibi");
}

/// SmolLM2's expected prompts, logits and answers.
fn smollm2_cases() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference/smollm2/expected.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn check_smollm2(devices: &[DeviceId], kv: KvDtype, tolerance: f64) {
    let engine = Engine::builder(super::weights::smollm2()).unwrap().devices(devices.to_vec()).kv(kv).context(128);
    let engine = engine.open().unwrap();
    for case in smollm2_cases() {
        let name = format!("{} {devices:?} {kv:?}", case["name"]);
        let ids: Vec<u32> = numbers(&case["ids"]).iter().map(|&x| x as u32).collect();
        let vocab = engine.config().vocab;
        let logits = engine.session().unwrap().logits(&ids, &Options::default()).unwrap();

        let last = &logits[(ids.len() - 1) * vocab..];
        let mean = last.iter().map(|&x| f64::from(x)).sum::<f64>() / vocab as f64;
        let deviation = (last.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / vocab as f64).sqrt();
        for pair in case["top10"].as_array().unwrap() {
            let [id, want] = numbers(pair)[..] else { panic!("{pair}") };
            let off = (f64::from(last[id as usize]) - want).abs() / deviation;
            assert!(off < tolerance, "{name}: logit {id} is off by {off:.2e} of a standard deviation");
        }

        let nll: f64 = ids[1..].iter().zip(logits.chunks(vocab)).map(|(&next, row)| surprise(row, next as usize)).sum();
        let (nll, want) = (nll / (ids.len() - 1) as f64, case["nll"].as_f64().unwrap());
        assert!((nll - want).abs() < tolerance * deviation, "{name}: NLL {nll} instead of {want}");

        // Tokens follow the reference up to the first whose margin the cache's rounding may turn.
        let greedy: Vec<u32> = numbers(&case["greedy"]).iter().map(|&x| x as u32).collect();
        let sure = numbers(&case["margins"]).iter().take_while(|&&m| m > 2.0 * tolerance * deviation).count();
        let options = Options { max_tokens: sure, stop_at_end: false, ..Options::default() };
        let mut session = engine.session().unwrap();
        let got: Vec<u32> = session.generate(&ids, &options).unwrap().map(|t| t.unwrap().id).collect();
        assert!(sure > 0, "{name}");
        assert_eq!(got, greedy[..sure], "{name}");
    }
}

/// Negative log-probability of `next`.
fn surprise(row: &[f32], next: usize) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - most).exp()).sum();
    sum.ln() - f64::from(row[next] - most)
}

#[test]
fn smollm2_with_an_f32_cache() {
    check_smollm2(&[Cpu], KvDtype::F32, 1e-3);
    check_smollm2(&[Gpu(0)], KvDtype::F32, 1e-3);
}

#[test]
fn smollm2_on_chains() {
    for devices in [&[Gpu(0); 3][..], &[Cpu; 2], &[Gpu(0), Cpu]] {
        check_smollm2(devices, KvDtype::F16, 2e-2);
    }
}
