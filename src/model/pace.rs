//! How much work one submission holds: what it will take by the rates that were seen, and where an operation is cut.
//!
//! A device that works on one submission for seconds may be taken for hung by the system (a watchdog), leaves a desktop without pictures, and cannot
//! see a cancel. Work is therefore counted while it is recorded ([`Work`]), turned into seconds by the adapter's own rates ([`Rates`]), which follow
//! every submission that was timed, and cut by rows, or by K/V heads, where there is too much of it ([`cut`]). No bit depends on a cut.

use std::ops::{Add, Range};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::dims::GRANULE;

/// Kinds of work that run at rates of their own.
const KINDS: usize = 4;

/// Counted work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work([f64; KINDS]);

impl Work {
    /// Multiply-adds of products of many rows.
    pub fn products(n: f64) -> Self {
        Self([n, 0.0, 0.0, 0.0])
    }

    /// Multiply-adds of attention of many rows.
    pub fn scores(n: f64) -> Self {
        Self([0.0, n, 0.0, 0.0])
    }

    /// Elements that pass through memory once: weights and cache of a few rows, operations on rows.
    pub fn elements(n: f64) -> Self {
        Self([0.0, 0.0, n, 0.0])
    }

    /// Bytes on their way to host memory.
    pub fn copied_bytes(n: u64) -> Self {
        Self([0.0, 0.0, 0.0, n as f64])
    }

    /// A part of it.
    pub fn part(self, share: f64) -> Self {
        Self(self.0.map(|n| n * share))
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
}

/// Seconds for a unit of each kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates([f64; KINDS]);

impl Rates {
    /// What is believed of an adapter that has done nothing yet: the slowest that a prompt of some length is fun on. A fast one is known after five
    /// submissions.
    pub const CAUTIOUS: Self = Self([1.0 / 25e9, 1.0 / 10e9, 1.0 / 2e9, 1.0 / 2e9]);

    /// One measurement changes a time by this factor at most.
    const MOST: f64 = 8.0;

    /// What work will take, in seconds.
    pub fn seconds(&self, work: Work) -> f64 {
        (0..KINDS).map(|i| self.0[i] * work.0[i]).sum()
    }

    /// Follows a measurement. The kinds of work are corrected in proportion to their parts in it, so that what a measurement says nothing of stays.
    /// It is followed at once where the device was faster than thought, and halfway (in factors) where it was slower: that may be somebody else's work.
    pub fn learn(&mut self, work: Work, seconds: f64) {
        let expected = self.seconds(work);
        let ratio = (seconds / expected).clamp(1.0 / Self::MOST, Self::MOST);
        if !(ratio.is_finite() && expected > 0.0) {
            return;
        }
        let gain = if ratio < 1.0 { 1.0 } else { 0.5 };
        let parts: [f64; KINDS] = std::array::from_fn(|i| self.0[i] * work.0[i]);
        let most = parts.into_iter().fold(0.0, f64::max);
        for (rate, part) in self.0.iter_mut().zip(parts) {
            *rate *= ratio.powf(gain * part / most);
        }
    }
}

/// An adapter's rates, and how long one of its submissions may take.
#[derive(Debug)]
pub struct Pace {
    limit_s: f64,
    rates: Mutex<Rates>,
}

impl Pace {
    /// `limit` is for one submission; without it nothing is cut.
    pub fn new(limit: Option<Duration>) -> Self {
        Self { limit_s: limit.map_or(f64::INFINITY, |limit| limit.as_secs_f64()), rates: Mutex::new(Rates::CAUTIOUS) }
    }

    /// Seconds that a submission may take.
    pub fn limit_s(&self) -> f64 {
        self.limit_s
    }

    /// The rates as they are known now.
    pub fn rates(&self) -> Rates {
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Rates::learn`].
    pub fn learn(&self, work: Work, took: Duration) {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).learn(work, took.as_secs_f64());
    }
}

/// Steps in which rows are cut, from those that fill the tiles of every kernel down to the least.
pub const ROW_STEPS: [usize; 3] = [256, 64, GRANULE];

/// Steps in which K/V heads are cut.
pub const HEAD_STEPS: [usize; 1] = [1];

/// The part of a limit below which it is not worth beginning an operation that will not fit.
const LEAST_ROOM: f64 = 0.25;

/// As many of a step as make it better than a smaller one: fewer would leave much of a submission empty.
const WORTH_IT: usize = 3;

/// The end of what still goes into a submission that takes `used_s` already: as many of `range` as fit below `limit_s`, in the largest of `steps` (descending)
/// that is worth it. `range.start`: nothing, begin another submission. An empty submission takes the least step at least, however long that is.
/// `seconds` does not fall as its range grows.
pub fn cut(
    range: Range<usize>,
    steps: &[usize],
    used_s: f64,
    limit_s: f64,
    seconds: impl Fn(Range<usize>) -> f64,
) -> usize {
    let fits = |end: usize| used_s + seconds(range.start..end) <= limit_s;
    if fits(range.end) {
        return range.end;
    }
    let is_empty = used_s <= 0.0;
    if !is_empty && limit_s - used_s < LEAST_ROOM * limit_s {
        return range.start;
    }
    for step in steps {
        // The most steps that fit, by halving: `fitting` do, `too_many` do not.
        let (mut fitting, mut too_many) = (0, range.len().div_ceil(*step));
        while too_many - fitting > 1 {
            let middle = usize::midpoint(fitting, too_many);
            if fits(range.start + middle * step) { fitting = middle } else { too_many = middle }
        }
        let is_least = Some(step) == steps.last();
        if fitting >= WORTH_IT || (is_least && fitting > 0) {
            return range.start + fitting * step;
        }
    }
    let least = steps.last().map_or(range.len(), |&step| step.min(range.len()));
    if is_empty { range.start + least } else { range.start }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All parts of a range, by the submission that they are in.
    fn parts(
        range: Range<usize>,
        steps: &[usize],
        used_s: f64,
        limit_s: f64,
        seconds: impl Fn(Range<usize>) -> f64,
    ) -> Vec<(usize, Range<usize>)> {
        let (mut out, mut at, mut used, mut submission) = (Vec::new(), range.start, used_s, 0);
        while at < range.end {
            let end = cut(at..range.end, steps, used, limit_s, &seconds);
            if end == at {
                assert!(used > 0.0, "an empty submission takes nothing of {at}..{}", range.end);
                (submission, used) = (submission + 1, 0.0);
                continue;
            }
            used += seconds(at..end);
            out.push((submission, at..end));
            at = end;
        }
        out
    }

    /// Rows of a product, and rows whose keys grow.
    const COSTS: [fn(Range<usize>) -> f64; 2] = [
        |rows| rows.len() as f64 * 1e-4,
        |rows| (rows.end * (rows.end + 1) - rows.start * (rows.start + 1)) as f64 * 1e-8,
    ];

    #[test]
    fn cuts_cover_all_rows_once_and_keep_to_the_limit() {
        for seconds in COSTS {
            for (start, n) in [(0, 1), (0, 16), (3, 100), (0, 1000), (48, 5003), (0, 20_000)] {
                for limit in [1e-6, 1e-3, 7e-3, 0.03, 0.5, 1e9] {
                    for used in [0.0, limit / 2.0, limit * 0.99, limit * 3.0] {
                        let parts = parts(start..start + n, &ROW_STEPS, used, limit, seconds);
                        let mut at = start;
                        for (_, part) in &parts {
                            assert_eq!(part.start, at, "{parts:?}");
                            assert_eq!((part.start - start) % GRANULE, 0, "{parts:?}");
                            at = part.end;
                        }
                        assert_eq!(at, start + n);
                        for submission in 0..=parts.last().unwrap().0 {
                            let own: Vec<_> = parts.iter().filter(|p| p.0 == submission).collect();
                            let before = if submission == 0 { used } else { 0.0 };
                            let took = before + own.iter().map(|p| seconds(p.1.clone())).sum::<f64>();
                            // One least step alone may be too long, and there is nothing to cut in it.
                            let least = before == 0.0 && own.len() == 1 && own[0].1.len() <= GRANULE;
                            assert!(own.is_empty() || took <= limit * 1.000_001 || least, "{took} of {limit}: {own:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_faster_device_is_never_given_more_submissions() {
        for seconds in COSTS {
            let mut before = usize::MAX;
            for speed in [0.1, 0.5, 1.0, 1.5, 2.0, 5.0, 20.0, 1000.0] {
                let n = parts(0..6000, &ROW_STEPS, 0.0, 0.03, |rows| seconds(rows) / speed).last().unwrap().0 + 1;
                assert!(n <= before, "{n} after {before} at {speed}");
                before = n;
                // And its first submission is no smaller.
                let first = |speed: f64| cut(0..6000, &ROW_STEPS, 0.01, 0.03, |rows| seconds(rows) / speed);
                assert!(first(speed) <= first(speed * 1.1));
            }
            assert_eq!(before, 1);
        }
    }

    #[test]
    fn rows_are_cut_in_whole_tiles_and_heads_in_ones() {
        let seconds = |rows: Range<usize>| rows.len() as f64;
        assert_eq!(cut(0..4096, &ROW_STEPS, 0.0, 1000.0, seconds), 768);
        assert_eq!(cut(0..4096, &ROW_STEPS, 0.0, 200.0, seconds), 192);
        assert_eq!(cut(0..4096, &ROW_STEPS, 0.0, 40.0, seconds), 32);
        assert_eq!(cut(7..4096, &ROW_STEPS, 0.0, 1.0, seconds), 23);
        assert_eq!(cut(0..8, &HEAD_STEPS, 0.0, 3.5, seconds), 3);
        // What would fit into the rest of a submission is not begun where that is a sliver, nor where it is less than a step.
        assert_eq!(cut(0..4096, &ROW_STEPS, 800.0, 1000.0, seconds), 0);
        assert_eq!(cut(0..4096, &ROW_STEPS, 30.0, 40.0, seconds), 0);
        assert_eq!(cut(0..4096, &ROW_STEPS, 700.0, 1000.0, seconds), 256);
        // A whole operation goes in to the last bit of room.
        assert_eq!(cut(0..100, &ROW_STEPS, 900.0, 1000.0, seconds), 100);
    }

    #[test]
    fn rates_come_to_those_of_the_device_whatever_it_is() {
        // Units a second of a large GPU, a small one, and a software GPU.
        for speeds in [[1e14, 4e13, 1e12, 4e10], [4e11, 1e11, 2e10, 5e9], [4e9, 2e9, 1e9, 2e9]] {
            let device = Rates(speeds.map(|s| 1.0 / s));
            let mut rates = Rates::CAUTIOUS;
            let mixtures = [
                Work::products(1e9),
                Work::scores(1e9) + Work::products(2e8),
                Work::products(1e9) + Work::scores(3e8) + Work::elements(1e6),
                Work::elements(1e8),
                Work::products(1e8) + Work::copied_bytes(1 << 26),
            ];
            for _ in 0..40 {
                mixtures.iter().for_each(|&work| rates.learn(work, device.seconds(work)));
            }
            for work in mixtures {
                let off = rates.seconds(work) / device.seconds(work);
                assert!((0.9..1.1).contains(&off), "{speeds:?} {work:?}: {off}");
            }
        }
    }

    #[test]
    fn a_fast_device_is_known_after_five_submissions() {
        let (mut rates, work) = (Rates::CAUTIOUS, Work::products(1e9));
        (0..5).for_each(|_| rates.learn(work, 1e9 / 1e14));
        assert!((rates.seconds(work) * 1e14 / 1e9 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn one_slow_submission_is_believed_half_and_nonsense_not_at_all() {
        let (mut rates, work) = (Rates::CAUTIOUS, Work::elements(2e9));
        rates.learn(work, 4.0);
        assert!((rates.seconds(work) - 2.0).abs() < 1e-9);
        let before = rates;
        rates.learn(Work::default(), 1.0);
        rates.learn(work, f64::NAN);
        assert_eq!(rates, before);
    }
}
