//! The command line: what goes to which stream, the keys of the JSON, exit codes.

#![allow(clippy::unwrap_used)] // also in the helpers of the tests

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::chain::reference;
use super::weights::smollm2;

mod bad_input;
mod everyday;
mod files;
mod interrupt;
mod pictures;
mod plan;

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runahead"));
    // Mesa's layer that sorts GPUs would look for a display server, and complain on stderr where there is none.
    command.args(args).env("NODEVICE_SELECT", "1");
    // The tests' own model is not the command's default.
    for variable in ["RUNAHEAD_MODEL", "RUNAHEAD_DEVICES", "RUNAHEAD_KV"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn runahead(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Stdout of a run that went well.
pub fn stdout(args: &[&str]) -> String {
    let output = runahead(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The one JSON value on stdout.
pub fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

pub fn keys(value: &Value) -> Vec<&str> {
    let mut keys = value.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>();
    keys.sort_unstable();
    keys
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

pub fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// A tiny model: 384 token ids, a context of 512, no tokenizer.
pub fn tiny() -> String {
    text(reference("llama-gqa-tied"))
}

/// `n` token ids of the tiny model, as `--tokens` takes them.
fn tokens(n: usize) -> String {
    (0..n).map(|i| ((i * 7919 + i * i * 31 + 5) % 384).to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn usage_errors_have_their_own_code_and_leave_stdout_empty() {
    for args in [&[][..], &["nonsense"], &["pull", "--nonsense"], &["pull", "no-slash"], &["pull", "../x"]] {
        let output = runahead(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [&["--help"][..], &["--version"], &["pull", "--help"], &["generate", "--help"], &["verify", "--help"]] {
        let output = runahead(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn devices_lists_the_adapters_as_json() {
    let devices = json(&["devices", "--json"]);
    let devices = devices.as_array().unwrap();
    let types = ["discrete", "integrated", "virtual", "software", "cpu", "other"];
    for (i, device) in devices.iter().enumerate() {
        let expected = ["backend", "cuda", "driver", "index", "limits", "memory_bytes", "name", "pci", "tier", "type"];
        assert_eq!(keys(device), expected);
        assert_eq!(keys(&device["limits"]), ["max_binding_bytes", "max_buffer_bytes", "workgroup_memory_bytes"]);
        let is_cpu = i + 1 == devices.len();
        assert!(if is_cpu { device["index"] == "cpu" } else { device["index"] == i }, "{device}");
        assert_eq!(device["type"] == "cpu", is_cpu, "{device}");
        assert!(types.contains(&device["type"].as_str().unwrap()), "{device}");
        for key in ["name", "backend", "driver", "tier"] {
            assert!(device[key].is_string(), "{key} of {device}");
        }
        assert!(device["pci"].is_string() || device["pci"].is_null(), "{device}");
        assert_eq!(device["cuda"].is_null(), is_cpu || !cfg!(feature = "cuda"), "{device}");
        for size in [&device["memory_bytes"], &device["limits"]["max_buffer_bytes"]] {
            assert!(size.is_null() || size.as_u64().unwrap() > 0, "{device}");
        }
    }
    assert!(devices.len() > 1, "the tests need a Vulkan, Metal or DX12 adapter, a software one at least: {devices:?}");
}

#[test]
fn devices_json_has_a_line_per_key() {
    // Shell scripts read it so: "index" before "type".
    let text = stdout(&["devices", "--json"]);
    let lines =
        |key: &str| text.lines().enumerate().filter(|(_, l)| l.contains(key)).map(|(i, _)| i).collect::<Vec<_>>();
    let (indices, types) = (lines("\"index\":"), lines("\"type\":"));
    assert!(indices.len() == types.len() && indices.iter().zip(&types).all(|(i, t)| i < t), "{text}");
}

#[test]
fn devices_prints_a_table() {
    let text = stdout(&["devices"]);
    // Built with the feature `cuda`, a word about its libraries follows.
    let table: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    assert!(table[0].starts_with("INDEX") && table[table.len() - 1].starts_with("cpu "), "{text}");
    let n = json(&["devices", "--json"]).as_array().unwrap().len();
    assert_eq!(table.len(), n + 1, "{text}");
}

#[test]
fn generate_reports_in_json() {
    let model = text(smollm2());
    let common = ["generate", "-m", &model, "-p", "The capital of France is", "--raw", "-n", "6", "--devices", "cpu"];
    let report = json(&[&common[..], &["--json"]].concat());
    assert_eq!(keys(&report), ["decode", "prefill", "prompt_tokens", "text", "tokens", "ttft_ms"]);
    assert_eq!(report["prompt_tokens"], 5);
    assert_eq!(ids(&report["tokens"]).len(), 6);
    assert!(report["text"].as_str().unwrap().contains("Paris"), "{report}");
    assert!(report["ttft_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(keys(&report["prefill"]), ["adapters", "mode", "partition"]);
    assert_eq!((&report["prefill"]["mode"], ids(&report["prefill"]["partition"])), (&Value::from("single"), vec![5]));
    assert_eq!(keys(&report["decode"]), ["tokens", "tokens_per_s"]);
    assert_eq!(report["decode"]["tokens"], 5);
    assert!(report["decode"]["tokens_per_s"].as_f64().unwrap() > 0.0);

    let streamed = runahead(&common);
    assert_eq!(String::from_utf8(streamed.stdout.clone()).unwrap(), format!("{}\n", report["text"].as_str().unwrap()));
    let summary = stderr(&streamed);
    assert!(summary.contains("cpu: tokens 0..5") && summary.contains("token/s"), "{summary}");
    assert!(!summary.contains('\x1b'), "bars are for terminals: {summary:?}");
}

#[test]
fn the_chat_template_frames_a_prompt_unless_raw() {
    let model = text(smollm2());
    let common = ["generate", "-m", &model, "-p", "Hi", "-n", "1", "--devices", "cpu", "--json"];
    let n = |args: &[&str]| json(args)["prompt_tokens"].as_u64().unwrap();
    assert!(n(&common) > 10);
    assert_eq!(n(&[&common[..], &["--raw"]].concat()), 1);
}

#[test]
fn a_chain_reports_every_adapter() {
    let (model, tokens) = (tiny(), tokens(100));
    let common = ["generate", "-m", &model, "--tokens", &tokens, "-n", "4", "--json"];
    let run = |more: &[&str]| json(&[&common[..], more].concat());

    let report = run(&["--devices", "cpu,0,cpu", "--split", "48,32,20"]);
    let prefill = &report["prefill"];
    assert_eq!((&prefill["mode"], ids(&prefill["partition"])), (&Value::from("runahead"), vec![48, 32, 20]));
    let adapters = prefill["adapters"].as_array().unwrap();
    let spans = adapters.iter().map(|a| (a["start"].as_u64().unwrap(), a["end"].as_u64().unwrap()));
    assert_eq!(spans.collect::<Vec<_>>(), [(0, 48), (48, 80), (80, 100)]);
    for adapter in adapters {
        let expected =
            ["busy_ms", "end", "fetched_bytes", "handed_on", "link", "name", "published_bytes", "start", "wait_ms"];
        assert_eq!(keys(adapter), expected);
        assert!(adapter["busy_ms"].as_f64().unwrap() > 0.0 && adapter["wait_ms"].as_f64().unwrap() >= 0.0, "{adapter}");
    }
    // K and V, f16, two layers, two K/V heads of 16. The second adapter stops before the attention of the second layer, so needs only
    // the first layer's rows.
    let row = 2 * 2 * 2 * 2 * 16;
    let bytes = adapters.iter().map(|a| (a["published_bytes"].as_u64().unwrap(), a["fetched_bytes"].as_u64().unwrap()));
    assert_eq!(bytes.collect::<Vec<_>>(), [(48 * row, 0), (32 * row, 48 * row / 2), (0, 80 * row)]);
    assert_eq!((&adapters[0]["name"], &adapters[2]["name"]), (&Value::from("cpu"), &Value::from("cpu #2")));

    let even = run(&["--devices", "cpu,cpu", "--split", "even"]);
    assert_eq!(ids(&even["prefill"]["partition"]).iter().sum::<u64>(), 100);
    let single = run(&["--devices", "0,cpu", "--prefill", "single"]);
    assert_eq!((&single["prefill"]["mode"], ids(&single["prefill"]["partition"])), (&Value::from("single"), vec![100]));
    assert_eq!(single["prefill"]["adapters"][0]["name"], "cpu");
}

#[test]
fn more_adapters_than_granules_is_a_note() {
    let (model, tokens) = (tiny(), tokens(20));
    let args = ["generate", "-m", &model, "--tokens", &tokens, "-n", "2", "--devices", "cpu,cpu,cpu"];
    let args = [&args[..], &["--prefill", "runahead", "--json"]].concat();
    let output = runahead(&args);
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ids(&report["prefill"]["partition"]).len(), 2);
    assert!(stderr(&output).contains("takes no part: 20 tokens are 2 granules"), "{}", stderr(&output));
}

#[test]
fn a_model_without_tokenizer_answers_in_ids() {
    let (model, tokens) = (tiny(), tokens(20));
    let args = ["generate", "-m", &model, "--tokens", &tokens, "-n", "5", "--devices", "cpu"];
    let report = json(&[&args[..], &["--json"]].concat());
    let expected = ids(&report["tokens"]).iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(stdout(&args).trim_end(), expected);
    assert_eq!(report["text"], "");
    let none = json(&[&args[..5], &["-n", "0", "--devices", "cpu", "--json"]].concat());
    assert_eq!((ids(&none["tokens"]).len(), &none["decode"]["tokens"]), (0, &Value::from(0)));
}

#[test]
fn a_context_that_is_short_ends_the_answer() {
    let (model, tokens) = (tiny(), tokens(20));
    let args =
        ["generate", "-m", &model, "--tokens", &tokens, "-n", "50", "--context", "22", "--devices", "cpu", "--json"];
    let output = runahead(&args);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Two rows are left, and the last token needs none.
    assert!(ids(&report["tokens"]).len() <= 3);
    assert!(stderr(&output).contains("holds 3 more at most"), "{}", stderr(&output));
}

#[test]
fn a_reader_that_closes_stdout_ends_the_command_well() {
    let model = text(smollm2());
    let args = ["generate", "-m", &model, "-p", "Count from one to a hundred.", "-n", "60", "--devices", "cpu"];
    let mut child = command(&args).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
}

#[test]
fn verify_holds_one_gpu_to_its_bits() {
    let model = tiny();
    for devices in ["0,0", "0,0,0,0"] {
        let text = stdout(&["verify", "-m", &model, "--devices", devices]);
        assert!(text.lines().last().unwrap().starts_with("bit for bit"), "{text}");
        assert!(text.contains("16 of 16 equal"), "{text}");
        // A line for each of two layers, and none of them differs.
        assert_eq!(text.lines().filter(|line| line.split_whitespace().skip(1).eq(["0", "0"])).count(), 2, "{text}");
    }
}

#[test]
fn verify_checks_other_chains_by_tolerance() {
    let model = tiny();
    for (devices, kv, tolerance) in [("0", "f16", "2e-2"), ("cpu,0", "f32", "1e-3"), ("cpu,cpu", "f16", "2e-2")] {
        let text = stdout(&["verify", "-m", &model, "--devices", devices, "--kv", kv]);
        let last = text.lines().last().unwrap();
        let bits = devices == "cpu,cpu" && last.starts_with("bit for bit");
        assert!(bits || last.starts_with("within tolerance") && last.contains(tolerance), "{devices}: {text}");
    }
}

#[test]
fn verify_takes_a_text() {
    let model = text(smollm2());
    let prompt =
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen";
    let text = stdout(&["verify", "-m", &model, "-p", prompt, "--devices", "cpu,cpu", "--split", "16,1"]);
    assert!(text.contains("reference: ") && text.lines().last().unwrap().starts_with("bit for bit"), "{text}");
}

#[test]
fn verify_fails_where_the_sides_differ() {
    // A norm of NaN: whatever comes out, it is no agreement.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(reference("llama-gqa-tied").join("config.json"), folder.path().join("config.json")).unwrap();
    let mut model = std::fs::read(reference("llama-gqa-tied").join("model.safetensors")).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(model[..8].try_into().unwrap())).unwrap();
    let tensors: Value = serde_json::from_slice(&model[8..header]).unwrap();
    let range = ids(&tensors["model.norm.weight"]["data_offsets"]);
    let nan = half::bf16::NAN.to_le_bytes();
    model[header + range[0] as usize..header + range[1] as usize]
        .chunks_exact_mut(2)
        .for_each(|x| x.copy_from_slice(&nan));
    std::fs::write(folder.path().join("model.safetensors"), model).unwrap();

    let output = runahead(&["verify", "-m", &text(folder.path()), "--devices", "0,0"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("differ"), "{}", stderr(&output));
    let output = runahead(&["verify", "-m", &tiny(), "--devices", "cpu"]);
    assert_eq!(output.status.code(), Some(2), "the CPU alone has no reference");
}

/// A folder as cache that holds SmolLM2.
fn cache_with_smollm2() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    let name = smollm2().file_name().map(PathBuf::from).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(smollm2(), cache.path().join(name)).unwrap();
    #[cfg(not(unix))]
    std::fs::copy(smollm2(), cache.path().join(name)).unwrap();
    cache
}

#[test]
fn the_pulled_model_is_the_default() {
    let run = |cache: &Path| {
        let args = ["generate", "-p", "Hi", "-n", "1", "--devices", "cpu", "--json"];
        command(&args).env("RUNAHEAD_CACHE", cache).output().unwrap()
    };
    let full = run(cache_with_smollm2().path());
    assert_eq!(full.status.code(), Some(0), "{}", stderr(&full));
    let empty = run(tempfile::tempdir().unwrap().path());
    assert_eq!(empty.status.code(), Some(1));
    assert!(stderr(&empty).contains("runahead pull smollm2"), "{}", stderr(&empty));
}
