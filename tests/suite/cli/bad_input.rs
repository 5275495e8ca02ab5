//! Input that cannot work ends with a clear line and the right code, and nothing on stdout.

#![allow(clippy::unwrap_used)] // also in the helpers of the tests

use std::fs;

use super::{runahead, smollm2, stderr, text, tiny, tokens};
use crate::chain::reference;

fn assert_fails(args: &[&str], code: i32, says: &str) {
    let output = runahead(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains(says), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
    if code == 1 {
        assert!(message.starts_with("error: ") && message.lines().count() == 1, "one line: {message}");
    }
}

#[test]
fn generate_says_what_does_not_hold() {
    let (model, many, few) = (tiny(), tokens(100), tokens(20));
    let too_many = tokens(513);
    let cases: [(&[&str], &str); 16] = [
        (&["--tokens", &many, "--devices", "99"], "no adapter `99`"),
        (&["--tokens", &many, "--devices", "cpu,99"], "no adapter `99`"),
        (&["--tokens", ""], "the prompt is empty"),
        (&["--tokens", "1,2,384"], "token id 384 is outside the vocabulary of 384"),
        (&["--tokens", &too_many, "--devices", "cpu"], "513 tokens do not fit a context of 512"),
        (&["--tokens", &many, "--devices", "cpu", "--context", "64"], "100 tokens do not fit a context of 64"),
        (&["--tokens", &many, "--devices", "cpu", "--context", "513"], "513"),
        (&["--tokens", "1,2", "--devices", "cpu", "--context", "1"], "2 tokens do not fit a context of 1"),
        (&["--tokens", &many, "--devices", "cpu,cpu", "--split", "64,35"], "add up to 99"),
        (&["--tokens", &many, "--devices", "cpu,cpu", "--split", "50,50"], "no multiple of 16"),
        (&["--tokens", &many, "--devices", "cpu,cpu", "--split", "0,100"], "piece 0 is empty"),
        (&["--tokens", &many, "--devices", "cpu,cpu", "--split", "64,16,20"], "3 lengths for 2 pieces"),
        (&["--tokens", &few, "--devices", "cpu,cpu,cpu", "--split", "16,4"], "2 lengths for 3 pieces"),
        (&["-p", "text", "--devices", "cpu"], "tokenizer"),
        (&["-f", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["--tokens-file", "/nowhere/at/all"], "/nowhere/at/all"),
    ];
    for (args, says) in cases {
        assert_fails(&[&["generate", "-m", &model, "--json"], args].concat(), 1, says);
    }
    assert_fails(&["generate", "-m", &text(smollm2()), "-p", "", "--devices", "cpu"], 1, "the prompt is empty");
    let gemm = ["generate", "-m", &model, "--tokens", &many, "--devices", "0", "--gemm", "cublaslt", "--json"];
    #[cfg(not(feature = "cuda"))]
    assert_fails(&gemm, 1, "cublaslt, without the feature `cuda`");
    // With it, a machine without CUDA says so.
    #[cfg(feature = "cuda")]
    if runahead::engine::cuda().is_some_and(|found| found.is_err()) {
        assert_fails(&gemm, 1, "CUDA");
    }
}

#[test]
fn arguments_of_the_wrong_form_are_usage_errors() {
    let model = tiny();
    let cases: [(&[&str], &str); 22] = [
        (&[], "required"),
        (&["-p", "x", "--tokens", "1"], "cannot be used with"),
        (&["--tokens", "1,x"], "entry 2 of the token ids, `x`"),
        (&["--tokens", "1", "--devices", "gpu"], "no adapter `gpu`"),
        (&["--tokens", "1", "--devices", "0,"], "no adapter ``"),
        (&["--tokens", "1", "--split", "odd"], "`odd` is no number of tokens"),
        (&["--tokens", "1", "--prefill", "fast"], "runahead"),
        (&["--tokens", "1", "--prefill", "single", "--split", "1"], "--split"),
        (&["--tokens", "1", "--kv", "q8"], "f32"),
        (&["--tokens", "1", "--gemm", "fast"], "cublaslt"),
        (&["--tokens", "1", "--temperature", "warm"], "warm"),
        (&["--tokens", "1", "--temperature", "-1"], "temperature -1 is not 0 or more"),
        (&["--tokens", "1", "--temperature", "NaN"], "temperature NaN"),
        (&["--tokens", "1", "--top-p", "1.5"], "top-p 1.5 is not above 0 and at most 1"),
        (&["--tokens", "1", "--top-k", "-1"], "-1"),
        (&["--tokens", "1", "--repeat-penalty", "0"], "repeat penalty 0"),
        (&["--tokens", "1", "--seed", "-3"], "-3"),
        (&["--tokens", "1", "--stop", ""], "--stop is empty"),
        (&["--tokens", "1", "--logprobs", "2"], "--json"),
        (&["--tokens", "1", "-n", "-1"], "-1"),
        (&["--tokens", "1", "-n", "many"], "many"),
        (&["--tokens", "1", "--nonsense"], "--nonsense"),
    ];
    for (args, says) in cases {
        assert_fails(&[&["generate", "-m", &model], args].concat(), 2, says);
    }
    assert_fails(&["logits", "-m", &model, "--tokens", "1"], 2, "--out");
    assert_fails(&["logits", "-m", &model, "--out", "x"], 2, "required");
    assert_fails(&["verify", "-m", &model], 2, "--devices");
}

#[test]
fn damaged_and_missing_models_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let generate = |path: &str, says: &str| {
        assert_fails(&["generate", "-m", path, "--tokens", "1,2,3", "--devices", "cpu"], 1, says);
    };
    generate("/nowhere/model.gguf", "/nowhere/model.gguf");
    generate(&text(folder.path()), &text(folder.path()));

    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        text(path)
    };
    generate(&write("empty.gguf", b""), "empty.gguf");
    generate(&write("other.gguf", b"not a model at all, whatever its name says"), "other.gguf");
    let gguf = fs::read(smollm2()).unwrap();
    for cut in [6, 1000, 1_000_000, gguf.len() - 1] {
        generate(&write("cut.gguf", &gguf[..cut]), "cut.gguf");
    }

    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::copy(reference("llama-mha").join("config.json"), model.join("config.json")).unwrap();
    generate(&text(&model), "model");
    let weights = fs::read(reference("llama-mha").join("model.safetensors")).unwrap();
    fs::write(model.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    generate(&text(&model), "model.safetensors");
}

#[test]
fn outputs_that_cannot_be_written_are_named() {
    let (model, folder) = (tiny(), tempfile::tempdir().unwrap());
    let inside = text(folder.path().join("no/such/folder/out.safetensors"));
    for out in [text(folder.path()), inside] {
        let args = ["logits", "-m", &model, "--tokens", "1,2,3", "--devices", "cpu", "--out", &out];
        assert_fails(&args, 1, &out);
    }
    // Before the answer, which would be lost.
    let session = text(folder.path().join("no/such/folder/session"));
    let args = ["generate", "-m", &model, "--tokens", "1,2,3", "--devices", "cpu", "--session", &session];
    assert_fails(&args, 1, &session);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_prompt_that_is_no_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latin1.txt");
    fs::write(&path, b"caf\xe9").unwrap();
    let args = ["generate", "-m", &text(smollm2()), "-f", &text(&path), "--devices", "cpu"];
    assert_fails(&args, 1, "not UTF-8 text from byte 3 on");
}
