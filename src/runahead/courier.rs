//! The courier: the thread of an adapter that waits for its device and moves finished rows to the board.
//!
//! It takes submissions in the order in which the worker made them, over a channel of one: with the one being waited for, two are in flight, so
//! the device never idles for want of work and never holds more than two submissions when a cancel comes.

use std::time::{Duration, Instant};

use crate::cancel::Wait;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::runahead::board::Board;
use crate::runahead::link::{self, Export};

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
    /// Bytes put on the board.
    pub published_bytes: u64,
}

/// Runs until the worker drops its end of `flights`. `done` is called with the number of layers finished.
///
/// # Errors
/// A cancel, a lost adapter, a full board.
pub fn run<K: Kernels>(
    kernels: &K,
    board: &Board,
    flights: &flume::Receiver<Flight<K>>,
    wait: &Wait,
    started: Instant,
    done: &dyn Fn(usize),
) -> Result<CourierLog> {
    let mut log = CourierLog::default();
    // A worker that waits for other adapters may send nothing for longer than any one wait's limit.
    while let Some(flight) = wait.recv_patiently(flights)? {
        kernels.wait(&flight.point, wait)?;
        let span = Span {
            stage: flight.stage,
            start: flight.submitted_at.duration_since(started),
            end: Instant::now().duration_since(started),
        };
        log.spans.push(span);
        for export in flight.exports {
            log.published_bytes += link::publish(kernels, export, &flight.point, flight.stage, board, wait)?;
        }
        done(flight.stage);
    }
    Ok(log)
}
