//! Counting in tokens: granules, pieces, paddings.

/// Rows that share their arithmetic: 16 consecutive token rows at absolute positions 16k..16k+15. Cuts between adapters fall between granules.
pub const GRANULE: usize = 16;

/// The smallest multiple of `step` that is at least `n`.
pub const fn round_up(n: usize, step: usize) -> usize {
    n.div_ceil(step) * step
}

/// A contiguous run of tokens at absolute positions `start..end` that one adapter computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Absolute position of the first token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
}

impl Piece {
    /// The piece `start..end`.
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Number of tokens.
    pub const fn len(self) -> usize {
        self.end - self.start
    }

    /// Whether it holds no token.
    pub const fn is_empty(self) -> bool {
        self.end == self.start
    }
}
