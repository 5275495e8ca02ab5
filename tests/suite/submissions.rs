//! Submissions that keep to a time: no bit depends on where they are cut, nothing is lost of a trace, and a cancel waits for two of them at most.

use std::time::{Duration, Instant};

use runahead::cancel::Cancel;
use runahead::config::shapes;
use runahead::dtype::Dtype;
use runahead::engine::{
    CalibrateOptions, DeviceId, Engine, EngineBuilder, Event, Gemm, Mode, Options, Progress, Session,
};
use runahead::error::Error;
use runahead::model::Slots;
use runahead::runahead::node::Node;
use runahead::runahead::schedule::Schedule;
use runahead::runahead::share::{Output, RowsOut};
use runahead::runahead::trace::{self, What};

use super::chain::{cpu_node_with, reference, run_schedule, tokens};
use DeviceId::Gpu;

/// Nothing is as short: every operation is cut into its least parts.
const LEAST: Duration = Duration::from_nanos(1);
/// Nothing here is as long.
const ENDLESS: Duration = Duration::from_secs(3600);

fn engine(family: &str, devices: &[DeviceId], limit: Duration) -> Engine {
    let builder = Engine::builder(reference(family)).unwrap().devices(devices.to_vec()).context(512);
    builder.gemm(Gemm::Wgsl).submission(limit).open().unwrap()
}

fn options(mode: Mode) -> Options {
    Options { mode, max_tokens: 5, stop_at_end: false, ..Options::default() }
}

/// What two turns leave: logits of the first one's rows, K/V of every layer as bits, tokens of the second one.
fn turns(session: &mut Session, mode: Mode) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let logits = session.logits(&tokens(150, 1), &options(mode)).unwrap();
    let answer = session.generate(&tokens(53, 2), &options(mode)).unwrap().map(|t| t.unwrap().id).collect();
    let n_layers = session.engine().config().n_layers;
    let kv = (0..n_layers).flat_map(|l| {
        let (k, v) = session.kv(l).unwrap();
        k.into_iter().chain(v)
    });
    (logits.iter().map(|x| x.to_bits()).collect(), kv.map(f32::to_bits).collect(), answer)
}

#[test]
fn no_bit_depends_on_how_submissions_are_cut() {
    // Grouped heads; windows, four norms a block, and norms of heads; one K/V head and a parallel block; biases of scores.
    for family in ["llama-gqa-tied", "gemma3", "falcon-7b-mqa", "falcon-rw-alibi"] {
        let want = turns(&mut engine(family, &[Gpu(0)], ENDLESS).session().unwrap(), Mode::Single);
        let one = turns(&mut engine(family, &[Gpu(0)], LEAST).session().unwrap(), Mode::Single);
        assert!(one == want, "{family} differs in bits");
        let many = engine(family, &[Gpu(0); 3], LEAST);
        for mode in [Mode::Runahead, Mode::Relay, Mode::Tsp, Mode::Zigzag] {
            assert!(turns(&mut many.session().unwrap(), mode) == want, "{family} {mode} differs in bits");
        }
    }
}

#[test]
fn no_bit_depends_on_it_at_sizes_that_matrix_units_take() {
    let run = |devices: &[DeviceId], limit| {
        let mut config = shapes::shape("smollm2-135m").unwrap();
        config.n_layers = 2;
        config.layers.truncate(2);
        let builder = Engine::synthetic(config, Dtype::F16, 0).unwrap().devices(devices.to_vec()).context(512);
        turns(&mut builder.gemm(Gemm::Wgsl).submission(limit).open().unwrap().session().unwrap(), Mode::Runahead)
    };
    let want = run(&[Gpu(0)], ENDLESS);
    assert!(run(&[Gpu(0)], LEAST) == want && run(&[Gpu(0); 2], LEAST) == want);
}

#[test]
fn limits_between_cut_elsewhere_and_change_no_bit() {
    let want = turns(&mut engine("llama-gqa-tied", &[Gpu(0)], ENDLESS).session().unwrap(), Mode::Single);
    for us in [50, 300, 2000] {
        // The rates are learned from turn to turn, and the cuts move with them.
        let many = engine("llama-gqa-tied", &[Gpu(0); 2], Duration::from_micros(us));
        for turn in 0..3 {
            let got = turns(&mut many.session().unwrap(), Mode::Runahead);
            assert!(got == want, "{us} us, turn {turn} differs in bits");
        }
    }
}

#[test]
fn the_cpu_adapter_gives_the_same_bits_too() {
    let run = |limit: Option<Duration>| {
        let mut nodes: Vec<Box<dyn Node>> =
            [Slots::Ring, Slots::All].into_iter().map(|slots| cpu_node_with(slots, limit)).collect();
        let mut nodes: Vec<&mut dyn Node> = nodes.iter_mut().map(|n| &mut **n as &mut dyn Node).collect();
        let schedule = Schedule::runahead(0, &[80, 70], 2);
        let outcome = run_schedule(&mut nodes, &schedule, RowsOut::All, &Cancel::new()).unwrap();
        let Output::Logits(logits) = outcome.output else { panic!("no logits") };
        let n_spans = outcome.adapters.iter().map(|a| a.spans.len()).sum::<usize>();
        (logits.into_iter().map(f32::to_bits).collect::<Vec<_>>(), n_spans)
    };
    let (want, whole) = run(None);
    let (got, cut) = run(Some(LEAST));
    assert!(got == want, "differs in bits");
    assert!(whole == 6 && cut > 100, "{whole} submissions, cut into {cut}");
}

#[test]
fn a_cut_stage_is_one_stage_in_traces_and_progress() {
    let report = |limit| {
        let engine = engine("llama-gqa-tied", &[Gpu(0); 2], limit);
        let mut session = engine.session().unwrap();
        session.generate(&tokens(160, 4), &options(Mode::Runahead)).unwrap().report().clone()
    };
    let (whole, cut) = (report(ENDLESS), report(LEAST));
    for (whole, cut) in whole.adapters.iter().zip(&cut.adapters) {
        assert!(whole.log.spans.iter().all(|span| span.ends_stage));
        assert!(cut.log.spans.len() > 10 * whole.log.spans.len(), "{} submissions", cut.log.spans.len());
        let numbers = |spans: &[_]| trace::stages(spans).iter().map(|span| span.stage).collect::<Vec<_>>();
        assert_eq!(numbers(&cut.log.spans), numbers(&whole.log.spans));
        assert_eq!(cut.published_bytes, whole.published_bytes);
        // A stage's rows leave when it has ended: behind its last submission.
        let stages = trace::stages(&cut.log.spans);
        for event in cut.log.events.iter().filter(|e| e.what == What::Publish) {
            assert!(event.start >= stages[event.layer].end, "{event:?}");
        }
        for pair in cut.log.spans.windows(2) {
            assert!(pair[0].end <= pair[1].end && pair[0].stage <= pair[1].stage, "{pair:?}");
        }
    }
    let cut: Vec<_> = cut.adapters.iter().map(|a| (a.name.as_str(), &a.log)).collect();
    let trace = trace::chrome(&cut);
    let ends = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["args"]["ends_stage"] == true).count();
    assert_eq!(ends, 2 + 3);
}

#[test]
fn costs_are_measured_by_stage_however_it_is_cut() {
    let calibration = engine("llama-gqa-tied", &[Gpu(0)], LEAST)
        .calibrate(&CalibrateOptions { contexts: vec![64], repetitions: 1 }, &mut |_| {})
        .unwrap();
    // 64 rows of a layer take longer than its first half alone. How the rest divides into attention and products is a matter of luck on a machine that
    // has other work.
    let costs = &calibration.costs;
    let (half, layer) = (costs.adapters[0].qkv.at(64.0), costs.layer_s(0, 0.0, 64.0));
    assert!(half > 0.0 && layer > half, "{costs:?}");
}

/// SmolLM2's sizes, and a prompt of which a layer is seconds of work for a software GPU; the channel tells of the first layer.
fn long(limit: Option<Duration>) -> (EngineBuilder, flume::Receiver<()>, Vec<u32>) {
    let config = shapes::shape("smollm2-135m").unwrap();
    let (told, seen) = flume::bounded(1);
    let builder = Engine::synthetic(config, Dtype::F16, 0).unwrap().devices([Gpu(0)]).context(8192);
    let builder = builder.on_progress(move |progress| {
        if let Progress::Prefill { .. } = progress {
            let _ = told.try_send(());
        }
    });
    let builder = match limit {
        Some(limit) => builder.submission(limit),
        None => builder,
    };
    (builder, seen, (0..4000).map(|i| i * 31 % 40_000).collect())
}

/// A cancel waits for two submissions and for the look at the flag. The promise is 100 ms on a GPU; a software GPU's least parts are longer where
/// its cores are busy with other tests, and its first ones wait for shaders.
const CANCELLED_IN: Duration = Duration::from_secs(8);

/// A prefill is in its layers by then on a software GPU; a fast one tells of its first layer long before, and would be done.
const UNDER_WAY: Duration = Duration::from_secs(5);

#[test]
fn a_cancel_ends_a_long_prefill_in_time() {
    let cancel = Cancel::new();
    let (builder, seen, prompt) = long(None);
    let engine = builder.cancel(cancel.clone()).open().unwrap();
    let mut session = engine.session().unwrap();
    let remote = std::thread::spawn(move || {
        let _ = seen.recv_timeout(UNDER_WAY);
        cancel.cancel();
        Instant::now()
    });
    let result = session.generate(&prompt, &options(Mode::Single)).map(|_| ());
    let returned = Instant::now();
    let cancelled = remote.join().unwrap();
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    let took = returned.saturating_duration_since(cancelled);
    assert!(took < CANCELLED_IN, "the call returned after {took:?}");
    // What the device has taken it works off before it is closed.
    drop((session, engine));
    let took = cancelled.elapsed();
    assert!(took < 2 * CANCELLED_IN, "all was gone after {took:?}");
}

#[test]
fn a_stream_that_is_dropped_lets_go_of_the_device_in_time() {
    let (builder, seen, prompt) = long(Some(Duration::from_millis(8)));
    let engine = builder.open().unwrap();
    // A fast GPU is in its answer by the time that it is dropped.
    let options = Options { max_tokens: 4000, ..options(Mode::Single) };
    let stream = engine.session().unwrap().stream(prompt, options).unwrap();
    let _ = seen.recv_timeout(UNDER_WAY);
    let events = stream.events().clone();
    let dropped = Instant::now();
    drop(stream);
    let last = std::iter::from_fn(|| events.recv().ok()).last();
    let took = dropped.elapsed();
    assert!(matches!(last, Some(Event::Failed(Error::Cancelled))), "{last:?}");
    assert!(took < CANCELLED_IN, "the answer ended after {took:?}");
}
