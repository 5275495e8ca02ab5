//! The worker: the thread of an adapter that carries out its share of a schedule.
//!
//! Layer-major: the whole share passes layer `l` before layer `l + 1`. One stage holds the attention and MLP of layer `l` and the K/V rows of
//! layer `l + 1`, which leave for the board while later layers are computed. A stage is one submission, or several where it would take too long. The worker waits for the rows that the schedule says it needs, and
//! writes them into its cache while its device is busy with the layer before. In a chain these are rows of *earlier* tokens, so that nobody is
//! waited for who comes later; where they are everybody's, the wait is the barrier of a collective, and nothing here makes it one.
//!
//! What an adapter hands on for others (by relay) leaves once it has arrived, in a submission of its own, with the adapter's own rows behind it.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use crate::cancel::Wait;
use crate::dims::Piece;
use crate::error::{Error, Result};
use crate::kernels::{Kernels, Phase};
use crate::model::pace::Work;
use crate::model::{Batch, KvCache, Model, Scores, Scratch};
use crate::runahead::board::{Arrival, Block};
use crate::runahead::courier;
use crate::runahead::experiment::{Sent, ShapedLane};
use crate::runahead::link::{self, Export};
use crate::runahead::queue::{self, Direct, InFlight, Queue};
use crate::runahead::ring::Ring;
use crate::runahead::schedule::Mask;
use crate::runahead::share::{Output, RowsOut, ShareJob, ShareLog, Want};
use crate::runahead::trace::{Event, What};
use crate::threads;

/// What a share is and where it is computed: all that stays the same while it runs.
struct Share<'a, K: Kernels> {
    model: &'a Model<K>,
    scratch: &'a Scratch<K>,
    cache: &'a KvCache<K>,
    job: &'a ShareJob<'a>,
    pieces: Vec<Piece>,
    /// Pieces that go out of this adapter at each layer.
    sends: Vec<usize>,
    /// Whether pieces of others are among them.
    hands_on: bool,
}

/// A share's state while it runs.
struct Worker<'a, K: Kernels> {
    share: Share<'a, K>,
    job: &'a ShareJob<'a>,
    queue: Queue<'a, K>,
    /// The way from the board, where an experiment shapes it.
    lane: Option<ShapedLane>,
    /// Which layers have their place in the cache.
    ring: Ring<K>,
    /// Rows of layers that this adapter has not reached yet, and when a shaped link brings them.
    early: VecDeque<(Arrival, Option<Duration>)>,
    events: Vec<Event>,
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
    let (flights, landing) = flume::bounded(queue::CAPACITY);
    let (tell, landed) = flume::bounded(queue::CAPACITY);
    let n_rows = job.schedule.n_rows(job.me) as u64;
    let done = move |stage: usize| (job.progress)(n_rows * stage as u64);
    std::thread::scope(|scope| {
        // A worker that waits for rows to leave has to hear that nobody moves them any more.
        let courier = threads::start(scope, ("courier", name), &job.wait.cancel, move || {
            courier::run(model, job, &landing, tell, &done)
        })?;
        if job.schedule.n_adapters() > 1 {
            link::begin(&**model.kernels(), &job.wait)?;
        }
        let share = Share::new(model, scratch, cache, job);
        let mut worker = Worker::new(share, Queue::new(model, job, flights, landed));
        let output = worker.run();
        let (mut events, fetched_bytes) = (std::mem::take(&mut worker.events), worker.fetched_bytes);
        events.append(&mut worker.queue.pauses);
        drop(worker);
        let courier = courier.join().map_err(|_| Error::WorkerDied { adapter: name.to_owned() })?;
        match (output, courier) {
            (Err(Error::Cancelled), Err(e)) | (Ok(_), Err(e)) => Err(e),
            (Err(e), _) => Err(e),
            (Ok(output), Ok(mut log)) => {
                log.events.append(&mut events);
                log.fetched_bytes = fetched_bytes;
                Ok(ShareLog { output, log })
            }
        }
    })
}

impl<'a, K: Kernels> Share<'a, K> {
    fn new(model: &'a Model<K>, scratch: &'a Scratch<K>, cache: &'a KvCache<K>, job: &'a ShareJob<'a>) -> Self {
        let own = &job.schedule.share[job.me];
        let pieces = own.iter().map(|&p| job.schedule.pieces[p]).collect();
        let sends: Vec<usize> = job.schedule.sends(job.me).into_iter().map(|(piece, _)| piece).collect();
        let hands_on = sends.iter().any(|p| !own.contains(p));
        Self { model, scratch, cache, job, pieces, sends, hands_on }
    }

    /// The share's tokens into the scratch.
    fn set_tokens(&self) -> Result<()> {
        let schedule = self.job.schedule;
        let of_piece = |p: &Piece| &self.job.tokens[p.start - schedule.past..p.end - schedule.past];
        let ids: Vec<u32> = self.pieces.iter().flat_map(of_piece).copied().collect();
        self.model.set_tokens(self.scratch, &ids)
    }

    /// This share's K/V rows of a layer, and their copies towards the board where somebody reads them and nothing goes before them.
    fn own_rows(&self, batch: &mut Batch<'_, K>, layer: usize) -> Result<Vec<Export<K>>> {
        self.model.qkv(batch, layer, self.scratch, self.cache, &self.pieces)?;
        if self.hands_on { Ok(Vec::new()) } else { self.exports(batch, layer) }
    }

    fn exports(&self, batch: &mut Batch<'_, K>, layer: usize) -> Result<Vec<Export<K>>> {
        let export = |&piece: &usize| {
            let rows = self.job.schedule.rows_sent(self.job.me, piece, layer);
            let kernels = &**self.model.kernels();
            let wanted = self.job.board.wanted(self.job.me, piece)?;
            // What leaves beside the queue is no work of it, and a copy within the device next to none.
            let in_queue = wanted.host && !kernels.copies_beside();
            let bytes = if in_queue { 2 * (rows.len() * self.cache.row_bytes()) as u64 } else { 0 };
            let rec = batch.add_whole(Work::copied_bytes(bytes))?;
            link::export(kernels, rec, self.cache, layer, (piece, rows), wanted)
        };
        self.sends.iter().map(export).collect()
    }

    fn attend(&self, batch: &mut Batch<'_, K>, layer: usize, want: Range<usize>) -> Result<()> {
        let schedule = self.job.schedule;
        let scores = match schedule.mask {
            Mask::Causal => Scores::Visible,
            Mask::BlockThenMask => Scores::Block,
            Mask::DenseThenMask => Scores::All(schedule.past + schedule.n_tokens()),
        };
        self.model.attend(batch, layer, self.scratch, self.cache, &self.pieces, want, scores)
    }
}

impl<'a, K: Kernels> Worker<'a, K> {
    fn new(share: Share<'a, K>, queue: Queue<'a, K>) -> Self {
        let job = share.job;
        let lane = job.experiment.up(job.me, job.schedule.n_adapters());
        let (ring, early, events) = (Ring::new(share.cache.n_slots()), VecDeque::new(), Vec::new());
        Self { share, job, queue, lane, ring, early, events, fetched_bytes: 0 }
    }

    fn run(&mut self) -> Result<Output> {
        let (schedule, n) = (self.job.schedule, self.job.schedule.n_rows(self.job.me));
        let kinds = &self.share.model.config().layers;
        if let Some(layer) = (0..kinds.len()).find(|&layer| kinds[layer].window != schedule.window(layer)) {
            let (own, other) = (kinds[layer].window, schedule.window(layer));
            return Err(Error::Partition(format!("layer {layer} has the window {own:?}, not {other:?}")));
        }
        let Range { start: first, end } = schedule.layers.clone();
        self.share.set_tokens()?;
        self.stage(first, |share, batch| {
            share.model.embed(batch, share.scratch, n)?;
            Ok((share.own_rows(batch, first)?, ()))
        })?;

        let last = end - 1;
        for layer in first..last {
            self.receive(layer)?;
            self.hand_on(layer)?;
            self.ring.wait_for_place(layer + 1, &self.job.wait)?;
            self.stage(layer + 1, |share, batch| {
                share.attend(batch, layer, 0..n)?;
                Ok((share.own_rows(batch, layer + 1)?, ()))
            })?;
        }
        if self.job.rows_out != RowsOut::None || self.share.hands_on {
            self.receive(last)?;
            self.hand_on(last)?;
        }
        match self.job.rows_out {
            RowsOut::None => Ok(Output::None),
            RowsOut::Last(want) => self.last_row(last, n, want),
            RowsOut::All => self.all_logits(last, n),
        }
    }

    /// Records and submits a stage. `stage` counts the layers whose second half is done by then; `record` gives the rows that leave at its end.
    fn stage<T>(
        &mut self,
        stage: usize,
        record: impl FnOnce(&Share<'a, K>, &mut Batch<'_, K>) -> Result<(Vec<Export<K>>, T)>,
    ) -> Result<(K::Submitted, T)> {
        self.queue.begin(stage);
        let model = self.share.model;
        let mut batch = Batch::new(&**model.kernels(), model.pace(), &mut self.queue);
        let (exports, value) = record(&self.share, &mut batch)?;
        let rest = batch.finish();
        let leaving = exports.iter().filter_map(Export::leaving).collect();
        let point = self.queue.end(rest, exports)?;
        self.ring.submitted(stage, &point, leaving);
        Ok((point, value))
    }

    /// Sends a layer's received rows on, with this adapter's own behind them.
    fn hand_on(&mut self, layer: usize) -> Result<()> {
        if !self.share.hands_on {
            return Ok(());
        }
        self.stage(layer, |share, batch| Ok((share.exports(batch, layer)?, ()))).map(drop)
    }

    /// All rows that this adapter needs in one layer, into the cache.
    fn receive(&mut self, layer: usize) -> Result<()> {
        let job = self.job;
        if !job.schedule.holds_past[job.me] {
            self.take_past(layer)?;
        }
        let mut missing = job.schedule.needs[job.me].len();
        for _ in 0..self.early.len() {
            if let Some((arrival, due)) = self.early.pop_front() {
                missing -= self.take(arrival, due, layer)?;
            }
        }
        while missing > 0 {
            let (arrival, due) = self.next_arrival(layer)?;
            missing -= self.take(arrival, due, layer)?;
        }
        Ok(())
    }

    /// The rows of earlier turns that stand in the record.
    fn take_past(&mut self, layer: usize) -> Result<()> {
        let (blocks, lead) = (self.job.board.past(layer), self.job.schedule.pieces.len());
        let rows = self.job.schedule.past_taken(self.job.me, layer);
        let bytes = self.bytes(rows);
        let due = self.lane.as_mut().map(|lane| lane.through(Duration::ZERO, bytes, layer, lead, lead));
        self.wait_until(due, layer)?;
        blocks.iter().try_for_each(|block| self.import(block, None, layer, rows))
    }

    /// The next block in the mailbox, of whatever layer, and when a shaped link brings it.
    fn next_arrival(&mut self, layer: usize) -> Result<(Arrival, Option<Duration>)> {
        let job = self.job;
        let arrival = match job.arrivals.try_recv() {
            Ok(arrival) => arrival,
            Err(_) => {
                let start = job.started.elapsed();
                // All who could still send have ended: the reason is theirs.
                let arrival = job.wait.recv_patiently(&job.arrivals)?.ok_or(Error::Cancelled)?;
                self.log(What::Wait, layer, start);
                arrival
            }
        };
        let bytes = self.bytes(job.schedule.rows_taken(job.me, arrival.piece, arrival.layer));
        let through = |(lane, sent): (&mut ShapedLane, Sent)| {
            lane.through(sent.at, bytes, arrival.layer, arrival.piece, sent.lead)
        };
        let due = self.lane.as_mut().zip(arrival.sent).map(through);
        Ok((arrival, due))
    }

    /// Imports an arrival of `layer`, or keeps it for later. Returns how many were imported.
    fn take(&mut self, arrival: Arrival, due: Option<Duration>, layer: usize) -> Result<usize> {
        if arrival.layer != layer {
            self.early.push_back((arrival, due));
            return Ok(0);
        }
        self.wait_until(due, layer)?;
        let rows = self.job.schedule.rows_taken(self.job.me, arrival.piece, layer);
        self.import(&arrival.block, Some(arrival.piece), layer, rows)?;
        Ok(1)
    }

    /// Bytes of the K and V rows of a layer.
    fn bytes(&self, rows: Piece) -> u64 {
        2 * (rows.len() * self.share.cache.row_bytes()) as u64
    }

    fn import(&mut self, block: &Block, piece: Option<usize>, layer: usize, rows: Piece) -> Result<()> {
        let start = self.job.started.elapsed();
        let (kernels, ring, wait) = (&**self.share.model.kernels(), &self.ring, &self.job.wait);
        let bytes = link::import(kernels, self.share.cache, layer, (block, rows), ring, wait)?;
        self.fetched_bytes += bytes;
        let end = self.job.started.elapsed();
        self.events.push(Event { what: What::Fetch, layer, piece, bytes, start, end });
        Ok(())
    }

    /// Waits for a shaped link; `due` counts from the start of the prefill.
    fn wait_until(&mut self, due: Option<Duration>, layer: usize) -> Result<()> {
        let start = self.job.started.elapsed();
        match due.map(|due| due.saturating_sub(start)) {
            Some(left) if !left.is_zero() => {
                self.job.wait.sleep(left)?;
                self.log(What::Wait, layer, start);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Notes what has lasted from `start` until now.
    fn log(&mut self, what: What, layer: usize, start: Duration) {
        let end = self.job.started.elapsed();
        self.events.push(Event { what, layer, piece: None, bytes: 0, start, end });
    }

    /// Second half of the last layer and the head, for the last row alone.
    fn last_row(&mut self, layer: usize, n: usize, want: Want) -> Result<Output> {
        let (point, download) = self.stage(layer + 1, |share, batch| {
            share.attend(batch, layer, n - 1..n)?;
            share.model.head(batch, share.scratch, n - 1..n, Phase::Prefill)?;
            Ok((Vec::new(), record_row(share.model, batch, share.scratch, want)?))
        })?;
        collect_row(&**self.share.model.kernels(), download, &point, &self.job.wait, want)
    }

    /// Second half of the last layer and the head, for every row.
    fn all_logits(&mut self, layer: usize, n: usize) -> Result<Output> {
        let point = self.stage(layer + 1, |share, batch| {
            share.attend(batch, layer, 0..n)?;
            Ok((Vec::new(), ()))
        });
        // What follows is timed by itself.
        self.share.model.kernels().wait(&point?.0, &self.job.wait)?;
        let Share { model, scratch, .. } = self.share;
        let kernels = &**model.kernels();
        let mut logits = Vec::with_capacity(n * model.config().vocab);
        let mut in_flight = InFlight::new();
        for start in (0..n).step_by(Model::<K>::HEAD_ROWS) {
            let rows = start..n.min(start + Model::<K>::HEAD_ROWS);
            let len = rows.len();
            let mut queue = Direct::new(model, &self.job.wait, &mut in_flight);
            let mut batch = Batch::new(kernels, model.pace(), &mut queue);
            model.head(&mut batch, scratch, rows, Phase::Prefill)?;
            let download = model.logits(&mut batch, scratch, len)?;
            let rest = batch.finish();
            let point = queue.end_and_wait(rest)?;
            kernels.collect(download, &point, &self.job.wait, &mut |bytes| logits.extend(floats(bytes)))?;
        }
        Ok(Output::Logits(logits))
    }
}

/// Records what is wanted of the first row of logits.
pub(super) fn record_row<K: Kernels>(
    model: &Model<K>,
    batch: &mut Batch<'_, K>,
    scratch: &Scratch<K>,
    want: Want,
) -> Result<K::Download> {
    match want {
        Want::Token => model.greedy(batch, scratch),
        Want::Logits => model.logits(batch, scratch, 1),
    }
}

/// Waits for what [`record_row`] recorded.
pub(super) fn collect_row<K: Kernels>(
    kernels: &K,
    download: K::Download,
    after: &K::Submitted,
    wait: &Wait,
    want: Want,
) -> Result<Output> {
    let mut output = Output::None;
    kernels.collect(download, after, wait, &mut |bytes| {
        output = match want {
            Want::Token => Output::Token(first_u32(bytes)),
            Want::Logits => Output::LastLogits(floats(bytes).collect()),
        };
    })?;
    Ok(output)
}

/// The first token id of a download.
fn first_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

/// Values of a download.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
