//! Calibration: a few timed chunks on each adapter give its costs, and searches on measured prefills give the partitions.

use std::time::{Duration, Instant};

use crate::dims::{GRANULE, Piece};
use crate::engine::{Engine, Mode, Options, PrefillReport, Session};
use crate::error::{Error, Result};
use crate::runahead::cost::{AdapterCost, CostModel, Fit, Lane, Sample, Shape, mean_scores};
use crate::runahead::partition::{Split, n_granules};
use crate::runahead::search::{Found, Problem, search, search_simulated};
use crate::runahead::table::Point;
use crate::runahead::trace::{self, What};

mod tiles;

/// Chunks timed behind each chunk: the same lengths behind different prefixes tell attention from the products.
const CHUNKS: [usize; 3] = [GRANULE, 64, 256];
/// Layers of a chunk that has whole tiles of products: the first one's second half and the others are timed.
const TILED_LAYERS: usize = 4;
/// Tiles of the longest of them. A layer's products of Llama-2-7B's widths take 12 % longer on an H200 with 17 tiles than with 16, where another round of
/// workgroups begins, and 4 % with 37 than with 36.
const MOST_TILES: usize = 64;
/// Chunks up to this length are timed on any adapter.
const SHORT_CHUNK: usize = 64;
/// Seconds after which an adapter is not given longer chunks: what is slow by then is known well enough.
const LONG_CHUNK_S: f64 = 3.0;
/// The least time that an adapter works before anything counts.
const WARM_UP: Duration = Duration::from_secs(1);
/// Runs of a transfer that count.
const LINK_RUNS: usize = 5;
/// Tokens decoded for the rate of decoding, after the first.
const DECODED: usize = 4;

/// What a calibration measures.
#[derive(Clone, Debug)]
pub struct CalibrateOptions {
    /// Prompt lengths for which the cut is searched; the longest is also the longest chunk timed.
    pub contexts: Vec<usize>,
    /// Runs of each measurement but those of single tiles; their median counts.
    pub repetitions: usize,
}

/// News from a calibration.
#[derive(Debug)]
#[non_exhaustive]
pub enum CalibrateStep<'a> {
    /// A chunk was timed.
    Timed {
        /// The adapter's name.
        adapter: &'a str,
        /// Tokens before the chunk.
        prefix: usize,
        /// Tokens of the chunk.
        tokens: usize,
    },
    /// A cut was tried.
    Tried {
        /// Tokens of the prompt.
        context: usize,
        /// The best so far.
        best: &'a Found,
    },
    /// The search for a context came to an end: what would be kept if nothing followed.
    Found {
        /// What the adapters cost.
        costs: &'a CostModel,
        /// The best cuts so far, by ascending context.
        points: &'a [Point],
    },
}

/// What a calibration found.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// What the adapters cost, in the engine's order.
    pub costs: CostModel,
    /// The best cuts, by ascending context.
    pub points: Vec<Point>,
    /// Whether it came to its end; a cancelled one has what it had found by then.
    pub finished: bool,
}

impl Engine {
    /// Times chunks on every adapter, fits their costs, and searches the best cut for each context on measured prefills. The engine's cancel ends it:
    /// before the costs are known with [`Error::Cancelled`], after that with what was found.
    ///
    /// # Errors
    /// [`Error::ContextFull`] and [`Error::Partition`] for contexts that do not fit or cannot be cut, [`Error::Unsupported`] for a model of one
    /// block, an adapter's failure.
    pub fn calibrate(
        &self,
        options: &CalibrateOptions,
        progress: &mut dyn FnMut(CalibrateStep<'_>),
    ) -> Result<Calibration> {
        let n = self.shared.adapters.len();
        let mut contexts = options.contexts.clone();
        contexts.sort_unstable();
        contexts.dedup();
        let Some(&longest) = contexts.last() else { return Err(Error::EmptyPrompt) };
        if longest > self.context() {
            return Err(Error::ContextFull { needed: longest, context: self.context() });
        }
        if let Some(short) = contexts.iter().find(|&&c| n_granules(0, c) < n) {
            return Err(Error::Partition(format!(
                "{short} tokens cannot be cut into {n} pieces of {GRANULE} and more"
            )));
        }
        if longest < 2 * GRANULE {
            return Err(Error::Partition(format!("{longest} tokens are too few to time, {} at least", 2 * GRANULE)));
        }
        if self.config().n_layers < 2 {
            return Err(Error::Unsupported { what: "calibration", name: "a model of one block".to_owned() });
        }
        let bench = Bench { engine: self, repetitions: options.repetitions.max(1) };
        let adapters = (0..n).map(|i| bench.costs(i, longest, progress)).collect::<Result<_>>()?;
        let row = self.config().kv_width() * self.shared.kv.scalar().bytes();
        let windows = Shape::of(self.config()).windows();
        let costs = CostModel { adapters, kv_bytes: 2.0 * row as f64, windows, hub: None };
        let mut points = Vec::with_capacity(contexts.len());
        for context in contexts {
            match bench.point(context, &costs, progress) {
                Ok((point, finished)) => {
                    points.push(point);
                    if !finished {
                        return Ok(Calibration { costs, points, finished });
                    }
                    progress(CalibrateStep::Found { costs: &costs, points: &points });
                }
                Err(Error::Cancelled) => return Ok(Calibration { costs, points, finished: false }),
                Err(other) => return Err(other),
            }
        }
        Ok(Calibration { costs, points, finished: true })
    }
}

struct Bench<'a> {
    engine: &'a Engine,
    repetitions: usize,
}

impl Bench<'_> {
    /// One adapter's costs from chunks of up to `longest` tokens.
    fn costs(
        &self,
        adapter: usize,
        longest: usize,
        progress: &mut dyn FnMut(CalibrateStep<'_>),
    ) -> Result<AdapterCost> {
        let name = self.engine.shared.adapters[adapter].name();
        let mut tell = |sample: &Sample| {
            progress(CalibrateStep::Timed { adapter: name, prefix: sample.prefix, tokens: sample.tokens });
        };
        let mut session = self.engine.session_on(adapter)?;
        // A chunk of several passes would be timed as one of them.
        let longest = longest.min(session.most_at_once());
        self.warm_up(&mut session, longest)?;
        let busy_workgroups = self.tiles(adapter, &mut session, longest)?;
        // First all of it by the device's clock, which tells attention from products and costs the rest; then as it is, in turns that lie apart: what
        // is slow for a second (in the first seconds of a process on an H200 short chunks took twice as long) is not all that is known of a length.
        let mut timed = Vec::new();
        let doubling = std::iter::successors(Some(GRANULE), |n| Some(n * 2)).take_while(|&n| n < longest);
        for tokens in doubling.chain([longest]) {
            let started = Instant::now();
            let behind = CHUNKS.into_iter().filter(|&c| c < longest);
            let chunks: Vec<usize> = [tokens].into_iter().chain(behind).collect();
            let samples = self.sequence(&mut session, &chunks, true, &mut tell)?;
            timed.push((chunks, samples));
            if tokens >= SHORT_CHUNK && started.elapsed().as_secs_f64() > LONG_CHUNK_S {
                break;
            }
        }
        // As a later piece of a long prompt. Not the last one: what is in the session at the end goes over the link.
        let half = timed.last().map_or(0, |(chunks, _): &(Vec<usize>, _)| chunks[0] / 2 / GRANULE * GRANULE);
        if half > 0 {
            timed.insert(0, (vec![half; 2], self.sequence(&mut session, &[half; 2], true, &mut tell)?));
        }
        let mut runs = vec![Vec::new(); timed.len()];
        for _ in 0..self.repetitions {
            for (run, (chunks, _)) in runs.iter_mut().zip(&timed) {
                run.push(self.sequence(&mut session, chunks, false, &mut tell)?);
            }
        }
        let by_length = timed.iter().zip(&runs);
        let samples = by_length.flat_map(|((_, timed), runs)| {
            timed.iter().enumerate().map(|(i, timed)| joined(timed, runs.iter().filter_map(move |run| run.get(i))))
        });
        let mut samples: Vec<Sample> = samples.collect();
        let (down, up) = self.lanes(&mut session)?;
        samples.extend(self.tiled(adapter, &mut session, longest, &mut tell)?);
        let decode_s = self.decode(&mut session)?;
        let fit = Fit { name: name.to_owned(), samples, decode_s: Some(decode_s), down, up, queue: None };
        let tile_rows = self.engine.shared.adapters[adapter].tile_rows();
        Ok(AdapterCost { tile_rows, busy_workgroups, ..fit.costs()? })
    }

    /// Runs until shaders are compiled, for decoding too, and clocks are up (an idle H100 made the first chunks look 80 % too slow).
    fn warm_up(&self, session: &mut Session, longest: usize) -> Result<()> {
        let started = Instant::now();
        self.decode(session)?;
        while started.elapsed() < WARM_UP {
            for tokens in CHUNKS.into_iter().filter(|&c| c <= longest) {
                session.clear();
                self.chunk(session, tokens, false)?;
            }
        }
        Ok(())
    }

    /// Times chunks behind one another, as far as the context holds them.
    fn sequence(
        &self,
        session: &mut Session,
        chunks: &[usize],
        timed: bool,
        tell: &mut dyn FnMut(&Sample),
    ) -> Result<Vec<Sample>> {
        session.clear();
        let mut samples = Vec::with_capacity(chunks.len());
        for &tokens in chunks {
            if session.n_tokens() + tokens <= self.engine.context() {
                let sample = self.chunk(session, tokens, timed)?;
                tell(&sample);
                samples.push(sample);
            }
        }
        Ok(samples)
    }

    /// Times a few layers of chunks of every number of whole tiles, once each: between the lengths that [`sequence`](Self::sequence) times, products take a step
    /// wherever one more tile begins another round of workgroups. Nothing where the adapter's products have no tiles or its device no clock; ends early on a slow
    /// one.
    fn tiled(
        &self,
        adapter: usize,
        session: &mut Session,
        longest: usize,
        tell: &mut dyn FnMut(&Sample),
    ) -> Result<Vec<Sample>> {
        let (tile, started) = (self.engine.shared.adapters[adapter].tile_rows(), Instant::now());
        let mut samples = Vec::new();
        let n_layers = TILED_LAYERS.min(self.engine.config().n_layers);
        for tokens in (1..=MOST_TILES).map(|n| n * tile).take_while(|&n| tile > 1 && n <= longest) {
            session.clear();
            let report = session.time_layers(&self.engine.config().any_tokens(tokens, 0), n_layers)?;
            let sample = self.sample(&report, (0, tokens), n_layers - 1, None)?;
            // Between so few layers the host's clock sees nothing.
            if sample.attention_s.is_none() {
                break;
            }
            tell(&sample);
            samples.push(sample);
            if started.elapsed().as_secs_f64() > LONG_CHUNK_S {
                break;
            }
        }
        Ok(samples)
    }

    /// Times one chunk.
    fn chunk(&self, session: &mut Session, tokens: usize, timed: bool) -> Result<Sample> {
        let prefix = session.n_tokens();
        let options = Options { max_tokens: 1, mode: Mode::Single, timed, ..Options::default() };
        let answer = session.generate(&self.engine.config().any_tokens(tokens, prefix as u64), &options)?;
        let report = answer.report();
        self.sample(report, (prefix, tokens), self.engine.config().n_layers - 1, Some(report.ttft_ms / 1e3))
    }

    /// What a report of `whole` whole layers tells, with the seconds to the token where there was one. Stage 0 is the first half of a layer; what comes behind
    /// the whole layers ends with the token.
    fn sample(
        &self,
        report: &PrefillReport,
        (prefix, tokens): (usize, usize),
        whole: usize,
        ttft_s: Option<f64>,
    ) -> Result<Sample> {
        let spans: Vec<(f64, f64)> = report
            .adapters
            .iter()
            .flat_map(|a| trace::stages(&a.log.spans))
            .map(|s| (s.start.as_secs_f64(), s.end.as_secs_f64()))
            .collect();
        let (Some(first), Some(last), true) = (spans.first(), spans.get(whole), whole > 0) else {
            return Err(Error::Unsupported { what: "calibration", name: "a prefill without layers".to_owned() });
        };
        let windows = &self.engine.config().windows()[..whole];
        // Layers of a kind take the same time: the median of each kind counts, as often as there are such layers.
        let mean_of_kinds = |of: &dyn Fn(usize) -> f64| {
            let like = |window| median((0..whole).filter(|&i| windows[i] == window).map(of).collect());
            windows.iter().map(|&window| like(window)).sum::<f64>() / whole as f64
        };
        let layer_s = mean_of_kinds(&|i| (spans[i + 1].1 - spans[i].1).max(0.0));
        let scores = mean_scores(windows, prefix as f64, tokens as f64);
        // By the device's clock, where it has one. Stage 0 is the first half of a layer, stage `i + 1` begins with the attention of layer `i`.
        let events = || report.adapters.iter().flat_map(|a| &a.log.events);
        let worked = |what: What, stage: usize| -> f64 {
            events().filter(|e| e.what == what && e.layer == stage).map(|e| (e.end - e.start).as_secs_f64()).sum()
        };
        let has_clock = events().any(|e| e.what == What::Attention);
        let qkv_s = if has_clock { worked(What::Products, 0) } else { first.1 - first.0 }.clamp(0.0, layer_s);
        let attention_s = has_clock.then(|| mean_of_kinds(&|i| worked(What::Attention, i + 1)));
        let tail_s = ttft_s.map(|s| (s - (last.1 - first.0)).max(0.0));
        Ok(Sample { prefix, tokens, scores, qkv_s, layer_s, attention_s, tail_s })
    }

    /// The ways out of the adapter and back in, as its link has them, each from two transfers of different size.
    fn lanes(&self, session: &mut Session) -> Result<(Lane, Lane)> {
        // The first layer may have no more rows than its window.
        let most = session.n_tokens().min(self.engine.config().layers[0].window.unwrap_or(usize::MAX));
        let rows = [GRANULE.min(most), most];
        let row = 2.0 * (self.engine.config().kv_width() * self.engine.shared.kv.scalar().bytes()) as f64;
        let (few, many) = (transfers(session, rows[0])?, transfers(session, rows[1])?);
        let lane = |way: usize| {
            let (few, many, more) = (few[way], many[way], row * (rows[1] - rows[0]) as f64);
            let bandwidth = (many > few && more > 0.0).then(|| more / (many - few));
            let latency_s = few - bandwidth.map_or(0.0, |b| row * rows[0] as f64 / b);
            Lane { bandwidth, latency_s: latency_s.max(0.0), noise: None }
        };
        Ok((lane(0), lane(1)))
    }

    /// Seconds for one token of decode behind a short prompt.
    fn decode(&self, session: &mut Session) -> Result<f64> {
        session.clear();
        let options = Options { max_tokens: 1 + DECODED, mode: Mode::Single, stop_at_end: false, ..Options::default() };
        let mut answer = session.generate(&self.engine.config().any_tokens(GRANULE, 0), &options)?;
        answer.next().transpose()?;
        let started = Instant::now();
        let decoded = answer.by_ref().collect::<Result<Vec<_>>>()?.len();
        Ok(started.elapsed().as_secs_f64() / decoded.max(1) as f64)
    }

    /// The best cut for a context, and whether its search came to an end.
    fn point(
        &self,
        context: usize,
        costs: &CostModel,
        progress: &mut dyn FnMut(CalibrateStep<'_>),
    ) -> Result<(Point, bool)> {
        let n = self.engine.shared.adapters.len();
        let tokens = self.engine.config().any_tokens(context, 1);
        let single = |i: usize| -> Result<f64> {
            let mut session = self.engine.session_on(i)?;
            self.ttft(&mut session, &tokens, &Options { max_tokens: 1, mode: Mode::Single, ..Options::default() })
        };
        let single_ms = (0..n).map(single).map(|s| s.map(|s| s * 1e3)).collect::<Result<Vec<_>>>()?;
        if n == 1 {
            let (ttft_ms, lengths) = (single_ms[0], vec![context]);
            return Ok((Point { context, lengths, ttft_ms, even_ms: ttft_ms, single_ms }, true));
        }
        let mut session = self.engine.session()?;
        let guess = search_simulated(Mode::Runahead, costs, 0, context, self.engine.config().n_layers)?.lengths;
        let problem = Problem::measured(0, context, n, guess, costs);
        let mut objective = |lengths: &[usize]| {
            let split = Split::Given(lengths.to_vec());
            self.ttft(
                &mut session,
                &tokens,
                &Options { max_tokens: 1, mode: Mode::Runahead, split, ..Options::default() },
            )
        };
        let mut tried = |best: &Found| progress(CalibrateStep::Tried { context, best });
        let found = search(&problem, self.engine.cancel(), &mut objective, &mut tried)?;
        let (ttft_ms, even_ms) = (found.seconds * 1e3, found.even_seconds * 1e3);
        Ok((Point { context, lengths: found.lengths, ttft_ms, even_ms, single_ms }, found.finished))
    }

    /// Median seconds to the first token, after a run to warm up.
    fn ttft(&self, session: &mut Session, tokens: &[u32], options: &Options) -> Result<f64> {
        let mut times = Vec::with_capacity(self.repetitions);
        for i in 0..=self.repetitions {
            session.clear();
            let ms = session.generate(tokens, options)?.report().ttft_ms;
            if i > 0 {
                times.push(ms / 1e3);
            }
        }
        Ok(median(times))
    }
}

/// Seconds for the K/V rows of the last `n_tokens` of a layer to leave the last adapter and to come back, medians. All go by the same memory, as in a
/// chain, whose blocks are used again: the first use of pages costs more than a transfer (1.2 instead of 9 GB/s).
fn transfers(session: &mut Session, n_tokens: usize) -> Result<[f64; 2]> {
    let end = session.n_tokens();
    let rows = Piece::new(end - n_tokens.min(end), end);
    session.time_link(0, rows)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..LINK_RUNS {
        let ways = session.time_link(0, rows)?;
        times.iter_mut().zip(ways).for_each(|(times, way)| times.push(way.as_secs_f64()));
    }
    Ok(times.map(median))
}

/// One chunk's medians of all runs; what its timed run tells of the parts of a layer counts where the device has a clock.
fn joined<'a>(timed: &Sample, runs: impl Iterator<Item = &'a Sample> + Clone) -> Sample {
    let median_of = |of: fn(&Sample) -> f64| median(runs.clone().map(of).collect());
    let tail_s = median(runs.clone().filter_map(|s| s.tail_s).collect());
    let layer_s = median_of(|s| s.layer_s);
    let qkv_s = match timed.attention_s {
        Some(_) => timed.qkv_s.min(layer_s),
        None => median_of(|s| s.qkv_s),
    };
    Sample { qkv_s, layer_s, tail_s: Some(tail_s), ..*timed }
}

/// The middle value; of an even number of them the upper one; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
