//! Tokenizers and chat templates.

use runahead::template::{ChatTemplate, Message};
use runahead::tokenizer::{StreamDecoder, Tokenizer};
use runahead::weights::ModelFiles;
use runahead::{Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::weights::{GgufBuilder, smollm2, tiny};

mod families;

fn expected() -> Vec<Value> {
    let text = include_str!("../data/reference/smollm2/expected.json");
    serde_json::from_str(text).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn smollm2_tokenizer() -> Tokenizer {
    ModelFiles::open(&smollm2()).unwrap().tokenizer.unwrap()
}

/// The tokenizer of a GGUF file whose model has an embedding table of unknown length.
fn tokenizer(file: &GgufBuilder) -> Result<Tokenizer> {
    Ok(file.open()?.tokenizer.unwrap())
}

/// Decoded token by token, with the check that no part of a character was given early.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = StreamDecoder::new();
    let mut text: String = ids.iter().map(|&id| decoder.push(tokenizer, id).unwrap()).collect();
    text.push_str(&decoder.flush());
    assert_eq!(decoder.flush(), "");
    text
}

#[test]
fn smollm2_gives_the_reference_ids_and_texts() {
    let tokenizer = smollm2_tokenizer();
    for case in expected() {
        let name = case["name"].as_str().unwrap();
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap(), ids(&case["ids"]), "{name}");
        assert_eq!(tokenizer.decode(&ids(&case["greedy"])).unwrap(), case["greedy_text"].as_str().unwrap(), "{name}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_len()), (Some(1), [2, 0].as_slice(), 49152));
    assert!(matches!(tokenizer.decode(&[49152]), Err(Error::BadToken { id: 49152, vocab: 49152 })));
}

#[test]
fn smollm2_decodes_what_it_encodes() {
    let tokenizer = smollm2_tokenizer();
    let texts = [
        "",
        " ",
        "  two  spaces\r\n\r\n\ttabs\t\t and trailing   ",
        "it's 12345 o'clock; don't!",
        "naïve Ünïcödé, 世界 🌍👩‍👩‍👧‍👦, עברית, \u{0} \u{7f}\u{ad}\u{a0}end",
        "fn main() { println!(\"{}\", 0x1F); }",
    ];
    for text in texts {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(streamed(&tokenizer, &ids), text);
    }
    let ids = tokenizer.encode("a<|im_end|>b", false).unwrap();
    assert_eq!((ids.len(), ids[1]), (3, 2));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab");
}

#[test]
fn a_stream_gives_whole_characters_only() {
    let tokenizer = smollm2_tokenizer();
    let ids = tokenizer.encode("🌍é", false).unwrap();
    assert!(ids.len() > 2, "the globe should take several tokens: {ids:?}");
    let mut decoder = StreamDecoder::new();
    let parts: Vec<String> = ids.iter().map(|&id| decoder.push(&tokenizer, id).unwrap()).collect();
    assert_eq!(parts[0], "");
    assert_eq!(parts.concat(), "🌍é");
    assert!(matches!(decoder.push(&tokenizer, u32::MAX), Err(Error::BadToken { .. })));
    // Cut within a character, and broken by another one.
    let globe = tokenizer.encode("🌍", false).unwrap();
    for broken in [&globe[..globe.len() - 1], &[&globe[..1], &ids].concat(), &[&globe[1..], &ids].concat()] {
        let text = streamed(&tokenizer, broken);
        assert!(text.contains('\u{fffd}'));
        assert_eq!(text, tokenizer.decode(broken).unwrap());
    }
}

fn sentencepiece() -> (GgufBuilder, Vec<(String, Vec<u32>, String)>) {
    let data: Value = serde_json::from_str(include_str!("../data/sentencepiece.json")).unwrap();
    let pieces = data["pieces"].as_array().unwrap();
    let scores: Vec<f32> = pieces.iter().map(|p| p[1].as_f64().unwrap() as f32).collect();
    let kinds: Vec<i32> = pieces.iter().map(|p| p[2].as_i64().unwrap() as i32).collect();
    let file = GgufBuilder::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 64)
        .u32("llama.attention.head_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", pieces.iter().map(|p| p[0].as_str().unwrap()))
        .floats("tokenizer.ggml.scores", &scores)
        .integers("tokenizer.ggml.token_type", &kinds);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let cases = data["cases"].as_array().unwrap().iter().map(|c| (text(&c[0]), ids(&c[1]), text(&c[2]))).collect();
    (file, cases)
}

#[test]
fn scores_and_byte_fallback_follow_sentencepiece() {
    let (file, cases) = sentencepiece();
    let tokenizer = tokenizer(&file).unwrap();
    assert!(cases.len() > 30);
    for (text, ids, decoded) in cases {
        assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.encode(&text, true).unwrap(), [&[1], ids.as_slice()].concat(), "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{text:?}");
        assert_eq!(streamed(&tokenizer, &ids).strip_prefix(' ').unwrap_or_default(), decoded, "{text:?}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_len()), (Some(1), [2].as_slice(), 700));
}

#[test]
fn sentencepiece_settings_are_those_of_the_file() {
    let (file, _) = sentencepiece();
    let plain = tokenizer(&file).unwrap().encode("the", false).unwrap();
    let encode = |file: &GgufBuilder, text: &str| tokenizer(file).unwrap().encode(text, true).unwrap();
    assert_eq!(encode(&file.clone().flag("tokenizer.ggml.add_bos_token", false), "the"), plain);
    let both = file.clone().flag("tokenizer.ggml.add_eos_token", true).u32("tokenizer.ggml.eos_token_id", 3);
    assert_eq!(encode(&both, "the"), [&[1], plain.as_slice(), &[3]].concat());
    // Special and user-defined tokens stand in the text; a space goes before what follows them.
    assert_eq!(encode(&file, "the</s>the<|turn|>"), [&[1], plain.as_slice(), &[2], &plain, &[3]].concat());
    let bare = file.clone().flag("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(tokenizer(&bare).unwrap().decode(&encode(&bare, " the")).unwrap(), " the");
    assert_eq!(encode(&bare, " the"), encode(&file, "the"));
    let turn = file.u32("tokenizer.ggml.eot_token_id", 3);
    assert_eq!(turn.open().unwrap().eos, [2, 3]);
}

/// A byte-level vocabulary of all bytes, one merge and two special tokens.
fn byte_level(pre: &str) -> GgufBuilder {
    let mut tokens: Vec<String> = (0x21..=0x7e)
        .chain(0xa1..=0xac)
        .chain(0xae..=0xff)
        .chain(0x100..=0x143)
        .map(|c| char::from_u32(c).unwrap().to_string())
        .collect();
    tokens.extend(["ab", "abc", "<|s|>", "user"].map(String::from));
    let mut kinds = vec![1; tokens.len()];
    kinds[258] = 3;
    kinds[259] = 4;
    let (file, _) = sentencepiece();
    file.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str))
        .integers("tokenizer.ggml.token_type", &kinds)
        .texts("tokenizer.ggml.merges", ["a b"])
        .u32("tokenizer.ggml.bos_token_id", 258)
}

#[test]
fn byte_level_settings_are_those_of_the_file() {
    let encode = |file: &GgufBuilder, text: &str| tokenizer(file).unwrap().encode(text, true).unwrap();
    let [c, x] = [66, 87];
    assert_eq!(encode(&byte_level("gpt-2"), "xabc<|s|>userx"), [x, 256, c, 258, 259, x]);
    // Llama 3's files take whole words before merges, and begin with a token.
    assert_eq!(encode(&byte_level("llama-bpe"), "abc"), [258, 257]);
    assert_eq!(encode(&byte_level("llama-bpe").flag("tokenizer.ggml.add_bos_token", false), "abc"), [257]);
    let every_byte: String = ('\0'..='\u{7ff}').collect();
    for pre in ["default", "gpt-2", "smollm", "falcon", "llama-bpe", "smaug-bpe", "tekken", "stablelm2"] {
        let tokenizer = tokenizer(&byte_level(pre)).unwrap();
        let ids = tokenizer.encode(&every_byte, false).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), every_byte, "{pre}");
        assert_eq!(tokenizer.decode(&[258, 259]).unwrap(), "user");
    }
}

#[test]
fn pre_tokenizers_cut_where_the_models_did() {
    // A merge across a cut must not happen: pairs of this text that a cut divides stay two tokens.
    let joined = |pre: &str, left: &str, right: &str, text: &str| {
        let merge = format!("{left} {right}");
        let mut tokens: Vec<String> =
            (0x21..=0x7e).chain([0x10a, 0x120]).map(|c| char::from_u32(c).unwrap().into()).collect();
        tokens.push(format!("{left}{right}"));
        let file = byte_level(pre)
            .remove("tokenizer.ggml.token_type")
            .remove("tokenizer.ggml.bos_token_id")
            .flag("tokenizer.ggml.add_bos_token", false)
            .texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str))
            .texts("tokenizer.ggml.merges", [merge.as_str()]);
        tokenizer(&file).unwrap().encode(text, false).unwrap().len() < text.chars().count()
    };
    for (pre, left, right, text, together) in [
        ("gpt-2", "1", "2", "12", true),
        ("smollm", "1", "2", "12", false),
        ("qwen2", "1", "2", "12", false),
        ("llama-bpe", "1", "2", "12", true),
        ("llama-bpe", "3", "4", "1234", false),
        ("default", "3", "4", "1234", false),
        ("gpt-2", "Ġ", "a", "x a", true),
        ("gpt-2", "Ġ", "Ġ", "x  a", false),
        ("gpt-2", "Ġ", "Ġ", "x   a", true),
        ("gpt-2", "!", "Ċ", "!\n", false),
        ("llama-bpe", "!", "Ċ", "!\n", true),
        ("gpt-2", "'", "S", "x'S", false),
        ("llama-bpe", "'", "S", "x'S", true),
        ("gpt-2", "(", "a", "(a", false),
        ("qwen2", "(", "a", "(a", true),
        ("tekken", "a", "B", "aB", false),
        ("tekken", "B", "a", "Ba", true),
        ("falcon", "`", "a", "`a", false),
        ("falcon", "Ġ", "!", "x !", false),
        ("gpt-2", "Ġ", "!", "x !", true),
    ] {
        assert_eq!(joined(pre, left, right, text), together, "{pre}: {left}+{right} in {text:?}");
    }
}

#[test]
fn damaged_and_foreign_vocabularies_are_refused_by_kind() {
    let (scores, _) = sentencepiece();
    let merges = byte_level("gpt-2");
    let refused = |file: GgufBuilder| tokenizer(&file).unwrap_err();
    let bad = |file: GgufBuilder, text: &str| {
        let error = refused(file);
        assert!(matches!(&error, Error::BadFile { reason, .. } if reason.contains(text)), "{text}: {error}");
    };
    let unsupported = |file: GgufBuilder, kind: &str| {
        let error = refused(file);
        assert!(matches!(&error, Error::Unsupported { what, .. } if *what == kind), "{kind}: {error}");
    };
    unsupported(scores.clone().text("tokenizer.ggml.model", "t5"), "tokenizer model");
    unsupported(byte_level("gpt-5"), "pre-tokenizer");
    bad(scores.clone().remove("tokenizer.ggml.scores"), "scores` is missing");
    bad(scores.clone().floats("tokenizer.ggml.scores", &[0.0]), "1 scores for 700 tokens");
    bad(scores.clone().integers("tokenizer.ggml.token_type", &[1]), "1 token types for 700 tokens");
    bad(scores.clone().integers("tokenizer.ggml.scores", &[1; 700]), "no array of f32");
    bad(scores.clone().remove("tokenizer.ggml.tokens").u32("llama.vocab_size", 6), "tokens` is missing");
    bad(scores.clone().text("tokenizer.ggml.tokens", "a"), "no array of strings");
    bad(scores.clone().u32("tokenizer.ggml.bos_token_id", 700), "bos_token_id` is 700");
    bad(scores.u32("tokenizer.ggml.add_bos_token", 1), "no Boolean");
    bad(merges.clone().remove("tokenizer.ggml.merges"), "merges` is missing");
    bad(merges.clone().texts("tokenizer.ggml.merges", ["ab"]), "merge 0 is no pair");
    bad(merges.clone().texts("tokenizer.ggml.merges", ["a z"]), "az");
    bad(merges.remove("tokenizer.ggml.bos_token_id").flag("tokenizer.ggml.add_bos_token", true), "has no id");
    let error = tiny().texts("tokenizer.ggml.tokens", ["a"; 7]).open().map(drop).unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.contains("7 tokens")), "{error}");
}

#[test]
fn a_vocabulary_without_bytes_falls_back_to_the_unknown_token() {
    let (file, _) = sentencepiece();
    let file = file
        .texts("tokenizer.ggml.tokens", ["<unk>", "<s>", "</s>", "▁", "a"])
        .floats("tokenizer.ggml.scores", &[0.0; 5])
        .integers("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1]);
    assert_eq!(tokenizer(&file).unwrap().encode("aé", true).unwrap(), [1, 3, 4, 0]);
    let none = file.raw("tokenizer.ggml.unknown_token_id", 5, (-1_i32).to_le_bytes().into());
    assert!(matches!(tokenizer(&none).unwrap().encode("aé", true), Err(Error::Tokenizer(_))));
}

/// A `tokenizer.json` of byte-level BPE with a begin-of-sequence token, and its changes.
fn tokenizer_json() -> Value {
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "<s>"},
        "added_tokens": [
            {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 7, "content": "é!", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false},
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ã": 5, "©": 6}, "merges": ["a b"]}
    })
}

fn from_json(value: &Value) -> Result<Tokenizer> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, value.to_string()).unwrap();
    Tokenizer::from_json(&path, Some(0), vec![0])
}

#[test]
fn tokenizer_json_is_read_with_its_post_processor_but_without_padding_or_truncation() {
    let tokenizer = from_json(&tokenizer_json()).unwrap();
    assert_eq!(tokenizer.encode("ab é<s>é!", true).unwrap(), [0, 3, 4, 5, 6, 0, 7]);
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [3]);
    // Llama 3's files wrap the template in a sequence; others have an end as well.
    let mut value = tokenizer_json();
    let end = value["post_processor"]["single"][0].clone();
    value["post_processor"]["single"].as_array_mut().unwrap().push(end);
    let template = value["post_processor"].take();
    value["post_processor"] = json!({"type": "Sequence", "processors": [value["decoder"], template]});
    assert_eq!(from_json(&value).unwrap().encode("ab", true).unwrap(), [0, 3, 0]);
    assert_eq!(tokenizer.decode(&[0, 3, 4, 5, 6, 0, 7]).unwrap(), "ab éé!");
    assert_eq!(streamed(&tokenizer, &[3, 5, 6, 5]), "abé\u{fffd}");
    assert_eq!(tokenizer.vocab_len(), 8);
    assert!(matches!(tokenizer.token_bytes(8), Err(Error::BadToken { id: 8, vocab: 8 })));
}

/// The same with SentencePiece's spelling.
fn byte_fallback_json() -> Value {
    let mut value = tokenizer_json();
    value["pre_tokenizer"] = Value::Null;
    value["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    value["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    value["model"]["byte_fallback"] = true.into();
    value["model"]["vocab"] = json!({"<s>": 0, "▁": 1, "a": 2, "▁a": 3, "<0xC3>": 4, "<0xA9>": 5});
    value["model"]["merges"] = json!(["▁ a"]);
    value
}

#[test]
fn tokenizer_json_with_byte_fallback_spells_spaces_and_bytes() {
    let tokenizer = from_json(&byte_fallback_json()).unwrap();
    assert_eq!(tokenizer.encode("a aé", true).unwrap(), [0, 3, 3, 4, 5]);
    assert_eq!(tokenizer.decode(&[0, 3, 3, 4, 5]).unwrap(), "a aé");
    assert_eq!(streamed(&tokenizer, &[3, 4, 5]), " aé");
}

#[test]
fn damaged_and_foreign_tokenizer_json_is_refused_by_kind() {
    let with = |change: fn(&mut Value)| {
        let mut value = tokenizer_json();
        change(&mut value);
        from_json(&value).map(drop)
    };
    for (name, result) in [
        ("model", with(|v| v["model"]["type"] = "Unigram".into())),
        ("prefix", with(|v| v["model"]["continuing_subword_prefix"] = "ä".into())),
        ("decoder", with(|v| v["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}))),
        ("no decoder", with(|v| v["decoder"] = Value::Null)),
        ("normalizer", with(|v| v["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": ""}))),
        (
            "post-processor",
            with(|v| v["post_processor"] = json!({"type": "BertProcessing", "sep": ["<s>", 0], "cls": ["<s>", 0]})),
        ),
    ] {
        assert!(matches!(result, Err(Error::Unsupported { .. })), "{name}: {result:?}");
    }
    for (name, result) in [
        ("no object", from_json(&json!([])).map(drop)),
        ("no model", with(|v| v["model"] = Value::Null)),
        ("merge", with(|v| v["model"]["merges"] = json!(["a c"]))),
        ("undefined token", with(|v| v["post_processor"]["special_tokens"] = json!({}))),
        ("second text", with(|v| v["post_processor"]["single"] = v["post_processor"]["pair"].clone())),
        ("pre-tokenizer", with(|v| v["pre_tokenizer"] = json!({"type": "Psychic"}))),
    ] {
        assert!(matches!(result, Err(Error::BadFile { .. })), "{name}: {result:?}");
    }
    assert!(matches!(Tokenizer::from_json("/no/such".as_ref(), None, vec![]), Err(Error::Io { .. })));
}

#[test]
fn flipped_tokenizers_do_not_panic() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    // A bit in 29: making a tokenizer takes 2 ms.
    for json in [tokenizer_json(), byte_fallback_json()] {
        let mut bytes = json.to_string().into_bytes();
        for bit in (0..bytes.len() * 8).step_by(29) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(tokenizer) = Tokenizer::from_json(&path, Some(0), vec![0]) {
                let ids = tokenizer.encode("<s>ab é!xa b", true).unwrap_or_default();
                let _ = tokenizer.decode(&ids);
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
    let mut bytes = byte_level("gpt-2").build();
    for bit in (0..bytes.len() * 8).step_by(29) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Some(tokenizer)) = crate::weights::open(&bytes).map(|files| files.tokenizer) {
            let ids = tokenizer.encode("ab user<|s|>é", true).unwrap_or_default();
            let _ = tokenizer.decode(&ids);
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn smollm2_puts_a_question_into_its_own_frame() {
    let files = ModelFiles::open(&smollm2()).unwrap();
    let text = files.template.unwrap().render(&[Message::new("user", "Why is the sky blue?")], true).unwrap();
    assert_eq!(text, expected()[1]["text"].as_str().unwrap());
}

fn render(source: &str, messages: &[Message]) -> Result<String> {
    ChatTemplate::new(source, "<s>", "</s>").render(messages, true)
}

#[test]
fn templates_run_as_in_transformers() {
    let messages = [Message::new("system", " Be <brief>. "), Message::new("user", "\"Hi\" & 'bye' é")];
    for (source, expected) in [
        // The blocks' own lines leave nothing behind.
        (
            "{{ bos_token }}\n{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}{{ eos_token }}\n  {% endif %}\n{% endfor %}\n",
            "<s>\n\"Hi\" & 'bye' é</s>\n",
        ),
        ("{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% endif %}{{ rest | length }}", "1"),
        ("{{ messages[0].content.strip() }}|{{ messages[0]['content'] | trim }}", "Be <brief>.|Be <brief>."),
        ("{{ messages[1].content.split(' ')[0] }}{{ 'x'.upper() }}{{ 'ab'.startswith('a') }}", "\"Hi\"XTrue"),
        ("{{ messages[1] | tojson }}", r#"{"role": "user", "content": "\"Hi\" & 'bye' é"}"#),
        ("{{ [1, 2.5, true, none, 'a', {}] | tojson }}", r#"[1, 2.5, true, null, "a", {}]"#),
        ("{{ [1, [2], []] | tojson(indent=2) }}", "[\n  1,\n  [\n    2\n  ],\n  []\n]"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
            "user",
        ),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ tools is defined }}{{ tools }}", "[1]False"),
        ("{% if add_generation_prompt %}{{ 'go' }}{% endif %}", "go"),
    ] {
        assert_eq!(render(source, &messages).unwrap(), expected, "{source}");
    }
}

/// A template that nests a list `60 * n` times and then does something with it.
fn nested(n: usize, then: &str) -> String {
    let (open, close) = ("[".repeat(60), "]".repeat(60));
    format!(
        "{{% set ns = namespace(x=0) %}}{{% for i in range({n}) %}}{{% set ns.x = {open}ns.x{close} %}}{{% endfor %}}{then}"
    )
}

#[test]
fn failing_and_hostile_templates_end_with_an_error() {
    for source in [
        "{% for m in messages %}",
        "{{ messages[0].content.nonsense() }}",
        "{{ nothing.field }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
        "{{ 'x' * 1000000000 }}",
        "{{ ('x' * 10000) | replace('x', 'x' * 100000) }}",
        "{{ ('x' * 10000).replace('x', 'x' * 100000) }}",
        "{{ [1] * 1000000000 }}",
        &nested(4000, "ok"),
        "{% set ns = namespace(l=range(100000)) %}{% for i in range(98) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l | tojson(indent=255) }}",
    ] {
        let result = render(source, &[Message::new("user", "hi")]);
        assert!(matches!(result, Err(Error::Template(_))), "{source}: {:?}", result.map(|text| text.len()));
    }
    let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
    assert!(error.to_string().contains("roles must alternate"), "{error}");
    // As deep as there is fuel for, whether it is an error or not: no thread's stack ends.
    for then in ["ok", "{{ ns.x }}", "{{ ns.x == [ns.x] }}", "{{ ns.x | tojson }}", "{{ ns.x | list | length }}"] {
        let _ = render(&nested(900, then), &[]);
    }
    // A long prompt is no hostile template.
    let long = "word ".repeat(1 << 20);
    let _ = render(&nested(30_000, "ok"), &[Message::new("user", &long)]);
    let text =
        render("{% for m in messages %}{{ m.content | trim }}{% endfor %}", &[Message::new("user", &long)]).unwrap();
    assert_eq!(text, long.trim());
}

#[test]
fn a_folder_brings_its_template_with_its_tokens() {
    let folder = TempDir::new().unwrap();
    let reference = crate::weights::reference("llama-gqa-tied");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(reference.join(name), folder.path().join(name)).unwrap();
    }
    let render = |name: &str, content: Value| {
        let text = content.as_str().map_or(content.to_string(), str::to_owned);
        std::fs::write(folder.path().join(name), text).unwrap();
        ModelFiles::open(folder.path()).unwrap().template.map(|t| t.render(&[], false).unwrap())
    };
    assert_eq!(render("tokenizer_config.json", json!({})), None);
    let settings =
        |template: Value| json!({"bos_token": {"content": "<b>"}, "eos_token": "<e>", "chat_template": template});
    assert_eq!(
        render("tokenizer_config.json", settings("one{{ bos_token }}{{ eos_token }}".into())).unwrap(),
        "one<b><e>"
    );
    let named = json!([{"name": "rag", "template": "rag"}, {"name": "default", "template": "two{{ bos_token }}"}]);
    assert_eq!(render("tokenizer_config.json", settings(named)).unwrap(), "two<b>");
    assert_eq!(render("chat_template.jinja", "three{{ eos_token }}".into()).unwrap(), "three<e>");
    // What is not said is spelled as the configuration's ids, 1 and 2, are; what is said not to be there is nothing.
    let bpe = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({"added_tokens": [], "pre_tokenizer": bytes, "decoder": bytes, "model": bpe});
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ bos_token }}-{{ eos_token }}").unwrap();
    for (said, text) in [(json!({}), "b-c"), (json!({"bos_token": null, "eos_token": "<e>"}), "-<e>")] {
        assert_eq!(render("tokenizer_config.json", said).unwrap(), text);
    }
}
