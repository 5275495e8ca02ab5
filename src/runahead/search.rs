//! Cuts found by search (KVR-S): a hierarchical grid over the lengths of the pieces, coarse first, then finer round the best cell.
//!
//! The objective is anything that gives seconds for lengths: a measured prefill, or the simulator. Lengths change by whole granules. The even cut is
//! the first candidate, so the result is never worse than it. Measured times near the best are flat and noisy: there the middle of all cuts that
//! are as good is taken, which says more of other lengths than the one that luck put first.

use std::collections::HashMap;

use crate::cancel::Cancel;
use crate::dims::{GRANULE, round_up};
use crate::error::{Error, Result};
use crate::runahead::cost::CostModel;
use crate::runahead::partition::{FEW_TILES, Split, in_tiles, n_granules, snapped, weighted};
use crate::runahead::schedule::Mode;
use crate::runahead::simulate::simulate;

/// Up to this many pieces every set of them is shortened together, 2^n - 2 sets; above, only neighbours are.
const ALL_SETS: usize = 8;

/// What is searched.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Tokens before the prompt.
    pub past: usize,
    /// Tokens of the prompt.
    pub len: usize,
    /// Pieces to cut it into; fewer where it has fewer granules.
    pub n_pieces: usize,
    /// Good guesses, in tokens, tried beside the even cut.
    pub guesses: Vec<Vec<usize>>,
    /// The finest step in granules: 1 on the simulator, more where every try is a measured prefill.
    pub finest: usize,
    /// The coarsest, if it is less than half a piece.
    pub coarsest: usize,
    /// Cuts to try at most.
    pub most: usize,
    /// Times that differ by no more than this share count as equal.
    pub noise: f64,
    /// Granules that change hands together; divides the steps.
    pub unit: usize,
    /// Rows of the tiles of each piece's products, where cuts are to lie between whole ones.
    pub tiles: Vec<usize>,
}

/// A cut is measured to this part of the prompt: finer steps drown in the noise.
const FINEST_PART: usize = 64;
/// Where every try is a prefill and the guess comes from estimates, steps begin this many times as coarse as they end, unless there are few pieces. Where it comes
/// from measured costs, they begin as they end: on the simulator with the costs of H200s, noise of 1 % and a guess from wrong rates of attention (15 %),
/// four and eight pieces were found as well so, in half the time; with adapters that are 25 % slower than thought, eight pieces were not.
const ESTIMATED_LEVELS: usize = 4;
/// So few pieces have so few neighbours that a guess need not be good.
const FEW_PIECES: usize = 3;
/// Cuts that a search on measurements may try: 8 pieces have 310 neighbours.
const MOST_MEASURED: usize = 128;
/// Prefills of one cut differ by so much from run to run (one H200 as two adapters, Falcon-7B's sizes: 0.7 %); of 2,048 tokens cuts of 50, 53 and 58 % were as
/// fast, and from the last one, which the search had found, a cut of 4,096 tokens was predicted that took 6 % longer than the searched one.
const MEASURED_NOISE: f64 = 0.01;

impl Problem {
    /// For an objective that is exact and costs little.
    pub fn exact(past: usize, len: usize, n_pieces: usize, guesses: Vec<Vec<usize>>) -> Self {
        let (unit, finest, tiles) = (1, 1, Vec::new());
        Self { past, len, n_pieces, guesses, finest, coarsest: usize::MAX, most: usize::MAX, noise: 0.0, unit, tiles }
    }

    /// For an objective that runs a prefill of `len` tokens behind `past` and measures it, beginning with what the simulator takes for the best by these costs.
    /// Where products have tiles of several rows, and each piece of the guess several of them, what is tried beside the even cut lies between whole
    /// ones: others are never faster, and of 8,192 tokens of Llama-2-7B on two H200 one took 332 ms where the tiles' best took 316.
    pub fn measured(past: usize, len: usize, n_pieces: usize, guess: Vec<usize>, costs: &CostModel) -> Self {
        let (granules, tiles) = (n_granules(past, len), costs.tiles(n_pieces));
        let guess = in_tiles(past, &guess, &tiles);
        let tile = tiles.iter().max().map_or(1, |&rows| rows.max(1));
        let unit = if guess.iter().all(|&n| n >= FEW_TILES * tile) { (tile / GRANULE).max(1) } else { 1 };
        let finest = round_up((granules / FINEST_PART).max(1), unit);
        let coarsest = match n_pieces {
            ..=FEW_PIECES => usize::MAX,
            _ if costs.is_measured() => finest,
            _ => finest * ESTIMATED_LEVELS,
        };
        let (most, noise) = (MOST_MEASURED, MEASURED_NOISE);
        let even = Split::Even.lengths(past, len, n_pieces).map(|even| in_tiles(past, &even, &tiles));
        let guesses = [guess].into_iter().chain(even).collect();
        Self { past, len, n_pieces, guesses, finest, coarsest, most, noise, unit, tiles }
    }
}

/// The best cut so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Tokens of each piece.
    pub lengths: Vec<usize>,
    /// What the objective gave for it.
    pub seconds: f64,
    /// What it gave for the even cut.
    pub even_seconds: f64,
    /// Cuts tried.
    pub n_tried: usize,
    /// Whether the search came to its end; a cancelled one has the best that it saw.
    pub finished: bool,
}

/// Pieces that a search moves granules between, at most: sets of them are bits of a word.
const MAX_PIECES: usize = 64;

/// Searches. `progress` sees the best cut after every try.
///
/// # Errors
/// Those of the objective; [`Error::Cancelled`] only where not even the even cut was tried; [`Error::Partition`] for more than 64 pieces.
pub fn search(
    problem: &Problem,
    cancel: &Cancel,
    objective: &mut dyn FnMut(&[usize]) -> Result<f64>,
    progress: &mut dyn FnMut(&Found),
) -> Result<Found> {
    cancel.check()?;
    if problem.n_pieces > MAX_PIECES {
        return Err(Error::Partition(format!("a search among {} pieces: {MAX_PIECES} at most", problem.n_pieces)));
    }
    let even = Split::Even.lengths(problem.past, problem.len, problem.n_pieces)?;
    let even_seconds = objective(&even)?;
    let found = Found { lengths: even, seconds: even_seconds, even_seconds, n_tried: 1, finished: false };
    progress(&found);
    let mut grid = Grid { problem, cancel, objective, progress, seen: HashMap::new(), found };
    grid.seen.insert(grid.found.lengths.clone(), even_seconds);
    match grid.run() {
        Ok(()) => Ok(Found { finished: true, ..grid.found }),
        Err(Error::Cancelled) => Ok(grid.found),
        Err(other) => Err(other),
    }
}

/// The cut for which the simulator expects the first token soonest, for a mode whose pieces may differ.
///
/// # Errors
/// Those of [`simulate`].
pub fn search_simulated(mode: Mode, costs: &CostModel, past: usize, len: usize, n_layers: usize) -> Result<Found> {
    costs.validate()?;
    let guess = weighted(past, len, &balanced(costs, past, len));
    let n_pieces = mode.n_pieces(costs.adapters.len());
    let problem = Problem::exact(past, len, n_pieces, vec![guess]);
    let costs = costs.last(n_pieces.min(n_granules(past, len)));
    let mut objective = |lengths: &[usize]| {
        Ok(simulate(&mode.schedule(past, lengths, n_layers).windowed(&costs.windows), &costs)?.ttft_s)
    };
    search(&problem, &Cancel::new(), &mut objective, &mut |_| {})
}

/// Layers that are simulated to compare cuts: enough for a chain of eight adapters to fill and to show its slowest one.
const COMPARED_LAYERS: usize = 32;

/// The cut for which the simulator expects the first token of a chain soonest among those near `lengths`: by [`search`], in steps of the largest tile, no
/// cut further than `reach` of these from the nearest one between whole tiles. `lengths` as they are where no adapter has tiles, or costs are not those of
/// as many adapters.
pub fn best_nearby(costs: &CostModel, past: usize, lengths: &[usize], reach: usize) -> Vec<usize> {
    let (tiles, len) = (costs.tiles(lengths.len()), lengths.iter().sum());
    let tile = tiles.iter().max().copied().unwrap_or(1);
    if tile <= GRANULE || tiles.len() != lengths.len() {
        return lengths.to_vec();
    }
    let cuts = |lengths: &[usize]| (1..lengths.len()).map(|i| lengths[..i].iter().sum()).collect::<Vec<usize>>();
    let (unit, whole) = (tile / GRANULE, snapped(past, lengths, &tiles, 1));
    let middle = cuts(&whole);
    let guesses = vec![lengths.to_vec(), whole];
    let problem = Problem { unit, finest: unit, coarsest: unit, ..Problem::exact(past, len, lengths.len(), guesses) };
    let n_layers = COMPARED_LAYERS.max(costs.windows.len());
    let mut objective = |lengths: &[usize]| {
        let near = cuts(lengths).iter().zip(&middle).all(|(cut, middle)| cut.abs_diff(*middle) <= reach * tile);
        let schedule = || Mode::Runahead.schedule(past, lengths, n_layers).windowed(&costs.windows);
        if near { Ok(simulate(&schedule(), costs)?.ttft_s) } else { Ok(f64::INFINITY) }
    };
    let found = search(&problem, &Cancel::new(), &mut objective, &mut |_| {});
    found.ok().filter(|found| found.seconds.is_finite()).map_or_else(|| lengths.to_vec(), |found| found.lengths)
}

/// Tokens for each adapter, not rounded, so that a layer takes all of them the same time with transfers free: a good place to start from.
pub fn balanced(costs: &CostModel, past: usize, len: usize) -> Vec<f64> {
    let len = len as f64;
    // Tokens that fit into `seconds` a layer, adapter by adapter.
    let fill = |seconds: f64| -> Vec<f64> {
        let mut prefix = past as f64;
        let fit = |adapter: usize| {
            let n = largest(len, |n| costs.layer_s(adapter, prefix, n) <= seconds);
            prefix += n;
            n
        };
        (0..costs.adapters.len()).map(fit).collect()
    };
    let most = (0..costs.adapters.len()).map(|i| costs.layer_s(i, past as f64, len)).fold(0.0, f64::max);
    let too_short = |seconds: f64| fill(seconds).iter().sum::<f64>() < len;
    let tokens = fill(largest(most, too_short) * (1.0 + 1e-9));
    // An adapter for which nothing is left still counts as one that takes part.
    tokens.into_iter().map(|n| n.max(1e-3)).collect()
}

/// The largest `x` in `0..=most` that holds, where all smaller ones hold too.
fn largest(most: f64, holds: impl Fn(f64) -> bool) -> f64 {
    if holds(most) {
        return most;
    }
    let (mut low, mut high) = (0.0, most);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if holds(middle) { low = middle } else { high = middle }
    }
    low
}

struct Grid<'a> {
    problem: &'a Problem,
    cancel: &'a Cancel,
    objective: &'a mut dyn FnMut(&[usize]) -> Result<f64>,
    progress: &'a mut dyn FnMut(&Found),
    seen: HashMap<Vec<usize>, f64>,
    found: Found,
}

impl Grid<'_> {
    fn run(&mut self) -> Result<()> {
        let n = self.found.lengths.len();
        for guess in &self.problem.guesses {
            if guess.len() == n && Split::Given(guess.clone()).lengths(self.problem.past, self.problem.len, n).is_ok() {
                self.attempt(guess.clone())?;
            }
        }
        let granules = n_granules(self.problem.past, self.problem.len);
        let unit = self.problem.unit.max(1);
        let mut step =
            (unit * (granules / (2 * n * unit)).max(1).next_power_of_two()).min(self.problem.coarsest.max(1));
        loop {
            self.level(step)?;
            if step <= self.problem.finest.max(1) {
                return self.middle();
            }
            step /= 2;
        }
    }

    /// Takes the middle of the cuts that are as good as the best, where it is as good itself and no worse than the even cut.
    fn middle(&mut self) -> Result<()> {
        if self.problem.noise == 0.0 || self.found.n_tried >= self.problem.most {
            return Ok(());
        }
        let good = self.found.seconds * (1.0 + self.problem.noise);
        let equal: Vec<Vec<usize>> =
            self.seen.iter().filter(|(_, s)| **s <= good).map(|(lengths, _)| self.counts(lengths)).collect();
        let mean = |i: usize| equal.iter().map(|counts| counts[i]).sum::<usize>() as f64 / equal.len() as f64;
        let means: Vec<f64> = (0..self.found.lengths.len()).map(mean).collect();
        let middle = weighted(self.problem.past, self.problem.len, &means);
        let middle = in_tiles(self.problem.past, &middle, &self.problem.tiles);
        self.attempt(middle.clone())?;
        if let Some(&seconds) = self.seen.get(&middle).filter(|s| **s <= good.min(self.found.even_seconds)) {
            (self.found.lengths, self.found.seconds) = (middle, seconds);
            (self.progress)(&self.found);
        }
        Ok(())
    }

    /// Moves to better neighbours, `step` granules away, until there is none.
    fn level(&mut self, step: usize) -> Result<()> {
        loop {
            let before = self.found.seconds;
            let counts = self.counts(&self.found.lengths);
            for neighbour in neighbours(&counts, step, self.problem.unit.max(1)) {
                if self.found.n_tried >= self.problem.most {
                    return Ok(());
                }
                self.attempt(self.lengths(&neighbour))?;
            }
            if self.found.seconds >= before {
                return Ok(());
            }
        }
    }

    fn attempt(&mut self, lengths: Vec<usize>) -> Result<()> {
        if self.seen.contains_key(&lengths) {
            return Ok(());
        }
        self.cancel.check()?;
        let seconds = (self.objective)(&lengths)?;
        self.seen.insert(lengths.clone(), seconds);
        self.found.n_tried += 1;
        if seconds < self.found.seconds {
            self.found.lengths = lengths;
            self.found.seconds = seconds;
        }
        (self.progress)(&self.found);
        Ok(())
    }

    /// Granules of each piece of a cut.
    fn counts(&self, lengths: &[usize]) -> Vec<usize> {
        let mut at = self.problem.past;
        let count = |&n: &usize| {
            let granules = n_granules(at, n);
            at += n;
            granules
        };
        lengths.iter().map(count).collect()
    }

    fn lengths(&self, counts: &[usize]) -> Vec<usize> {
        let (past, end) = (self.problem.past, self.problem.past + self.problem.len);
        let (mut granule, mut at) = (past / GRANULE, past);
        let length = |&n: &usize| {
            granule += n;
            let next = (granule * GRANULE).min(end);
            let length = next - at;
            at = next;
            length
        };
        counts.iter().map(length).collect()
    }
}

/// Cuts round this one: `step` granules handed from one piece to another, and as many from each piece of a set to all others. The time of a chain is
/// the time of its slowest adapters: where several are equally slow, only shortening all of them at once makes it shorter.
fn neighbours(counts: &[usize], step: usize, unit: usize) -> Vec<Vec<usize>> {
    let n = counts.len();
    let pairs = (0..n).flat_map(|from| (0..n).filter(move |&to| to != from).map(move |to| (1 << from, 1 << to)));
    let all = (1u64 << n.min(63)) - 1;
    let sets: Vec<u64> = if n <= ALL_SETS {
        (1..all).collect()
    } else {
        (0..n.min(63)).flat_map(|a| (a..n.min(63)).map(move |b| ((1u64 << (b - a + 1)) - 1) << a)).collect()
    };
    let moves = pairs.chain(sets.into_iter().filter(|&s| s != all).map(|s| (s, all & !s)));
    moves.filter_map(|(from, to)| handed(counts, from, to, (step, unit))).collect()
}

/// `step` granules from each piece of one set, spread evenly over another in whole units; `None` where a piece would be empty. Sets are bit masks.
fn handed(counts: &[usize], from: u64, to: u64, (step, unit): (usize, usize)) -> Option<Vec<usize>> {
    let takers = to.count_ones() as usize;
    let total = step / unit * from.count_ones() as usize;
    let mut taken = 0;
    let change = |(i, &count): (usize, &usize)| {
        if from >> i & 1 == 1 {
            return count.checked_sub(step).filter(|&left| left > 0);
        }
        if to >> i & 1 == 0 {
            return Some(count);
        }
        taken += 1;
        Some(count + unit * (total / takers + usize::from(taken <= total % takers)))
    };
    counts.iter().enumerate().map(change).collect()
}
