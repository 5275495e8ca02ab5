//! `plan`, `calibrate`, and what `generate` makes of them.

#![allow(clippy::unwrap_used)] // also in the helpers of the tests

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::{command, ids, json, keys, runahead, stderr, stdout, text, tiny, tokens};

/// Runs with a cache of its own.
fn cached(cache: &Path, args: &[&str]) -> Output {
    command(args).env("RUNAHEAD_CACHE", cache).output().unwrap()
}

fn cached_json(cache: &Path, args: &[&str]) -> Value {
    let output = cached(cache, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_fails(output: &Output, code: i32, says: &str) {
    assert_eq!(output.status.code(), Some(code), "{says}: {}", stderr(output));
    assert!(stderr(output).contains(says), "{says}: {}", stderr(output));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_plan_has_its_keys_and_adds_up() {
    let cache = tempfile::tempdir().unwrap();
    let model = tiny();
    for (mode, pieces) in [("single", 1), ("runahead", 3), ("relay", 3), ("tsp", 3), ("tsp-causal", 3), ("zigzag", 6)] {
        let args = ["plan", "-m", &model, "-p", "200", "--devices", "cpu,0,cpu", "--prefill", mode, "--json"];
        let plan = cached_json(cache.path(), &args);
        assert_eq!(keys(&plan), ["adapters", "costs", "fit_error", "left_out", "mode", "partition", "ttft_ms"]);
        assert_eq!(plan["mode"], mode);
        assert_eq!(ids(&plan["partition"]).len(), pieces);
        assert_eq!(ids(&plan["partition"]).iter().sum::<u64>(), 200);
        assert!(plan["ttft_ms"].as_f64().unwrap() > 0.0 && plan["costs"].as_str().unwrap().contains("estimate"));
        let adapters = plan["adapters"].as_array().unwrap();
        assert_eq!(adapters.len() + plan["left_out"].as_array().unwrap().len(), 3);
        for adapter in adapters {
            assert_eq!(keys(adapter), ["busy_ms", "end", "memory_bytes", "name", "start", "wait_ms"]);
            assert!(adapter["memory_bytes"].as_u64().unwrap() > 100_000 && adapter["busy_ms"].as_f64().unwrap() > 0.0);
        }
    }
    let searched = ["plan", "-m", &model, "-p", "500", "--devices", "cpu,cpu", "--split", "searched", "--json"];
    assert_eq!(cached_json(cache.path(), &searched)["mode"], "runahead");
    // As asked, whatever memory this machine has.
    let asked = ["--devices", "cpu", "-p", "4096", "--prefill", "single"];
    let text = stdout(&[&["plan", "--synthetic", "llama-2-7b"], &asked[..]].concat());
    assert!(text.contains("4096") && text.contains("estimate"), "{text}");
}

#[test]
fn a_plan_refuses_what_it_would_leave_out() {
    let many = ["cpu"; 65].join(",");
    let search = ["--prefill", "runahead", "--split", "searched"];
    let output = runahead(&[&["plan", "--synthetic", "tiny", "--devices", &many, "-p", "1500"], &search[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("65 pieces: 64 at most"), "{}", stderr(&output));
    let study = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/study.toml");
    let output = runahead(&["plan", "--simulate", study, "--prefill", "tsp"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn prompts_of_fewer_granules_than_pieces_are_generated_from() {
    let model = tiny();
    for n in [1, 20, 33, 48, 49] {
        for mode in ["runahead", "relay", "tsp", "tsp-causal", "zigzag"] {
            let tokens = tokens(n);
            let args = ["generate", "-m", &model, "--tokens", &tokens, "-n", "1", "--devices", "cpu,cpu"];
            let report = json(&[&args[..], &["--prefill", mode, "--json"]].concat());
            assert_eq!(ids(&report["prefill"]["partition"]).iter().sum::<u64>(), n as u64, "{mode} {n}");
        }
    }
}

#[test]
fn logical_adapters_of_one_device_are_expected_to_share_it() {
    let cache = tempfile::tempdir().unwrap();
    let ttft = |devices: &str, mode: &str| {
        let line =
            ["plan", "--synthetic", "llama-2-7b", "-p", "2048", "--json", "--devices", devices, "--prefill", mode];
        cached_json(cache.path(), &line)["ttft_ms"].as_f64().unwrap()
    };
    let alone = ttft("cpu", "single");
    assert_eq!(ttft("cpu,cpu", "single"), alone);
    for mode in ["runahead", "tsp"] {
        let shared = ttft("cpu,cpu", mode);
        assert!((0.95 * alone..1.8 * alone).contains(&shared), "{mode}: {shared} ms, alone {alone} ms");
    }
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    let model = tiny();
    let two = ["plan", "-m", &model, "--devices", "cpu,cpu"];
    let cases: [(&[&str], i32, &str); 13] = [
        (&[], 2, "-p TOKENS"),
        (&["-p", "0"], 1, "empty"),
        (&["-p", "513"], 1, "513 tokens do not fit a context of 512"),
        (&["-p", "100", "--split", "50,50"], 1, "no multiple of 16"),
        (&["-p", "100", "--split", "64,30"], 1, "add up to 94"),
        (&["-p", "100", "--split", "predicted"], 1, "calibrate"),
        (&["-p", "100", "--split", "searched", "--prefill", "tsp"], 2, "nothing to search"),
        (&["-p", "100", "--split", "64,36", "--prefill", "single"], 2, "nothing to cut"),
        (&["-p", "100", "--prefill", "ring"], 2, "zigzag"),
        (&["-p", "100", "--simulate", "x.toml"], 2, "--simulate"),
        (&["-p", "100", "--plot", "x.svg"], 2, "--simulate"),
        // One token cannot be cut, and alone it needs no chain.
        (&["-p", "1", "--split", "16,16"], 1, "add up to 32"),
        (&["-p", "1", "--split", "0,1"], 1, "piece 0 is empty"),
    ];
    let cache = tempfile::tempdir().unwrap();
    for (args, code, says) in cases {
        assert_fails(&cached(cache.path(), &[&two[..], args].concat()), code, says);
    }
    assert_fails(&runahead(&["plan", "--synthetic", "llama-8000b", "-p", "1"]), 2, "llama-2-7b");
    assert_fails(&runahead(&["plan", "-m", &model, "--devices", "99", "-p", "1"]), 1, "no adapter `99`");
}

#[test]
fn a_study_is_simulated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("study.toml");
    let study = "contexts = [1024, 2048, 4096]\nsplits = ['even', 'searched', 'predicted']\nn_adapters = [2]\n\
                 [[models]]\nname = 'llama-7b'\n[[models]]\nname = 'mine'\n\
                 sizes = { layers = 4, hidden = 64, heads = 4, kv_heads = 1, head_dim = 16, ffn = 256, gated = false, vocab = 100 }\n\
                 [[adapters]]\nname = 'card'\ncount = 2\nproduct_tflops = 100\nmemory_gb = 24\n\
                 [[networks]]\nname = 'slow'\nbandwidth_gbs = 1\nlatency_us = 5\n\
                 [[networks]]\nname = 'noisy'\nbandwidth_gbs = 1\nnoise = { seed = 1, probability = 0.5, slowdown = 4, link = 0 }\n";
    fs::write(&path, study).unwrap();
    let file = text(&path);
    let lines = json(&["plan", "--simulate", &file, "--json"]);
    let lines = lines.as_array().unwrap();
    // 2 models, 2 networks, 3 contexts; 4 modes with one cut and 2 with three.
    assert_eq!(lines.len(), 2 * 2 * 3 * (4 + 2 * 3));
    let find = |network: &str, mode: &str, split: &str| {
        let fits = |l: &&Value| {
            l["model"] == "llama-7b"
                && l["network"] == network
                && l["context"] == 4096
                && l["mode"] == mode
                && l["split"] == split
        };
        lines.iter().find(fits).unwrap()["ttft_ms"].as_f64().unwrap()
    };
    assert!(find("slow", "runahead", "searched") <= find("slow", "runahead", "even"));
    assert!(find("slow", "runahead", "predicted") <= 1.05 * find("slow", "runahead", "searched"));
    assert!(find("noisy", "tsp", "even") > find("slow", "tsp", "even"));
    assert!(find("slow", "runahead", "searched") < find("slow", "tsp", "even"));
    assert!(lines.iter().all(|l| l["adapters"].as_array().unwrap().iter().all(|a| a["fits"] == true)));
    assert_eq!(stdout(&["plan", "--simulate", &file]).lines().count(), 2 + lines.len());

    let plot = text(folder.path().join("study.svg"));
    let drawn = runahead(&["plan", "--simulate", &file, "--plot", &plot]);
    assert!(drawn.status.success(), "{}", stderr(&drawn));
    let svg = fs::read_to_string(&plot).unwrap();
    super::pictures::assert_is_svg(&svg);
    for says in ["llama-7b, 2 adapters, slow", "mine, 2 adapters, noisy", "runahead, searched", "tsp-causal, even"] {
        assert!(svg.contains(says), "{says}");
    }
    assert_fails(&runahead(&["plan", "--simulate", &file, "--plot", "/nowhere/at/all.svg"]), 1, "/nowhere/at/all.svg");

    for (from, to, says) in [
        ("bandwidth_gbs = 1\nlatency", "bandwidth_gbs = 0\nlatency", "bandwidth of 0"),
        ("'llama-7b'", "'llama-8000b'", "llama-8000b"),
        ("[1024,", "[0,", "a context of 0"),
        ("count = 2", "cuont = 2", "cuont"),
        ("contexts", "contexts =", "study.toml"),
    ] {
        fs::write(&path, study.replacen(from, to, 1)).unwrap();
        assert_fails(&runahead(&["plan", "--simulate", &file]), 1, says);
    }
    assert_fails(&runahead(&["plan", "--simulate", "/nowhere/at/all"]), 1, "/nowhere/at/all");
}

#[test]
fn a_calibration_is_kept_and_gone_by() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path(), tiny());
    let on = ["-m", &model, "--devices", "cpu,cpu"];
    let with = |command: &str, more: &[&str]| cached_json(cache, &[&[command][..], &on, more, &["--json"]].concat());

    let report = with("calibrate", &["-p", "96,256", "-r", "1"]);
    assert_eq!(keys(&report), ["adapters", "date", "finished", "points", "table"]);
    assert_eq!((report["finished"].as_bool(), report["adapters"].as_array().unwrap().len()), (Some(true), 2));
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    for point in points {
        assert!(point["ttft_ms"].as_f64().unwrap() <= point["even_ms"].as_f64().unwrap(), "{point}");
        let context = point["context"].to_string();
        let plan = with("plan", &["-p", &context, "--split", "predicted"]);
        assert_eq!(plan["partition"], point["partition"]);
        assert!(plan["costs"].as_str().unwrap().contains("calibration of 2"), "{plan}");
    }
    let answer = with("generate", &["--tokens", &tokens(96), "-n", "1", "--split", "predicted"]);
    assert_eq!(answer["prefill"]["partition"], points[0]["partition"]);
    assert_eq!(answer["prefill"]["mode"], "runahead");

    // Of two logical adapters on the CPU the second one is no help, and that is said.
    let auto = cached(cache, &[&["generate"][..], &on, &["--tokens", &tokens(96), "-n", "1"]].concat());
    assert!(auto.status.success() && stderr(&auto).contains("cpu #2 takes no part"), "{}", stderr(&auto));

    // A damaged table is refused with a reason; what does not need it goes on.
    let path = report["table"].as_str().unwrap();
    let whole = fs::read_to_string(path).unwrap();
    for (damaged, says) in [
        (whole[..whole.len() / 2].to_owned(), "no table of partitions"),
        (whole.replacen(" threads", " threads more", 1), "another set-up"),
    ] {
        fs::write(path, damaged).unwrap();
        let plan = [&["plan"][..], &on, &["-p", "96"]].concat();
        let output = cached(cache, &plan);
        assert!(output.status.success() && stderr(&output).contains(says), "{says}: {}", stderr(&output));
        assert_fails(&cached(cache, &[&plan[..], &["--split", "predicted"]].concat()), 1, "calibrate");
    }
}

#[test]
fn calibrations_that_cannot_be_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    let model = tiny();
    for (args, code, says) in [
        (["--devices", "cpu", "-p", "513"], 1, "513 tokens do not fit a context of 512"),
        (["--devices", "cpu", "-p", "16"], 1, "too few to time"),
        (["--devices", "cpu,cpu", "-p", "1"], 1, "cannot be cut into 2"),
        (["--devices", "cpu,cpu,cpu", "-p", "32"], 1, "cannot be cut into 3"),
        (["--devices", "99", "-p", "64"], 1, "no adapter `99`"),
        (["--devices", "cpu", "-r", "0"], 2, "1..=1000"),
    ] {
        assert_fails(&cached(cache.path(), &[&["calibrate", "-m", &model][..], &args].concat()), code, says);
    }
    assert!(!cache.path().join("tables").exists());
}

#[test]
fn auto_says_whom_it_leaves_out() {
    let cache = tempfile::tempdir().unwrap();
    let model = tiny();
    let args = ["generate", "-m", &model, "--devices", "0,cpu", "--tokens", &tokens(96), "-n", "2", "--json"];
    let output = cached(cache.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["prefill"]["mode"], &report["prefill"]["adapters"][0]["name"]),
        (&"single".into(), &"cpu".into())
    );
    assert!(stderr(&output).contains("takes no part"), "{}", stderr(&output));
}
