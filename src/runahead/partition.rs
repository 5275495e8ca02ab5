//! Cuts of a prompt over adapters: pure functions from lengths to lengths.
//!
//! Every cut falls on a multiple of [`GRANULE`] counted from absolute position 0, so the first and the last piece alone may hold part of a granule.
//! No piece is empty; a prompt with fewer granules than adapters is cut into as many pieces as it has granules.

use crate::dims::GRANULE;
use crate::error::{Error, Result};

/// How a prompt is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// As many granules for each adapter (KVR-E).
    #[default]
    Even,
    /// These lengths, in tokens; where a prompt has to go in passes, each pass is cut in their proportion.
    Given(Vec<usize>),
}

impl Split {
    /// Lengths in tokens of the pieces of positions `past .. past + len`, at most one for each of `n_adapters`.
    ///
    /// # Errors
    /// [`Error::Partition`] where given lengths do not hold, [`Error::EmptyPrompt`] where `len` is 0.
    pub fn lengths(&self, past: usize, len: usize, n_adapters: usize) -> Result<Vec<usize>> {
        if len == 0 {
            return Err(Error::EmptyPrompt);
        }
        match self {
            Split::Even => Ok(weighted(past, len, &vec![1.0; n_adapters])),
            Split::Given(lengths) => check_given(past, len, n_adapters, lengths).map(|()| lengths.clone()),
        }
    }

    /// As [`lengths`](Self::lengths), for a part of the prompt that this cuts.
    ///
    /// # Errors
    /// [`Error::Partition`] for other than one length for each of `n_adapters`, or one of 0, [`Error::EmptyPrompt`] where `len` is 0.
    pub fn part_lengths(&self, past: usize, len: usize, n_adapters: usize) -> Result<Vec<usize>> {
        let Split::Given(lengths) = self else { return self.lengths(past, len, n_adapters) };
        if lengths.len() != n_adapters || lengths.contains(&0) {
            return Err(Error::Partition(format!("lengths {lengths:?} for {n_adapters} pieces")));
        }
        if len == 0 {
            return Err(Error::EmptyPrompt);
        }
        let weights: Vec<f64> = lengths.iter().map(|&n| n as f64).collect();
        Ok(weighted(past, len, &weights))
    }
}

/// Number of granules that positions `past .. past + len` touch: the most pieces that they can be cut into.
pub const fn n_granules(past: usize, len: usize) -> usize {
    (past + len).div_ceil(GRANULE) - past / GRANULE
}

/// Lengths in proportion to `weights` (positive, at least one), rounded to granules by largest remainder. With fewer granules than weights the
/// last weights are used.
pub fn weighted(past: usize, len: usize, weights: &[f64]) -> Vec<usize> {
    let granules = n_granules(past, len);
    let weights = &weights[weights.len().saturating_sub(granules)..];
    let total: f64 = weights.iter().sum();
    // One granule each first, so that no piece is empty; the rest by share.
    let spare = granules - weights.len();
    let ideal: Vec<f64> = weights.iter().map(|w| (granules as f64 * w / total - 1.0).max(0.0)).collect();
    let scale = if ideal.iter().sum::<f64>() > 0.0 { spare as f64 / ideal.iter().sum::<f64>() } else { 0.0 };
    let exact: Vec<f64> = ideal.iter().map(|x| x * scale).collect();
    let mut counts: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by(|&a, &b| (exact[b] - exact[b].floor()).total_cmp(&(exact[a] - exact[a].floor())));
    let given: usize = counts.iter().sum();
    for &i in order.iter().cycle().take(spare.saturating_sub(given)) {
        counts[i] += 1;
    }
    let mut start = past;
    let mut granule = past / GRANULE;
    counts
        .iter()
        .map(|&extra| {
            granule += 1 + extra;
            let end = (granule * GRANULE).min(past + len);
            let length = end - start;
            start = end;
            length
        })
        .collect()
}

/// Pieces of fewer tiles are left as they are: rounding would move too much of them.
pub(super) const FEW_TILES: usize = 4;

/// The same pieces with cuts moved, so that those of several tiles are whole ones of their adapter: `tiles` are its rows, a number for each piece. A
/// cut moves by half a tile at most, and only where the pieces on both sides have several.
pub fn in_tiles(past: usize, lengths: &[usize], tiles: &[usize]) -> Vec<usize> {
    snapped(past, lengths, tiles, FEW_TILES)
}

/// As [`in_tiles`], where pieces of `few` tiles count as several.
pub(super) fn snapped(past: usize, lengths: &[usize], tiles: &[usize], few: usize) -> Vec<usize> {
    let mut lengths = lengths.to_vec();
    let mut start = past;
    for i in 0..lengths.len().saturating_sub(1).min(tiles.len().saturating_sub(1)) {
        let (tile, here, behind) = (tiles[i], lengths[i], lengths[i + 1]);
        if tile > GRANULE && here >= few * tile && behind >= few * tile {
            // What stands before the first granule border makes the first piece no longer than its tiles.
            let cut = (start + (here + tile / 2) / tile * tile) / GRANULE * GRANULE;
            (lengths[i], lengths[i + 1]) = (cut - start, here + behind - (cut - start));
        }
        start += lengths[i];
    }
    lengths
}

fn check_given(past: usize, len: usize, n_adapters: usize, lengths: &[usize]) -> Result<()> {
    let fail = |text: String| Err(Error::Partition(text));
    if lengths.len() != n_adapters {
        return fail(format!("{} lengths for {n_adapters} pieces", lengths.len()));
    }
    let mut sum = 0usize;
    for (i, &n) in lengths.iter().enumerate() {
        if n == 0 {
            return fail(format!("piece {i} is empty"));
        }
        sum = sum.saturating_add(n);
        let cut = past.saturating_add(sum);
        if i + 1 < lengths.len() && !cut.is_multiple_of(GRANULE) {
            return fail(format!("the cut after piece {i} is at position {cut}, which is no multiple of {GRANULE}"));
        }
    }
    if sum != len {
        return fail(format!("the lengths add up to {sum}, but the prompt has {len} tokens"));
    }
    Ok(())
}
