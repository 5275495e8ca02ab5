//! Sampling, sessions, `doctor`, completions and the environment, as they are used from a shell.

#![allow(clippy::unwrap_used)] // also in the helpers of the tests

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::{command, ids, json, keys, runahead, smollm2, stderr, stdout, text, tiny, tokens};

#[test]
fn a_seed_in_the_json_draws_the_same_answer_again() {
    let model = text(smollm2());
    let common = ["generate", "-m", &model, "-p", "Name a colour.", "-n", "8", "--devices", "cpu", "--json"];
    let warm = [&common[..], &["--temperature", "1", "--top-p", "0.95"]].concat();
    let drawn = json(&warm);
    assert_eq!(keys(&drawn), ["decode", "prefill", "prompt_tokens", "seed", "text", "tokens", "ttft_ms"]);
    let seed = drawn["seed"].as_u64().unwrap().to_string();
    assert_eq!(json(&[&warm[..], &["--seed", &seed]].concat())["tokens"], drawn["tokens"]);
    let (one, two) = (json(&[&warm[..], &["--seed", "1"]].concat()), json(&[&warm[..], &["--seed", "2"]].concat()));
    assert_ne!(one["tokens"], two["tokens"]);
}

#[test]
fn logprobs_come_with_every_token() {
    let model = text(smollm2());
    let args = ["generate", "-m", &model, "-p", "The capital of France is", "--raw", "-n", "3", "--devices", "cpu"];
    let report = json(&[&args[..], &["--json", "--logprobs", "4"]].concat());
    let logprobs = report["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]["top"][0]["text"]), (3, &" Paris".into()));
    for (entry, id) in logprobs.iter().zip(ids(&report["tokens"])) {
        assert_eq!(keys(entry), ["id", "logprob", "top"]);
        let top = entry["top"].as_array().unwrap();
        assert_eq!((entry["id"].as_u64().unwrap(), top.len()), (id, 4));
        assert_eq!(
            (&top[0]["id"], &top[0]["logprob"]),
            (&entry["id"], &entry["logprob"]),
            "greedy takes the likeliest"
        );
        assert!(top.windows(2).all(|p| p[0]["logprob"].as_f64().unwrap() >= p[1]["logprob"].as_f64().unwrap()));
        assert!(top.iter().all(|t| t["logprob"].as_f64().unwrap() <= 0.0 && keys(t) == ["id", "logprob", "text"]));
    }
}

#[test]
fn a_stop_string_ends_the_text() {
    let model = text(smollm2());
    let args = ["generate", "-m", &model, "-p", "The capital of France is", "--raw", "-n", "12", "--devices", "cpu"];
    let whole = stdout(&args);
    let at = whole.find("aris").unwrap();
    assert_eq!(
        stdout(&[&args[..], &["--stop", "nowhere", "--stop", "aris"]].concat()).trim_end(),
        whole[..at].trim_end()
    );
}

#[test]
fn a_session_file_saves_the_prefill_of_what_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let (model, file) = (tiny(), text(folder.path().join("s")));
    let (long, longer) = (tokens(100), tokens(140));
    let run = |prompt: &str, more: &[&str]| {
        let args = [
            "generate",
            "-m",
            &model,
            "--tokens",
            prompt,
            "-n",
            "4",
            "--devices",
            "0,0",
            "--prefill",
            "runahead",
            "--json",
        ];
        json(&[&args[..], more].concat())
    };
    let first = run(&long, &["--session", &file]);
    assert_eq!((first["prompt_tokens"].as_u64(), first["cached_tokens"].as_u64()), (Some(100), Some(0)));
    let second = run(&longer, &["--session", &file]);
    assert_eq!((second["prompt_tokens"].as_u64(), second["cached_tokens"].as_u64()), (Some(140), Some(100)));
    // The last of the four generated tokens had no row yet; it is not part of this prompt.
    assert_eq!(ids(&second["prefill"]["partition"]), [16 + 12, 12]);
    assert_eq!(second["tokens"], run(&longer, &[])["tokens"]);
    // A shorter prompt than the session's is a prefix of it: its last token alone is computed.
    let third = run(&long, &["--session", &file]);
    assert_eq!((third["cached_tokens"].as_u64(), &third["tokens"]), (Some(99), &first["tokens"]));

    let output = runahead(&["generate", "-m", &text(smollm2()), "-p", "x", "--devices", "cpu", "--session", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("a session of another model"), "{}", stderr(&output));
}

#[test]
fn doctor_tries_every_adapter() {
    let output = runahead(&["doctor"]);
    let told = String::from_utf8(output.stdout.clone()).unwrap();
    // A card that no driver serves here, as in a container, is for the user to mend.
    let unserved = told.lines().any(|line| line.starts_with("missing") && !line.contains("a model to try"));
    assert!(output.status.success() || unserved && !told.contains("FAILED"), "{told}");
    let devices = json(&["devices", "--json"]);
    let tried = |line: &&str| line.starts_with("ok ") && !line.contains(" model ");
    assert_eq!(told.lines().filter(tried).count(), devices.as_array().unwrap().len(), "{told}");
    assert!(told.contains("bit for bit"), "{told}");
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&["completions", shell]);
        assert!(script.contains("generate") && script.contains("repeat-penalty"), "{shell}");
    }
    assert_eq!(runahead(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn the_environment_stands_in_for_arguments() {
    let list = tokens(20);
    let run = |devices: &str, kv: &str| {
        let mut command = command(&["generate", "--tokens", &list, "-n", "2", "--prefill", "runahead", "--json"]);
        command.env("RUNAHEAD_MODEL", tiny()).env("RUNAHEAD_DEVICES", devices).env("RUNAHEAD_KV", kv).output().unwrap()
    };
    let output = run("cpu,cpu", "f32");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ids(&report["prefill"]["partition"]).len(), 2);
    for (devices, kv) in [("gpu", "f16"), ("cpu", "q8")] {
        assert_eq!(run(devices, kv).status.code(), Some(2), "{devices} {kv}");
    }
}

#[cfg(unix)]
#[test]
fn a_stop_string_that_is_half_a_character_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let half = std::ffi::OsStr::from_bytes(&"é".as_bytes()[..1]);
    let output = command(&["generate", "-p", "x", "--devices", "cpu", "--stop"]).arg(half).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("UTF-8"), "{}", stderr(&output));
}

#[test]
fn perplexity_is_the_same_on_every_adapter_and_tier() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE-APACHE");
    let model = smollm2();
    let measure = |devices: &str, tier: Option<&str>| {
        let args =
            ["perplexity", "-m", model.to_str().unwrap(), "-f", "-", "--window", "48", "--devices", devices, "--json"];
        let mut command = command(&args);
        if let Some(tier) = tier {
            command.env("RUNAHEAD_TIER", tier);
        }
        // The licence's beginning is enough for a software GPU.
        let head = std::fs::read_to_string(&text).unwrap().chars().take(450).collect::<String>();
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(head.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(keys(&report), ["adapters", "error", "perplexity", "tokens", "window", "windows"]);
        report["perplexity"].as_f64().unwrap()
    };
    let cpu = measure("cpu", None);
    assert!((1.0..60.0).contains(&cpu), "{cpu}");
    for (devices, tier) in [("cpu,cpu", None), ("0", Some("base")), ("0", None)] {
        let other = measure(devices, tier);
        assert!((other / cpu - 1.0).abs() < 1e-3, "{devices} {tier:?}: {other} beside {cpu}");
    }
}
