//! The chain: one thread per adapter of a schedule, started together, and one answer.

use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Wait};
use crate::error::{Error, Result};
use crate::runahead::board::{Board, Record, Retention};
use crate::runahead::courier::Span;
use crate::runahead::node::Node;
use crate::runahead::schedule::Schedule;
use crate::runahead::worker::{Output, RowsOut, ShareJob, ShareLog};

/// What a prefill is asked for beside the schedule.
pub struct Request<'a> {
    /// Tokens from position `schedule.past` on.
    pub tokens: &'a [u32],
    /// Whether every row's logits are wanted, or the last adapter's first token.
    pub all_logits: bool,
    /// What becomes of the rows on the board.
    pub retention: Retention,
    /// Rows of earlier turns, where an adapter reads them.
    pub record: Record,
    /// Ends the prefill early.
    pub cancel: &'a Cancel,
    /// Called with adapter, token-layers done and in all; from the couriers' threads.
    pub progress: &'a (dyn Fn(usize, u64, u64) + Sync),
}

/// One adapter's part as it went.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterLog {
    /// Its submissions in order, on one clock for all adapters: the proof that early adapters run ahead.
    pub spans: Vec<Span>,
    /// Bytes put on the board.
    pub published_bytes: u64,
    /// Bytes taken from the board.
    pub fetched_bytes: u64,
}

impl AdapterLog {
    /// Time during which at least one submission was with the device.
    pub fn busy(&self) -> Duration {
        self.gaps().map(|(span, before)| span.end - span.start.max(before).min(span.end)).sum()
    }

    /// Time without a submission, from the start of the prefill to the adapter's last one.
    pub fn waited(&self) -> Duration {
        self.gaps().map(|(span, before)| span.start.saturating_sub(before)).sum()
    }

    fn gaps(&self) -> impl Iterator<Item = (&Span, Duration)> {
        let ends = std::iter::once(Duration::ZERO).chain(self.spans.iter().map(|s| s.end));
        self.spans.iter().zip(ends)
    }
}

/// What a prefill gives.
#[derive(Debug)]
pub struct Outcome {
    /// The first token, or the logits of all rows `[tokens, vocab]`.
    pub output: Output,
    /// Per adapter of the schedule.
    pub adapters: Vec<AdapterLog>,
    /// Rows kept on the host, where asked for.
    pub record: Record,
}

/// Runs a schedule on `nodes`, one for each of its adapters.
///
/// The first failure of any thread ends all of them; a thread that panics counts as one.
///
/// # Errors
/// [`Error::Partition`] where the schedule does not hold, [`Error::Cancelled`], or the first adapter's failure.
pub fn prefill(nodes: &mut [&mut dyn Node], schedule: &Schedule, request: Request<'_>) -> Result<Outcome> {
    schedule.validate()?;
    if nodes.len() != schedule.n_adapters() || request.tokens.len() != schedule.n_tokens() {
        return Err(Error::Partition(format!(
            "{} adapters and {} tokens for a schedule of {} and {}",
            nodes.len(),
            request.tokens.len(),
            schedule.n_adapters(),
            schedule.n_tokens()
        )));
    }
    for (i, node) in nodes.iter_mut().enumerate() {
        node.prepare(schedule.n_rows(i))?;
    }
    let row_bytes = nodes[0].row_bytes();
    let (board, mailboxes) = Board::new(schedule, row_bytes, request.retention, request.record)?;
    let stop = request.cancel.child();
    let started = Instant::now();

    let logs: Vec<Result<ShareLog>> = std::thread::scope(|scope| {
        let workers: Vec<_> = nodes
            .iter()
            .zip(mailboxes)
            .enumerate()
            .map(|(me, (node, arrivals))| {
                let node: &dyn Node = &**node;
                let (stop, board) = (&stop, &board);
                let last = me + 1 == schedule.n_adapters();
                let rows_out = match (request.all_logits, last) {
                    (true, _) => RowsOut::All,
                    (false, true) => RowsOut::Last,
                    (false, false) => RowsOut::None,
                };
                let total = (schedule.n_rows(me) * schedule.layers.len()) as u64;
                let progress = request.progress;
                let body = move || {
                    // Set on every way out but success: an error or a panic here must wake all others at once.
                    let guard = StopUnlessDone { stop, armed: true };
                    let report = |done: u64| progress(me, done, total);
                    let job = ShareJob {
                        schedule,
                        me,
                        tokens: request.tokens,
                        rows_out,
                        board,
                        arrivals,
                        wait: Wait::new(stop),
                        started,
                        progress: &report,
                    };
                    let log = node.run(&job)?;
                    report(total);
                    guard.done();
                    Ok(log)
                };
                let name = format!("worker {me} {}", node.name());
                std::thread::Builder::new().name(name).spawn_scoped(scope, body).map_err(|e| {
                    stop.cancel();
                    Error::Adapter { adapter: node.name().to_owned(), reason: format!("no worker thread: {e}") }
                })
            })
            .collect();
        let join = |(i, worker): (usize, Result<std::thread::ScopedJoinHandle<'_, Result<ShareLog>>>)| {
            worker?.join().unwrap_or_else(|_| Err(Error::WorkerDied { adapter: nodes[i].name().to_owned() }))
        };
        workers.into_iter().enumerate().map(join).collect()
    });
    gather(schedule, logs, request.cancel, board)
}

struct StopUnlessDone<'a> {
    stop: &'a Cancel,
    armed: bool,
}

impl StopUnlessDone<'_> {
    fn done(mut self) {
        self.armed = false;
    }
}

impl Drop for StopUnlessDone<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.stop.cancel();
        }
    }
}

/// The caller's cancel comes first, then a real failure, then the echoes of one.
fn gather(schedule: &Schedule, logs: Vec<Result<ShareLog>>, cancel: &Cancel, board: Board) -> Result<Outcome> {
    cancel.check()?;
    let mut shares = Vec::with_capacity(logs.len());
    let mut echo = None;
    for log in logs {
        match log {
            Ok(share) => shares.push(share),
            Err(Error::Cancelled) => echo = Some(Error::Cancelled),
            Err(failure) => return Err(failure),
        }
    }
    if let Some(echo) = echo {
        return Err(echo);
    }
    let mut pieces_of_logits: Vec<(usize, Vec<f32>)> = Vec::new();
    let mut token = None;
    let mut adapters = Vec::with_capacity(shares.len());
    for (i, share) in shares.into_iter().enumerate() {
        match share.output {
            Output::None => {}
            Output::Token(id) => token = Some(id),
            Output::Logits(rows) => {
                let width = rows.len() / schedule.n_rows(i).max(1);
                let mut rest = rows.as_slice();
                for &p in &schedule.share[i] {
                    let (piece, after) = rest.split_at(schedule.pieces[p].len() * width);
                    pieces_of_logits.push((p, piece.to_vec()));
                    rest = after;
                }
            }
        }
        adapters.push(AdapterLog {
            spans: share.courier.spans,
            published_bytes: share.courier.published_bytes,
            fetched_bytes: share.fetched_bytes,
        });
    }
    pieces_of_logits.sort_by_key(|(p, _)| *p);
    let logits = || Output::Logits(pieces_of_logits.into_iter().flat_map(|(_, rows)| rows).collect());
    let output = token.map_or_else(logits, Output::Token);
    Ok(Outcome { output, adapters, record: board.into_record() })
}
