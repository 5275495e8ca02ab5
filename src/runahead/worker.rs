//! The worker: the thread of an adapter that carries out its share of a schedule.
//!
//! Layer-major: the whole share passes layer `l` before layer `l + 1`. One submission holds the attention and MLP of layer `l` and the K/V rows of
//! layer `l + 1`, which leave for the board while later layers are computed. The worker waits only for rows of *earlier* tokens, and writes them
//! into its cache while its device is busy with the layer before.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::cancel::Wait;
use crate::dims::Piece;
use crate::error::{Error, Result};
use crate::kernels::{Kernels, Phase};
use crate::model::{KvCache, Model, Scratch};
use crate::runahead::board::{Arrival, Board};
use crate::runahead::courier::{self, CourierLog, Flight};
use crate::runahead::link::{self, Export};
use crate::runahead::schedule::Schedule;

/// Which rows are taken past the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOut {
    /// None: the share ends with the K/V rows of the last layer.
    None,
    /// The last row: its greedy token.
    Last,
    /// All rows: their logits.
    All,
}

/// What a share gives beside the K/V rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Nothing ([`RowsOut::None`]).
    None,
    /// The token with the largest logit.
    Token(u32),
    /// Logits `[rows, vocab]`.
    Logits(Vec<f32>),
}

/// One adapter's part of a prefill.
pub struct ShareJob<'a> {
    /// What everybody does.
    pub schedule: &'a Schedule,
    /// Which adapter this is.
    pub me: usize,
    /// All tokens of the schedule, from position `schedule.past` on.
    pub tokens: &'a [u32],
    /// What to compute beyond K/V rows.
    pub rows_out: RowsOut,
    /// Where rows change hands.
    pub board: &'a Board,
    /// This adapter's mailbox.
    pub arrivals: flume::Receiver<Arrival>,
    /// Cancel and limits.
    pub wait: Wait,
    /// The start of the prefill.
    pub started: Instant,
    /// Called with the number of token-layers done so far.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// What a worker saw.
#[derive(Clone, Debug)]
pub struct ShareLog {
    /// The share's result.
    pub output: Output,
    /// Submissions and published bytes.
    pub courier: CourierLog,
    /// Bytes taken from the board.
    pub fetched_bytes: u64,
}

/// A share's state while it runs.
struct Worker<'a, K: Kernels> {
    model: &'a Model<K>,
    scratch: &'a Scratch<K>,
    cache: &'a KvCache<K>,
    job: &'a ShareJob<'a>,
    pieces: Vec<Piece>,
    flights: flume::Sender<Flight<K>>,
    /// Rows of layers that this adapter has not reached yet.
    early: VecDeque<Arrival>,
    fetched_bytes: u64,
}

/// Runs a share with a courier beside it; both have ended when this returns.
///
/// # Errors
/// The first of: a cancel, a device's error, a time-out. The courier's error is preferred, since the worker's is often only its echo.
pub fn run<K: Kernels>(
    model: &Model<K>,
    scratch: &Scratch<K>,
    cache: &KvCache<K>,
    job: &ShareJob<'_>,
    name: &str,
) -> Result<ShareLog> {
    let (flights, landing) = flume::bounded(1);
    let pieces: Vec<Piece> = job.schedule.share[job.me].iter().map(|&p| job.schedule.pieces[p]).collect();
    let n_rows = job.schedule.n_rows(job.me) as u64;
    let done = move |stage: usize| (job.progress)(n_rows * stage as u64);
    let kernels = &**model.kernels();
    std::thread::scope(|scope| {
        let courier = std::thread::Builder::new()
            .name(format!("courier {name}"))
            .spawn_scoped(scope, move || courier::run(kernels, job.board, &landing, &job.wait, job.started, &done))
            .map_err(|e| Error::Adapter { adapter: name.to_owned(), reason: format!("no courier thread: {e}") })?;
        let mut worker =
            Worker { model, scratch, cache, job, pieces, flights, early: VecDeque::new(), fetched_bytes: 0 };
        let output = worker.share();
        let fetched_bytes = worker.fetched_bytes;
        drop(worker);
        let courier = courier.join().map_err(|_| Error::WorkerDied { adapter: name.to_owned() })?;
        match (output, courier) {
            (Err(Error::Cancelled), Err(e)) | (Ok(_), Err(e)) => Err(e),
            (Err(e), _) => Err(e),
            (Ok(output), Ok(courier)) => Ok(ShareLog { output, courier, fetched_bytes }),
        }
    })
}

impl<K: Kernels> Worker<'_, K> {
    fn share(&mut self) -> Result<Output> {
        let (schedule, n) = (self.job.schedule, self.job.schedule.n_rows(self.job.me));
        let Range { start: first, end } = schedule.layers.clone();
        let mut rec = self.model.kernels().begin();
        let ids: Vec<u32> = self
            .pieces
            .iter()
            .flat_map(|p| &self.job.tokens[p.start - schedule.past..p.end - schedule.past])
            .copied()
            .collect();
        self.model.set_tokens(self.scratch, &ids)?;
        self.model.embed(&mut rec, self.scratch, n)?;
        let exports = self.own_rows(&mut rec, first)?;
        self.submit(rec, first, exports)?;

        let last = end - 1;
        for layer in first..last {
            self.receive(layer)?;
            let mut rec = self.model.kernels().begin();
            self.model.attend(&mut rec, layer, self.scratch, self.cache, &self.pieces, 0..n)?;
            let exports = self.own_rows(&mut rec, layer + 1)?;
            self.submit(rec, layer + 1, exports)?;
        }
        if self.job.rows_out != RowsOut::None {
            self.receive(last)?;
        }
        match self.job.rows_out {
            RowsOut::None => Ok(Output::None),
            RowsOut::Last => self.last_token(last, n),
            RowsOut::All => self.all_logits(last, n),
        }
    }

    /// This share's K/V rows of a layer, and their copies towards the board where somebody reads them.
    fn own_rows(&self, rec: &mut K::Recording, layer: usize) -> Result<Vec<Export<K>>> {
        let job = self.job;
        self.model.qkv(rec, layer, self.scratch, self.cache, &self.pieces, Phase::Prefill)?;
        job.schedule.share[job.me]
            .iter()
            .filter(|&&p| job.board.is_read(p))
            .map(|&p| link::export(&**self.model.kernels(), rec, self.cache, layer, p, job.schedule.pieces[p]))
            .collect()
    }

    /// Hands work to the device, and the watch over it to the courier; waits while two submissions are in flight. `stage` counts the layers whose
    /// second half is done by then.
    fn submit(&self, rec: K::Recording, stage: usize, exports: Vec<Export<K>>) -> Result<K::Submitted> {
        let submitted_at = Instant::now();
        let point = self.model.kernels().submit(rec, &self.job.wait)?;
        let flight = Flight { stage, submitted_at, point: point.clone(), exports };
        let taken = self.job.wait.send(&self.flights, flight, "the device")?;
        // A courier that has ended early has the reason; see `run`.
        if taken { Ok(point) } else { Err(Error::Cancelled) }
    }

    /// All rows of earlier tokens in one layer, into the cache.
    fn receive(&mut self, layer: usize) -> Result<()> {
        let job = self.job;
        if !job.schedule.holds_past[job.me] {
            for block in job.board.past(layer) {
                self.fetched_bytes += link::import(&**self.model.kernels(), self.cache, layer, &block)?;
            }
        }
        let mut missing = job.schedule.needs[job.me].len();
        for _ in 0..self.early.len() {
            if let Some(arrival) = self.early.pop_front() {
                missing -= self.take(arrival, layer)?;
            }
        }
        while missing > 0 {
            match job.wait.recv_patiently(&job.arrivals)? {
                Some(arrival) => missing -= self.take(arrival, layer)?,
                // All who could still send have ended.
                None => return Err(Error::Cancelled),
            }
        }
        Ok(())
    }

    /// Imports an arrival of `layer`, or keeps it for later. Returns how many were imported.
    fn take(&mut self, arrival: Arrival, layer: usize) -> Result<usize> {
        if arrival.layer != layer {
            self.early.push_back(arrival);
            return Ok(0);
        }
        let block: Arc<_> = arrival.block;
        self.fetched_bytes += link::import(&**self.model.kernels(), self.cache, layer, &block)?;
        Ok(1)
    }

    /// Second half of the last layer and the head, for the last row alone.
    fn last_token(&self, layer: usize, n: usize) -> Result<Output> {
        let kernels = self.model.kernels();
        let mut rec = kernels.begin();
        self.model.attend(&mut rec, layer, self.scratch, self.cache, &self.pieces, n - 1..n)?;
        self.model.head(&mut rec, self.scratch, n - 1..n, Phase::Prefill)?;
        let download = self.model.greedy(&mut rec, self.scratch)?;
        let point = self.submit(rec, layer + 1, Vec::new())?;
        let mut token = 0;
        kernels.collect(download, &point, &self.job.wait, &mut |bytes| token = first_u32(bytes))?;
        Ok(Output::Token(token))
    }

    /// Second half of the last layer and the head, for every row.
    fn all_logits(&self, layer: usize, n: usize) -> Result<Output> {
        let kernels = self.model.kernels();
        let mut rec = kernels.begin();
        self.model.attend(&mut rec, layer, self.scratch, self.cache, &self.pieces, 0..n)?;
        self.submit(rec, layer + 1, Vec::new())?;
        let mut logits = Vec::with_capacity(n * self.model.config().vocab);
        for start in (0..n).step_by(Model::<K>::HEAD_ROWS) {
            let rows = start..n.min(start + Model::<K>::HEAD_ROWS);
            let len = rows.len();
            let mut rec = kernels.begin();
            self.model.head(&mut rec, self.scratch, rows, Phase::Prefill)?;
            let download = self.model.logits(&mut rec, self.scratch, len)?;
            let point = kernels.submit(rec, &self.job.wait)?;
            kernels.collect(download, &point, &self.job.wait, &mut |bytes| logits.extend(floats(bytes)))?;
        }
        Ok(Output::Logits(logits))
    }
}

/// The first token id of a download.
pub(super) fn first_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

/// Values of a download.
pub(super) fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
