//! What a prefill did, adapter by adapter.

use crate::runahead::chain::AdapterLog;
use crate::runahead::schedule::Schedule;

/// One prefill.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefillReport {
    /// The name of the [`Mode`](crate::engine::Mode).
    pub mode: &'static str,
    /// From the call to the first token's id on the host, in milliseconds.
    pub ttft_ms: f64,
    /// Tokens of each piece.
    pub partition: Vec<usize>,
    /// The adapters that took part, in the order of the chain.
    pub adapters: Vec<AdapterReport>,
    /// The most layers that an adapter was ahead of one behind it in the chain: at most one where a barrier holds all of them together.
    pub run_ahead_layers: usize,
    /// What the caller should know: fewer adapters than named, and why.
    pub note: Option<String>,
}

/// One adapter's part.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterReport {
    /// Its name.
    pub name: String,
    /// First position that it computed. Where its share is not contiguous ([`Mode::Zigzag`](crate::engine::Mode)), others' lie between.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// Milliseconds during which its device had work.
    pub busy_ms: f64,
    /// Milliseconds during which it had none, from the start to its last submission.
    pub wait_ms: f64,
    /// Bytes of K/V rows that it gave to the board.
    pub published_bytes: u64,
    /// Bytes of K/V rows that it took from the board.
    pub fetched_bytes: u64,
    /// Its submissions in order, on one clock for all adapters.
    pub log: AdapterLog,
}

impl AdapterReport {
    pub(super) fn new(name: &str, schedule: &Schedule, adapter: usize, log: AdapterLog) -> Self {
        let pieces = || schedule.share[adapter].iter().map(|&p| schedule.pieces[p]);
        Self {
            name: name.to_owned(),
            start: pieces().map(|p| p.start).min().unwrap_or(schedule.past),
            end: pieces().map(|p| p.end).max().unwrap_or(schedule.past),
            busy_ms: log.busy().as_secs_f64() * 1e3,
            wait_ms: log.waited().as_secs_f64() * 1e3,
            published_bytes: log.published_bytes,
            fetched_bytes: log.fetched_bytes,
            log,
        }
    }
}
