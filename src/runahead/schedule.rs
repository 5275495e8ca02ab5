//! Who computes which tokens, and who reads whose rows: a mode of prefill as plain data.
//!
//! Pure constructors make schedules; one worker carries out any of them and knows no mode's name.

use std::ops::Range;

use crate::dims::Piece;
use crate::error::{Error, Result};

/// A prefill over adapters. Pieces are named by their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Disjoint runs of tokens in ascending order; together `past .. end`.
    pub pieces: Vec<Piece>,
    /// Per adapter: the pieces that it computes, ascending.
    pub share: Vec<Vec<usize>>,
    /// Per adapter: the pieces of others whose K/V rows it reads, ascending.
    pub needs: Vec<Vec<usize>>,
    /// Tokens that stand in the cache already.
    pub past: usize,
    /// Per adapter: whether rows `0..past` stand in its own cache; else it reads them from the record.
    pub holds_past: Vec<bool>,
    /// The layers to run.
    pub layers: Range<usize>,
}

impl Schedule {
    /// KV-Runahead: adapter `i` computes piece `i` and reads all earlier ones; the last adapter keeps the cache of every turn.
    pub fn runahead(past: usize, lengths: &[usize], n_layers: usize) -> Self {
        let mut start = past;
        let pieces: Vec<Piece> = lengths
            .iter()
            .map(|&n| {
                let piece = Piece::new(start, start + n);
                start += n;
                piece
            })
            .collect();
        let n = pieces.len();
        Self {
            pieces,
            share: (0..n).map(|i| vec![i]).collect(),
            needs: (0..n).map(|i| (0..i).collect()).collect(),
            past,
            holds_past: (0..n).map(|i| i + 1 == n).collect(),
            layers: 0..n_layers,
        }
    }

    /// One adapter does it all.
    pub fn single(past: usize, len: usize, n_layers: usize) -> Self {
        Self::runahead(past, &[len], n_layers)
    }

    /// Number of adapters that take part.
    pub fn n_adapters(&self) -> usize {
        self.share.len()
    }

    /// Number of tokens that are computed.
    pub fn n_tokens(&self) -> usize {
        self.pieces.iter().map(|p| p.len()).sum()
    }

    /// Number of tokens that `adapter` computes.
    pub fn n_rows(&self, adapter: usize) -> usize {
        self.share[adapter].iter().map(|&p| self.pieces[p].len()).sum()
    }

    /// The adapters that read `piece`.
    pub fn readers(&self, piece: usize) -> impl Iterator<Item = usize> + '_ {
        self.needs.iter().enumerate().filter(move |(_, needs)| needs.contains(&piece)).map(|(i, _)| i)
    }

    /// Whether any adapter reads the past from the record.
    pub fn reads_past(&self) -> bool {
        self.past > 0 && self.holds_past.contains(&false)
    }

    /// Checks that every piece is computed once and that every row which attention sees is there.
    ///
    /// # Errors
    /// [`Error::Partition`] names the first fault.
    pub fn validate(&self) -> Result<()> {
        let fail = |text: String| Err(Error::Partition(text));
        let mut at = self.past;
        for (i, p) in self.pieces.iter().enumerate() {
            if p.start != at || p.end <= p.start {
                return fail(format!("piece {i} is {}..{}, expected to start at {at}", p.start, p.end));
            }
            at = p.end;
        }
        let n = self.n_adapters();
        if self.needs.len() != n || self.holds_past.len() != n || n == 0 {
            return fail(format!("{n} shares, {} lists of needs", self.needs.len()));
        }
        let mut owners = vec![0usize; self.pieces.len()];
        for &p in self.share.iter().flatten() {
            match owners.get_mut(p) {
                Some(count) => *count += 1,
                None => return fail(format!("there is no piece {p}")),
            }
        }
        if let Some(i) = owners.iter().position(|&c| c != 1) {
            return fail(format!("piece {i} is computed {} times", owners[i]));
        }
        for (i, (share, needs)) in self.share.iter().zip(&self.needs).enumerate() {
            let last = share.iter().max().copied().unwrap_or(0);
            if let Some(missing) = (0..last).find(|p| !share.contains(p) && !needs.contains(p)) {
                return fail(format!("adapter {i} computes piece {last} without the rows of piece {missing}"));
            }
            if needs.iter().any(|p| share.contains(p) || *p >= self.pieces.len()) {
                return fail(format!("adapter {i} needs {needs:?} beside its share {share:?}"));
            }
        }
        Ok(())
    }
}
