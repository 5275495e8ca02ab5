//! The families' tokenizers on a mixed corpus, from `tokenizer.json` and from GGUF metadata, against the Python package `tokenizers`; see
//! `tests/data/README.md`.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{byte_level, from_json, ids, sentencepiece, streamed, tokenizer};
use crate::weights::GgufBuilder;

static DATA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../data/tokenizers.json")).unwrap());

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// The texts, each with its ids.
fn cases(ids_of_texts: &Value) -> Vec<(&'static str, Vec<u32>)> {
    let texts = strings(&DATA["texts"]);
    assert!(texts.len() > 20);
    texts.into_iter().zip(ids_of_texts.as_array().unwrap().iter().map(ids)).collect()
}

/// A file's `tokenizer.json`, whose model is stored apart.
fn with_model(rest: &Value, model: Value) -> Value {
    let mut file = rest.clone();
    file["model"] = model;
    file
}

fn vocabulary(tokens: &[&str]) -> Value {
    tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[test]
fn byte_level_families_give_the_reference_ids_from_both_kinds_of_files() {
    let tokens = strings(&DATA["tokens"]);
    let merges = strings(&DATA["merges"]);
    let pairs: Vec<Vec<&str>> = merges.iter().map(|merge| merge.split(' ').collect()).collect();
    let all: Vec<&str> = tokens.iter().copied().chain(["<|s|>", "user"]).collect();
    let mut kinds = vec![1; all.len()];
    kinds[tokens.len()] = 3;
    kinds[tokens.len() + 1] = 4;
    for (pre, family) in DATA["byte_level"].as_object().unwrap() {
        let whole_words = matches!(pre.as_str(), "llama-bpe" | "smaug-bpe");
        let model = json!({"type": "BPE", "vocab": vocabulary(&tokens), "merges": pairs, "ignore_merges": whole_words});
        let gguf = byte_level(pre)
            .texts("tokenizer.ggml.tokens", all.iter().copied())
            .integers("tokenizer.ggml.token_type", &kinds)
            .texts("tokenizer.ggml.merges", merges.iter().copied())
            .remove("tokenizer.ggml.bos_token_id")
            .flag("tokenizer.ggml.add_bos_token", false);
        let files =
            [("json", from_json(&with_model(&family["json"], model)).unwrap()), ("gguf", tokenizer(&gguf).unwrap())];
        for (text, ids) in cases(&family["ids"]) {
            for (kind, tokenizer) in &files {
                assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{pre} {kind}: {text:?}");
                let plain = !family["json"]["normalizer"].is_object() && !text.contains("<|s|>");
                assert!(!plain || tokenizer.decode(&ids).unwrap() == text, "{pre} {kind}: {text:?}");
            }
        }
    }
}

/// The same vocabulary in a GGUF file, of this architecture.
fn spaces(architecture: &str, add_space: bool) -> GgufBuilder {
    let tokens = strings(&DATA["spaces"]["tokens"]);
    let kind = |id: usize| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        id if id == tokens.len() => 3,
        _ => 1,
    };
    let all: Vec<&str> = tokens.iter().copied().chain(["<|s|>"]).collect();
    let scores: Vec<f32> = (0..all.len()).map(|id| -(id as f32)).collect();
    let kinds: Vec<i32> = (0..all.len()).map(kind).collect();
    let (file, _) = sentencepiece();
    let file = file
        .texts("tokenizer.ggml.tokens", all)
        .floats("tokenizer.ggml.scores", &scores)
        .integers("tokenizer.ggml.token_type", &kinds)
        .flag("tokenizer.ggml.add_bos_token", false)
        .flag("tokenizer.ggml.add_space_prefix", add_space);
    if architecture == "llama" { file } else { phi3(file) }
}

/// The keys that a Phi-3 model has in place of a Llama's.
fn phi3(file: GgufBuilder) -> GgufBuilder {
    file.text("general.architecture", "phi3")
        .u32("phi3.block_count", 1)
        .u32("phi3.context_length", 64)
        .u32("phi3.embedding_length", 32)
        .u32("phi3.feed_forward_length", 64)
        .u32("phi3.attention.head_count", 2)
        .f32("phi3.attention.layer_norm_rms_epsilon", 1e-5)
}

#[test]
fn families_with_spaces_as_characters_give_the_reference_ids_from_both_kinds_of_files() {
    let data = &DATA["spaces"];
    let tokens = strings(&data["tokens"]);
    for (name, family) in data["families"].as_object().unwrap() {
        let model = json!({"type": "BPE", "vocab": vocabulary(&tokens), "merges": data["merges"], "byte_fallback": true,
            "fuse_unk": true, "unk_token": "<unk>"});
        let architecture = if name == "phi3" { "phi3" } else { "llama" };
        let gguf = spaces(architecture, name != "gemma");
        let files =
            [("json", from_json(&with_model(&family["json"], model)).unwrap()), ("gguf", tokenizer(&gguf).unwrap())];
        for ((text, ids), decoded) in cases(&family["ids"]).into_iter().zip(strings(&family["decoded"])) {
            for (kind, tokenizer) in &files {
                assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{name} {kind}: {text:?}");
                assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{name} {kind}: {text:?}");
                assert!(streamed(tokenizer, &ids).ends_with(decoded), "{name} {kind}: {text:?}");
            }
        }
    }
}

#[test]
fn files_without_hints_are_read_as_their_families_wrote_them() {
    // Ends are found by their spelling, however many they are, and are control tokens whatever the file says: not text, and cut out of a text as one.
    let (file, _) = sentencepiece();
    for kind in [3, 1] {
        let named = file
            .clone()
            .texts("tokenizer.ggml.tokens", ["<unk>", "<s>", "</s>", "▁", "a", "<end_of_turn>", "<|endoftext|>"])
            .floats("tokenizer.ggml.scores", &[0.0; 7])
            .integers("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, kind, kind]);
        let found = tokenizer(&named).unwrap();
        assert_eq!(found.eos(), [2, 5, 6]);
        assert_eq!(found.encode("a<end_of_turn>a", false).unwrap().iter().filter(|&&id| id == 5).count(), 1);
        assert_eq!(found.decode(&[4, 5, 4]).unwrap(), "aa");
        assert_eq!(tokenizer(&named.u32("tokenizer.ggml.eot_token_id", 1)).unwrap().eos(), [2, 1, 5, 6]);
    }
}

/// SentencePiece writes spaces as `▁` before it looks for tokens of its user, in whichever way the file spells them.
#[test]
fn runs_of_spaces_may_be_tokens_of_the_user() {
    let (file, _) = sentencepiece();
    for spelling in ["▁▁", "  "] {
        let file = file
            .clone()
            .texts("tokenizer.ggml.tokens", ["<unk>", "<s>", "</s>", "▁", "a", "▁a", spelling])
            .floats("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -3.0, -2.0, -1.0, -1000.0])
            .integers("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 4])
            .flag("tokenizer.ggml.add_space_prefix", false);
        let tokenizer = tokenizer(&file).unwrap();
        assert_eq!(tokenizer.encode("a  a   a", false).unwrap(), [4, 6, 4, 6, 5], "{spelling:?}");
        assert_eq!(tokenizer.decode(&[4, 6, 4, 6, 5]).unwrap(), "a  a   a");
    }
}
