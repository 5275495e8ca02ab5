//! Ctrl-C ends a command in every phase, with code 130.

#![allow(clippy::unwrap_used)] // also in the helpers of the tests
#![cfg(target_os = "linux")] // reads /proc to see that the handler is in place

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{command, smollm2, stderr, text};

/// Users are promised 100 ms on the CPU adapter; tests share the machine with others and run unoptimised code.
const LIMIT: Duration = Duration::from_secs(5);

/// Starts a command and waits until it would see Ctrl-C.
fn start(args: &[&str]) -> Child {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    let catches = |status: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 0b10 != 0)
    };
    while !catches(&std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap()) {
        assert!(child.try_wait().unwrap().is_none(), "ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

/// Interrupts, and gives what the command had written to stdout since.
fn assert_ends(mut child: Child, phase: &str) -> String {
    let sent = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    while child.try_wait().unwrap().is_none() {
        if sent.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{phase}: still running {LIMIT:?} after Ctrl-C");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{phase}: {}", stderr(&output));
    assert!(stderr(&output).ends_with("error: interrupted\n"), "{phase}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Longer than any machine prefills before it is interrupted.
fn long_prompt() -> String {
    (0..7000).map(|i| (500 + i * 31 % 40_000).to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn the_load_ends() {
    let (model, prompt) = (text(smollm2()), long_prompt());
    for devices in ["cpu", "0", "0,cpu"] {
        let child = start(&["generate", "-m", &model, "--tokens", &prompt, "--devices", devices]);
        assert_eq!(assert_ends(child, "load"), "", "{devices}");
    }
}

#[test]
fn the_prefill_ends() {
    let (model, prompt) = (text(smollm2()), long_prompt());
    for devices in ["cpu", "0", "cpu,cpu"] {
        let child = start(&["generate", "-m", &model, "--tokens", &prompt, "--devices", devices]);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(assert_ends(child, "prefill"), "", "{devices}: the prompt is too short for this test");
    }
}

#[test]
fn the_decode_ends() {
    let model = text(smollm2());
    for devices in ["cpu", "0"] {
        let args = ["generate", "-m", &model, "-p", "Tell a long story.", "-n", "5000", "--devices", devices];
        let mut child = start(&args);
        let mut first = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        assert_ends(child, "decode");
    }
}

#[test]
fn a_bench_ends() {
    for devices in ["cpu", "0,cpu"] {
        let args = ["bench", "--synthetic", "smollm2-135m", "-p", "8192", "--devices", devices, "-o", "json"];
        let child = start(&args);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(assert_ends(child, "bench"), "", "{devices}");
    }
}

#[test]
fn waiting_for_stdin_ends() {
    let child = start(&["generate", "-f", "-"]);
    std::thread::sleep(Duration::from_millis(50));
    assert_ends(child, "input");
}
