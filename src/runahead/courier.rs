//! The courier: the thread of an adapter that waits for its device and moves finished rows to the board.
//!
//! It takes submissions in the order in which the worker made them, and says at once when one has ended, so that the worker may submit another while
//! the rows are being moved.

use std::time::Duration;

use crate::error::Result;
use crate::kernels::{Kernels, Part};
use crate::model::Model;
use crate::runahead::experiment::{Sent, ShapedLane};
use crate::runahead::link::{self, Export};
use crate::runahead::queue::{Flight, Meter};
use crate::runahead::schedule::Route;
use crate::runahead::share::ShareJob;
use crate::runahead::trace::{self, AdapterLog, Event, Span, What};

/// Runs until the worker drops its end of `flights`; gives what it saw, which is all but what the worker does itself. `landed` hears of each submission that has ended; `done` is called with the number of layers
/// finished.
///
/// # Errors
/// A cancel, a lost adapter, a full board.
pub fn run<K: Kernels>(
    model: &Model<K>,
    job: &ShareJob<'_>,
    flights: &flume::Receiver<Flight<K>>,
    landed: flume::Sender<()>,
    done: &dyn Fn(usize),
) -> Result<AdapterLog> {
    let (meter, lane) = (Meter::default(), job.experiment.down(job.me));
    let mut courier = Courier { model, job, meter, landed, lane, log: AdapterLog::default(), timed: Vec::new() };
    // A worker that waits for other adapters may send nothing for longer than any one wait's limit.
    while let Some(flight) = job.wait.recv_patiently(flights)? {
        let done_stage = flight.ends_stage.then_some(flight.stage);
        courier.land(flight)?;
        if let Some(stage) = done_stage {
            done(stage);
        }
    }
    courier.log.events.extend(trace::on_host_clock(&courier.timed));
    Ok(courier.log)
}

struct Courier<'a, K: Kernels> {
    model: &'a Model<K>,
    job: &'a ShareJob<'a>,
    meter: Meter,
    landed: flume::Sender<()>,
    lane: Option<ShapedLane>,
    log: AdapterLog,
    /// Submissions whose parts were timed.
    timed: Vec<(Span, Vec<Part>)>,
}

impl<K: Kernels> Courier<'_, K> {
    fn land(&mut self, flight: Flight<K>) -> Result<()> {
        let (job, layer) = (self.job, flight.stage);
        self.meter.wait(self.model, &flight.point, (flight.queued_at, flight.work), &job.wait)?;
        // A worker that has ended needs no more room.
        let _ = self.landed.send(());
        let start = flight.submitted_at.duration_since(job.started);
        let ready = job.started.elapsed();
        let span = Span { stage: layer, ends_stage: flight.ends_stage, start, end: ready };
        self.log.spans.push(span);
        if let Some(timing) = flight.timing {
            self.timed.push((span, self.model.kernels().parts(timing, &flight.point, &job.wait)?));
        }
        let sent = self.sent(&flight.exports, layer, ready);
        for (export, sent) in flight.exports.into_iter().zip(sent) {
            let (piece, bytes) = (export.piece, export.bytes);
            let mut block = job.board.reserve(job.me, layer, piece, &job.wait)?;
            let start = job.started.elapsed();
            link::fill(&**self.model.kernels(), export, &flight.point, &mut block, &job.wait)?;
            let end = job.started.elapsed();
            job.board.publish(job.me, layer, piece, block, sent, &job.wait)?;
            self.log.published_bytes += bytes;
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
