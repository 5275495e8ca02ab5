//! Files that commands read and write.

#![allow(clippy::unwrap_used)] // also in the helpers of the tests

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use safetensors::{Dtype, SafeTensors};

use super::{command, ids, json, runahead, smollm2, stderr, stdout, text, tiny, tokens};
use crate::chain::reference;
use crate::model::difference;

#[test]
fn token_files_come_in_several_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let (model, list) = (tiny(), tokens(20));
    let common = ["generate", "-m", &model, "-n", "5", "--devices", "cpu", "--json"];
    let expected = ids(&json(&[&common[..], &["--tokens", &list]].concat())["tokens"]);
    let shapes = [list.clone(), list.replace(',', " "), list.replace(',', ",\n") + "\n", format!("[{list}]")];
    for (i, shape) in shapes.iter().enumerate() {
        let path = folder.path().join(i.to_string());
        fs::write(&path, shape).unwrap();
        let report = json(&[&common[..], &["--tokens-file", &text(&path)]].concat());
        assert_eq!(ids(&report["tokens"]), expected, "{shape}");
    }
}

#[test]
fn a_prompt_comes_from_a_file_or_from_stdin() {
    let folder = tempfile::tempdir().unwrap();
    let (model, prompt) = (text(smollm2()), "Grüße aus Köln, said the");
    let path = folder.path().join("prompt.txt");
    fs::write(&path, prompt).unwrap();
    let common = ["generate", "-m", &model, "--raw", "-n", "3", "--devices", "cpu"];
    let expected = stdout(&[&common[..], &["-p", prompt]].concat());
    assert_eq!(stdout(&[&common[..], &["-f", &text(&path)]].concat()), expected);

    let mut child = command(&[&common[..], &["-f", "-"]].concat()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(prompt.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

/// Shape and values of the one tensor in a file that `logits` wrote.
fn logits(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names(), ["logits"]);
    let tensor = file.tensor("logits").unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (tensor.shape().to_vec(), values)
}

#[test]
fn logits_are_those_of_the_reference_on_every_chain() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(reference("llama-gqa-tied").join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let i32s = |b: &[u8]| b.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>();
    let list = i32s(expected.tensor("input_ids").unwrap().data());
    let list = list.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    let want = expected.tensor("logits").unwrap();
    let values = want.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>();

    let run = |devices: &str| {
        let path = folder.path().join("logits.safetensors");
        let (model, out) = (tiny(), text(&path));
        let args = ["logits", "-m", &model, "--tokens", &list, "--devices", devices, "--kv", "f32", "--out", &out];
        assert_eq!(stdout(&args), "");
        let (shape, got) = logits(&path);
        assert_eq!(shape, want.shape());
        assert!(difference(&got, &values) < 1e-3, "{devices}");
        got
    };
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert!(bits(run("0")) == bits(run("0,0,0")), "a WGSL chain equals its adapter bit for bit");
    run("cpu,0");
    let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(left, ["logits.safetensors"]);
}

#[test]
fn a_failed_run_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    fs::write(&path, "old").unwrap();
    let (model, out) = (tiny(), text(&path));
    let args = ["logits", "-m", &model, "--tokens", "1,2,3", "--devices", "99", "--out", &out];
    assert_eq!(runahead(&args).status.code(), Some(1));
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
