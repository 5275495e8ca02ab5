//! A session: one conversation's K/V cache on the engine's adapters, and the turns that extend it.

use std::sync::Arc;
use std::time::Instant;

use half::f16;

use crate::cancel::{Cancel, Wait};
use crate::dims::Piece;
use crate::dtype::KvDtype;
use crate::engine::{AdapterReport, Engine, Generation, PrefillReport, Progress};
use crate::error::{Error, Result};
use crate::runahead::board::{Block, Record, Retention};
use crate::runahead::chain::{self, Outcome, Request};
use crate::runahead::node::Node;
use crate::runahead::partition::Split;
use crate::runahead::schedule::Schedule;
use crate::runahead::worker::Output;

/// How a prompt is prefilled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// On the last adapter alone.
    Single,
    /// As a chain over all adapters, or over as many as the prompt has granules for.
    #[default]
    Runahead,
}

/// What a generation is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens to generate at most; fewer where the context is full.
    pub max_tokens: usize,
    /// How the prompt is prefilled.
    pub mode: Mode,
    /// How the prompt is cut over the adapters.
    pub split: Split,
    /// Whether the model's end tokens end the answer (they are not part of it).
    pub stop_at_end: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_tokens: 256, mode: Mode::default(), split: Split::default(), stop_at_end: true }
    }
}

/// See the module's text. A failed or cancelled turn leaves the session as it was before.
pub struct Session {
    pub(super) engine: Engine,
    nodes: Vec<Box<dyn Node>>,
    /// Tokens whose rows stand in the last adapter's cache.
    len: usize,
    /// The last generated token: part of the text, its rows not computed yet.
    pending: Option<u32>,
    record: Record,
    /// Ends every turn; the engine's own unless a stream put its own in.
    parent: Cancel,
    /// Ends the present turn.
    cancel: Cancel,
}

/// A prefill that is about to run.
struct Plan {
    schedule: Schedule,
    mode: &'static str,
    note: Option<String>,
}

impl Session {
    pub(super) fn new(engine: Engine, nodes: Vec<Box<dyn Node>>) -> Self {
        let record = Record::new(engine.config().n_layers);
        let parent = engine.cancel().clone();
        Self { engine, nodes, len: 0, pending: None, record, cancel: parent.child(), parent }
    }

    /// Makes `cancel` (or, with `None`, the engine's own again) end the turns from now on.
    pub(super) fn end_with(&mut self, cancel: Option<&Cancel>) {
        self.parent = cancel.unwrap_or(self.engine.cancel()).clone();
    }

    /// Tokens of the conversation so far, prompt and answers.
    pub fn n_tokens(&self) -> usize {
        self.len + usize::from(self.pending.is_some())
    }

    /// Forgets the conversation; the memory stays for the next one.
    pub fn clear(&mut self) {
        self.len = 0;
        self.pending = None;
        self.record = Record::new(self.engine.config().n_layers);
    }

    /// Prefills `tokens` behind the conversation so far and begins an answer: an iterator that decodes as it is pulled. Dropping it ends the
    /// answer; the conversation keeps what was pulled.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::ContextFull`], [`Error::BadToken`], [`Error::Partition`], a cancel, an adapter's failure.
    pub fn generate(&mut self, tokens: &[u32], options: &Options) -> Result<Generation<'_>> {
        let called = Instant::now();
        let (outcome, mut report) = self.prefill(tokens, options, false)?;
        let Output::Token(first) = outcome.output else {
            return Err(Error::Partition("the schedule's last adapter made no token".to_owned()));
        };
        report.ttft_ms = called.elapsed().as_secs_f64() * 1e3;
        Ok(Generation::new(self, first, report, options))
    }

    /// Logits of every row `[tokens, vocab]`, without generating; the rows join the conversation.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn logits(&mut self, tokens: &[u32], options: &Options) -> Result<Vec<f32>> {
        let (outcome, _) = self.prefill(tokens, options, true)?;
        match outcome.output {
            Output::Logits(logits) => Ok(logits),
            _ => Err(Error::Partition("the schedule made no logits".to_owned())),
        }
    }

    /// K and V of one layer as they stand in the last adapter's cache, each `[tokens, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// An adapter's failure; [`Error::Config`] for a layer that is not there.
    pub fn kv(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let n_layers = self.engine.config().n_layers;
        if layer >= n_layers {
            return Err(Error::Config(format!("layer {layer} of {n_layers}")));
        }
        let bytes = self.last().read_rows(layer, Piece::new(0, self.len), &Wait::new(&self.cancel))?;
        let values: Vec<f32> = match self.engine.shared.kv {
            KvDtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            KvDtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        };
        let v = values[values.len() / 2..].to_vec();
        let mut k = values;
        k.truncate(v.len());
        Ok((k, v))
    }

    /// Takes `token` through the model behind the conversation; gives the next greedy token.
    pub(super) fn step(&mut self, token: u32) -> Result<u32> {
        let wait = Wait::new(&self.cancel);
        let position = self.len;
        let last = self.nodes.len() - 1;
        let next = self.nodes[last].decode(token, position, &wait)?;
        self.len += 1;
        self.pending = None;
        Ok(next)
    }

    pub(super) fn set_pending(&mut self, token: u32) {
        self.pending = Some(token);
    }

    /// Tokens that still fit.
    pub(super) fn room(&self) -> usize {
        self.engine.context() - self.len
    }

    fn last(&self) -> &dyn Node {
        &*self.nodes[self.nodes.len() - 1]
    }

    fn prefill(&mut self, tokens: &[u32], options: &Options, all_logits: bool) -> Result<(Outcome, PrefillReport)> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        for &id in tokens {
            self.engine.check_token(id)?;
        }
        let tokens: Vec<u32> = self.pending.into_iter().chain(tokens.iter().copied()).collect();
        let needed = self.len + tokens.len();
        if needed > self.engine.context() {
            return Err(Error::ContextFull { needed, context: self.engine.context() });
        }
        self.cancel = self.parent.child();
        let plan = self.plan(tokens.len(), options)?;
        let retention = self.catch_up(&plan.schedule)?;
        let outcome = self.run(&plan, &tokens, retention, all_logits)?;
        self.len = needed;
        self.pending = None;
        Ok(self.report(plan, outcome))
    }

    fn plan(&self, len: usize, options: &Options) -> Result<Plan> {
        let n_layers = self.engine.config().n_layers;
        let n = self.nodes.len();
        if options.mode == Mode::Single || n == 1 {
            if options.split != Split::Even {
                options.split.lengths(self.len, len, 1)?;
            }
            return Ok(Plan { schedule: Schedule::single(self.len, len, n_layers), mode: "single", note: None });
        }
        let lengths = options.split.lengths(self.len, len, n)?;
        let used = lengths.len();
        let note = (used < n).then(|| format!("{len} tokens are {used} granules: {used} of {n} adapters used"));
        Ok(Plan { schedule: Schedule::runahead(self.len, &lengths, n_layers), mode: "runahead", note })
    }

    /// Brings the record up to the past where the schedule reads it: the last adapter has the rows that are missing. From then on the record is
    /// kept, so that the next turn fetches its own rows only.
    fn catch_up(&mut self, schedule: &Schedule) -> Result<Retention> {
        if !schedule.reads_past() {
            return Ok(Retention::Transit);
        }
        let missing = Piece::new(self.record.n_tokens(), schedule.past);
        if !missing.is_empty() {
            let wait = Wait::new(&self.cancel);
            for layer in 0..self.engine.config().n_layers {
                let bytes = self.last().read_rows(layer, missing, &wait)?;
                self.record.keep(layer, Arc::new(Block::new(missing, bytes)));
            }
        }
        Ok(Retention::Record)
    }

    fn run(&mut self, plan: &Plan, tokens: &[u32], retention: Retention, all_logits: bool) -> Result<Outcome> {
        let skip = self.nodes.len() - plan.schedule.n_adapters();
        let names: Vec<String> = self.nodes[skip..].iter().map(|n| n.name().to_owned()).collect();
        let on_progress = Arc::clone(&self.engine.shared.progress);
        let progress = move |adapter: usize, done, total| {
            on_progress(Progress::Prefill { adapter: names[adapter].clone(), done, total });
        };
        let mut nodes: Vec<&mut dyn Node> = self.nodes[skip..].iter_mut().map(|n| &mut **n as &mut dyn Node).collect();
        let request = Request {
            tokens,
            all_logits,
            retention,
            record: self.record.clone(),
            cancel: &self.cancel,
            progress: &progress,
        };
        chain::prefill(&mut nodes, &plan.schedule, request)
    }

    fn report(&mut self, plan: Plan, mut outcome: Outcome) -> (Outcome, PrefillReport) {
        self.record = std::mem::replace(&mut outcome.record, Record::new(0));
        let skip = self.nodes.len() - plan.schedule.n_adapters();
        let adapters = std::mem::take(&mut outcome.adapters)
            .into_iter()
            .enumerate()
            .map(|(i, log)| AdapterReport::new(self.nodes[skip + i].name(), &plan.schedule, i, log))
            .collect();
        let partition = plan.schedule.pieces.iter().map(|p| p.len()).collect();
        let report = PrefillReport { mode: plan.mode, ttft_ms: 0.0, partition, adapters, note: plan.note };
        (outcome, report)
    }
}
