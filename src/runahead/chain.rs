//! The chain: one thread per adapter of a schedule, started together, and one answer.

use std::sync::Arc;
use std::time::Instant;

use crate::cancel::{Cancel, Wait, all_or_cause};
use crate::error::{Error, Result};
use crate::kernels::cpu::Cpu;
use crate::runahead::board::{Board, Record, Retention};
use crate::runahead::experiment::Experiment;
use crate::runahead::link::Link;
use crate::runahead::node::Node;
use crate::runahead::pool::HostPool;
use crate::runahead::schedule::Schedule;
use crate::runahead::share::{Output, RowsOut, ShareJob, ShareLog};
use crate::runahead::trace::AdapterLog;
use crate::runahead::turn::Turn;
use crate::threads;

/// What a prefill is asked for beside the schedule.
pub struct Request<'a> {
    /// Tokens from position `schedule.past` on.
    pub tokens: &'a [u32],
    /// What the last adapter gives beside K/V rows; [`RowsOut::All`] counts for every adapter.
    pub rows_out: RowsOut,
    /// What becomes of the rows on the board.
    pub retention: Retention,
    /// Rows of earlier turns, where an adapter reads them.
    pub record: Record,
    /// Memory for the board, kept from one prefill to the next.
    pub pool: HostPool,
    /// What slows this run down on purpose, for the adapters of the schedule.
    pub experiment: Experiment,
    /// For each adapter of the schedule, see [`Turn::of`].
    pub turns: Vec<Option<Arc<Turn>>>,
    /// Whether devices write down when they worked on what: see [`What`](crate::runahead::trace::What). Costs a little.
    pub timed: bool,
    /// Ends the prefill early.
    pub cancel: &'a Cancel,
    /// Called with adapter, token-layers done and in all; from the couriers' threads.
    pub progress: &'a (dyn Fn(usize, u64, u64) + Sync),
}

/// What a prefill gives.
#[derive(Debug)]
pub struct Outcome {
    /// What [`Request::rows_out`] asked for; logits of all rows are `[tokens, vocab]`.
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
    request.experiment.validate()?;
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
    let needed = Board::bytes(schedule, row_bytes, request.retention);
    request.pool.trim(needed);
    let usable = request.pool.idle_bytes(Board::least_block_bytes(schedule, row_bytes));
    let more = needed.saturating_sub(usable);
    check_host_memory("the board that K/V rows pass through", more)?;
    let peers = nodes.iter().map(|node| node.link() == Link::Cuda).collect();
    let (board, mailboxes) = Board::new(schedule, row_bytes, request.retention, request.record, request.pool)?;
    let board = board.with_peers(peers);
    let stop = request.cancel.child();
    let started = Instant::now();

    let logs: Vec<Result<ShareLog>> = std::thread::scope(|scope| {
        let workers: Vec<_> = nodes
            .iter()
            .zip(mailboxes)
            .enumerate()
            .map(|(me, (node, arrivals))| {
                let node: &dyn Node = &**node;
                let (stop, board, experiment) = (&stop, &board, &request.experiment);
                let turn = request.turns.get(me).and_then(Option::as_deref);
                let last = me + 1 == schedule.n_adapters();
                let rows_out = if last || request.rows_out == RowsOut::All { request.rows_out } else { RowsOut::None };
                let total = (schedule.n_rows(me) * schedule.layers.len()) as u64;
                let progress = request.progress;
                let body = move || {
                    let report = |done: u64| progress(me, done, total);
                    let job = ShareJob {
                        schedule,
                        me,
                        tokens: request.tokens,
                        rows_out,
                        board,
                        arrivals,
                        experiment,
                        turn,
                        timed: request.timed,
                        wait: Wait::new(stop),
                        started,
                        progress: &report,
                    };
                    let log = node.run(&job)?;
                    report(total);
                    Ok(log)
                };
                // An error or a panic here must wake all others at once.
                threads::start(scope, (&format!("worker {me}"), node.name()), stop, body)
            })
            .collect();
        let join = |(i, worker): (usize, Result<std::thread::ScopedJoinHandle<'_, Result<ShareLog>>>)| {
            worker?.join().unwrap_or_else(|_| Err(Error::WorkerDied { adapter: nodes[i].name().to_owned() }))
        };
        workers.into_iter().enumerate().map(join).collect()
    });
    gather(schedule, logs, request.cancel, board)
}

/// Says no before the first byte is allocated, where the system tells how much is free. Who needs nothing asks nobody.
///
/// # Errors
/// [`Error::Memory`] with both numbers.
pub fn check_host_memory(what: &str, needed: u64) -> Result<()> {
    fits_host(what, needed, Cpu::free_memory_bytes)
}

fn fits_host(what: &str, needed: u64, available: impl Fn() -> Option<u64>) -> Result<()> {
    if needed == 0 {
        return Ok(());
    }
    match available() {
        Some(available) if needed > available => {
            Err(Error::Memory { adapter: "host".to_owned(), what: what.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}

/// The caller's cancel comes first, then a real failure, then the echoes of one.
fn gather(schedule: &Schedule, logs: Vec<Result<ShareLog>>, cancel: &Cancel, board: Board) -> Result<Outcome> {
    cancel.check()?;
    let shares = all_or_cause(logs)?;
    let mut pieces_of_logits: Vec<(usize, Vec<f32>)> = Vec::new();
    let mut last = None;
    let mut adapters = Vec::with_capacity(shares.len());
    for (i, share) in shares.into_iter().enumerate() {
        match share.output {
            Output::None => {}
            output @ (Output::Token(_) | Output::LastLogits(_)) => last = Some(output),
            Output::Logits(rows) => {
                let width = rows.len() / schedule.n_rows(i).max(1);
                let mut rest = rows;
                for &p in &schedule.share[i] {
                    let after = rest.split_off(schedule.pieces[p].len() * width);
                    pieces_of_logits.push((p, std::mem::replace(&mut rest, after)));
                }
            }
        }
        adapters.push(share.log);
    }
    pieces_of_logits.sort_by_key(|(p, _)| *p);
    let logits = || {
        let mut pieces = pieces_of_logits.into_iter().map(|(_, rows)| rows);
        let mut all = pieces.next().unwrap_or_default();
        pieces.for_each(|rows| all.extend(rows));
        Output::Logits(all)
    };
    let output = last.unwrap_or_else(logits);
    Ok(Outcome { output, adapters, record: board.into_record() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_that_does_not_fit_the_host_is_refused_with_both_numbers() {
        let refused = fits_host("rows", 1 << 30, || Some(1 << 20));
        assert!(
            matches!(refused, Err(Error::Memory { needed, available, .. }) if needed == 1 << 30 && available == 1 << 20)
        );
        fits_host("rows", 1 << 20, || Some(1 << 20)).unwrap();
        fits_host("rows", 1 << 40, || None).unwrap();
    }
}
