//! Chains against one adapter: the granule invariant through whole models, faults, and the run-ahead itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use runahead::cancel::{Cancel, Wait};
use runahead::dims::Piece;
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, Experiment, Gemm, Mode, Options, Progress, Session};
use runahead::error::{Error, Result};
use runahead::gpu::GpuKind;
use runahead::kernels::Kernels;
use runahead::kernels::cpu::Cpu;
use runahead::kernels::wgsl::Wgsl;
use runahead::model::{LoadOptions, Model, Slots};
use runahead::runahead::board::{Block, Record, Retention};
use runahead::runahead::chain::{self, Request};
use runahead::runahead::node::{Adapter, Loaded, Node};
use runahead::runahead::partition::Split;
use runahead::runahead::pool::HostPool;
use runahead::runahead::schedule::Schedule;
use runahead::runahead::share::{Output, RowsOut, ShareJob, ShareLog, Want};
use runahead::weights::ModelFiles;

use super::kernels::wgsl::open;

/// A tiny model with two layers, as the tests' data hold it.
pub fn reference(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference").join(family)
}

fn engine(family: &str, devices: &[DeviceId], kv: KvDtype) -> Engine {
    let builder = Engine::builder(reference(family)).unwrap().devices(devices.to_vec()).context(384);
    builder.gemm(Gemm::Wgsl).kv(kv).open().unwrap()
}

/// Ids that differ from row to row and from case to case.
pub fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % 384) as u32).collect()
}

fn options(split: Split) -> Options {
    Options { split, ..Options::default() }
}

/// What a turn leaves: logits of its rows and K/V of every layer, as bits.
fn turn(session: &mut Session, n_layers: usize, ids: &[u32], options: &Options) -> (Vec<u32>, Vec<u32>) {
    let logits = session.logits(ids, options).unwrap();
    let kv = (0..n_layers).flat_map(|l| {
        let (k, v) = session.kv(l).unwrap();
        k.into_iter().chain(v)
    });
    (logits.iter().map(|x| x.to_bits()).collect(), kv.map(f32::to_bits).collect())
}

/// Cuts of `len` tokens behind `past` over `n` adapters: even, and two lopsided ones where they hold.
fn splits(past: usize, len: usize, n: usize) -> Vec<Split> {
    let lopsided = |weights: Vec<f64>| {
        let lengths = runahead::runahead::partition::weighted(past, len, &weights);
        (lengths.len() == n).then_some(Split::Given(lengths))
    };
    let falling = lopsided((0..n).map(|i| 1.0 / (1 + i * i) as f64).collect());
    let rising = lopsided((0..n).map(|i| (1 + i * i) as f64).collect());
    [Some(Split::Even), falling, rising].into_iter().flatten().collect()
}

fn assert_chains_equal_one(family: &str, id: DeviceId, kv: KvDtype) {
    let one = engine(family, &[id], kv);
    let n_layers = one.config().n_layers;
    for n in 2..=4 {
        let many = engine(family, &vec![id; n], kv);
        for past in [0, 1, 15, 300] {
            for len in [1, 2, 16, 17, 40, 75] {
                let mut expected = one.session().unwrap();
                if past > 0 {
                    expected.logits(&tokens(past, 1), &Options::default()).unwrap();
                }
                let want = turn(&mut expected, n_layers, &tokens(len, 2), &Options::default());
                for split in splits(past, len, n) {
                    let mut session = many.session().unwrap();
                    if past > 0 {
                        session.logits(&tokens(past, 1), &Options::default()).unwrap();
                    }
                    let got = turn(&mut session, n_layers, &tokens(len, 2), &options(split.clone()));
                    assert!(got == want, "{family} {id} x{n} {kv:?}: past {past} len {len} {split:?} differs in bits");
                }
            }
        }
    }
}

#[test]
fn wgsl_chains_equal_one_adapter_bit_for_bit() {
    assert_chains_equal_one("llama-gqa-tied", DeviceId::Gpu(0), KvDtype::F16);
}

#[test]
fn wgsl_chains_with_an_f32_cache_equal_one_adapter_bit_for_bit() {
    let (one, four) = (&[DeviceId::Gpu(0)][..], &[DeviceId::Gpu(0); 4][..]);
    let turns = |devices| {
        let engine = engine("llama3-rope", devices, KvDtype::F32);
        let mut session = engine.session().unwrap();
        [(330, 3), (1, 4), (40, 5)]
            .map(|(n, seed)| turn(&mut session, engine.config().n_layers, &tokens(n, seed), &Options::default()))
    };
    assert!(turns(one) == turns(four));
}

#[test]
fn chains_with_the_cpu_are_within_tolerance() {
    use DeviceId::{Cpu, Gpu};
    for devices in [vec![Cpu; 2], vec![Cpu; 3], vec![Gpu(0), Cpu], vec![Cpu, Gpu(0), Cpu]] {
        for (kv, tolerance) in [(KvDtype::F32, 1e-3), (KvDtype::F16, 2e-2)] {
            let logits = |devices: &[DeviceId]| {
                let mut session = engine("llama-mha", devices, kv).session().unwrap();
                session.logits(&tokens(50, 6), &Options::default()).unwrap();
                session.logits(&tokens(100, 7), &Options::default()).unwrap()
            };
            let (want, got) = (logits(&[Cpu]), logits(&devices));
            assert!(super::model::difference(&got, &want) < tolerance, "{devices:?} {kv:?}");
        }
    }
}

#[test]
fn a_chain_decodes_the_tokens_of_one_adapter() {
    let answer = |devices: &[DeviceId], options: &Options| -> Vec<u32> {
        let mut session = engine("llama-gqa-tied", devices, KvDtype::F16).session().unwrap();
        let first: Vec<u32> = session.generate(&tokens(70, 8), options).unwrap().map(|t| t.unwrap().id).collect();
        let second = session.generate(&tokens(33, 9), options).unwrap().map(|t| t.unwrap().id);
        first.into_iter().chain(second).collect()
    };
    let options = Options { max_tokens: 10, stop_at_end: false, ..Options::default() };
    let want = answer(&[DeviceId::Gpu(0)], &options);
    assert_eq!(want.len(), 20);
    assert_eq!(answer(&[DeviceId::Gpu(0); 3], &options), want);
    assert_eq!(answer(&[DeviceId::Gpu(0); 2], &Options { mode: Mode::Single, ..options }), want);
}

/// An adapter that a test can break.
struct Broken {
    inner: Box<dyn Node>,
    fault: fn() -> Result<ShareLog>,
}

impl Node for Broken {
    fn name(&self) -> &str {
        "broken"
    }
    fn row_bytes(&self) -> usize {
        self.inner.row_bytes()
    }
    fn make_room(&mut self, beside: usize, kept: Piece, wait: &Wait) -> Result<()> {
        self.inner.make_room(beside, kept, wait)
    }
    fn least_kept(&self, end: usize) -> usize {
        self.inner.least_kept(end)
    }
    fn cache_bytes(&self) -> u64 {
        self.inner.cache_bytes()
    }
    fn max_rows(&self) -> usize {
        self.inner.max_rows()
    }
    fn prepare(&mut self, rows: usize) -> Result<()> {
        self.inner.prepare(rows)
    }
    fn run(&self, _: &ShareJob<'_>) -> Result<ShareLog> {
        (self.fault)()
    }
    fn decode(&mut self, token: u32, position: usize, want: Want, more: bool, wait: &Wait) -> Result<Output> {
        self.inner.decode(token, position, want, more, wait)
    }
    fn read_rows_into(&self, layer: usize, rows: Piece, bytes: &mut Vec<u8>, wait: &Wait) -> Result<()> {
        self.inner.read_rows_into(layer, rows, bytes, wait)
    }
    fn time_link(&mut self, layer: usize, block: &mut Block, wait: &Wait) -> Result<[Duration; 2]> {
        self.inner.time_link(layer, block, wait)
    }
    fn write_rows(&mut self, layer: usize, rows: Piece, bytes: &[u8]) -> Result<()> {
        self.inner.write_rows(layer, rows, bytes)
    }
}

pub fn node<K: Kernels>(kernels: K, slots: Slots, submission: Option<Duration>) -> Box<dyn Node> {
    node_for(384, kernels, slots, submission)
}

fn node_for<K: Kernels>(context: usize, kernels: K, slots: Slots, submission: Option<Duration>) -> Box<dyn Node> {
    let files = ModelFiles::open(&reference("llama-mha")).unwrap();
    let options = LoadOptions { context, submission, cancel: &Cancel::new(), progress: &|_, _| {} };
    let name = kernels.name().to_owned();
    let model = Model::load(Arc::new(kernels), Arc::new(files.config.clone()), &files.weights, &options).unwrap();
    Loaded { name, model: Arc::new(model) }.open(context, KvDtype::F16, slots).unwrap()
}

pub fn cpu_node(slots: Slots) -> Box<dyn Node> {
    cpu_node_with(slots, None)
}

/// As [`cpu_node`], with a limit for submissions.
pub fn cpu_node_with(slots: Slots, submission: Option<Duration>) -> Box<dyn Node> {
    node(Cpu::new("cpu", 1).unwrap(), slots, submission)
}

#[test]
fn a_step_begun_ahead_is_used_or_forgotten() {
    // A software GPU takes a fifth of a second for each step of the kernels for hardware.
    const CONTEXT: usize = 64;
    let wait = Wait::new(&Cancel::new());
    let gpu = open();
    // What a node gives for the same turns, with and without leave to go on ahead.
    let play = |more: bool, submission| {
        let kernels = Wgsl::new(gpu.clone()).unwrap().as_on(GpuKind::Discrete);
        let mut node = node_for(CONTEXT, kernels, Slots::All, submission);
        let mut chosen = Vec::new();
        let mut decode = |node: &mut Box<dyn Node>, token, position, want| {
            let output = node.decode(token, position, want, more, &wait).unwrap();
            chosen.push(format!("{output:?}"));
            if let Output::Token(id) = output { id } else { token }
        };
        run_with(&mut [&mut *node], &[48], &Cancel::new()).unwrap();
        let mut token = 7;
        for position in 48..56 {
            token = decode(&mut node, token, position, Want::Token);
        }
        // Another token than the chosen one; the same position again; logits where a token was begun.
        for (token, position, want) in [(9, 56, Want::Token), (9, 56, Want::Token), (11, 57, Want::Logits)] {
            decode(&mut node, token, position, want);
        }
        // Other rows before the very token and position that were begun ahead.
        let token = decode(&mut node, 13, 47, Want::Token);
        run_with(&mut [&mut *node], &[32], &Cancel::new()).unwrap();
        decode(&mut node, 5, 32, Want::Token);
        for layer in 0..2 {
            let rows = node.read_rows(layer, Piece::new(0, 32), &wait).unwrap();
            node.write_rows(layer, Piece::new(16, 48), &rows).unwrap();
        }
        decode(&mut node, token, 48, Want::Token);
        // The last row of the cache, behind rows that are all known.
        for position in 49..CONTEXT {
            decode(&mut node, 3, position, Want::Token);
        }
        chosen
    };
    let want = play(false, None);
    assert_eq!(play(true, None), want);
    // Steps of many submissions each are not begun ahead, and those of one are.
    assert_eq!(play(true, Some(Duration::from_micros(1))), want);
    assert_eq!(play(true, Some(Duration::from_secs(1))), want);
}

fn run_with(nodes: &mut [&mut dyn Node], lengths: &[usize], cancel: &Cancel) -> Result<chain::Outcome> {
    run_schedule(nodes, &Schedule::runahead(0, lengths, 2), RowsOut::Last(Want::Token), cancel)
}

/// Runs a schedule of a model of two layers, nothing in the cache before.
pub fn run_schedule(
    nodes: &mut [&mut dyn Node],
    schedule: &Schedule,
    rows_out: RowsOut,
    cancel: &Cancel,
) -> Result<chain::Outcome> {
    let ids = tokens(schedule.n_tokens(), 10);
    let request = Request {
        tokens: &ids,
        rows_out,
        retention: Retention::Transit,
        record: Record::new(2),
        pool: HostPool::default(),
        experiment: Experiment::default(),
        turns: Vec::new(),
        timed: false,
        cancel,
        progress: &|_, _, _| {},
    };
    chain::prefill(nodes, schedule, request)
}

#[test]
fn a_worker_that_dies_or_fails_ends_the_chain_in_time() {
    type Fault = (fn() -> Result<ShareLog>, fn(&Error) -> bool);
    let faults: [Fault; 2] = [
        (|| panic!("a planted panic"), |e| matches!(e, Error::WorkerDied { adapter } if adapter == "broken")),
        (
            || Err(Error::AdapterLost { adapter: "broken".to_owned(), reason: "planted".to_owned() }),
            |e| matches!(e, Error::AdapterLost { .. }),
        ),
    ];
    for (fault, expected) in faults {
        for position in 0..3 {
            let mut nodes: Vec<Box<dyn Node>> = (0..3).map(|_| cpu_node(Slots::All)).collect();
            let inner = nodes.remove(position);
            nodes.insert(position, Box::new(Broken { inner, fault }));
            let mut nodes: Vec<&mut dyn Node> = nodes.iter_mut().map(|n| &mut **n as &mut dyn Node).collect();
            let start = Instant::now();
            let error = run_with(&mut nodes, &[64, 64, 64], &Cancel::new()).unwrap_err();
            assert!(expected(&error), "adapter {position}: {error}");
            assert!(start.elapsed() < Duration::from_secs(5), "adapter {position}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn a_cancel_wakes_a_chain_that_waits() {
    // The first adapter hangs: it neither publishes nor fails until somebody cancels.
    let mut first = Broken {
        inner: cpu_node(Slots::Ring),
        fault: || {
            std::thread::sleep(Duration::from_millis(600));
            Err(Error::Cancelled)
        },
    };
    let mut second = cpu_node(Slots::All);
    let cancel = Cancel::new();
    let remote = cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        remote.cancel();
    });
    let result = run_with(&mut [&mut first, &mut *second], &[64, 64], &cancel);
    canceller.join().unwrap();
    assert!(matches!(result, Err(Error::Cancelled)));
}

#[test]
fn schedules_that_do_not_fit_the_nodes_are_refused() {
    let mut node = cpu_node(Slots::All);
    let error = run_with(&mut [&mut *node], &[64, 64], &Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::Partition(_)), "{error}");
}

#[test]
fn counters_follow_the_papers_arithmetic() {
    // 9 granules over 3 adapters as 4/3/2: direct hand-off publishes 4 + 3 and fetches 4 + (4 + 3) granules a layer.
    let engine = engine("llama-gqa-tied", &[DeviceId::Cpu; 3], KvDtype::F16);
    let mut session = engine.session().unwrap();
    let options = Options { max_tokens: 1, ..options(Split::Given(vec![64, 48, 32])) };
    let answer = session.generate(&tokens(144, 11), &options).unwrap();
    let report = answer.report();
    let config = engine.config();
    let layer = (2 * config.kv_width() * 2) as u64; // one token's K and V, f16
    let all = layer * config.n_layers as u64;
    // Of the last layer the second adapter makes rows, but takes none: its share ends there.
    let bytes: Vec<(u64, u64)> = report.adapters.iter().map(|a| (a.published_bytes, a.fetched_bytes)).collect();
    assert_eq!(bytes, [(64 * all, 0), (48 * all, 64 * (all - layer)), (0, 112 * all)]);
    assert_eq!(report.partition, [64, 48, 32]);
    assert_eq!((report.adapters[1].start, report.adapters[1].end), (64, 112));
}

#[test]
fn early_adapters_are_in_later_layers() {
    // 30 layers, a short first piece and a long second one, two adapters of one thread each.
    let engine = Engine::builder(super::weights::smollm2())
        .unwrap()
        .devices([DeviceId::Cpu, DeviceId::Cpu])
        .context(160)
        .open()
        .unwrap();
    let mut session = engine.session().unwrap();
    let ids: Vec<u32> = (0..144).map(|i| 500 + i).collect();
    let options = Options { max_tokens: 1, ..options(Split::Given(vec![16, 128])) };
    let answer = session.generate(&ids, &options).unwrap();
    let [first, second] = &answer.report().adapters[..] else { panic!("two adapters") };
    // At the moment when the second adapter begins stage s, how far is the first? Without run-ahead it would be in stage s or s + 1.
    let ahead = second.log.spans.iter().filter(|span| {
        let stage = first.log.spans.iter().take_while(|s| s.end <= span.start).count();
        stage > span.stage + 1
    });
    assert!(ahead.count() >= 5, "{:#?}\n{:#?}", first.log.spans, second.log.spans);
    // And no barrier: the first adapter never waited for the second by more than the board's depth.
    assert!(first.log.spans.last().unwrap().end < second.log.spans.last().unwrap().end);
}

#[test]
fn shares_that_are_too_long_go_in_passes_with_the_same_bits() {
    use DeviceId::{Cpu, Gpu};
    let ids = tokens(230, 12);
    let chains: [(&str, &[DeviceId]); 5] = [
        ("llama-gqa-tied", &[Gpu(0)]),
        ("llama-gqa-tied", &[Gpu(0); 2]),
        ("mistral-window", &[Gpu(0); 3]),
        ("mistral-window", &[Cpu]),
        ("gemma3", &[Cpu, Cpu]),
    ];
    for (family, devices) in chains {
        let open = |most: usize| {
            let builder = Engine::builder(reference(family)).unwrap().devices(devices.to_vec()).context(384);
            builder.gemm(Gemm::Wgsl).max_share(most).open().unwrap()
        };
        let (whole, parts) = (open(usize::MAX), open(40));
        let n_layers = whole.config().n_layers;
        let (mut one, mut other) = (whole.session().unwrap(), parts.session().unwrap());
        // From nothing, and behind a past that ends within a granule.
        for (turn_ids, past) in [(&ids[..131], 0), (&ids[131..], 131)] {
            let results = [&mut one, &mut other].map(|session| turn(session, n_layers, turn_ids, &Options::default()));
            assert!(results[0] == results[1], "{family} {devices:?} behind {past}");
        }
        let options = Options { max_tokens: 6, stop_at_end: false, ..Options::default() };
        let answer = |session: &mut Session| {
            session.clear();
            let generation = session.generate(&ids, &options).unwrap();
            let report = generation.report().clone();
            (generation.map(|t| t.unwrap().id).collect::<Vec<_>>(), report)
        };
        // A cut that is given for the whole is the proportion of each pass.
        if devices.len() == 2 {
            let given = Options { split: Split::Given(vec![160, 70]), ..Options::default() };
            let [want, got] = [&mut one, &mut other].map(|session| {
                session.clear();
                turn(session, n_layers, &ids, &given)
            });
            assert!(want == got, "{family} {devices:?} cut as given");
        }
        let ((want, _), (got, report)) = (answer(&mut one), answer(&mut other));
        assert_eq!(got, want, "{family} {devices:?}");
        let shares = report.partition.len();
        assert!(shares > devices.len() && report.partition.iter().all(|&n| n <= 40), "{:?}", report.partition);
        assert_eq!(report.partition.iter().sum::<usize>(), 230);
        let adapters = &report.adapters;
        assert_eq!((adapters.len(), adapters[devices.len() - 1].end), (devices.len(), 230));
        assert_eq!(adapters.iter().map(|a| a.start).min(), Some(0));
        for adapter in adapters {
            assert!(adapter.log.spans.is_sorted_by_key(|span| span.end), "{family} {devices:?}");
        }
    }
}

#[test]
fn a_cancel_between_passes_leaves_the_conversation_as_it_was() {
    let ids = tokens(300, 13);
    // Behind 40 tokens, and behind 100 whose rows were let go of.
    for (first, kept, n_cached) in [(40, 40, 40), (290, 100, 0)] {
        let cancel = Cancel::new();
        let of_second_pass = cancel.clone();
        let [second_turn, a_pass_is_done] = [false; 2].map(|no| Arc::new(AtomicBool::new(no)));
        let (is_second_turn, was_done) = (Arc::clone(&second_turn), Arc::clone(&a_pass_is_done));
        let on_progress = move |progress| {
            // Each pass ends with a report of all its work; the next one begins with less.
            if let Progress::Prefill { done, total, .. } = progress
                && is_second_turn.load(Ordering::Relaxed)
            {
                if done == total {
                    was_done.store(true, Ordering::Relaxed);
                } else if was_done.load(Ordering::Relaxed) {
                    of_second_pass.cancel();
                }
            }
        };
        let builder = Engine::builder(reference("mistral-window")).unwrap().devices([DeviceId::Cpu]).context(384);
        let engine = builder.max_share(48).take_back(0).on_progress(on_progress).open().unwrap();
        let mut session = engine.session().unwrap();
        session.logits(&ids[..first], &Options::default()).unwrap();
        session.truncate(kept);
        assert_eq!(session.n_cached(), n_cached);
        session.end_with(Some(&cancel));
        second_turn.store(true, Ordering::Relaxed);
        let error = session.logits(&ids[kept..], &Options::default()).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert!(a_pass_is_done.load(Ordering::Relaxed), "cancelled in the first pass");
        assert_eq!(session.tokens(), &ids[..kept]);
        second_turn.store(false, Ordering::Relaxed);
        session.end_with(None);
        let again = session.logits(&ids[kept..], &Options::default()).unwrap();
        let mut fresh = engine.session().unwrap();
        let want = fresh.logits(&ids, &Options::default()).unwrap();
        assert!(again[..] == want[kept * engine.config().vocab..]);
    }
}
