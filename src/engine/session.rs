//! A session: one conversation's K/V cache on the engine's adapters, and the turns that extend it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;

use crate::cancel::{Cancel, Wait};
use crate::dims::{GRANULE, Piece};
use crate::dtype::KvDtype;
use crate::engine::{AdapterReport, Engine, Experiment, Generation, OnProgress, PrefillReport, Progress};
use crate::error::{Error, Result};
use crate::runahead::board::{Block, Record, Retention};
use crate::runahead::chain::{self, Outcome, Request};
use crate::runahead::node::Node;
use crate::runahead::partition::Split;
use crate::runahead::pool::HostPool;
use crate::runahead::schedule::{Mode, Schedule};
use crate::runahead::share::{Output, RowsOut, Want};
use crate::runahead::trace;
use crate::runahead::turn::Turn;
use crate::sampler::{Choice, Sampler, Sampling};

/// What a generation is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens to generate at most; fewer where the context is full.
    pub max_tokens: usize,
    /// How the prompt is prefilled: by the last adapter alone, or by all, or by as many as the prompt has granules for.
    pub mode: Mode,
    /// How the tokens to be computed are cut over the adapters: the prompt, and before it what of the conversation has no rows
    /// ([`Session::n_tokens`] less [`Session::n_cached`]).
    pub split: Split,
    /// Whether the model's end tokens end the answer (they are not part of it).
    pub stop_at_end: bool,
    /// How tokens are chosen: greedily, unless said here.
    pub sampling: Sampling,
    /// The answer ends before the first of these; they need a tokenizer.
    pub stop: Vec<String>,
    /// Whether devices write down when they worked on products and when on attention, for traces. Costs a little.
    pub timed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            mode: Mode::default(),
            split: Split::default(),
            stop_at_end: true,
            sampling: Sampling::default(),
            stop: Vec::new(),
            timed: false,
        }
    }
}

/// See the module's text. A failed or cancelled turn leaves the conversation as it was before.
///
/// What a model with windows has let go of is computed again: where the conversation is cut back, or a turn fails, and rows that a window would now
/// reach are gone, the next turn prefills the whole conversation. In place it can be cut back by as many tokens as
/// [`EngineBuilder::take_back`](crate::engine::EngineBuilder::take_back) says, but not to before the last adapter's piece of a chain, which was
/// handed only the rows that its windows reached. Models without windows never compute anything again.
pub struct Session {
    pub(super) engine: Engine,
    nodes: Vec<Box<dyn Node>>,
    /// What slows these nodes down on purpose.
    experiment: Experiment,
    /// Of each node, where it shares a device with another that is slowed down.
    turns: Vec<Option<Arc<Turn>>>,
    /// The conversation, prompts and answers.
    tokens: Vec<u32>,
    /// Tokens whose rows stand in the last adapter's cache: all, or all but the last generated one.
    pub(super) len: usize,
    /// The fewest tokens, beside none, that these rows can be cut back to: layers with a window have let go of what only shorter conversations
    /// need.
    pub(super) least_kept: usize,
    note: String,
    record: Record,
    /// What the board of each turn is made of.
    pool: HostPool,
    /// Ends every turn; the engine's own unless another was put in.
    pub(super) parent: Cancel,
    /// Ends the present turn.
    cancel: Cancel,
    /// Told of the progress of prefills in place of the engine's callback, where a stream put its own in.
    progress: Option<OnProgress>,
}

/// A prefill that is about to run.
struct Plan {
    schedule: Schedule,
    mode: Mode,
    note: Option<String>,
}

impl Session {
    /// On some of the engine's adapters, with a node on each.
    pub(super) fn new(engine: Engine, adapters: &[usize], nodes: Vec<Box<dyn Node>>) -> Self {
        let experiment = engine.shared.experiment.pick(adapters);
        let turns = adapters.iter().map(|&i| engine.shared.turns[i].clone()).collect();
        let record = Record::new(engine.config().n_layers);
        let parent = engine.cancel().clone();
        let (tokens, note, pool) = (Vec::new(), String::new(), HostPool::default());
        let (cancel, progress) = (parent.child(), None);
        let (len, least_kept) = (0, 0);
        Self { engine, nodes, experiment, turns, tokens, len, least_kept, note, record, pool, cancel, parent, progress }
    }

    /// Makes `cancel` (or, with `None`, the engine's own again) end the turns from now on. A child of the engine's own is ended by both.
    pub fn end_with(&mut self, cancel: Option<&Cancel>) {
        self.parent = cancel.unwrap_or(self.engine.cancel()).clone();
    }

    /// Tells `progress` (or, with `None`, the engine's callback again) how far prefills are from now on.
    pub(super) fn report_to(&mut self, progress: Option<OnProgress>) {
        self.progress = progress;
    }

    /// Tokens of the conversation so far, prompt and answers.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The conversation so far, prompts and answers.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of the K/V caches, adapter by adapter. Layers with a window take no more than the window, [`EngineBuilder::take_back`] and the longest
    /// share of a prompt so far ask for, however long the conversation.
    ///
    /// [`EngineBuilder::take_back`]: crate::engine::EngineBuilder::take_back
    pub fn cache_bytes(&self) -> impl Iterator<Item = u64> + '_ {
        self.nodes.iter().map(|node| node.cache_bytes())
    }

    /// The engine that it runs on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Text of the application's own that [`Session::save`] keeps with the conversation.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// See [`Session::note`].
    pub fn set_note(&mut self, note: impl Into<String>) {
        self.note = note.into();
    }

    /// Tokens that the next turn need not prefill. The last one that was generated has no rows yet.
    pub fn n_cached(&self) -> usize {
        self.len
    }

    /// Forgets all but the first `n` tokens.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
        self.len = self.len.min(n);
        if self.len < self.least_kept {
            self.len = 0;
        }
        if self.len == 0 {
            self.least_kept = 0;
        }
        self.record.truncate(self.len);
    }

    /// Forgets all that is not the beginning of `tokens`. Gives the number of tokens kept: fewer than `tokens`, so that what is left of them can be
    /// prefilled.
    pub fn keep_prefix(&mut self, tokens: &[u32]) -> usize {
        let shared = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.truncate(shared.min(tokens.len().saturating_sub(1)));
        self.n_tokens()
    }

    /// Forgets the conversation; the memory stays for the next one.
    pub fn clear(&mut self) {
        self.truncate(0);
        self.note.clear();
    }

    /// Prefills `tokens` behind the conversation so far and begins an answer: an iterator that decodes as it is pulled. Dropping it ends the
    /// answer; the conversation keeps what was pulled.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::ContextFull`], [`Error::BadToken`], [`Error::Partition`], [`Error::Sampling`], a cancel, an adapter's
    /// failure.
    pub fn generate(&mut self, tokens: &[u32], options: &Options) -> Result<Generation<'_>> {
        let called = Instant::now();
        let mut sampler = Sampler::new(&options.sampling)?;
        if !options.stop.is_empty() && self.engine.tokenizer().is_none() {
            return Err(Error::Tokenizer("the model has none; stop strings need text".to_owned()));
        }
        let before = self.n_tokens();
        let want = if options.sampling.is_plain_greedy() { Want::Token } else { Want::Logits };
        let (outcome, mut report) = self.prefill(tokens, options, RowsOut::Last(want))?;
        let first = match self.choose(outcome.output, &mut sampler) {
            Ok(first) => first,
            Err(error) => {
                self.truncate(before);
                return Err(error);
            }
        };
        report.ttft_ms = called.elapsed().as_secs_f64() * 1e3;
        Ok(Generation::new(self, first, sampler, want, report, options))
    }

    /// Logits of the row of each of these tokens `[tokens, vocab]`, without generating; the rows join the conversation.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn logits(&mut self, tokens: &[u32], options: &Options) -> Result<Vec<f32>> {
        let (outcome, _) = self.prefill(tokens, options, RowsOut::All)?;
        match outcome.output {
            Output::Logits(mut all) => {
                // Those of earlier tokens whose rows had to be computed come first.
                let before = all.len().saturating_sub(tokens.len() * self.engine.config().vocab);
                all.drain(..before);
                Ok(all)
            }
            _ => Err(Error::Partition("the schedule made no logits".to_owned())),
        }
    }

    /// K and V of one layer as they stand in the last adapter's cache, each `[tokens, kv_heads, head_dim]`: of all tokens, or of those at the end that
    /// the layer's window reaches from the next one.
    ///
    /// # Errors
    /// An adapter's failure; [`Error::Config`] for a layer that is not there.
    pub fn kv(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let n_layers = self.engine.config().n_layers;
        if layer >= n_layers {
            return Err(Error::Config(format!("layer {layer} of {n_layers}")));
        }
        let window = self.engine.config().layers[layer].window;
        let first = window.map_or(0, |window| (self.len + 1).saturating_sub(window).min(self.len));
        let bytes = self.last().read_rows(layer, Piece::new(first, self.len), &Wait::new(&self.parent))?;
        let values: Vec<f32> = match self.engine.shared.kv {
            KvDtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            KvDtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        };
        let v = values[values.len() / 2..].to_vec();
        let mut k = values;
        k.truncate(v.len());
        Ok((k, v))
    }

    /// Takes the last generated token through the model; gives what follows. `more`: whether that will be taken through it, too, as far as is known.
    pub(super) fn step(&mut self, sampler: &mut Sampler, want: Want, more: bool) -> Result<Choice> {
        let wait = Wait::new(&self.cancel);
        let (position, last) = (self.len, self.nodes.len() - 1);
        let began = Instant::now();
        let slowdown = self.experiment.slowdown(last);
        // What an adapter did during the pause would not be slowed down.
        let more = more && slowdown <= 1.0;
        // The adapter may have begun with the row after this one, where there is room for it.
        let begun = (position + 2).min(self.engine.context());
        self.least_kept = self.least_kept.max(self.last().least_kept(begun));
        let output = self.nodes[last].decode(self.tokens[position], position, want, more, &wait)?;
        if slowdown > 1.0 {
            wait.sleep(began.elapsed().mul_f64(slowdown - 1.0))?;
        }
        self.len += 1;
        self.choose(output, sampler)
    }

    fn choose(&self, output: Output, sampler: &mut Sampler) -> Result<Choice> {
        match output {
            Output::Token(id) => Ok(Choice { id, logprobs: None }),
            Output::LastLogits(logits) => sampler.choose(&logits, &self.tokens),
            Output::None | Output::Logits(_) => {
                Err(Error::Partition("the schedule's last adapter made no token".to_owned()))
            }
        }
    }

    /// Adds a generated token, whose rows are not computed yet.
    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Tokens that still fit.
    pub(super) fn room(&self) -> usize {
        self.engine.context() - self.len
    }

    /// Puts saved rows into the last adapter's cache.
    pub(super) fn write_rows(&mut self, layer: usize, rows: Piece, bytes: &[u8]) -> Result<()> {
        let last = self.nodes.len() - 1;
        self.nodes[last].write_rows(layer, rows, bytes)
    }

    /// The conversation whose first `n_rows` rows were just written, those that conversations of `least_kept` tokens and more need.
    pub(super) fn restore(&mut self, tokens: Vec<u32>, n_rows: usize, least_kept: usize, note: String) {
        (self.tokens, self.len, self.note) = (tokens, n_rows, note);
        self.least_kept = least_kept.max(self.last().least_kept(n_rows));
    }

    /// Gives the adapters of a schedule room for their shares in the caches of layers with a window.
    fn make_room(&mut self, schedule: &Schedule) -> Result<()> {
        let wait = Wait::new(&self.cancel);
        let skip = self.nodes.len() - schedule.n_adapters();
        for (i, node) in self.nodes[skip..].iter_mut().enumerate() {
            let kept = if schedule.holds_past[i] { Piece::new(self.least_kept, self.len) } else { Piece::new(0, 0) };
            node.make_room(schedule.span(i), kept, &wait)?;
        }
        Ok(())
    }

    /// Tokens that the last adapter can take in one pass.
    pub(super) fn most_at_once(&self) -> usize {
        self.most_rows(self.last())
    }

    fn most_rows(&self, node: &dyn Node) -> usize {
        node.max_rows().min(self.engine.shared.max_share)
    }

    /// Takes tokens through the first `n_layers` layers of the last adapter alone, for the sake of its times; the conversation is to be cleared then.
    /// There are [`most_at_once`](Self::most_at_once) of them at most.
    ///
    /// # Errors
    /// As a prefill's.
    pub(super) fn time_layers(&mut self, tokens: &[u32], n_layers: usize) -> Result<PrefillReport> {
        self.cancel = self.parent.child();
        let windows = self.engine.config().windows();
        let schedule = Schedule::single(self.len, tokens.len(), n_layers).windowed(&windows);
        let plan = Plan { schedule, mode: Mode::Single, note: None };
        Ok(self.pass(plan, tokens, RowsOut::None, true)?.1)
    }

    /// How long the last adapter's rows take on their way out and back in: see [`Node::time_link`].
    pub(super) fn time_link(&mut self, layer: usize, rows: Piece) -> Result<[Duration; 2]> {
        let (wait, last) = (Wait::new(&self.cancel), self.nodes.len() - 1);
        let node = &mut self.nodes[last];
        let mut block = Block::on_trial(rows, node.row_bytes(), node.link().wanted(), &self.pool)?;
        node.time_link(layer, &mut block, &wait)
    }

    pub(super) fn last(&self) -> &dyn Node {
        &*self.nodes[self.nodes.len() - 1]
    }

    fn prefill(&mut self, tokens: &[u32], options: &Options, rows_out: RowsOut) -> Result<(Outcome, PrefillReport)> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        for &id in tokens {
            self.engine.check_token(id)?;
        }
        let needed = self.tokens.len() + tokens.len();
        if needed > self.engine.context() {
            return Err(Error::ContextFull { needed, context: self.engine.context() });
        }
        self.cancel = self.parent.child();
        let before = self.tokens.len();
        let tokens: Vec<u32> = self.tokens[self.len..].iter().chain(tokens).copied().collect();
        let done = self.passes(&tokens, options, rows_out);
        if done.is_err() {
            self.truncate(before);
        }
        done
    }

    /// Takes tokens through the model in as few passes as the adapters' tensors allow.
    fn passes(&mut self, tokens: &[u32], options: &Options, rows_out: RowsOut) -> Result<(Outcome, PrefillReport)> {
        if rows_out == RowsOut::All {
            // Of the shares, and once more where they are joined.
            let needed = 2 * (tokens.len() * self.engine.config().vocab * size_of::<f32>()) as u64;
            chain::check_host_memory("the logits of all tokens", needed)?;
        }
        let mut rest = tokens;
        let mut done: Option<(Outcome, PrefillReport)> = None;
        loop {
            let (plan, n) = self.next_pass(rest.len(), tokens.len(), options)?;
            let (now, later) = rest.split_at(n);
            let of_pass = if later.is_empty() || rows_out == RowsOut::All { rows_out } else { RowsOut::None };
            let pass = self.pass(plan, now, of_pass, options.timed)?;
            let joined = match done.take() {
                Some((before, mut report)) => {
                    report.join(pass.1);
                    (Outcome { output: before.output.join(pass.0.output), ..pass.0 }, report)
                }
                None => pass,
            };
            if later.is_empty() {
                return Ok(joined);
            }
            (rest, done) = (later, Some(joined));
        }
    }

    /// What to do with the first of the `left` last of `len` tokens, and how many these are: all of them, or half as often as it takes.
    fn next_pass(&self, left: usize, len: usize, options: &Options) -> Result<(Plan, usize)> {
        let mut n = left;
        loop {
            let plan = self.plan(n, len, options)?;
            let nodes = &self.nodes[self.nodes.len() - plan.schedule.n_adapters()..];
            let fits = nodes.iter().enumerate().all(|(i, node)| plan.schedule.n_rows(i) <= self.most_rows(&**node));
            // Passes end between granules.
            let half = ((self.len + n / 2) / GRANULE * GRANULE).saturating_sub(self.len);
            if fits || half == 0 {
                return Ok((plan, n));
            }
            n = half;
        }
    }

    fn pass(&mut self, plan: Plan, tokens: &[u32], rows_out: RowsOut, timed: bool) -> Result<(Outcome, PrefillReport)> {
        let needed = self.len + tokens.len();
        let retention = self.catch_up(&plan.schedule)?;
        self.make_room(&plan.schedule)?;
        let outcome = self.run(&plan, tokens, retention, rows_out, timed);
        // Whether it came to its end or not, rings may have gone round.
        self.least_kept = self.least_kept.max(self.last().least_kept(needed)).max(plan.schedule.least_kept());
        let outcome = outcome?;
        // Tokens whose rows were let go of are part of the conversation already.
        let known = self.tokens.len() - self.len;
        self.tokens.extend(tokens.iter().skip(known));
        self.len = needed;
        Ok(self.report(plan, outcome))
    }

    /// For `part` of `len` tokens.
    fn plan(&self, part: usize, len: usize, options: &Options) -> Result<Plan> {
        let (n_layers, windows) = (self.engine.config().n_layers, self.engine.config().windows());
        let n = self.nodes.len();
        let lengths = |n_pieces| {
            let of = if part == len { Split::lengths } else { Split::part_lengths };
            of(&options.split, self.len, part, n_pieces)
        };
        if options.mode == Mode::Single || n == 1 {
            if options.split != Split::Even {
                lengths(1)?;
            }
            let schedule = Schedule::single(self.len, part, n_layers).windowed(&windows);
            return Ok(Plan { schedule, mode: Mode::Single, note: None });
        }
        let lengths = lengths(options.mode.n_pieces(n))?;
        let schedule = options.mode.schedule(self.len, &lengths, n_layers).windowed(&windows);
        let used = schedule.n_adapters();
        let granules = lengths.len();
        let note = (used < n).then(|| format!("{part} tokens are {granules} granules: {used} of {n} adapters used"));
        Ok(Plan { schedule, mode: options.mode, note })
    }

    /// Brings the record up to the past where the schedule reads it: the last adapter has the rows that are missing. From then on the record is
    /// kept, so that the next turn fetches its own rows only.
    fn catch_up(&mut self, schedule: &Schedule) -> Result<Retention> {
        if !schedule.reads_past() {
            return Ok(Retention::Transit);
        }
        let mut missing = Vec::new();
        for layer in schedule.layers.clone() {
            let read = schedule.past_read(layer);
            self.record.forget_before(layer, read.start);
            let rows = Piece::new(self.record.end(layer, read.start).min(read.end), read.end);
            if !rows.is_empty() {
                // What lies behind a gap comes again.
                self.record.forget_from(layer, rows.start);
                missing.push((layer, rows));
            }
        }
        let n_rows: usize = missing.iter().map(|(_, rows)| rows.len()).sum();
        let needed = 2 * (n_rows * self.last().row_bytes()) as u64;
        chain::check_host_memory("the K/V rows of the past", needed)?;
        let wait = Wait::new(&self.cancel);
        for (layer, rows) in missing {
            let bytes = self.last().read_rows(layer, rows, &wait)?;
            self.record.keep(layer, Arc::new(Block::in_pages(rows, &bytes)?));
        }
        Ok(Retention::Record)
    }

    fn run(
        &mut self,
        plan: &Plan,
        tokens: &[u32],
        retention: Retention,
        rows_out: RowsOut,
        timed: bool,
    ) -> Result<Outcome> {
        let skip = self.nodes.len() - plan.schedule.n_adapters();
        let names: Vec<String> = self.nodes[skip..].iter().map(|n| n.name().to_owned()).collect();
        let on_progress = Arc::clone(self.progress.as_ref().unwrap_or(&self.engine.shared.progress));
        let progress = move |adapter: usize, done, total| {
            on_progress(Progress::Prefill { adapter: names[adapter].clone(), done, total });
        };
        let experiment = self.experiment.pick(&(skip..self.nodes.len()).collect::<Vec<_>>());
        let mut nodes: Vec<&mut dyn Node> = self.nodes[skip..].iter_mut().map(|n| &mut **n as &mut dyn Node).collect();
        let request = Request {
            tokens,
            rows_out,
            retention,
            record: self.record.clone(),
            pool: self.pool.clone(),
            experiment,
            turns: self.turns[skip..].to_vec(),
            timed,
            cancel: &self.cancel,
            progress: &progress,
        };
        chain::prefill(&mut nodes, &plan.schedule, request)
    }

    fn report(&mut self, plan: Plan, mut outcome: Outcome) -> (Outcome, PrefillReport) {
        self.record = std::mem::replace(&mut outcome.record, Record::new(0));
        let skip = self.nodes.len() - plan.schedule.n_adapters();
        let logs = std::mem::take(&mut outcome.adapters);
        let adapters: Vec<_> =
            (0..logs.len()).map(|i| AdapterReport::new(&*self.nodes[skip + i], &plan.schedule, i, &logs)).collect();
        let partition = plan.schedule.pieces.iter().map(|p| p.len()).collect();
        let run_ahead_layers = trace::run_ahead_layers(&adapters.iter().map(|a| &a.log).collect::<Vec<_>>());
        let report = PrefillReport {
            mode: plan.mode.name(),
            ttft_ms: 0.0,
            partition,
            adapters,
            run_ahead_layers,
            note: plan.note,
        };
        (outcome, report)
    }
}
