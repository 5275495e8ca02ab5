//! Traces, time lines, plots, and the experiments that they show.

#![allow(clippy::unwrap_used)]

use serde_json::Value;

use super::{json, keys, runahead, stderr, stdout, text, tiny, tokens};

/// Whether tags and their ends match: what a renderer needs at least.
pub fn assert_is_svg(svg: &str) {
    assert!(svg.starts_with("<svg"), "{}", &svg[..svg.len().min(80)]);
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap();
        let name = tag.split([' ', '\n', '/']).next().unwrap();
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name.trim())),
            None if tag.ends_with('/') => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn generate_writes_a_trace_and_a_time_line() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, timeline) = (text(folder.path().join("trace.json")), text(folder.path().join("timeline.svg")));
    let (model, ids) = (tiny(), tokens(100));
    let devices = ["--devices", "cpu,cpu,cpu", "--prefill", "runahead"];
    let common = [&["generate", "-m", &model, "--tokens", &ids, "-n", "2", "--json"][..], &devices].concat();
    let report = json(&[&common[..], &["--trace", &trace, "--timeline", &timeline]].concat());
    assert_eq!(report["prefill"]["mode"], "runahead");
    let events: Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    let names: Vec<_> = events["traceEvents"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|&&name| name == "process_name").count(), 3);
    // Two layers: two stages for each adapter, and one more for the last.
    assert_eq!(names.iter().filter(|name| name.starts_with("stage ")).count(), 7);
    // Where the time of each went, on the clock of the prefill: nothing begins before it or ends behind the first token.
    let of = |work: &str| {
        let of_work = |e: &&Value| e["name"].as_str().unwrap().starts_with(work) && e["ph"] == "X";
        events["traceEvents"].as_array().unwrap().iter().filter(of_work).collect::<Vec<_>>()
    };
    // In a stage of the first two, attention stands between products of two layers or at the front; rows are copied out of each.
    assert_eq!((of("attention").len(), of("download").len()), (4, 5));
    assert!(of("products").len() >= 7, "{}", of("products").len());
    for event in [of("products"), of("attention"), of("download")].concat() {
        let (start, lasts) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        assert!(start >= 0.0 && lasts >= 0.0 && start + lasts <= 1e3 * report["ttft_ms"].as_f64().unwrap(), "{event}");
    }
    let svg = std::fs::read_to_string(timeline).unwrap();
    assert_is_svg(&svg);
    assert!(svg.contains("attention dark"), "{svg}");
    assert!(svg.contains("cpu #3") && svg.contains("runahead"), "{svg}");
}

#[test]
fn pictures_that_cannot_be_written_are_refused_before_the_work() {
    let (model, ids) = (tiny(), tokens(20));
    for option in ["--trace", "--timeline"] {
        let output =
            runahead(&["generate", "-m", &model, "--tokens", &ids, "--devices", "cpu", option, "/nowhere/at/all"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty() && stderr(&output).contains("/nowhere/at/all"), "{}", stderr(&output));
    }
}

#[test]
fn bench_compares_modes_and_plots_them() {
    let folder = tempfile::tempdir().unwrap();
    let plot = text(folder.path().join("plot.svg"));
    let model = tiny();
    let common = ["bench", "-m", &model, "--devices", "cpu,cpu", "-n", "0", "-r", "1", "-o", "json"];
    let modes = "single,runahead,relay,tsp,tsp-causal,zigzag";
    let rows = json(&[&common[..], &["-p", "64,128", "--prefill", modes, "--plot", &plot]].concat());
    let rows = rows.as_array().unwrap();
    let ran: Vec<_> = rows.iter().map(|r| (r["mode"].as_str().unwrap(), r["prompt"].as_u64().unwrap())).collect();
    let expected: Vec<_> = modes.split(',').flat_map(|mode| [(mode, 64), (mode, 128)]).collect();
    assert_eq!(ran, expected);
    for row in rows.iter().filter(|row| row["mode"] != "single") {
        assert!(row["speedup"].as_f64().unwrap() > 0.0 && row["published_bytes"].as_u64().unwrap() > 0, "{row}");
        assert!(keys(row).contains(&"idle_share") && row["split"] == "even", "{row}");
    }
    let svg = std::fs::read_to_string(plot).unwrap();
    assert_is_svg(&svg);
    assert!(svg.contains("tsp-causal, even") && svg.contains("single, cpu"), "{svg}");

    let matrix = json(&[&common[..], &["-p", "64", "--matrix", "--split", "48,16"]].concat());
    let steps: Vec<_> = matrix.as_array().unwrap().iter().map(|r| [&r["mode"], &r["split"]]).collect();
    assert_eq!(steps, [["single", "even"], ["tsp-causal", "even"], ["runahead", "even"], ["runahead", "given"]]);
}

#[test]
fn experiments_slow_down_and_change_no_token() {
    let (model, ids) = (tiny(), tokens(100));
    let devices = ["--devices", "cpu,cpu", "--prefill", "runahead"];
    let common = [&["generate", "-m", &model, "--tokens", &ids, "-n", "3", "--json"][..], &devices].concat();
    let plain = json(&common);
    let shaped = ["--link-bandwidth", "100MB/s", "--link-latency", "20ms", "--link-noise", "7:1:2", "--slow", "1:2"];
    let slow = json(&[&common[..], &shaped].concat());
    assert_eq!(plain["tokens"], slow["tokens"]);
    // Two layers of one piece over two lanes of 40 ms.
    assert!(slow["ttft_ms"].as_f64().unwrap() >= 120.0, "{slow}");
    for wrong in [
        &["--link-bandwidth", "0GB/s"][..],
        &["--link-latency", "-1ms"],
        &["--link-noise", "7:2:2"],
        &["--link-noise", "7:0.5:2"],
        &["--slow", "2:2"],
        &["--slow", "0:0.5"],
    ] {
        let output = runahead(&[&common[..], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn the_help_names_every_mode() {
    let help = stdout(&["generate", "--help"]);
    for mode in ["single", "runahead", "relay", "tsp", "tsp-causal", "zigzag"] {
        assert!(help.contains(mode), "{help}");
    }
}
