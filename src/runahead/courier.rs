//! The courier: the thread of an adapter that waits for its device and moves finished rows to the board.
//!
//! It takes submissions in the order in which the worker made them, over a channel of one: with the one being waited for, two are in flight, so
//! the device never idles for want of work and never holds more than two submissions when a cancel comes.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::kernels::Kernels;
use crate::runahead::experiment::{Sent, ShapedLane};
use crate::runahead::link::{self, Address, Export};
use crate::runahead::schedule::Route;
use crate::runahead::trace::{Event, What};
use crate::runahead::worker::ShareJob;

/// A submission under way, and the rows that can be published once it is done.
pub struct Flight<K: Kernels> {
    /// Stage `s` is the attention and MLP of layer `s - 1` and the K/V rows of layer `s`: `exports` belong to layer `s`.
    pub stage: usize,
    /// When the worker handed it over.
    pub submitted_at: Instant,
    /// The point in the device's queue.
    pub point: K::Submitted,
    /// Rows to publish.
    pub exports: Vec<Export<K>>,
}

/// One submission as it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The stage: the number of layers done when it ended.
    pub stage: usize,
    /// When it was handed to the device, from the start of the prefill.
    pub start: Duration,
    /// When the host saw it done.
    pub end: Duration,
}

/// What a courier saw.
#[derive(Clone, Debug, Default)]
pub struct CourierLog {
    /// Every submission, in order.
    pub spans: Vec<Span>,
    /// Every piece that was published, in order.
    pub events: Vec<Event>,
    /// Bytes put on the board.
    pub published_bytes: u64,
}

/// Runs until the worker drops its end of `flights`. `done` is called with the number of layers finished.
///
/// # Errors
/// A cancel, a lost adapter, a full board.
pub fn run<K: Kernels>(
    kernels: &K,
    job: &ShareJob<'_>,
    flights: &flume::Receiver<Flight<K>>,
    done: &dyn Fn(usize),
) -> Result<CourierLog> {
    let mut courier = Courier { kernels, job, lane: job.experiment.down(job.me), log: CourierLog::default() };
    // A worker that waits for other adapters may send nothing for longer than any one wait's limit.
    while let Some(flight) = job.wait.recv_patiently(flights)? {
        let stage = flight.stage;
        courier.land(flight)?;
        done(stage);
    }
    Ok(courier.log)
}

struct Courier<'a, K: Kernels> {
    kernels: &'a K,
    job: &'a ShareJob<'a>,
    lane: Option<ShapedLane>,
    log: CourierLog,
}

impl<K: Kernels> Courier<'_, K> {
    fn land(&mut self, flight: Flight<K>) -> Result<()> {
        let (job, layer) = (self.job, flight.stage);
        self.kernels.wait(&flight.point, &job.wait)?;
        let start = flight.submitted_at.duration_since(job.started);
        let ready = job.started.elapsed();
        self.log.spans.push(Span { stage: layer, start, end: ready });
        let sent = self.sent(&flight.exports, layer, ready);
        for (export, sent) in flight.exports.into_iter().zip(sent) {
            let (piece, bytes, start) = (export.piece, export.bytes, job.started.elapsed());
            let to = Address { board: job.board, from: job.me, layer, sent };
            link::publish(self.kernels, export, &flight.point, &to, &job.wait)?;
            self.log.published_bytes += bytes;
            let end = job.started.elapsed();
            self.log.events.push(Event { what: What::Publish, layer, piece: Some(piece), bytes, start, end });
        }
        Ok(())
    }

    /// When a shaped link has each export through. By relay they are one message.
    fn sent(&mut self, exports: &[Export<K>], layer: usize, ready: Duration) -> Vec<Option<Sent>> {
        let Some(lane) = &mut self.lane else { return vec![None; exports.len()] };
        let relay = self.job.schedule.route == Route::Relay;
        let lead = |e: &Export<K>| if relay { exports[0].piece } else { e.piece };
        let mut sent: Vec<Sent> = exports
            .iter()
            .map(|e| Sent { at: lane.through(ready, e.bytes, layer, e.piece, lead(e)), lead: lead(e) })
            .collect();
        if let (true, Some(last)) = (relay, sent.last().copied()) {
            sent.iter_mut().for_each(|s| s.at = last.at);
        }
        sent.into_iter().map(Some).collect()
    }
}
