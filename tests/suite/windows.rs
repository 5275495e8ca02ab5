//! Layers with a window: rings as caches, rows that are not handed on, and conversations that are cut back, against engines whose caches have a row
//! for every token.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use runahead::cancel::Cancel;
use runahead::dims::round_up;
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, EngineBuilder, Gemm, Mode, Options, PrefillReport, Session};
use runahead::error::Error;
use runahead::model::{CacheSize, Slots, memory};
use runahead::runahead::cost::{CostModel, Rates, Shape, mean_scores};
use runahead::runahead::partition::Split;
use runahead::runahead::schedule::{Mask, Schedule};
use runahead::runahead::simulate::simulate;
use serde_json::json;
use tempfile::TempDir;

use super::chain::{reference, tokens};
use super::naive::{sized, write_model};

mod rings;

const CONTEXT: usize = 320;

/// Models with windows of some layers and of all, smaller and larger than a granule.
fn models() -> Vec<(&'static str, TempDir)> {
    let long = |config: serde_json::Value| {
        let mut config = sized(config);
        config["max_position_embeddings"] = json!(2 * CONTEXT);
        config
    };
    let mistral = long(json!({"model_type": "mistral", "sliding_window": 5}));
    let gemma2 = long(json!({
        "model_type": "gemma2", "sliding_window": 9, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0, "num_key_value_heads": 1, "head_dim": 20,
    }));
    let gemma3 = long(json!({
        "model_type": "gemma3_text", "sliding_window": 40, "sliding_window_pattern": 3, "query_pre_attn_scalar": 12,
        "rope_theta": 1e6, "rope_local_base_freq": 5e3, "num_hidden_layers": 5,
    }));
    let all = [("mistral", mistral), ("gemma2", gemma2), ("gemma3", gemma3)];
    all.into_iter().zip(31..).map(|((name, config), seed)| (name, write_model(&config, seed))).collect()
}

fn builder(model: &TempDir, devices: &[DeviceId], take_back: usize) -> EngineBuilder {
    let builder = Engine::builder(model.path()).unwrap().devices(devices.to_vec()).context(CONTEXT);
    builder.gemm(Gemm::Wgsl).kv(KvDtype::F32).take_back(take_back)
}

fn engine(model: &TempDir, devices: &[DeviceId], take_back: usize) -> Engine {
    builder(model, devices, take_back).open().unwrap()
}

/// One adapter whose rings never go round.
fn plain(model: &TempDir, id: DeviceId) -> Engine {
    engine(model, &[id], CONTEXT)
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    tokens(n, seed).into_iter().map(|id| id % 131).collect()
}

fn options(mode: Mode, split: Split, max_tokens: usize) -> Options {
    Options { mode, split, max_tokens, stop_at_end: false, ..Options::default() }
}

fn answer(session: &mut Session, prompt: &[u32], n: usize) -> Vec<u32> {
    answer_by(session, prompt, &options(Mode::Runahead, Split::Even, n)).0
}

fn answer_by(session: &mut Session, prompt: &[u32], options: &Options) -> (Vec<u32>, PrefillReport) {
    let generation = session.generate(prompt, options).unwrap();
    let report = generation.report().clone();
    (generation.map(|t| t.unwrap().id).collect(), report)
}

const CHAINS: [Mode; 5] = [Mode::Runahead, Mode::Relay, Mode::Tsp, Mode::TspCausal, Mode::Zigzag];

/// Bits of the logits of three turns, and of K and V at the end.
fn turns(engine: &Engine, mode: Mode, cut: impl Fn(usize, usize) -> Split) -> Vec<u32> {
    let mut session = engine.session().unwrap();
    let (mut past, mut bits) = (0, Vec::new());
    for (len, seed) in [(75, 1), (1, 2), (110, 3)] {
        let logits = session.logits(&ids(len, seed), &options(mode, cut(past, len), 1)).unwrap();
        bits.extend(logits.iter().map(|x| x.to_bits()));
        past += len;
    }
    for layer in 0..engine.config().n_layers {
        let (k, v) = session.kv(layer).unwrap();
        bits.extend(k.into_iter().chain(v).map(f32::to_bits));
    }
    bits
}

#[test]
fn chains_over_rings_give_the_bits_of_one_adapter_with_all_rows() {
    let gpu = DeviceId::Gpu(0);
    for (name, model) in models() {
        let want = turns(&plain(&model, gpu), Mode::Single, |_, _| Split::Even);
        for n in 1..=3 {
            let engine = engine(&model, &vec![gpu; n], 0);
            for mode in CHAINS {
                assert!(turns(&engine, mode, |_, _| Split::Even) == want, "{name} x{n} {mode} differs in bits");
            }
            // Cuts anywhere aligned: pieces shorter and longer than the windows.
            for weights in [[1.0, 1.0, 8.0], [8.0, 1.0, 1.0], [1.0, 8.0, 1.0]] {
                let cut = |past, len| {
                    let lengths = runahead::runahead::partition::weighted(past, len, &weights[..n]);
                    if lengths.len() == n { Split::Given(lengths) } else { Split::Even }
                };
                assert!(turns(&engine, Mode::Runahead, cut) == want, "{name} x{n} {weights:?} differs in bits");
            }
        }
    }
}

/// What else changes scores, cut anywhere; soft-caps are in the models above.
#[test]
fn alibi_in_chains_that_are_cut_anywhere() {
    let open = |n: usize| {
        let builder = Engine::builder(reference("falcon-rw-alibi")).unwrap().devices(vec![DeviceId::Gpu(0); n]);
        builder.gemm(Gemm::Wgsl).context(256).open().unwrap()
    };
    let want = turns(&open(1), Mode::Single, |_, _| Split::Even);
    for weights in [&[1.0, 8.0][..], &[8.0, 1.0], &[1.0, 1.0, 8.0], &[1.0, 8.0, 1.0], &[8.0, 1.0, 1.0]] {
        let cut = |past, len| {
            let lengths = runahead::runahead::partition::weighted(past, len, weights);
            if lengths.len() == weights.len() { Split::Given(lengths) } else { Split::Even }
        };
        assert!(turns(&open(weights.len()), Mode::Runahead, cut) == want, "{weights:?} differs in bits");
    }
}

#[test]
fn references_on_rings() {
    use DeviceId::{Cpu, Gpu};
    for name in ["mistral-window", "gemma3"] {
        let expected = super::model::Expected::read(name);
        for devices in [vec![Gpu(0)], vec![Cpu], vec![Gpu(0); 2], vec![Gpu(0), Cpu, Gpu(0)], vec![Cpu, Gpu(0), Cpu]] {
            for split in [Split::Even, Split::Given(vec![16, 32, expected.ids.len() - 48])] {
                let fits = devices.len() == 3 || split == Split::Even;
                if !fits {
                    continue;
                }
                let builder = Engine::builder(reference(name)).unwrap().devices(devices.clone()).kv(KvDtype::F32);
                let engine = builder.context(256).take_back(0).open().unwrap();
                let options = options(Mode::Runahead, split, expected.greedy.len());
                let got = engine.session().unwrap().logits(&expected.ids, &options).unwrap();
                let off = super::model::difference(&got, &expected.logits);
                assert!(off < 1e-3, "{name} {devices:?}: {off:.2e} of a standard deviation");
                let (got, _) = answer_by(&mut engine.session().unwrap(), &expected.ids, &options);
                assert_eq!(got, expected.greedy, "{name} {devices:?}");
            }
        }
    }
}

#[test]
fn naive_formulas_on_rings() {
    use DeviceId::{Cpu, Gpu};
    for (name, model) in models() {
        let ids = ids(150, 20);
        let want = super::naive::logits(model.path(), &ids, CONTEXT);
        for devices in [vec![Gpu(0)], vec![Cpu], vec![Cpu, Gpu(0)], vec![Gpu(0), Cpu, Gpu(0)], vec![Cpu, Gpu(0), Cpu]] {
            let mut session = engine(&model, &devices, 0).session().unwrap();
            let mut turn = |ids: &[u32]| session.logits(ids, &Options::default()).unwrap();
            let got = [turn(&ids[..70]), turn(&ids[70..71]), turn(&ids[71..])].concat();
            let off = super::model::difference(&got, &want);
            assert!(off < 1e-3, "{name} on {devices:?}: {off:.2e} of a standard deviation");
        }
    }
}

/// Rows of layer caches: those of the whole context, or of the window and what is beside it.
fn expected_bytes(engine: &Engine, beside: usize, key_tile: usize) -> u64 {
    let config = engine.config();
    let whole = round_up(CONTEXT, key_tile);
    let rows =
        config.layers.iter().map(|layer| layer.window.map_or(whole, |w| round_up(w + beside, key_tile).min(whole)));
    2 * (rows.sum::<usize>() * config.kv_width() * 4) as u64
}

#[test]
fn windows_make_caches_small() {
    let windows = [Some(100), None, Some(10), Some(usize::MAX), Some(100)];
    let rows = |slots, tokens, beside| CacheSize { tokens, slots, beside }.rows(6, &windows, 32);
    // The sixth layer is beyond the list and has no window.
    assert_eq!(rows(Slots::All, 1000, 50), [160, 1024, 64, 1024, 160, 1024]);
    assert_eq!(rows(Slots::All, 100, 50), [128, 128, 64, 128, 128, 128]);
    assert_eq!(rows(Slots::All, 1000, usize::MAX), [1024; 6]);
    // Layers 0 and 3, 1 and 4, 2 and 5 take turns: the larger one decides.
    assert_eq!(rows(Slots::Ring, 1000, 0), [1024; 3]);
    assert_eq!(CacheSize { tokens: 1000, slots: Slots::Ring, beside: 50 }.rows(3, &[Some(30); 3], 64), [128; 3]);

    // What a plan says before anything is loaded: weights, activations, and this.
    let model = &models()[1].1;
    let opened = builder(model, &[DeviceId::Cpu], 0);
    let config = opened.config();
    let bytes = |span| {
        let estimate = memory::Estimate { config, weights_bytes: 0, context: 4096, kv: KvDtype::F16 };
        estimate.bytes(16, span, Slots::All) - estimate.bytes(16, 0, Slots::All)
    };
    let windowed = config.windows().iter().filter(|window| window.is_some()).count();
    assert_eq!((bytes(memory::TAKE_BACK), windowed), (0, 2));
    assert_eq!(bytes(memory::TAKE_BACK + 100), 2 * (windowed * 100 * config.kv_width() * 2) as u64);
}

#[test]
fn a_long_decode_keeps_the_cache_as_small_as_the_window_and_the_prompt() {
    for (name, model) in models() {
        for (id, key_tile) in [(DeviceId::Gpu(0), 32), (DeviceId::Cpu, 64)] {
            let prompt = ids(30, 4);
            let want = answer(&mut plain(&model, id).session().unwrap(), &prompt, 260);
            let ring = engine(&model, &[id], 0);
            let mut session = ring.session().unwrap();
            assert_eq!(session.cache_bytes().sum::<u64>(), expected_bytes(&ring, 0, key_tile), "{name} {id}");
            let got = answer(&mut session, &prompt, 260);
            assert_eq!(session.cache_bytes().sum::<u64>(), expected_bytes(&ring, 30, key_tile), "{name} {id}");
            assert!(expected_bytes(&ring, 30, key_tile) < expected_bytes(&ring, CONTEXT, key_tile) * 4 / 5);
            assert_eq!(got, want, "{name} {id}");
            // In the chain's first adapters as well: three layers, each for the longest share.
            let chain = engine(&model, &[id; 2], 16);
            let mut session = chain.session().unwrap();
            answer(&mut session, &ids(60, 5), 2);
            let bytes: Vec<u64> = session.cache_bytes().collect();
            assert_eq!(bytes[1], expected_bytes(&chain, 28, key_tile), "{name} {id}: {bytes:?}");
            assert!(bytes[0] <= bytes[1], "{name} {id}: {bytes:?}");
        }
    }
}

#[test]
fn bytes_handed_on_are_those_that_windows_reach() {
    // Every layer of the model has a window of 5: adapter 1 takes the last 4 rows before its piece, adapter 2 the last 4 before its own.
    let models = models();
    let (_, mistral) = &models[0];
    let engine = engine(mistral, &[DeviceId::Cpu; 3], 0);
    let row = (2 * engine.config().kv_width() * 4) as u64;
    let layers = engine.config().n_layers as u64;
    let given = |lengths: &[usize]| options(Mode::Runahead, Split::Given(lengths.to_vec()), 1);
    let (_, report) = answer_by(&mut engine.session().unwrap(), &ids(144, 6), &given(&[64, 48, 32]));
    let bytes: Vec<_> = report.adapters.iter().map(|a| (a.published_bytes / row, a.fetched_bytes / row)).collect();
    assert_eq!(bytes, [(4 * layers, 0), (4 * layers, 4 * (layers - 1)), (0, 4 * layers)]);
}

/// What the simulator says is moved is what is moved, in every mode, behind any past, with windows of some layers and of all.
#[test]
fn counters_are_those_of_the_simulator() {
    for (name, model) in models() {
        let engine = engine(&model, &[DeviceId::Cpu; 3], 16);
        let config = engine.config();
        let shape = Shape::of(config);
        let rates = Rates {
            name: "a".to_owned(),
            product_flops: 1e12,
            attention_flops: 1e12,
            half_speed_tokens: 0.0,
            decode_s: None,
            down: Default::default(),
            up: Default::default(),
        };
        let adapters = (0..3).map(|_| rates.costs(&shape).unwrap()).collect();
        let costs = CostModel { adapters, kv_bytes: shape.kv_bytes(4), windows: shape.windows(), hub: None };
        assert_eq!(shape.windows(), config.windows());
        for mode in CHAINS {
            let mut session = engine.session().unwrap();
            for len in [80, 100, 130] {
                let past = session.n_cached();
                let logits = session.generate(&ids(len, 7), &options(mode, Split::Even, 1)).unwrap();
                let report = logits.report().clone();
                drop(logits);
                let schedule = mode.schedule(past, &report.partition, config.n_layers).windowed(&costs.windows);
                let forecast = simulate(&schedule, &costs).unwrap();
                for (i, (real, said)) in report.adapters.iter().zip(&forecast.adapters).enumerate() {
                    let real = (real.published_bytes as f64, real.fetched_bytes as f64);
                    assert_eq!(
                        real,
                        (said.published_bytes, said.fetched_bytes),
                        "{name} {mode} past {past}: adapter {i}"
                    );
                }
                let whole = simulate(&Schedule { windows: Vec::new(), ..schedule }, &costs).unwrap();
                let sum = |f: &runahead::runahead::simulate::Forecast| {
                    f.adapters.iter().map(|a| a.fetched_bytes).sum::<f64>()
                };
                assert!(sum(&forecast) < sum(&whole), "{name} {mode}: windows save nothing");
            }
        }
    }
}

#[test]
fn scores_are_counted_within_windows() {
    let windows = [None, Some(1), Some(7), Some(50), Some(1000)];
    for mask in [Mask::Causal, Mask::BlockThenMask, Mask::DenseThenMask] {
        for past in [0, 5, 64] {
            let schedule =
                Schedule { mask, ..Schedule::tsp_causal(past, &[32, 16, 23], windows.len()).windowed(&windows) };
            let end = past + schedule.n_tokens();
            for (layer, window) in windows.iter().enumerate() {
                for (i, piece) in schedule.pieces.iter().enumerate() {
                    let last = |p: usize| match mask {
                        Mask::Causal => p + 1,
                        Mask::BlockThenMask => piece.end,
                        Mask::DenseThenMask => end,
                    };
                    let first = |p: usize| window.map_or(0, |w| (p + 1).saturating_sub(w));
                    let want: usize = (piece.start..piece.end).map(|p| last(p) - first(p)).sum();
                    assert_eq!(schedule.n_scores(i, layer), want as u64, "{mask:?} past {past} {window:?} piece {i}");
                    if mask == Mask::Causal {
                        let mean = mean_scores(&[*window], piece.start as f64, piece.len() as f64);
                        assert!((mean - want as f64).abs() < 1e-6, "{mean} {want}");
                    }
                }
            }
        }
    }
    assert_eq!(mean_scores(&[None, Some(1)], 4.0, 2.0), (11.0 + 2.0) / 2.0);
}

/// What a session says after anything that was done to it is what a new one says to the same tokens.
fn assert_goes_on(what: &str, plain: &Engine, session: &mut Session) {
    let more = ids(20, 8);
    let all = [session.tokens(), &more].concat();
    let want = answer(&mut plain.session().unwrap(), &all, 4);
    assert_eq!(answer(session, &more, 4), want, "{what}");
}

/// Two turns; 139 of 140 tokens have rows.
fn two_turns(session: &mut Session) {
    answer(session, &ids(100, 9), 20);
    answer(session, &ids(15, 10), 5);
}

const CUTS: [usize; 8] = [0, 1, 50, 99, 120, 125, 136, 139];

#[test]
fn conversations_that_are_cut_back_go_on_as_new_ones() {
    for (name, model) in models() {
        let (plain, more) = (plain(&model, DeviceId::Gpu(0)), ids(20, 8));
        let mut whole = plain.session().unwrap();
        two_turns(&mut whole);
        let fresh = |cut: usize| {
            let prompt = [&whole.tokens()[..cut], &more].concat();
            answer(&mut plain.session().unwrap(), &prompt, 4)
        };
        let want = CUTS.map(fresh);
        for (n, take_back) in [(1, 0), (1, 110), (2, 16), (3, 64)] {
            let engine = engine(&model, &vec![DeviceId::Gpu(0); n], take_back);
            let mut session = engine.session().unwrap();
            // A ring has room for the longest share or for what was asked for, whichever is more; the second turn's last piece in a chain begins at 128.
            let least = (139 - take_back.max(100 / n)).max(if n == 1 { 0 } else { 128 });
            for (cut, want) in CUTS.into_iter().zip(&want) {
                session.clear();
                two_turns(&mut session);
                assert_eq!(session.tokens(), whole.tokens());
                session.truncate(cut);
                let what = format!("{name} x{n}, {take_back} to take back, cut to {cut}");
                assert_eq!(session.n_tokens(), cut, "{what}");
                assert!(session.n_cached() == cut || session.n_cached() == 0 && cut < least, "{what}");
                assert_eq!(&answer(&mut session, &more, 4), want, "{what}");
                assert_eq!(session.n_cached(), cut + 23, "{what}");
            }
        }
    }
}

#[test]
fn prompts_that_share_a_beginning_are_answered_as_new_ones() {
    for (name, model) in models() {
        let plain = plain(&model, DeviceId::Gpu(0));
        for (n, take_back) in [(1, 0), (2, 24), (3, 24)] {
            let mut session = engine(&model, &vec![DeviceId::Gpu(0); n], take_back).session().unwrap();
            let first = ids(90, 11);
            answer(&mut session, &first, 10);
            for (shared, seed) in [(85, 12), (75, 13), (60, 14), (3, 15)] {
                let prompt = [&first[..shared], &ids(40, seed)].concat();
                let kept = session.keep_prefix(&prompt);
                assert!(kept >= shared);
                let want = answer(&mut plain.session().unwrap(), &prompt, 4);
                assert_eq!(answer(&mut session, &prompt[kept..], 4), want, "{name} x{n}, {shared} shared");
            }
        }
    }
}

#[test]
fn saved_sessions_go_on_and_can_be_cut_back() {
    let folder = tempfile::tempdir().unwrap();
    for (name, model) in models() {
        for id in [DeviceId::Gpu(0), DeviceId::Cpu] {
            let plain = plain(&model, id);
            let path = folder.path().join(name);
            let before = engine(&model, &[id; 2], 32);
            let mut session = before.session().unwrap();
            answer(&mut session, &ids(100, 16), 3);
            answer(&mut session, &ids(80, 17), 30);
            session.save(&path).unwrap();
            let layers = before.config().layers.iter();
            let full = layers.filter(|layer| layer.window.is_none()).count() * session.n_cached();
            let bytes = std::fs::metadata(&path).unwrap().len() as usize;
            let row = 2 * before.config().kv_width() * 4;
            assert!(bytes < row * (full + 4 * (40 + 128)) + 4096, "{name}: {bytes} bytes");
            // Other rings, and other chains.
            for (n, take_back) in [(1, 0), (2, 64), (3, CONTEXT)] {
                let after = engine(&model, &vec![id; n], take_back);
                for cut in [213, 200, 190, 120, 40] {
                    let mut loaded = after.load_session(&path).unwrap();
                    assert_eq!(loaded.tokens(), session.tokens());
                    for layer in 0..after.config().n_layers {
                        assert_eq!(loaded.kv(layer).unwrap(), session.kv(layer).unwrap());
                    }
                    loaded.truncate(cut);
                    assert_goes_on(&format!("{name} {id} x{n} {take_back}, cut to {cut}"), &plain, &mut loaded);
                }
            }
        }
    }
}

/// Calls off a prefill after a number of calls of its progress.
fn cancelling(builder: EngineBuilder) -> (Engine, Arc<AtomicUsize>, Arc<Mutex<Cancel>>) {
    let (left, cancel) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(Mutex::new(Cancel::new())));
    let (counter, flag) = (Arc::clone(&left), Arc::clone(&cancel));
    let builder = builder.on_progress(move |progress| {
        if matches!(progress, runahead::engine::Progress::Prefill { .. }) && counter.fetch_sub(1, Ordering::SeqCst) == 1
        {
            flag.lock().unwrap().cancel();
        }
    });
    (builder.open().unwrap(), left, cancel)
}

#[test]
fn a_turn_that_is_called_off_leaves_the_conversation() {
    for (name, model) in models() {
        for id in [DeviceId::Gpu(0), DeviceId::Cpu] {
            let plain = plain(&model, id);
            for n in 1..=3 {
                let (engine, left, cancel) = cancelling(builder(&model, &vec![id; n], 8));
                for after in [1, 3, 5] {
                    let mut session = engine.session().unwrap();
                    answer(&mut session, &ids(70, 18), 4);
                    let tokens = session.tokens().to_vec();
                    *cancel.lock().unwrap() = Cancel::new();
                    session.end_with(Some(&cancel.lock().unwrap().clone()));
                    left.store(after, Ordering::SeqCst);
                    let error = session.generate(&ids(150, 19), &Options::default()).err();
                    assert!(matches!(error, Some(Error::Cancelled)), "{name} {id} x{n} after {after}: {error:?}");
                    left.store(usize::MAX, Ordering::SeqCst);
                    session.end_with(None);
                    assert_eq!(session.tokens(), tokens);
                    assert_goes_on(&format!("{name} {id} x{n} after {after}"), &plain, &mut session);
                }
            }
        }
    }
}
