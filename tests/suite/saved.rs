//! Sessions on disk: they go on as if there had been no break, and nothing but a whole file of the same model is taken.

use std::fs;
use std::path::Path;

use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, Options, Session, saved_tokens};
use runahead::error::Error;
use runahead::sampler::Sampling;

use super::chain::reference;

fn engine(family: &str, devices: &[DeviceId], kv: KvDtype, context: usize) -> Engine {
    Engine::builder(reference(family)).unwrap().devices(devices.to_vec()).kv(kv).context(context).open().unwrap()
}

fn prompt(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % 384) as u32).collect()
}

fn ids(session: &mut Session, prompt: &[u32], n: usize) -> Vec<u32> {
    let options = Options { max_tokens: n, stop_at_end: false, ..Options::default() };
    session.generate(prompt, &options).unwrap().map(|t| t.unwrap().id).collect()
}

#[test]
fn a_loaded_session_goes_on_with_the_same_tokens_and_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.session");
    for devices in [&[DeviceId::Cpu][..], &[DeviceId::Gpu(0); 2]] {
        for kv in [KvDtype::F16, KvDtype::F32] {
            let before = engine("llama-gqa-tied", devices, kv, 256);
            let mut session = before.session().unwrap();
            ids(&mut session, &prompt(70, 1), 9);
            session.set_note("größer, {\"a\": 1}");
            session.save(&path).unwrap();
            assert_eq!(saved_tokens(&path).unwrap(), session.tokens());

            let after = engine("llama-gqa-tied", devices, kv, 192);
            let mut loaded = after.load_session(&path).unwrap();
            assert_eq!((loaded.tokens(), loaded.note()), (session.tokens(), "größer, {\"a\": 1}"));
            for layer in 0..after.config().n_layers {
                assert_eq!(loaded.kv(layer).unwrap(), session.kv(layer).unwrap());
            }
            assert_eq!(ids(&mut loaded, &prompt(50, 2), 9), ids(&mut session, &prompt(50, 2), 9), "{devices:?} {kv:?}");
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no unfinished file stays");
}

#[test]
fn a_conversation_that_fills_the_context_is_loaded_and_cut_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full");
    // Windows that are wider than the context let go of nothing.
    for window in [None, Some(200)] {
        let mut config = runahead::config::shapes::shape("tiny").unwrap();
        config.layers.iter_mut().for_each(|layer| layer.window = window);
        let builder = Engine::synthetic(config, runahead::dtype::Dtype::F32, 3).unwrap();
        let engine = builder.devices([DeviceId::Cpu]).context(64).open().unwrap();
        let mut session = engine.session().unwrap();
        ids(&mut session, &prompt(40, 1), 1000);
        let all = session.tokens().to_vec();
        assert_eq!((session.n_cached(), all.len()), (64, 65), "the last token has no row");
        session.save(&path).unwrap();
        let mut loaded = engine.load_session(&path).unwrap();
        assert_eq!(loaded.tokens(), all);
        for session in [&mut session, &mut loaded] {
            session.truncate(50);
            assert_eq!(session.n_cached(), 50, "{window:?}");
            assert_eq!(ids(session, &all[50..51], 5), all[51..56], "{window:?}");
        }
    }
}

#[test]
fn more_rows_than_are_read_at_a_time_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long");
    let config = runahead::config::shapes::shape("tiny").unwrap();
    let open = || {
        let builder = Engine::synthetic(config.clone(), runahead::dtype::Dtype::F32, 3).unwrap();
        builder.devices([DeviceId::Cpu]).context(2304).open().unwrap()
    };
    let mut session = open().session().unwrap();
    let long: Vec<u32> = (0..2100).map(|i| i * 17 % 512).collect();
    ids(&mut session, &long, 2);
    session.save(&path).unwrap();
    let mut loaded = open().load_session(&path).unwrap();
    assert!(loaded.kv(1).unwrap() == session.kv(1).unwrap());
    assert_eq!(ids(&mut loaded, &[1, 2], 4), ids(&mut session, &[1, 2], 4));
}

#[test]
fn a_shared_prefix_is_kept_and_the_rest_prefilled() {
    for devices in [&[DeviceId::Cpu][..], &[DeviceId::Gpu(0); 2], &[DeviceId::Cpu; 3]] {
        let engine = engine("llama-mha", devices, KvDtype::F16, 256);
        let (old, new) = (prompt(100, 3), [&prompt(100, 3)[..77], &prompt(60, 4)].concat());
        let mut session = engine.session().unwrap();
        let answer = ids(&mut session, &old, 5);
        // A second turn makes a chain keep its rows on the host: they are cut, too.
        ids(&mut session, &prompt(40, 5), 5);

        let same_turn = [&old[..], &answer, &[9]].concat();
        assert_eq!(session.keep_prefix(&same_turn), 105);
        assert_eq!(session.keep_prefix(&new), 77);
        let options = Options { max_tokens: 5, stop_at_end: false, ..Options::default() };
        let generation = session.generate(&new[77..], &options).unwrap();
        assert_eq!(generation.report().partition.iter().sum::<usize>(), 60);
        let got: Vec<u32> = generation.map(|t| t.unwrap().id).collect();
        assert_eq!(got, ids(&mut engine.session().unwrap(), &new, 5), "{devices:?}");

        // The whole prompt in the cache: its last token is computed again.
        assert_eq!(session.keep_prefix(&new), new.len() - 1);
        assert_eq!(ids(&mut session, &new[new.len() - 1..], 5), got);
        assert_eq!(session.keep_prefix(&[383, 1]), 0);
    }
}

fn refused(engine: &Engine, path: &Path) -> Error {
    let mut session = engine.session().unwrap();
    ids(&mut session, &[1, 2, 3], 2);
    let error = session.load(path).unwrap_err();
    assert_eq!(session.n_tokens(), 5, "the conversation so far stays");
    ids(&mut session, &[4], 1);
    error
}

#[test]
fn files_of_another_model_or_cache_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let own = engine("llama-gqa-tied", &[DeviceId::Cpu], KvDtype::F16, 128);
    let mut session = own.session().unwrap();
    ids(&mut session, &prompt(100, 1), 3);
    session.save(&path).unwrap();
    let says = |error: Error, text: &str| assert!(error.to_string().contains(text), "{error}");
    for other in ["llama-mha", "llama3-rope"] {
        says(refused(&engine(other, &[DeviceId::Cpu], KvDtype::F16, 128), &path), "another model");
    }
    says(refused(&engine("llama-gqa-tied", &[DeviceId::Cpu], KvDtype::F32, 128), &path), "in f16, not in f32");
    let short = refused(&engine("llama-gqa-tied", &[DeviceId::Cpu], KvDtype::F16, 64), &path);
    assert!(matches!(short, Error::ContextFull { needed: 103, context: 64 }), "{short}");

    // The same sizes and names with one weight changed.
    let changed = folder.path().join("model");
    fs::create_dir(&changed).unwrap();
    fs::copy(reference("llama-gqa-tied").join("config.json"), changed.join("config.json")).unwrap();
    let mut weights = fs::read(reference("llama-gqa-tied").join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(changed.join("model.safetensors"), weights).unwrap();
    let changed = Engine::builder(&changed).unwrap().devices([DeviceId::Cpu]).context(128).open().unwrap();
    says(refused(&changed, &path), "another model");

    assert!(matches!(own.load_session(folder.path().join("none")), Err(Error::Io { .. })));
    assert!(own.load_session(folder.path()).is_err());
    assert!(session.save(folder.path().join("no/such/folder")).is_err());
    assert!(session.save(folder.path()).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn damaged_files_are_refused_wherever_the_damage_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let engine = engine("llama-gqa-tied", &[DeviceId::Cpu], KvDtype::F16, 64);
    let mut session = engine.session().unwrap();
    ids(&mut session, &prompt(40, 1), 3);
    session.set_note("note");
    session.save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let bad = folder.path().join("bad");
    let mut refuses = |bytes: &[u8], what: &str| {
        fs::write(&bad, bytes).unwrap();
        let error = session.load(&bad).expect_err(what);
        assert!(matches!(error, Error::BadFile { .. }), "{what}: {error}");
        assert_eq!(session.n_tokens(), 43);
    };
    let step = whole.len() / 97;
    for len in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
        refuses(&whole[..len], &format!("cut at {len}"));
    }
    refuses(&[&whole[..], &[0]].concat(), "a byte too many");
    for at in (0..300).chain((300..whole.len()).step_by(step)).chain(whole.len() - 8..whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        refuses(&bytes, &format!("a flipped bit in byte {at}"));
    }
    // Sizes that overflow, or that a small file cannot hold.
    for at in [24, 28, 32, 40, 48] {
        for value in [0u64, 1, 1 << 20, 1 << 40, 1 << 63, u64::MAX] {
            let mut bytes = whole.clone();
            let width = if at < 32 { 4 } else { 8 };
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            refuses(&bytes, &format!("{value} at {at}"));
        }
    }
    let mut both = whole.clone();
    both[32..48].copy_from_slice(&[0xff; 16]);
    refuses(&both, "as many rows as there are numbers");
    session.load(&path).unwrap();
}

#[test]
fn a_save_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let cancel = runahead::cancel::Cancel::new();
    let builder = Engine::builder(reference("llama-mha")).unwrap().devices([DeviceId::Cpu]).context(64);
    let engine = builder.cancel(cancel.clone()).open().unwrap();
    let mut session = engine.session().unwrap();
    ids(&mut session, &prompt(20, 1), 3);
    session.save(&path).unwrap();
    let old = fs::read(&path).unwrap();
    ids(&mut session, &prompt(20, 2), 3);
    cancel.cancel();
    assert!(matches!(session.save(&path), Err(Error::Cancelled)));
    assert!(fs::read(&path).unwrap() == old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no unfinished file stays");
}

#[test]
fn an_empty_session_and_a_sampled_one_are_saved_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let engine = engine("llama-mha", &[DeviceId::Cpu], KvDtype::F16, 64);
    engine.session().unwrap().save(&path).unwrap();
    assert_eq!(engine.load_session(&path).unwrap().n_tokens(), 0);

    let sampling = Sampling { temperature: 0.8, seed: 4, ..Sampling::default() };
    let options = Options { max_tokens: 6, stop_at_end: false, sampling, ..Options::default() };
    let turn = |session: &mut Session, tokens: &[u32]| {
        session.generate(tokens, &options).unwrap().map(|t| t.unwrap().id).collect::<Vec<_>>()
    };
    let mut session = engine.session().unwrap();
    turn(&mut session, &[5, 6, 7]);
    session.save(&path).unwrap();
    let mut loaded = engine.load_session(&path).unwrap();
    assert_eq!(turn(&mut loaded, &[8, 9]), turn(&mut session, &[8, 9]));
}
