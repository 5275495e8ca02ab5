//! Every mode of prefill gives what one adapter gives, moves what its schedule says, and waits for whom its schedule names.

use std::time::{Duration, Instant};

use runahead::cancel::Cancel;
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Engine, Experiment, Gemm, Lane, Mode, Noise, Options, PrefillReport, Session};
use runahead::error::Error;
use runahead::runahead::cost::{AdapterCost, CostModel, Curve};
use runahead::runahead::node::Node;
use runahead::runahead::partition::Split;
use runahead::runahead::schedule::{Mask, Schedule};
use runahead::runahead::share::{Output, RowsOut, Want};
use runahead::runahead::simulate::simulate;
use runahead::runahead::trace::{self, What};

use super::chain::{cpu_node, reference, run_schedule, tokens};

const CHAINS: [Mode; 5] = [Mode::Runahead, Mode::Relay, Mode::Tsp, Mode::TspCausal, Mode::Zigzag];

fn engine(devices: &[DeviceId], experiment: Experiment) -> Engine {
    let builder = Engine::builder(reference("llama-gqa-tied")).unwrap().devices(devices.to_vec()).context(512);
    builder.gemm(Gemm::Wgsl).experiment(experiment).open().unwrap()
}

fn options(mode: Mode) -> Options {
    Options { mode, max_tokens: 6, stop_at_end: false, ..Options::default() }
}

/// Logits of a turn behind `past` tokens in the same mode, K/V of all layers, and what the session answers to a third turn: the bits of each.
fn turns(
    session: &mut Session,
    n_layers: usize,
    past: usize,
    len: usize,
    mode: Mode,
) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    if past > 0 {
        session.logits(&tokens(past, 1), &options(mode)).unwrap();
    }
    let logits = session.logits(&tokens(len, 2), &options(mode)).unwrap();
    let kv = (0..n_layers).flat_map(|l| {
        let (k, v) = session.kv(l).unwrap();
        k.into_iter().chain(v)
    });
    let kv = kv.map(f32::to_bits).collect();
    let answer = session.generate(&tokens(35, 3), &options(mode)).unwrap().map(|t| t.unwrap().id).collect();
    (logits.iter().map(|x| x.to_bits()).collect(), kv, answer)
}

#[test]
fn all_modes_give_the_same_bits_on_wgsl() {
    let one = engine(&[DeviceId::Gpu(0)], Experiment::default());
    let n_layers = one.config().n_layers;
    for n in 2..=4 {
        let many = engine(&vec![DeviceId::Gpu(0); n], Experiment::default());
        for past in [0, 15, 300] {
            // The short one has fewer granules than zig-zag has pieces: an odd number of them where past is 15.
            for len in [39, 110] {
                let want = turns(&mut one.session().unwrap(), n_layers, past, len, Mode::Single);
                for mode in CHAINS {
                    let got = turns(&mut many.session().unwrap(), n_layers, past, len, mode);
                    assert!(got == want, "{mode} x{n}, past {past}, len {len} differs in bits");
                }
            }
        }
    }
}

#[test]
fn all_modes_are_within_tolerance_with_the_cpu() {
    use DeviceId::{Cpu, Gpu};
    let logits = |devices: &[DeviceId], mode| {
        let mut session = engine(devices, Experiment::default()).session().unwrap();
        session.logits(&tokens(50, 6), &options(mode)).unwrap();
        session.logits(&tokens(150, 7), &options(mode)).unwrap()
    };
    let want = logits(&[Cpu], Mode::Single);
    for devices in [vec![Cpu; 3], vec![Cpu, Gpu(0)]] {
        for mode in CHAINS {
            let difference = super::model::difference(&logits(&devices, mode), &want);
            assert!(difference < 2e-2, "{mode} on {devices:?}: {difference}");
        }
    }
}

/// Runs a schedule of a model of two layers on CPU nodes; token and bytes (published, fetched) of each.
fn run(schedule: &Schedule) -> (u32, Vec<(u64, u64)>) {
    let n = schedule.n_adapters();
    let mut nodes: Vec<Box<dyn Node>> = (0..n).map(|_| cpu_node(runahead::model::Slots::All)).collect();
    let mut nodes: Vec<&mut dyn Node> = nodes.iter_mut().map(|n| &mut **n as &mut dyn Node).collect();
    let outcome = run_schedule(&mut nodes, schedule, RowsOut::Last(Want::Token), &Cancel::new()).unwrap();
    let Output::Token(token) = outcome.output else { panic!("no token") };
    (token, outcome.adapters.iter().map(|a| (a.published_bytes, a.fetched_bytes)).collect())
}

#[test]
fn traffic_follows_the_papers_arithmetic() {
    // Nine granules over three adapters. Of the last of two layers, only the last adapter takes rows, and by relay the one that hands them on.
    let row = 2 * 2 * cpu_node(runahead::model::Slots::All).row_bytes() as u64 / 2;
    let granules = |schedule: &Schedule| {
        let (token, bytes) = run(schedule);
        let granule = 16 * row;
        (token, bytes.into_iter().map(|(p, f)| (p / granule, f / granule)).collect::<Vec<_>>())
    };
    let (direct, bytes) = granules(&Schedule::runahead(0, &[64, 48, 32], 2));
    assert_eq!(bytes, [(8, 0), (6, 4), (0, 14)]);
    let (relay, bytes) = granules(&Schedule::relay(0, &[64, 48, 32], 2));
    assert_eq!(bytes, [(8, 0), (14, 8), (0, 14)]);
    let (tsp, bytes) = granules(&Schedule::tsp(0, &[48, 48, 48], 2));
    assert_eq!(bytes, [(6, 6), (6, 6), (6, 12)]);
    let (zigzag, bytes) = granules(&Schedule::zigzag(0, &[32, 16, 32, 16, 32, 16], 2));
    assert_eq!(bytes, [(6, 6), (6, 6), (6, 12)]);
    // A chain without a causal kernel, as the paper has it.
    let (block, _) = granules(&Schedule { mask: Mask::BlockThenMask, ..Schedule::runahead(0, &[64, 48, 32], 2) });
    assert_eq!([relay, tsp, zigzag, block], [direct; 4]);
}

fn smollm2(experiment: Experiment) -> Session {
    let builder = Engine::builder(super::weights::smollm2()).unwrap().devices([DeviceId::Cpu; 2]);
    builder.context(160).experiment(experiment).open().unwrap().session().unwrap()
}

fn prefill(session: &mut Session, mode: Mode, split: Split) -> PrefillReport {
    let ids: Vec<u32> = (0..144).map(|i| 500 + i).collect();
    session.clear();
    let options = Options { max_tokens: 1, mode, split, ..Options::default() };
    session.generate(&ids, &options).unwrap().report().clone()
}

#[test]
fn a_chain_runs_ahead_where_a_collective_has_a_barrier() {
    let mut session = smollm2(Experiment::default());
    let chain = prefill(&mut session, Mode::Runahead, Split::Given(vec![16, 128]));
    assert!(chain.run_ahead_layers >= 3, "{}", chain.run_ahead_layers);
    // The first adapter needs nobody: it fetches nothing and never waits.
    let first = &chain.adapters[0].log;
    assert!(first.events.iter().all(|e| e.what == What::Publish) && first.events.len() == 30, "{:?}", first.events);
    for mode in [Mode::Tsp, Mode::TspCausal, Mode::Zigzag] {
        let lengths = if mode == Mode::Zigzag { vec![16, 16, 48, 64] } else { vec![16, 128] };
        let report = prefill(&mut session, mode, Split::Given(lengths));
        assert!(report.run_ahead_layers <= 1, "{mode}: {} layers ahead", report.run_ahead_layers);
    }
}

#[test]
fn traces_hold_every_adapters_stages_and_transfers() {
    let mut session = smollm2(Experiment::default());
    let options = Options { timed: true, ..options(Mode::Runahead) };
    let report = session.generate(&tokens(144, 3), &options).unwrap().report().clone();
    let logs: Vec<_> = report.adapters.iter().map(|a| (a.name.as_str(), &a.log)).collect();
    let text = trace::chrome(&logs).to_string();
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let count =
        |pid: usize, tid: usize| events.iter().filter(|e| e["ph"] == "X" && e["pid"] == pid && e["tid"] == tid).count();
    // 30 layers: the last adapter has one more stage, for the end of the last.
    assert_eq!([count(0, 0), count(0, 4), count(0, 5), count(0, 6)], [30, 30, 0, 0]);
    assert_eq!([count(1, 0), count(1, 4), count(1, 5)], [31, 0, 30]);
    // Attention, and copies out, by the device's clock. The first adapter has no attention in the last layer; of the last one the token alone leaves.
    assert_eq!([count(0, 2), count(1, 2), count(0, 3), count(1, 3)], [29, 30, 30, 1]);
    assert!(count(0, 1) >= 30 && count(1, 1) >= 31);
    for event in events.iter().filter(|e| e["ph"] == "X") {
        assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() >= 0.0, "{event}");
    }
    assert_eq!(trace["otherData"]["run_ahead_layers"], report.run_ahead_layers);
}

#[test]
fn a_shaped_link_holds_rows_back_and_changes_no_bit() {
    let answer = |experiment: Experiment, mode| {
        let mut session = engine(&[DeviceId::Gpu(0); 3], experiment).session().unwrap();
        let start = Instant::now();
        let generation = session.generate(&tokens(100, 4), &options(mode)).unwrap();
        let taken = start.elapsed();
        (generation.map(|t| t.unwrap().id).collect::<Vec<_>>(), taken)
    };
    let noise = Noise { seed: 5, probability: 1.0, slowdown: 2.0 };
    let slow = Lane { bandwidth: Some(1e9), latency_s: 0.02, noise: Some(noise) };
    for mode in CHAINS {
        let (want, _) = answer(Experiment::default(), mode);
        let (got, taken) =
            answer(Experiment { link: Some(slow), slowdown: vec![3.0, 1.0, 2.0], ..Experiment::default() }, mode);
        assert_eq!(got, want, "{mode}");
        // Rows of each of two layers pass two links of 40 ms; the second layer's do not start before the first's are there.
        assert!(taken >= Duration::from_millis(100), "{mode}: {taken:?}");
    }
}

#[test]
fn a_cancel_ends_a_link_that_takes_for_ever() {
    let cancel = Cancel::new();
    let lane = Lane { bandwidth: Some(1.0), latency_s: 0.0, noise: None };
    let experiment = Experiment { link: Some(lane), ..Experiment::default() };
    let builder = Engine::builder(reference("llama-gqa-tied")).unwrap().devices([DeviceId::Cpu; 2]).context(128);
    let engine = builder.experiment(experiment).cancel(cancel.clone()).open().unwrap();
    let mut session = engine.session().unwrap();
    let remote = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        cancel.cancel();
        Instant::now()
    });
    let result = session.generate(&tokens(100, 4), &options(Mode::Runahead)).map(|_| ());
    let ended = Instant::now();
    assert!(matches!(result, Err(Error::Cancelled)));
    assert!(ended - remote.join().unwrap() < Duration::from_secs(5));
}

#[test]
fn a_slowed_adapter_pauses_in_proportion_to_its_work() {
    let experiment = |slowdown| Experiment { slowdown, ..Experiment::default() };
    let pauses = |report: &PrefillReport, i: usize| -> Vec<_> {
        report.adapters[i].log.events.iter().filter(|e| e.what == What::Pause).copied().collect()
    };
    let report = prefill(&mut smollm2(experiment(vec![1.0, 3.0])), Mode::Single, Split::Even);
    assert_eq!(pauses(&report, 0).len(), 31);
    // A sleep may be longer than asked for, never shorter: busy time holds on any machine.
    let slack = Duration::from_micros(10);
    for (span, pause) in report.adapters[0].log.spans.iter().zip(pauses(&report, 0)) {
        let worked = pause.start - span.start;
        assert!(pause.end - pause.start + slack >= 2 * worked && span.end >= pause.end, "{span:?} {pause:?}");
    }
    // The other one works on the same device in the meantime, and is not slowed.
    let report = prefill(&mut smollm2(experiment(vec![3.0])), Mode::Runahead, Split::Given(vec![16, 128]));
    assert!(pauses(&report, 0).len() == 30 && pauses(&report, 1).is_empty());
}

#[test]
fn impossible_experiments_are_refused() {
    let open = |link, slowdown| {
        let builder = Engine::builder(reference("llama-gqa-tied")).unwrap().devices([DeviceId::Cpu]);
        builder.experiment(Experiment { link, slowdown, ..Experiment::default() }).open().map(|_| ())
    };
    let lane = Lane { bandwidth: Some(0.0), latency_s: 0.0, noise: None };
    assert!(matches!(open(Some(lane), vec![]), Err(Error::Config(text)) if text.contains("bandwidth")));
    assert!(matches!(open(None, vec![0.0]), Err(Error::Config(text)) if text.contains("slower")));
}

#[test]
fn under_the_same_noise_a_collective_slows_down_more_than_a_chain() {
    // Llama-7B's layer on four equal adapters: 405 MFLOP a token, 16,384 FLOP a score, 16,384 bytes of K and V a token; links of 10 GB/s.
    let costs = |noise| {
        let lane = Lane { bandwidth: Some(1e10), latency_s: 20e-6, noise };
        let adapter = |i: usize| AdapterCost {
            name: i.to_string(),
            qkv: Curve::new([(1024.0, 1024.0 * 0.1e9 / 1e14)]).unwrap(),
            rest: Curve::new([(1024.0, 1024.0 * 0.305e9 / 1e14)]).unwrap(),
            score_s: 16_384.0 / 1e14,
            head_s: 0.0,
            decode_s: None,
            down: lane,
            up: lane,
            queue: None,
            tile_rows: 1,
            busy_workgroups: None,
            fit_error: 0.0,
        };
        CostModel { adapters: (0..4).map(adapter).collect(), kv_bytes: 16_384.0, windows: Vec::new(), hub: None }
    };
    let lengths = [4096; 4];
    let mut worse = 0;
    for seed in 0..20 {
        let noise = Some(Noise { seed, probability: 0.1, slowdown: 5.0 });
        let slower = |schedule: &Schedule| {
            let ttft = |costs: &CostModel| simulate(schedule, costs).unwrap().ttft_s;
            ttft(&costs(noise)) - ttft(&costs(None))
        };
        let (tsp, chain) =
            (slower(&Schedule::tsp_causal(0, &lengths, 32)), slower(&Schedule::runahead(0, &lengths, 32)));
        worse += usize::from(tsp > chain);
    }
    assert_eq!(worse, 20);
}

#[test]
fn modes_hold_an_f32_cache_too() {
    let logits = |devices: &[DeviceId], mode| {
        let builder = Engine::builder(reference("llama3-rope")).unwrap().devices(devices.to_vec()).context(128);
        let mut session = builder.kv(KvDtype::F32).open().unwrap().session().unwrap();
        session.logits(&tokens(97, 8), &options(mode)).unwrap()
    };
    let want = logits(&[DeviceId::Gpu(0)], Mode::Single);
    assert!(logits(&[DeviceId::Gpu(0); 2], Mode::Tsp) == want && logits(&[DeviceId::Gpu(0); 2], Mode::Zigzag) == want);
}
