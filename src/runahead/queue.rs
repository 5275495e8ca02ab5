//! Submissions on their way to a device: as many at a time as keep it busy, never more than a cancel can wait for, and each one timed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::cancel::Wait;
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::model::pace::Work;
use crate::model::{self, Model, Pace, Recorded};
use crate::runahead::link::Export;
use crate::runahead::share::ShareJob;
use crate::runahead::trace::{Event, What};

/// Submissions in flight: one that runs and one that waits for its turn.
const IN_FLIGHT: usize = 2;
/// As long as all of them together take no longer than one may. Layers of a short prompt take less than the host needs to make the next one.
const SHORT_IN_FLIGHT: usize = 3;

/// The most submissions that can be under way to a courier.
pub(super) const CAPACITY: usize = SHORT_IN_FLIGHT;

/// A submission under way, and the rows that can be published once it is done.
pub struct Flight<K: Kernels> {
    /// Stage `s` is the attention and MLP of layer `s - 1` and the K/V rows of layer `s`: `exports` belong to layer `s`.
    pub stage: usize,
    /// Whether the stage ends with it; a stage that is too long for one submission has several.
    pub ends_stage: bool,
    /// When the worker began to hand it over.
    pub submitted_at: Instant,
    /// When the device had it.
    pub queued_at: Instant,
    /// What it holds.
    pub work: Work,
    /// The point in the device's queue.
    pub point: K::Submitted,
    /// When its parts ran, where that is wanted.
    pub timing: Option<K::Timing>,
    /// Rows to publish.
    pub exports: Vec<Export<K>>,
}

/// Whether another submission may follow those in flight; all times in seconds.
fn has_room(in_flight: &VecDeque<f64>, next_s: f64, limit_s: f64) -> bool {
    in_flight.len() < IN_FLIGHT
        || (in_flight.len() < SHORT_IN_FLIGHT && in_flight.iter().sum::<f64>() + next_s <= limit_s)
}

/// Times submissions of a device that end one after another, for its [`Pace`].
#[derive(Default)]
pub(super) struct Meter {
    /// When the submission before was seen to have ended, and whether it ended just then.
    before: Option<(Instant, bool)>,
}

impl Meter {
    /// A submission that had ended when it was first looked at ended some time before: a wait ends later than this where it really waited.
    const WAITED: Duration = Duration::from_micros(100);

    /// Waits for a submission that was handed over at `queued_at`.
    pub fn wait<K: Kernels>(
        &mut self,
        model: &Model<K>,
        point: &K::Submitted,
        (queued_at, work): (Instant, Work),
        wait: &Wait,
    ) -> Result<()> {
        let looked = Instant::now();
        model.kernels().wait(point, wait)?;
        self.ended(model.pace(), (queued_at, work), looked, Instant::now());
        Ok(())
    }

    /// Learns from a submission that was looked at from `looked` on and seen to have ended at `seen`, where that says something: its beginning has to
    /// be known, and either its end too, or the device was faster than thought even so.
    fn ended(&mut self, pace: &Pace, (queued_at, work): (Instant, Work), looked: Instant, seen: Instant) {
        let waited = seen.duration_since(looked) > Self::WAITED;
        let began = match self.before.replace((seen, waited)) {
            Some((before, sharp)) if before > queued_at => sharp.then_some(before),
            _ => Some(queued_at),
        };
        let Some(took) = began.map(|began| seen.duration_since(began)) else { return };
        if waited || took.as_secs_f64() < pace.rates().seconds(work) {
            pace.learn(work, took);
        }
    }
}

/// The worker's way to its device, with the courier at the other end.
pub(super) struct Queue<'a, K: Kernels> {
    kernels: &'a K,
    pace: &'a Pace,
    job: &'a ShareJob<'a>,
    flights: flume::Sender<Flight<K>>,
    /// The courier says here that a submission has ended.
    landed: flume::Receiver<()>,
    /// Seconds that those in flight were expected to take.
    in_flight: VecDeque<f64>,
    /// The stage that is being submitted.
    stage: usize,
    /// When an experiment had the worker stand still.
    pub pauses: Vec<Event>,
}

impl<'a, K: Kernels> Queue<'a, K> {
    pub fn new(
        model: &'a Model<K>,
        job: &'a ShareJob<'a>,
        flights: flume::Sender<Flight<K>>,
        landed: flume::Receiver<()>,
    ) -> Self {
        let (in_flight, pauses) = (VecDeque::new(), Vec::new());
        Self { kernels: &**model.kernels(), pace: model.pace(), job, flights, landed, in_flight, stage: 0, pauses }
    }

    /// What is submitted from now on belongs to this stage.
    pub fn begin(&mut self, stage: usize) {
        self.stage = stage;
    }

    /// Submits the last part of a stage, with the rows that leave by it.
    pub fn end(&mut self, recorded: Recorded<K>, exports: Vec<Export<K>>) -> Result<K::Submitted> {
        self.hand_over(recorded, true, exports)
    }

    /// Hands work to the device, and the watch over it to the courier; waits while there is no room.
    fn hand_over(&mut self, recorded: Recorded<K>, ends_stage: bool, exports: Vec<Export<K>>) -> Result<K::Submitted> {
        let Recorded { rec, work, timing } = recorded;
        let (wait, stage) = (&self.job.wait, self.stage);
        let expected_s = self.pace.rates().seconds(work);
        while !has_room(&self.in_flight, expected_s, self.pace.limit_s()) {
            // A courier that has ended early has the reason, here and below; see `worker::run`.
            wait.recv_patiently(&self.landed)?.ok_or(Error::Cancelled)?;
            self.in_flight.pop_front();
        }
        let submitted_at = Instant::now();
        let (turn, began) = match self.job.turn.map(|turn| (turn, turn.try_take())) {
            None => (None, submitted_at),
            Some((_, Some(held))) => (Some(held), submitted_at),
            Some((turn, None)) => (Some(turn.take(wait)?), Instant::now()),
        };
        let point = self.kernels.submit(rec, wait)?;
        let queued_at = Instant::now();
        if turn.is_some() {
            // In lock step: what the device did during the pause would not be slowed down.
            self.kernels.wait(&point, wait)?;
            let ended = Instant::now();
            drop(turn);
            self.pause(submitted_at, began, ended)?;
        }
        self.in_flight.push_back(expected_s);
        let flight = Flight { stage, ends_stage, submitted_at, queued_at, work, point: point.clone(), timing, exports };
        if wait.send(&self.flights, flight, "the device")? { Ok(point) } else { Err(Error::Cancelled) }
    }

    /// Stands still until a slowed device would have done what took from `began` to `ended` here. It would not have waited for its turn.
    fn pause(&mut self, submitted_at: Instant, began: Instant, ended: Instant) -> Result<()> {
        let slowdown = self.job.experiment.slowdown(self.job.me);
        if slowdown > 1.0 {
            let start = ended.duration_since(self.job.started);
            let worked = ended.duration_since(began);
            self.job.wait.sleep(worked.mul_f64(slowdown).saturating_sub(submitted_at.elapsed()))?;
            let end = self.job.started.elapsed();
            self.pauses.push(Event { what: What::Pause, layer: self.stage, piece: None, bytes: 0, start, end });
        }
        Ok(())
    }
}

impl<K: Kernels> model::Queue<K> for Queue<'_, K> {
    fn submit(&mut self, recorded: Recorded<K>) -> Result<()> {
        self.hand_over(recorded, false, Vec::new()).map(drop)
    }

    fn is_timed(&self) -> bool {
        self.job.timed
    }
}

/// Submissions in flight without a courier, and their times. Outlives what was submitted together.
pub(super) struct InFlight<K: Kernels> {
    meter: Meter,
    submissions: VecDeque<(K::Submitted, Instant, Work)>,
    /// Submissions that have ended.
    n_landed: usize,
}

impl<K: Kernels> InFlight<K> {
    pub fn new() -> Self {
        Self { meter: Meter::default(), submissions: VecDeque::new(), n_landed: 0 }
    }

    /// Waits for all submissions up to number `n`.
    pub fn land(&mut self, model: &Model<K>, n: usize, wait: &Wait) -> Result<()> {
        while self.n_landed < n {
            let Some((point, queued_at, work)) = self.submissions.front().cloned() else { return Ok(()) };
            self.meter.wait(model, &point, (queued_at, work), wait)?;
            self.submissions.pop_front();
            self.n_landed += 1;
        }
        Ok(())
    }

    /// Waits until the device has done all of them.
    pub fn idle(&self, model: &Model<K>, wait: &Wait) -> Result<()> {
        self.submissions.back().map_or(Ok(()), |(point, ..)| model.kernels().wait(point, wait))
    }

    /// Number of submissions so far.
    pub fn n_submitted(&self) -> usize {
        self.n_landed + self.submissions.len()
    }
}

/// A way to a device without a courier: whoever submits also waits.
pub(super) struct Direct<'a, K: Kernels> {
    model: &'a Model<K>,
    wait: &'a Wait,
    in_flight: &'a mut InFlight<K>,
}

impl<'a, K: Kernels> Direct<'a, K> {
    pub fn new(model: &'a Model<K>, wait: &'a Wait, in_flight: &'a mut InFlight<K>) -> Self {
        Self { model, wait, in_flight }
    }

    /// Submits the last part; gives also its number, for [`InFlight::land`].
    pub fn end(&mut self, recorded: Recorded<K>) -> Result<(K::Submitted, usize)> {
        let point = self.hand_over(recorded)?;
        Ok((point, self.in_flight.n_submitted()))
    }

    /// Submits the last part, and waits until all of them have run.
    pub fn end_and_wait(&mut self, rest: Recorded<K>) -> Result<K::Submitted> {
        let (point, n) = self.end(rest)?;
        self.in_flight.land(self.model, n, self.wait)?;
        Ok(point)
    }

    fn hand_over(&mut self, recorded: Recorded<K>) -> Result<K::Submitted> {
        let Recorded { rec, work, .. } = recorded;
        let room = (self.in_flight.n_submitted() + 1).saturating_sub(IN_FLIGHT);
        self.in_flight.land(self.model, room, self.wait)?;
        let point = self.model.kernels().submit(rec, self.wait)?;
        self.in_flight.submissions.push_back((point.clone(), Instant::now(), work));
        Ok(point)
    }
}

impl<K: Kernels> model::Queue<K> for Direct<'_, K> {
    fn submit(&mut self, recorded: Recorded<K>) -> Result<()> {
        self.hand_over(recorded).map(drop)
    }

    fn is_timed(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_long_submissions_are_in_flight_and_three_short_ones() {
        let room = |in_flight: &[f64], next| has_room(&in_flight.iter().copied().collect(), next, 0.03);
        assert!(room(&[], 9.0) && room(&[9.0], 9.0));
        assert!(!room(&[0.03, 0.03], 0.001) && !room(&[0.01, 0.01], 0.02));
        assert!(room(&[0.01, 0.01], 0.005));
        assert!(!room(&[0.001; 3], 0.001));
    }

    #[test]
    fn what_was_seen_late_teaches_nothing_slow() {
        let pace = Pace::new(None);
        let work = Work::elements(2e7); // 10 ms at the first guess
        let ms = |n: u64| Duration::from_millis(n);
        let (start, expected) = (Instant::now(), || pace.rates().seconds(work));
        let mut meter = Meter::default();
        let mut ended =
            |queued, looked, seen| meter.ended(&pace, (start + ms(queued), work), start + ms(looked), start + ms(seen));
        // Waited for from 1 ms to 40 ms: known to have taken 40 ms.
        ended(0, 1, 40);
        assert!((expected() - 0.02).abs() < 1e-9, "{}", expected());
        // Looked at late: it may have ended long before 140 ms.
        ended(1, 140, 140);
        assert!((expected() - 0.02).abs() < 1e-9);
        // And so nobody knows when the next one began, however short it seems.
        ended(2, 140, 141);
        assert!((expected() - 0.02).abs() < 1e-9);
        // Began right behind one that was waited for, and ended: fast, even if it was seen late.
        ended(3, 146, 146);
        assert!((expected() - 0.005).abs() < 1e-9, "{}", expected());
    }
}
