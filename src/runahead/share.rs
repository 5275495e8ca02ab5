//! An adapter's share of a prefill as data: what it is given, and what it gives back.

use std::time::Instant;

use crate::cancel::Wait;
use crate::runahead::board::{Arrival, Board};
use crate::runahead::experiment::Experiment;
use crate::runahead::schedule::Schedule;
use crate::runahead::trace::AdapterLog;
use crate::runahead::turn::Turn;

/// What is wanted of a row that went through the whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The token with the largest logit, found on the device.
    Token,
    /// Its logits.
    Logits,
}

/// Which rows are taken past the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOut {
    /// None: the share ends with the K/V rows of the last layer.
    None,
    /// The last row.
    Last(Want),
    /// All rows: their logits.
    All,
}

/// What a share gives beside the K/V rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Nothing ([`RowsOut::None`]).
    None,
    /// The token with the largest logit ([`Want::Token`]).
    Token(u32),
    /// The last row's logits `[vocab]` ([`Want::Logits`]).
    LastLogits(Vec<f32>),
    /// Logits `[rows, vocab]` ([`RowsOut::All`]).
    Logits(Vec<f32>),
}

impl Output {
    /// This and what rows behind it gave: their logits behind these, or what they gave alone.
    pub fn join(self, later: Self) -> Self {
        match (self, later) {
            (Output::Logits(mut logits), Output::Logits(later)) => {
                logits.extend(later);
                Output::Logits(logits)
            }
            (_, later) => later,
        }
    }
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
    /// What slows this run down on purpose.
    pub experiment: &'a Experiment,
    /// To be had before the device may work, where others work on it and an experiment slows one of them.
    pub turn: Option<&'a Turn>,
    /// Whether the device writes down when it worked on products and when on attention.
    pub timed: bool,
    /// Cancel and limits.
    pub wait: Wait,
    /// The start of the prefill.
    pub started: Instant,
    /// Called with the number of token-layers done so far.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// What a share gave, and what was seen of it.
#[derive(Clone, Debug)]
pub struct ShareLog {
    /// The share's result.
    pub output: Output,
    /// By worker and courier.
    pub log: AdapterLog,
}
