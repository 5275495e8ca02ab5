//! Who computes which tokens, and who reads whose rows: a mode of prefill as plain data.
//!
//! Pure constructors make schedules; one worker carries out any of them and knows no mode's name.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::dims::Piece;
use crate::error::{Error, Result};

/// The ways to make a schedule. The worker and the simulator see the schedule alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// One adapter, the last one, does it all.
    Single,
    /// KV-Runahead with the direct hand-off: each piece leaves its adapter once.
    #[default]
    Runahead,
    /// KV-Runahead as in the paper: the growing cache passes from neighbour to neighbour.
    Relay,
    /// The paper's baseline, tensor/sequence parallelism: all-gather of K and V at every layer, dense attention, then the mask.
    Tsp,
    /// The same without the work that the mask hides.
    TspCausal,
    /// All-gather where each adapter has one piece of the front and one of the back, which balances causal attention.
    Zigzag,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 6] = [Mode::Single, Mode::Runahead, Mode::Relay, Mode::Tsp, Mode::TspCausal, Mode::Zigzag];

    /// The name that users type and see.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Single => "single",
            Mode::Runahead => "runahead",
            Mode::Relay => "relay",
            Mode::Tsp => "tsp",
            Mode::TspCausal => "tsp-causal",
            Mode::Zigzag => "zigzag",
        }
    }

    /// Pieces that a prompt is cut into for `n_adapters`.
    pub const fn n_pieces(self, n_adapters: usize) -> usize {
        match self {
            Mode::Single => 1,
            Mode::Zigzag => 2 * n_adapters,
            _ => n_adapters,
        }
    }

    /// Whether pieces of unequal length make sense: an adapter that waits for all others at every layer gains nothing from them.
    pub const fn is_chain(self) -> bool {
        matches!(self, Mode::Runahead | Mode::Relay)
    }

    /// The schedule of a prefill of pieces of these lengths in tokens, behind `past` tokens.
    pub fn schedule(self, past: usize, lengths: &[usize], n_layers: usize) -> Schedule {
        match self {
            Mode::Single => Schedule::single(past, lengths.iter().sum(), n_layers),
            Mode::Runahead => Schedule::runahead(past, lengths, n_layers),
            Mode::Relay => Schedule::relay(past, lengths, n_layers),
            Mode::Tsp => Schedule::tsp(past, lengths, n_layers),
            Mode::TspCausal => Schedule::tsp_causal(past, lengths, n_layers),
            Mode::Zigzag => Schedule::zigzag(past, lengths, n_layers),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Mode::ALL.into_iter().find(|m| m.name() == text);
        known.ok_or_else(|| Error::Unsupported { what: "prefill mode", name: text.to_owned() })
    }
}

/// How rows reach their readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// From the adapter that made them to all readers, through the board.
    #[default]
    Board,
    /// From each adapter to the next one: its own rows and all that it has received.
    Relay,
}

/// What attention computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mask {
    /// The keys that a row may see.
    #[default]
    Causal,
    /// All keys up to the end of the row's own piece, masked afterwards: a chain without a causal kernel, as the paper has it.
    BlockThenMask,
    /// All keys of the prompt; those behind the row are masked afterwards.
    DenseThenMask,
}

/// A prefill over adapters. Pieces are named by their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Disjoint runs of tokens in ascending order; together `past .. end`.
    pub pieces: Vec<Piece>,
    /// Per adapter: the pieces that it computes, ascending.
    pub share: Vec<Vec<usize>>,
    /// Per adapter: the pieces of others whose K/V rows it reads, ascending.
    pub needs: Vec<Vec<usize>>,
    /// How these rows come.
    pub route: Route,
    /// What attention computes.
    pub mask: Mask,
    /// Tokens that stand in the cache already.
    pub past: usize,
    /// Per adapter: whether rows `0..past` stand in its own cache; else it reads them from the record.
    pub holds_past: Vec<bool>,
    /// The layers to run.
    pub layers: Range<usize>,
    /// Per layer: the keys that a row sees at most, itself among them. Layers beyond the list have no window.
    pub windows: Vec<Option<usize>>,
}

/// Consecutive pieces of these lengths behind `past` tokens.
fn consecutive(past: usize, lengths: &[usize]) -> Vec<Piece> {
    let mut start = past;
    let piece = |&n: &usize| {
        let piece = Piece::new(start, start + n);
        start = piece.end;
        piece
    };
    lengths.iter().map(piece).collect()
}

impl Schedule {
    /// KV-Runahead: adapter `i` computes piece `i` and reads all earlier ones; the last adapter keeps the cache of every turn.
    pub fn runahead(past: usize, lengths: &[usize], n_layers: usize) -> Self {
        let n = lengths.len();
        Self {
            pieces: consecutive(past, lengths),
            share: (0..n).map(|i| vec![i]).collect(),
            needs: (0..n).map(|i| (0..i).collect()).collect(),
            route: Route::Board,
            mask: Mask::Causal,
            past,
            holds_past: (0..n).map(|i| i + 1 == n).collect(),
            layers: 0..n_layers,
            windows: Vec::new(),
        }
    }

    /// KV-Runahead with the paper's hand-off: what adapter `i` reads comes from adapter `i - 1`, whoever made it.
    pub fn relay(past: usize, lengths: &[usize], n_layers: usize) -> Self {
        Self { route: Route::Relay, ..Self::runahead(past, lengths, n_layers) }
    }

    /// The paper's baseline: everybody takes the rows of all others at every layer, a barrier, and computes every score.
    pub fn tsp(past: usize, lengths: &[usize], n_layers: usize) -> Self {
        Self { mask: Mask::DenseThenMask, ..Self::tsp_causal(past, lengths, n_layers) }
    }

    /// All-gather at every layer, but attention over the keys that a row may see.
    pub fn tsp_causal(past: usize, lengths: &[usize], n_layers: usize) -> Self {
        Self::runahead(past, lengths, n_layers).gathering()
    }

    /// All-gather with two pieces for each adapter, one of the front and one as far from the back; `lengths` are those of the pieces. The last
    /// adapter, which makes the first token, has the outermost two.
    pub fn zigzag(past: usize, lengths: &[usize], n_layers: usize) -> Self {
        let pieces = consecutive(past, lengths);
        let n = pieces.len().div_ceil(2);
        let pair = |i: usize| {
            let (front, back) = (n - 1 - i, pieces.len() - n + i);
            if front == back { vec![front] } else { vec![front, back] }
        };
        let share: Vec<Vec<usize>> = (0..n).map(pair).collect();
        let holds_past = (0..n).map(|i| i + 1 == n).collect();
        let (needs, layers, windows) = (vec![Vec::new(); n], 0..n_layers, Vec::new());
        Self { pieces, share, needs, route: Route::Board, mask: Mask::Causal, past, holds_past, layers, windows }
            .gathering()
    }

    /// The same shares, where everybody takes what all others make.
    fn gathering(mut self) -> Self {
        let all = 0..self.pieces.len();
        self.needs = self.share.iter().map(|own| all.clone().filter(|p| !own.contains(p)).collect()).collect();
        self
    }

    /// One adapter does it all.
    pub fn single(past: usize, len: usize, n_layers: usize) -> Self {
        Self::runahead(past, &[len], n_layers)
    }

    /// The same for a model with these windows ([`Schedule::windows`]): rows that no window of their readers reaches are not handed on.
    pub fn windowed(self, windows: &[Option<usize>]) -> Self {
        Self { windows: windows.to_vec(), ..self }
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

    /// The pieces that `adapter` hands on at each layer, ascending, and to whom each.
    pub fn sends(&self, adapter: usize) -> Vec<(usize, Vec<usize>)> {
        match self.route {
            Route::Board => {
                let own = self.share[adapter].iter().map(|&p| (p, self.readers(p).collect::<Vec<_>>()));
                own.filter(|(_, readers)| !readers.is_empty()).collect()
            }
            Route::Relay if adapter + 1 < self.n_adapters() => {
                let next = &self.needs[adapter + 1];
                next.iter().map(|&p| (p, vec![adapter + 1])).collect()
            }
            Route::Relay => Vec::new(),
        }
    }

    /// The keys that a row of a layer sees at most.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }

    /// The first key that the row at `position` sees in a layer.
    fn first_key(&self, layer: usize, position: usize) -> usize {
        self.window(layer).map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The rows of another's `piece` that `adapter` takes in a layer: the end of it that the windows of its own later pieces reach. Without a window
    /// all rows, those of later pieces too, which [`Mask::DenseThenMask`] computes with.
    pub fn rows_taken(&self, adapter: usize, piece: usize, layer: usize) -> Piece {
        let all = self.pieces[piece];
        if self.window(layer).is_none() {
            return all;
        }
        // Of all own pieces behind it, the next one sees the most of it.
        let next = self.share[adapter].iter().filter(|&&own| own > piece).min();
        let first = next.map_or(all.end, |&own| self.first_key(layer, self.pieces[own].start));
        Piece::new(first.clamp(all.start, all.end), all.end)
    }

    /// The rows of `piece` that `adapter` hands on in a layer: what its readers take.
    pub fn rows_sent(&self, adapter: usize, piece: usize, layer: usize) -> Piece {
        let end = self.pieces[piece].end;
        let first = |reader| self.rows_taken(reader, piece, layer).start;
        let start = match self.route {
            Route::Board => self.readers(piece).map(first).min(),
            // Whoever comes after the neighbour sees less of it.
            Route::Relay => Some(adapter + 1).filter(|&next| next < self.n_adapters()).map(first),
        };
        Piece::new(start.unwrap_or(end), end)
    }

    /// The rows of earlier turns that `adapter` takes from the record in a layer.
    pub fn past_taken(&self, adapter: usize, layer: usize) -> Piece {
        let first = self.share[adapter].iter().map(|&p| self.pieces[p].start).min();
        let first = first.filter(|_| !self.holds_past[adapter]).map(|start| self.first_key(layer, start));
        Piece::new(first.unwrap_or(self.past).min(self.past), self.past)
    }

    /// The rows of earlier turns that the record must hold in a layer.
    pub fn past_read(&self, layer: usize) -> Piece {
        let start = (0..self.n_adapters()).map(|i| self.past_taken(i, layer).start).min();
        Piece::new(start.unwrap_or(self.past), self.past)
    }

    /// Positions from the first to the last token that `adapter` computes, others' between them.
    pub fn span(&self, adapter: usize) -> usize {
        let pieces = || self.share[adapter].iter().map(|&p| self.pieces[p]);
        let (start, end) = (pieces().map(|p| p.start).min(), pieces().map(|p| p.end).max());
        end.zip(start).map_or(0, |(end, start)| end - start)
    }

    /// The fewest tokens, beside none, to which the last adapter's cache can be cut back after this prefill if it could hold every row: where its
    /// windows left out rows before its last piece, those are missing.
    pub fn least_kept(&self) -> usize {
        let Some(&Piece { start, .. }) = self.pieces.last() else { return 0 };
        let left_out = self.layers.clone().any(|layer| self.first_key(layer, start) > self.past);
        if left_out { start } else { 0 }
    }

    /// Scores that `adapter` computes in a layer: pairs of a query and a key.
    pub fn n_scores(&self, adapter: usize, layer: usize) -> u64 {
        let end = self.past + self.n_tokens();
        let window = self.window(layer);
        let of = |piece: Piece| {
            // Every row sees itself and what stands before it; then rows that see a whole window, whatever stands before them.
            let growing = window.map_or(piece.len(), |w| w.saturating_sub(piece.start).min(piece.len()));
            let seen = growing * piece.start
                + growing * (growing + 1) / 2
                + (piece.len() - growing) * window.unwrap_or_default();
            let in_vain = match self.mask {
                Mask::Causal => 0,
                Mask::BlockThenMask => piece.len() * (piece.len() - 1) / 2,
                Mask::DenseThenMask => piece.len() * (end - piece.end) + piece.len() * (piece.len() - 1) / 2,
            };
            (seen + in_vain) as u64
        };
        self.share[adapter].iter().map(|&p| of(self.pieces[p])).sum()
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
            if self.mask == Mask::DenseThenMask && share.len() + needs.len() != self.pieces.len() {
                return fail(format!("adapter {i} computes every score with {share:?} and {needs:?} alone"));
            }
            if self.route == Route::Relay && i > 0 && needs.iter().any(|p| !self.passes(i - 1, *p)) {
                return fail(format!("adapter {} has not all of {needs:?} to hand on", i - 1));
            }
        }
        if !self.share[n - 1].contains(&(self.pieces.len().wrapping_sub(1))) {
            return fail("the last token is not the last adapter's, which has to make the first new one".to_owned());
        }
        Ok(())
    }

    /// Whether `adapter` has the rows of `piece` at some time in a layer.
    fn passes(&self, adapter: usize, piece: usize) -> bool {
        self.share[adapter].contains(&piece) || self.needs[adapter].contains(&piece)
    }
}
