//! The host link by each of its ways, and mixed: bytes, places that are used again, cancels, readers that end early.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runahead::cancel::{Cancel, Wait};
use runahead::config::ModelConfig;
use runahead::config::shapes::shape;
use runahead::dims::Piece;
use runahead::dtype::{Dtype, KvDtype};
use runahead::engine::{DeviceId, Engine, Gemm, Link, Mode, Options, Progress, Session};
use runahead::error::Error;
use runahead::gpu::{self, HostMemory, Opening};
use runahead::kernels::cpu::Cpu;
use runahead::kernels::wgsl::Wgsl;
use runahead::kernels::{Kernels, Run};
use runahead::model::{CacheSize, KvCache, LoadOptions, Model, Slots};
use runahead::runahead::board::{Block, Board, Record, Retention, Wanted};
use runahead::runahead::link;
use runahead::runahead::partition::Split;
use runahead::runahead::pool::HostPool;
use runahead::runahead::ring::Ring;
use runahead::runahead::schedule::Schedule;
use runahead::weights::ModelFiles;

use super::chain::{self, tokens};

fn wait() -> Wait {
    Wait::new(&Cancel::new())
}

/// Wide enough to have more layers than an early adapter's cache has places, several times over.
fn config() -> ModelConfig {
    let tiny = shape("tiny").unwrap();
    let layers = tiny.layers.iter().cycle().take(11).cloned().collect();
    ModelConfig { n_layers: 11, layers, ..tiny }
}

fn model<K: Kernels>(config: ModelConfig, kernels: K) -> Model<K> {
    let files = ModelFiles::synthetic(config, Dtype::F16, 1).unwrap();
    let options = LoadOptions { context: 384, submission: None, cancel: &Cancel::new(), progress: &|_, _| {} };
    Model::load(Arc::new(kernels), Arc::new(files.config.clone()), &files.weights, &options).unwrap()
}

fn gpu(link: Link) -> Wgsl {
    let adapter = gpu::enumerate().into_iter().next().unwrap();
    let opening = Opening { transfers: link.transfers(), export: false };
    Wgsl::new(Arc::new(adapter.open_with(opening).unwrap())).unwrap()
}

/// Whether the first adapter's driver has a way beside the queue, or on it, at all.
fn first_gpu_can() -> bool {
    gpu(Link::Dma).copies_beside()
}

struct Side<K: Kernels> {
    model: Model<K>,
    cache: KvCache<K>,
}

impl<K: Kernels> Side<K> {
    fn new(kernels: K, slots: Slots) -> Self {
        Self::with(config(), kernels, slots)
    }

    fn with(config: ModelConfig, kernels: K, slots: Slots) -> Self {
        let model = model(config, kernels);
        let cache = model.cache(CacheSize { tokens: 384, slots, beside: 0 }, KvDtype::F16).unwrap();
        Self { model, cache }
    }

    fn kernels(&self) -> &K {
        self.model.kernels()
    }

    fn read(&self, layer: usize, rows: Piece) -> Vec<u8> {
        let (k, mut bytes) = (self.kernels(), Vec::new());
        let mut rec = k.begin();
        let copies = self.cache.places(layer, rows).download(k, &mut rec).unwrap();
        let point = k.submit(rec, &wait()).unwrap();
        let (keys, values): (Vec<_>, Vec<_>) = copies.into_iter().map(|[k, v]| (k, v)).unzip();
        for copy in keys.into_iter().chain(values) {
            k.collect(copy, &point, &wait(), &mut |b| bytes.extend_from_slice(b)).unwrap();
        }
        bytes
    }
}

fn pattern(n: usize, seed: usize) -> Vec<u8> {
    (0..n).map(|i| ((i * 131 + seed * 17 + i / 199) % 253) as u8).collect()
}

/// Rows of many sizes from one adapter's cache into another's, over blocks that are used again.
fn rows_arrive<A: Kernels, B: Kernels>(from: &Side<A>, to: &Side<B>, pool: &HostPool, what: &str) {
    link::begin(from.kernels(), &wait()).unwrap();
    link::begin(to.kernels(), &wait()).unwrap();
    let row = from.cache.row_bytes();
    for (layer, rows) in [(0, 0..1), (1, 5..22), (2, 383..384), (0, 0..384), (1, 100..101), (0, 16..320)] {
        let rows = Piece::new(rows.start, rows.end);
        let bytes = pattern(2 * rows.len() * row, layer + rows.start);
        let (k, v) = bytes.split_at(bytes.len() / 2);
        from.cache.write(from.kernels(), layer, rows, k, v).unwrap();

        let schedule = Schedule::runahead(0, &[rows.len(), 1], 11);
        let (board, mailboxes) = Board::new(&schedule, row, Retention::Transit, Record::new(11), pool.clone()).unwrap();
        let mut rec = from.kernels().begin();
        let export = link::export(from.kernels(), &mut rec, &from.cache, layer, (0, rows), Wanted::HOST).unwrap();
        assert_eq!((export.piece, export.bytes), (0, bytes.len() as u64));
        let after = from.kernels().submit(rec, &wait()).unwrap();
        let mut block = board.reserve(0, layer, 0, &wait()).unwrap();
        block.rows = rows;
        link::fill(from.kernels(), export, &after, &mut block, &wait()).unwrap();
        assert!(block.part(rows) == (rows, k, v), "{what}, rows {rows:?}: on the board");
        board.publish(0, layer, 0, block, None, &wait()).unwrap();

        let arrival = mailboxes[1].try_recv().unwrap();
        let ring = Ring::new(to.cache.n_slots());
        let before = to.read(layer, Piece::new(0, 384));
        let n = link::import(to.kernels(), &to.cache, layer, (&arrival.block, rows), &ring, &wait()).unwrap();
        assert_eq!(n, bytes.len() as u64);
        assert!(to.read(layer, rows) == bytes, "{what}, rows {rows:?}: in the cache");
        // And nothing else.
        let after = to.read(layer, Piece::new(0, 384));
        for half in [0, before.len() / 2] {
            let (start, end) = (half + rows.start * row, half + rows.end * row);
            let rest = half + before.len() / 2;
            assert!(before[half..start] == after[half..start] && before[end..rest] == after[end..rest], "{what}");
        }
    }
}

#[test]
fn rows_arrive_exactly_whichever_way_they_go_out_and_in() {
    let pool = HostPool::default();
    let (a, b) = (Side::new(gpu(Link::Dma), Slots::Ring), Side::new(gpu(Link::Dma), Slots::All));
    let (c, cpu) = (Side::new(gpu(Link::Copy), Slots::All), Side::new(Cpu::new("cpu", 1).unwrap(), Slots::All));
    assert!(!c.kernels().copies_beside() && !cpu.kernels().copies_beside());
    assert_eq!(link::Link::of(b.kernels()) == Link::Dma, first_gpu_can());
    rows_arrive(&a, &b, &pool, "dma to dma");
    rows_arrive(&a, &c, &pool, "dma to copy");
    rows_arrive(&c, &b, &pool, "copy to dma");
    rows_arrive(&cpu, &b, &pool, "cpu to dma");
    rows_arrive(&b, &cpu, &pool, "dma to cpu");
    rows_arrive(&c, &cpu, &pool, "copy to cpu");
    // Between the turns its memory is idle, not lost: the largest block of those above, and smaller ones.
    assert!(pool.idle_bytes(0) >= 2 * 384 * a.cache.row_bytes() as u64);
}

#[test]
fn rows_that_the_end_of_a_ring_tears_arrive_whole() {
    let mut config = config();
    config.layers.iter_mut().for_each(|layer| layer.window = Some(100));
    let (a, b) =
        (Side::with(config.clone(), gpu(Link::Dma), Slots::All), Side::with(config, gpu(Link::Dma), Slots::Ring));
    let n = a.cache.rows(0);
    assert!((100..384).contains(&n), "{n} rows for a window of 100");
    let row = a.cache.row_bytes();
    // Rows on both sides of the ring's end, of which the reader wants those in the middle.
    let (rows, taken) = (Piece::new(n - 30, n + 40), Piece::new(n - 7, n + 33));
    let bytes = pattern(2 * rows.len() * row, 5);
    let (k, v) = bytes.split_at(bytes.len() / 2);
    a.cache.write(a.kernels(), 3, rows, k, v).unwrap();
    let mut rec = a.kernels().begin();
    let export = link::export(a.kernels(), &mut rec, &a.cache, 3, (0, rows), Wanted::HOST).unwrap();
    let after = a.kernels().submit(rec, &wait()).unwrap();
    let mut block = Block::in_pages(rows, &vec![0; bytes.len()]).unwrap();
    link::fill(a.kernels(), export, &after, &mut block, &wait()).unwrap();
    assert!(block.part(rows) == (rows, k, v), "on the board");
    let ring = Ring::new(b.cache.n_slots());
    link::begin(b.kernels(), &wait()).unwrap();
    let n_bytes = link::import(b.kernels(), &b.cache, 3, (&block, taken), &ring, &wait()).unwrap();
    assert_eq!(n_bytes, 2 * (taken.len() * row) as u64);
    let (_, k, v) = block.part(taken);
    assert!(b.read(3, taken) == [k, v].concat(), "in the cache");
    assert!(b.read(3, Piece::new(0, n - 40)).iter().skip(34 * row).take(row).all(|&x| x == 0), "beside it");
}

#[test]
fn a_device_that_takes_no_tensor_of_ours_says_so() {
    let (dma, pool) = (gpu(Link::Dma), HostPool::default());
    let plain = dma.tensor("plain", runahead::dtype::Scalar::F16, 64).unwrap();
    let runs = [Run { tensor: &plain, elements: 0..64, host_offset: 0 }];
    let mut memory = pool.take(128).unwrap();
    assert!(!dma.copy_out(&runs, &mut memory, &wait()).unwrap());
    let cpu = Cpu::new("cpu", 1).unwrap();
    let tensor = cpu.cache("cache", runahead::dtype::Scalar::F16, 64).unwrap();
    assert!(!cpu.copy_in(&memory, &[Run { tensor: &tensor, elements: 0..64, host_offset: 0 }], &wait()).unwrap());
}

fn engine(devices: &[DeviceId], link: Link) -> Engine {
    let builder = Engine::synthetic(config(), Dtype::F16, 1).unwrap().devices(devices.to_vec()).context(384);
    builder.gemm(Gemm::Wgsl).link(link).open().unwrap()
}

/// Bits of a turn's logits behind an earlier one, and of the last adapter's cache.
fn turns(session: &mut Session, mode: Mode, split: &Split) -> (Vec<u32>, Vec<u32>) {
    let options = Options { mode, split: split.clone(), ..Options::default() };
    let first = Options { mode, ..Options::default() };
    session.logits(&tokens(75, 1), &first).unwrap();
    let logits = session.logits(&tokens(128, 2), &options).unwrap();
    let kv = (0..11).flat_map(|layer| {
        let (k, v) = session.kv(layer).unwrap();
        k.into_iter().chain(v)
    });
    (logits.iter().map(|x| x.to_bits()).collect(), kv.map(f32::to_bits).collect())
}

#[test]
fn chains_by_dma_equal_one_adapter_bit_for_bit() {
    let one = engine(&[DeviceId::Gpu(0)], Link::Dma);
    let want = turns(&mut one.session().unwrap(), Mode::Single, &Split::Even);
    for n in 2..=3 {
        let many = engine(&vec![DeviceId::Gpu(0); n], Link::Dma);
        for mode in [Mode::Runahead, Mode::Relay, Mode::Tsp, Mode::TspCausal, Mode::Zigzag] {
            let mut session = many.session().unwrap();
            // Twice: places in the caches, and memory of the board, are those of another prefill then.
            for round in 0..2 {
                session.clear();
                let got = turns(&mut session, mode, &Split::Even);
                assert!(got == want, "{mode} x{n}, round {round} differs in bits");
            }
        }
    }
}

#[test]
fn reports_say_which_way_rows_went_and_how_fast() {
    use DeviceId::{Cpu, Gpu};
    for (link, devices) in [(Link::Dma, [Gpu(0), Cpu]), (Link::Copy, [Gpu(0), Gpu(0)]), (Link::Dma, [Cpu, Gpu(0)])] {
        let engine = engine(&devices, link);
        let mut session = engine.session().unwrap();
        let options = Options { max_tokens: 1, split: Split::Given(vec![48, 16]), ..Options::default() };
        let answer = session.generate(&tokens(64, 3), &options).unwrap();
        let adapters = &answer.report().adapters;
        for (adapter, device) in adapters.iter().zip(devices) {
            let dma = link == Link::Dma && device != Cpu && first_gpu_can();
            assert_eq!(adapter.link, if dma { "dma" } else { "copy" }, "{devices:?}");
        }
        let [handed] = adapters[0].handed_on[..] else { panic!("{:?}", adapters[0].handed_on) };
        assert_eq!((handed.to, handed.bytes), (1, adapters[1].fetched_bytes));
        assert!(handed.gb_per_s > 0.0 && adapters[1].handed_on.is_empty());
    }
}

#[test]
fn a_cancel_in_the_middle_ends_a_chain_in_time_and_leaves_it_usable() {
    // Whom to cancel at how many token-layers of an adapter.
    let target = Arc::new(Mutex::new((Cancel::new(), u64::MAX)));
    let seen = target.clone();
    let builder = Engine::synthetic(config(), Dtype::F16, 1).unwrap().devices([DeviceId::Gpu(0); 2]).context(384);
    let builder = builder.gemm(Gemm::Wgsl).link(Link::Dma).on_progress(move |progress| {
        let (cancel, at) = &*seen.lock().unwrap();
        if matches!(progress, Progress::Prefill { done, .. } if done >= *at) {
            cancel.cancel();
        }
    });
    let engine = builder.open().unwrap();
    let mut session = engine.session().unwrap();
    let one = self::engine(&[DeviceId::Gpu(0)], Link::Copy);
    let want = turns(&mut one.session().unwrap(), Mode::Single, &Split::Even);
    for layer in [1, 4, 9] {
        let cancel = Cancel::new();
        *target.lock().unwrap() = (cancel.clone(), 100 * layer);
        session.clear();
        session.end_with(Some(&cancel));
        let ended = session.logits(&tokens(200, 4), &Options::default()).map(|_| ());
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
        target.lock().unwrap().1 = u64::MAX;
        // What was cancelled is still in the queue, perhaps; the next turn must not meet it.
        session.end_with(None);
        session.clear();
        assert!(
            turns(&mut session, Mode::Runahead, &Split::Given(vec![85, 43])) == want,
            "after a cancel in layer {layer}"
        );
    }
}

#[test]
fn a_board_whose_readers_are_gone_takes_rows_and_gives_their_memory_back() {
    let (side, pool) = (Side::new(gpu(Link::Dma), Slots::Ring), HostPool::default());
    let schedule = Schedule::runahead(0, &[64, 16], 11);
    let (board, mailboxes) =
        Board::new(&schedule, side.cache.row_bytes(), Retention::Transit, Record::new(11), pool.clone()).unwrap();
    drop(mailboxes);
    let started = Instant::now();
    for layer in 0..11 {
        let mut rec = side.kernels().begin();
        let export =
            link::export(side.kernels(), &mut rec, &side.cache, layer, (0, Piece::new(0, 64)), Wanted::HOST).unwrap();
        let after = side.kernels().submit(rec, &wait()).unwrap();
        let mut block = board.reserve(0, layer, 0, &wait()).unwrap();
        link::fill(side.kernels(), export, &after, &mut block, &wait()).unwrap();
        board.publish(0, layer, 0, block, None, &wait()).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    // One block, which was always free again.
    assert_eq!(pool.take(2 * 64 * side.cache.row_bytes()).map(|m| m.len() as u64).ok(), Some(HostMemory::LEAST as u64));
    assert_eq!(pool.idle_bytes(0), 0);
}

#[test]
fn links_have_names() {
    for link in Link::ALL {
        assert_eq!(link.name().parse::<Link>().unwrap(), link);
    }
    assert!(matches!("nvlink".parse::<Link>(), Err(Error::Unsupported { name, .. }) if name == "nvlink"));
}

#[test]
fn rows_that_are_timed_come_back_as_they_were() {
    let nodes = [
        ("cpu", chain::node(Cpu::new("cpu", 1).unwrap(), Slots::All, None)),
        ("copy", chain::node(gpu(Link::Copy), Slots::All, None)),
        ("dma", chain::node(gpu(Link::Dma), Slots::All, None)),
    ];
    for (what, mut node) in nodes {
        let (pool, rows) = (HostPool::default(), Piece::new(7, 90));
        let bytes = pattern(2 * rows.len() * node.row_bytes(), 5);
        node.write_rows(1, rows, &bytes).unwrap();
        // Twice, so that the second time goes by memory that the first one left.
        for part in [rows, Piece::new(50, 60)] {
            let mut block = Block::on_trial(part, node.row_bytes(), node.link().wanted(), &pool).unwrap();
            let took = node.time_link(1, &mut block, &wait()).unwrap();
            assert!(took.iter().all(|way| *way > Duration::ZERO), "{what}: {took:?}");
            let (held, k, v) = block.part(part);
            assert_eq!((held, [k, v].concat()), (part, node.read_rows(1, part, &wait()).unwrap()), "{what}");
        }
        assert!(pool.idle_bytes(0) > 0);
        assert!(node.read_rows(1, rows, &wait()).unwrap() == bytes, "{what}");
    }
}
