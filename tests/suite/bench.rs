//! `runahead bench`: every form of its results, the keys in them, and what it refuses.

#![allow(clippy::unwrap_used)] // also in the helpers of the tests

use runahead::config::{ModelConfig, shapes};
use runahead::dtype::Dtype;
use runahead::weights::{ModelFiles, Role};
use serde_json::Value;

use crate::cli::{command, json, keys, runahead, stderr, stdout, text, tiny};
use crate::kernels::reference::decode_weight;

/// A model of two layers with random weights.
const TINY: [&str; 3] = ["bench", "--synthetic", "tiny"];

fn bench(more: &str) -> Vec<&str> {
    TINY.into_iter().chain(more.split_whitespace()).collect()
}

fn rows(more: &str) -> Vec<Value> {
    json(&bench(&format!("{more} -o json"))).as_array().unwrap().clone()
}

const COMMON: [&str; 14] = [
    "backend",
    "depth",
    "devices",
    "gemm",
    "kv",
    "load_ms",
    "mode",
    "model",
    "params",
    "repetitions",
    "test",
    "tokens_per_s",
    "tokens_per_s_sd",
    "weights_bytes",
];
const PREFILL: [&str; 11] = [
    "adapters",
    "fetched_bytes",
    "idle_share",
    "partition",
    "predicted",
    "prompt",
    "published_bytes",
    "run_ahead_layers",
    "split",
    "ttft_ms",
    "ttft_ms_sd",
];

fn sorted(lists: &[&[&'static str]]) -> Vec<&'static str> {
    let mut all = lists.concat();
    all.sort_unstable();
    all
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"))
}

#[test]
fn a_run_compares_a_chain_with_each_adapter_alone() {
    let rows = rows("-p 48,32 -n 3 -r 2 --devices cpu,0,0 --kv f32");
    let modes = rows.iter().map(|row| (row["mode"].as_str().unwrap(), row["test"].as_str().unwrap()));
    let expected = [
        ("single", "pp48"),
        ("single", "pp32"),
        ("single", "pp48"),
        ("single", "pp32"),
        ("runahead", "pp48"),
        ("runahead", "pp32"),
        ("decode", "tg3"),
    ];
    assert_eq!(modes.collect::<Vec<_>>(), expected);
    for row in &rows {
        let kind: &[&str] = match row["mode"].as_str().unwrap() {
            "decode" => &["gen"],
            "single" => &PREFILL,
            _ => &sorted(&[&PREFILL, &["speedup"]]),
        };
        assert_eq!(keys(row), sorted(&[&COMMON, kind]), "{row}");
        assert_eq!((&row["model"], &row["kv"]), (&Value::from("tiny F16 (synthetic)"), &Value::from("f32")));
        // As many as in a file of this shape: two tables, two layers, five norms.
        assert_eq!(row["params"], 2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64) + 5 * 64);
        assert_eq!(row["weights_bytes"], 2 * (row["params"].as_u64().unwrap() - 5 * 64) + 4 * 5 * 64);
        assert_eq!((&row["repetitions"], &row["depth"]), (&Value::from(2), &Value::from(0)));
        assert!(number(row, "load_ms") > 0.0 && number(row, "tokens_per_s") > 0.0, "{row}");
        assert!(number(row, "tokens_per_s_sd") >= 0.0, "{row}");
    }
    for row in &rows[..6] {
        let (prompt, ttft) = (number(row, "prompt"), number(row, "ttft_ms"));
        assert!((number(row, "tokens_per_s") / (prompt / (ttft / 1e3)) - 1.0).abs() < 1e-2, "{row}");
        let sum: u64 = row["partition"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(sum as f64, prompt, "{row}");
        assert!((0.0..1.0).contains(&number(row, "idle_share")), "{row}");
        let predicted = &row["predicted"];
        assert_eq!(keys(predicted), ["adapters", "costs", "ttft_ms"]);
        assert!(number(predicted, "ttft_ms") > 0.0 && predicted["costs"].as_str().unwrap().contains("estimate"));
        let (expected, measured) = (predicted["adapters"].as_array().unwrap(), row["adapters"].as_array().unwrap());
        assert_eq!(expected.len(), measured.len());
        for adapter in expected {
            assert_eq!(keys(adapter), ["busy_ms", "wait_ms"]);
            assert!(number(adapter, "busy_ms") > 0.0 && number(adapter, "wait_ms") >= 0.0, "{row}");
        }
    }
    let (cpu, gpu) = (&rows[0], &rows[2]);
    assert_eq!((&cpu["devices"][0], &cpu["backend"]), (&Value::from("cpu"), &Value::from("native")));
    assert!(gpu["devices"][0] != "cpu" && gpu["backend"] != "native", "{gpu}");

    let chain = &rows[4];
    let best = number(&rows[0], "ttft_ms").min(number(&rows[2], "ttft_ms"));
    assert!((number(chain, "speedup") - best / number(chain, "ttft_ms")).abs() < 1e-2, "{chain}");
    assert_eq!(chain["partition"], Value::from(vec![16, 16, 16]));
    // Once adapters were measured alone, what is expected of others follows from that.
    let costs = |row: &Value| row["predicted"]["costs"].as_str().unwrap().to_owned();
    assert!(costs(cpu).contains("calibrate") && costs(chain).contains("alone in this run"), "{}", costs(chain));
    let adapters = chain["adapters"].as_array().unwrap();
    let expected =
        ["busy_ms", "end", "fetched_bytes", "handed_on", "link", "name", "published_bytes", "start", "wait_ms"];
    adapters.iter().for_each(|adapter| assert_eq!(keys(adapter), expected));
    let handed_on = |i: usize| adapters[i]["handed_on"].as_array().unwrap();
    let readers = |i: usize| handed_on(i).iter().map(|h| h["to"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((readers(0), readers(1), readers(2)), (vec![1, 2], vec![2], vec![]));
    assert!(handed_on(0).iter().all(|h| h["gb_per_s"].is_number() && keys(h) == ["bytes", "gb_per_s", "to"]));
    assert!(adapters.iter().all(|a| a["link"] == "copy" || a["link"] == "dma"));
    // K and V of 16 tokens, f32, two K/V heads of 16, in each of two layers. The adapter in the middle ends before the attention of the last one.
    let layer = 16 * 2 * 4 * 2 * 16;
    let bytes = (&chain["published_bytes"], &chain["fetched_bytes"]);
    assert_eq!(bytes, (&Value::from(2 * 2 * layer), &Value::from(layer + 2 * 2 * layer)));
    assert_eq!(
        (&rows[6]["gen"], &rows[6]["devices"]),
        (&Value::from(3), &Value::from(vec![gpu["devices"][0].clone()]))
    );
}

#[test]
fn every_form_says_the_same() {
    let args = "-p 32 -n 2 -r 1 --devices cpu,cpu";
    let json = rows(args);
    let lines = stdout(&bench(&format!("{args} -o jsonl")));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let csv = stdout(&bench(&format!("{args} -o csv")));
    let csv: Vec<Vec<String>> = csv.lines().map(fields).collect();
    let md = stdout(&bench(args));
    let md: Vec<Vec<&str>> = md.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    assert_eq!((json.len(), lines.len(), csv.len(), md.len()), (3, 3, 4, 5));

    assert_eq!(csv[0].len(), COMMON.len() + PREFILL.len() + 2, "{:?}", csv[0]);
    for (i, row) in json.iter().enumerate() {
        assert_eq!(keys(row), keys(&lines[i]));
        assert_eq!(csv[i + 1].len(), csv[0].len());
        for (name, cell) in csv[0].iter().zip(&csv[i + 1]) {
            match &row[name.as_str()] {
                Value::Null => assert!(cell.is_empty(), "{name}: {cell}"),
                Value::Number(_) => drop(cell.parse::<f64>().unwrap()),
                Value::String(text) => assert_eq!(cell, text),
                // Times differ from run to run; the form does not.
                Value::Object(_) => {
                    assert_eq!(keys(&serde_json::from_str::<Value>(cell).unwrap()), keys(&row[name.as_str()]))
                }
                list => assert_eq!(
                    serde_json::from_str::<Value>(cell).unwrap().as_array().unwrap().len(),
                    list.as_array().unwrap().len()
                ),
            }
        }
        let at = |name: &str| md[i + 2][md[0].iter().position(|heading| *heading == name).unwrap()];
        assert_eq!((at("model"), at("test")), ("tiny F16 (synthetic)", row["test"].as_str().unwrap()));
        assert_eq!(at("mode"), row["mode"].as_str().unwrap());
        assert!(at("t/s").contains(" ± "), "{md:?}");
        assert_eq!(at("predicted").parse::<f64>().is_ok(), row["mode"] != "decode", "{md:?}");
        assert_eq!(at("TTFT ms").is_empty(), row["mode"] == "decode", "{md:?}");
    }
    assert!(md.iter().all(|line| line.len() == md[0].len()), "{md:?}");
}

/// The fields of a line of CSV.
fn fields(line: &str) -> Vec<String> {
    let (mut out, mut inside) = (vec![String::new()], false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if inside && chars.peek() == Some(&'"') => out.last_mut().unwrap().extend(chars.next()),
            '"' => inside = !inside,
            ',' if !inside => out.push(String::new()),
            c => out.last_mut().unwrap().push(c),
        }
    }
    out
}

#[test]
fn all_ways_and_cuts_are_compared_in_one_run() {
    let cache = tempfile::tempdir().unwrap();
    let ways = "single,tsp,tsp-causal,zigzag,relay,runahead,auto";
    let args = format!(
        "-p 96,128,256 -n 0 -r 1 --devices cpu,cpu --prefill {ways} --split even,searched,predicted \
         --link-bandwidth 1GB/s --slow 0:2 -o json"
    );
    let output = command(&bench(&args)).env("RUNAHEAD_CACHE", cache.path()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let at = |prompt: u64| {
        let way = |row: &Value| [&row["mode"], &row["split"]].map(|value| value.as_str().unwrap().to_owned());
        rows.iter().filter(|row| row["prompt"] == prompt).map(way).collect::<Vec<_>>()
    };
    for prompt in [96, 128, 256] {
        // The slower of the two is measured alone, too; and of two halves of one processor, auto takes one.
        let expected = [
            ["single", "even"],
            ["single", "even"],
            ["tsp", "even"],
            ["tsp-causal", "even"],
            ["zigzag", "even"],
            ["relay", "even"],
            ["runahead", "even"],
            ["runahead", "searched"],
            ["runahead", "predicted"],
            ["single", "auto"],
        ];
        assert_eq!(at(prompt), expected.map(|way| way.map(str::to_owned)), "{prompt}");
    }
    // Each length's cut comes from the other two: a share of the nearest, or between.
    let cut = |prompt: u64, split: &str| {
        let row = rows.iter().find(|row| row["prompt"] == prompt && row["split"] == split).unwrap();
        row["partition"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>()
    };
    let shares = [96, 256].map(|prompt| cut(prompt, "searched")[0] as f64 / prompt as f64);
    let predicted = cut(128, "predicted")[0] as f64 / 128.0;
    let between = shares[0].min(shares[1]) - 0.125..=shares[0].max(shares[1]) + 0.125;
    assert!(between.contains(&predicted), "{predicted} {shares:?}");
    assert!(stderr(&output).contains("takes no part"), "{}", stderr(&output));
    assert!(rows.iter().filter(|row| row["split"] == "auto").all(|row| row["speedup"].is_number()));
}

#[test]
fn every_weight_type_runs_on_every_kind_of_adapter() {
    for weights in ["f32", "f16", "bf16", "Q8_0", "q4_0", "q4_1", "iq4_nl"] {
        for devices in ["cpu", "0"] {
            let rows = rows(&format!("--weights {weights} -p 16 -n 2 -r 1 --devices {devices}"));
            assert_eq!(rows.len(), 2, "{weights} {devices}");
            assert_eq!(rows[0]["model"], format!("tiny {} (synthetic)", weights.to_uppercase()));
        }
    }
}

#[test]
fn random_weights_have_the_scale_that_keeps_activations_finite() {
    for dtype in Dtype::ALL {
        for ffn in [256, 18944] {
            // Widths that every format's blocks divide.
            let tiny = shapes::shape("tiny").unwrap();
            let config =
                ModelConfig { hidden: 256, head_dim: 64, ffn, n_layers: 1, layers: tiny.layers[..1].to_vec(), ..tiny };
            let files = ModelFiles::synthetic(config, dtype, 1).unwrap();
            let table = files.weights.matrix(Role::TokenEmbedding, 512, 256).unwrap();
            let values = decode_weight(&table);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            // One over the root of the widest row, give or take the factor 2 that whole exponents leave.
            let relative = deviation * (ffn as f64).sqrt();
            assert!((0.45..1.1).contains(&relative), "{dtype:?} {ffn}: {relative}");
            assert!(mean.abs() < 0.15 * deviation, "{dtype:?} {ffn}: {mean}");
        }
    }
}

#[test]
fn a_file_and_a_depth_are_measured_too() {
    let model = tiny();
    let args =
        ["bench", "-m", &model, "-p", "16", "-n", "2", "-d", "0,40", "-r", "1", "--devices", "0,cpu", "-o", "json"];
    let rows = json(&args);
    let rows = rows.as_array().unwrap();
    let tests = rows.iter().filter(|row| row["mode"] != "single").map(|row| row["test"].as_str().unwrap());
    assert_eq!(tests.collect::<Vec<_>>(), ["pp16", "pp16 @ d40", "tg2", "tg2 @ d40"]);
    assert!(rows.iter().all(|row| row["model"] == "llama-gqa-tied"));
    // 16 tokens from position 40 on touch two granules, and the first of them, with the past, is the first adapter's.
    let chain = rows.iter().find(|row| row["test"] == "pp16 @ d40" && row["mode"] == "runahead").unwrap();
    assert_eq!((&chain["partition"], &chain["adapters"][0]["start"]), (&Value::from(vec![8, 8]), &Value::from(40)));
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let model = tiny();
    let file = ["bench", "-m", &model, "--devices", "cpu"];
    let cases: [(Vec<&str>, i32, &str); 29] = [
        (bench("--devices cpu --weights q4_k"), 1, "no multiple of Q4_K's block"),
        (bench("--devices cpu -p 0"), 2, "one token at least"),
        (bench("--devices cpu -p -5"), 2, "-5"),
        (bench("--devices cpu -p x"), 2, "`x` is no number"),
        (bench("--devices cpu -p 99999999999999999999999"), 2, "is no number"),
        (bench("--devices cpu -p 1048577"), 1, "1048577 tokens do not fit a context of 1048576"),
        (bench("--devices cpu -n 18446744073709551615 -d 18446744073709551615"), 1, "do not fit"),
        (bench("--devices cpu -r 0"), 2, "0"),
        (bench("--devices cpu -n many"), 2, "many"),
        (bench("--devices cpu --no-prefill -n 0"), 2, "nothing to measure"),
        (bench("--devices cpu --no-prefill -p 16"), 2, "cannot be used with"),
        (bench("--devices cpu --weights q9"), 2, "Q4_1"),
        (bench("--devices cpu -o xml"), 2, "jsonl"),
        (bench("--devices 99"), 1, "no adapter `99`"),
        (bench("--devices gpu"), 2, "no adapter `gpu`"),
        (bench("--devices cpu --prefill runahead"), 2, "two adapters"),
        (bench("--devices cpu --split 512"), 2, "--split"),
        (bench("--devices cpu,cpu --split 256,256 -p 512,1024"), 1, "add up to 512"),
        (bench("--devices cpu,cpu --split searched,predicted -p 64"), 2, "two at least"),
        (bench("--devices cpu,cpu --split even,best"), 2, "best"),
        (bench("--devices cpu,cpu --split 256,even -p 512"), 2, "even"),
        (bench("--devices cpu,cpu --split 16,16 -p 1"), 1, "add up to 32"),
        (bench("--devices cpu,cpu --prefill ring"), 2, "zigzag"),
        (bench("--devices cpu,cpu --link-bandwidth 0GB/s"), 2, "no rate above 0"),
        (vec!["bench", "--synthetic", "llama-9"], 2, "llama-2-7b"),
        (vec!["bench", "-m", &model, "--synthetic", "tiny"], 2, "cannot be used with"),
        ([&file[..], &["--weights", "f16"]].concat(), 2, "cannot be used with"),
        (vec!["bench", "--weights", "f16"], 2, "--synthetic"),
        ([&file[..], &["-p", "513"]].concat(), 1, "513 tokens do not fit a context of 512"),
    ];
    for (args, code, says) in cases {
        let output = runahead(&args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.contains(says), "{args:?}: {message}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(code == 2 || message.starts_with("error: ") && message.lines().count() == 1, "{args:?}: {message}");
    }
    let nowhere = runahead(&["bench", "-m", "/nowhere/model.gguf"]);
    assert_eq!(nowhere.status.code(), Some(1), "{}", stderr(&nowhere));
    assert!(stderr(&nowhere).contains(&text("/nowhere/model.gguf")));
}

#[test]
fn kernels_are_measured_beside_the_devices_ceilings() {
    let output = stdout(&["bench", "--kernels", "attention_decode 1024", "-o", "jsonl"]);
    let [line] = &output.lines().collect::<Vec<_>>()[..] else { panic!("{output}") };
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(keys(&line), ["kernels", "microseconds", "operation", "rate", "shape", "share", "unit"]);
    assert_eq!((line["operation"].as_str(), line["shape"].as_str()), (Some("attention_decode"), Some("1024 keys")));
    assert!(line["kernels"][0].as_str().unwrap().starts_with("attention_decode"), "{line}");
    // What the device reads at most is the ceiling; keys and values may lie in a cache.
    let (rate, share, us) = ["rate", "share", "microseconds"].map(|key| line[key].as_f64().unwrap()).into();
    assert!(rate > 0.0 && share > 0.0, "{line}");
    assert!((rate * us * 1e3 - (2 * 1024 * 4096 * 2) as f64).abs() < 1.0, "{line}");
    let refused = runahead(&["bench", "--kernels", "--devices", "cpu"]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
}
