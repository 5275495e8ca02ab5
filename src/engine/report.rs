//! What a prefill did, adapter by adapter.

use std::time::Duration;

use crate::runahead::node::Node;
use crate::runahead::schedule::Schedule;
use crate::runahead::trace::{AdapterLog, What};

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

impl PrefillReport {
    /// Adds a pass that went behind this one.
    pub(super) fn join(&mut self, later: Self) {
        let ends = self.adapters.iter().filter_map(|a| a.log.spans.last());
        let offset = ends.map(|span| span.end).max().unwrap_or_default();
        self.partition.extend(later.partition);
        self.run_ahead_layers = self.run_ahead_layers.max(later.run_ahead_layers);
        self.note = self.note.take().or(later.note);
        // Fewer adapters are the last ones.
        let missing = later.adapters.len().saturating_sub(self.adapters.len());
        let skip = self.adapters.len().saturating_sub(later.adapters.len());
        let mut theirs = later.adapters;
        let shift = |adapters: &mut [AdapterReport], by: usize| {
            adapters.iter_mut().flat_map(|a| &mut a.handed_on).for_each(|handed| handed.to += by);
        };
        shift(&mut self.adapters, missing);
        shift(&mut theirs, skip);
        let front: Vec<_> = theirs.drain(..missing).collect();
        for (own, theirs) in self.adapters[skip..].iter_mut().zip(theirs) {
            own.join(theirs, offset);
        }
        self.adapters.splice(0..0, front);
    }
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
    /// The way of its rows to the adapters behind it: `copy` or `dma` by host memory, or `cuda`.
    pub link: &'static str,
    /// What later adapters took of it.
    pub handed_on: Vec<HandOff>,
    /// Its submissions in order, on one clock for all adapters.
    pub log: AdapterLog,
}

/// What passed between two adapters of a prefill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HandOff {
    /// The reader's place among the adapters that took part.
    pub to: usize,
    /// Bytes of K/V rows.
    pub bytes: u64,
    /// 10^9 bytes a second, out of one cache and into the other, one after the other; what a device that copies in its queue adds there is not seen.
    pub gb_per_s: f64,
}

impl HandOff {
    fn join(&mut self, later: Self) {
        let time = |h: &Self| if h.gb_per_s > 0.0 { h.bytes as f64 / h.gb_per_s } else { 0.0 };
        let (bytes, seconds) = (self.bytes + later.bytes, time(self) + time(&later));
        *self = Self { to: self.to, bytes, gb_per_s: if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 } };
    }
}

/// What each reader took of `from`'s pieces, by the clocks of both.
fn hand_offs(schedule: &Schedule, from: usize, logs: &[AdapterLog]) -> Vec<HandOff> {
    let sends = schedule.sends(from);
    let hand_off = |to: usize| {
        let moved = |adapter: usize, what: What| {
            let to_it = |piece: usize| sends.iter().any(|(p, readers)| *p == piece && readers.contains(&to));
            let events = logs[adapter].events.iter().filter(move |e| e.what == what && e.piece.is_some_and(to_it));
            events.fold((0, 0.0), |(bytes, s), e| (bytes + e.bytes, s + (e.end - e.start).as_secs_f64()))
        };
        let ((out_bytes, out_s), (bytes, in_s)) = (moved(from, What::Publish), moved(to, What::Fetch));
        let s_per_byte = out_s / out_bytes.max(1) as f64 + in_s / bytes.max(1) as f64;
        // A clock that saw no time pass leaves the rate at 0, not infinite.
        let gb_per_s = if s_per_byte > 0.0 { 1e-9 / s_per_byte } else { 0.0 };
        (bytes > 0).then_some(HandOff { to, bytes, gb_per_s })
    };
    (0..logs.len()).filter_map(hand_off).collect()
}

impl AdapterReport {
    pub(super) fn new(node: &dyn Node, schedule: &Schedule, adapter: usize, logs: &[AdapterLog]) -> Self {
        let log = logs[adapter].clone();
        let pieces = || schedule.share[adapter].iter().map(|&p| schedule.pieces[p]);
        Self {
            name: node.name().to_owned(),
            start: pieces().map(|p| p.start).min().unwrap_or(schedule.past),
            end: pieces().map(|p| p.end).max().unwrap_or(schedule.past),
            busy_ms: log.busy().as_secs_f64() * 1e3,
            wait_ms: log.waited().as_secs_f64() * 1e3,
            published_bytes: log.published_bytes,
            fetched_bytes: log.fetched_bytes,
            link: node.link().name(),
            handed_on: hand_offs(schedule, adapter, logs),
            log,
        }
    }

    /// Adds a pass that began `offset` after the first one.
    fn join(&mut self, later: Self, offset: Duration) {
        (self.start, self.end) = (self.start.min(later.start), self.end.max(later.end));
        self.busy_ms += later.busy_ms;
        self.wait_ms += later.wait_ms;
        self.published_bytes += later.published_bytes;
        self.fetched_bytes += later.fetched_bytes;
        for handed in later.handed_on {
            match self.handed_on.iter_mut().find(|own| own.to == handed.to) {
                Some(own) => own.join(handed),
                None => self.handed_on.push(handed),
            }
        }
        self.log.join(later.log, offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(names: &[&str], hand_offs: &[(usize, usize)]) -> PrefillReport {
        let adapter = |(i, name): (usize, &&str)| AdapterReport {
            name: (*name).to_owned(),
            start: 0,
            end: 16,
            busy_ms: 1.0,
            wait_ms: 0.0,
            published_bytes: 0,
            fetched_bytes: 0,
            link: "copy",
            handed_on: hand_offs
                .iter()
                .filter(|(from, _)| *from == i)
                .map(|&(_, to)| HandOff { to, bytes: 8, gb_per_s: 1.0 })
                .collect(),
            log: AdapterLog { spans: Vec::new(), events: Vec::new(), published_bytes: 0, fetched_bytes: 0 },
        };
        let adapters = names.iter().enumerate().map(adapter).collect();
        PrefillReport { mode: "runahead", ttft_ms: 0.0, partition: vec![16], adapters, run_ahead_layers: 0, note: None }
    }

    #[test]
    fn passes_of_fewer_adapters_are_joined_to_the_last_ones() {
        let all = report(&["a", "b", "c"], &[(0, 1), (0, 2), (1, 2)]);
        let last = report(&["b", "c"], &[(0, 1)]);
        for (mut first, later) in [(all.clone(), last.clone()), (last, all)] {
            first.join(later);
            let told = |i: usize| first.adapters[i].handed_on.iter().map(|h| (h.to, h.bytes)).collect::<Vec<_>>();
            assert_eq!(first.adapters.iter().map(|a| &a.name[..]).collect::<Vec<_>>(), ["a", "b", "c"]);
            assert_eq!((told(0), told(1), told(2)), (vec![(1, 8), (2, 8)], vec![(2, 16)], vec![]));
            assert_eq!((first.adapters[0].busy_ms, first.adapters[1].busy_ms), (1.0, 2.0));
        }
    }
}
