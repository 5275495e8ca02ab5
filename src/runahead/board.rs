//! The board: K/V rows on their way between adapters, in host memory.
//!
//! An adapter's courier reserves a block, fills it and publishes it; every reader gets a handle to the same bytes, so a piece leaves its adapter
//! once whatever the number of readers. The memory of a block goes back to its free list when the last handle is dropped. Each piece of each
//! sender has a free list of its own: an adapter that runs far ahead fills its own slots and waits, and can never take the room that a later
//! adapter needs to reach the same layer.

use std::sync::{Arc, Mutex};

use crate::cancel::Wait;
use crate::dims::Piece;
use crate::error::{Error, Result};
use crate::runahead::experiment::Sent;
use crate::runahead::schedule::Schedule;

/// Layers of one piece that may be on the board at a time. Two would let an adapter be one layer ahead of its slowest reader; with three it does not
/// stall while a reader is busy with a layer.
const TRANSIT_SLOTS: usize = 3;

/// K rows, then V rows, `[tokens, kv_heads, head_dim]` each, of one layer.
#[derive(Debug)]
pub struct Block {
    /// Which tokens.
    pub rows: Piece,
    bytes: Vec<u8>,
    home: Option<flume::Sender<Vec<u8>>>,
}

impl Block {
    /// A block that belongs to no free list: `bytes` holds the K rows, then the V rows.
    pub fn new(rows: Piece, bytes: Vec<u8>) -> Self {
        Self { rows, bytes, home: None }
    }

    /// The K rows.
    pub fn k(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() / 2]
    }

    /// The V rows.
    pub fn v(&self) -> &[u8] {
        &self.bytes[self.bytes.len() / 2..]
    }

    /// A copy of the first `n` rows.
    fn front(&self, n: usize) -> Self {
        let bytes = self.k().len() / self.rows.len() * n;
        let rows = Piece::new(self.rows.start, self.rows.start + n);
        Self::new(rows, [&self.k()[..bytes], &self.v()[..bytes]].concat())
    }

    /// K rows and V rows, to be filled.
    pub fn halves_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        let half = self.bytes.len() / 2;
        self.bytes.split_at_mut(half)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            // The list has room for every block that came from it; a closed list means that the prefill is over.
            let _ = home.try_send(std::mem::take(&mut self.bytes));
        }
    }
}

/// A published block, as a reader receives it.
#[derive(Debug)]
pub struct Arrival {
    /// The layer.
    pub layer: usize,
    /// The piece.
    pub piece: usize,
    /// Its rows.
    pub block: Arc<Block>,
    /// When a shaped link has it through from its sender.
    pub sent: Option<Sent>,
}

/// K/V rows kept on the host after a prefill: what a later turn's first adapters read, and what a session saves.
#[derive(Clone, Debug)]
pub struct Record {
    layers: Vec<Vec<Arc<Block>>>,
}

impl Record {
    /// No rows, for a model of `n_layers`.
    pub fn new(n_layers: usize) -> Self {
        Self { layers: vec![Vec::new(); n_layers] }
    }

    /// Keeps a block. Blocks of a layer may come in any order.
    pub fn keep(&mut self, layer: usize, block: Arc<Block>) {
        let blocks = &mut self.layers[layer];
        let at = blocks.partition_point(|b| b.rows.start < block.rows.start);
        blocks.insert(at, block);
    }

    /// The blocks of a layer, ascending.
    pub fn blocks(&self, layer: usize) -> &[Arc<Block>] {
        &self.layers[layer]
    }

    /// Forgets all rows from position `n_tokens` on.
    pub fn truncate(&mut self, n_tokens: usize) {
        for blocks in &mut self.layers {
            blocks.retain(|b| b.rows.start < n_tokens);
            for block in blocks.iter_mut().filter(|b| b.rows.end > n_tokens) {
                *block = Arc::new(block.front(n_tokens - block.rows.start));
            }
        }
    }

    /// Tokens from position 0 on whose rows are there in every layer without a gap.
    pub fn n_tokens(&self) -> usize {
        let end = |blocks: &Vec<Arc<Block>>| {
            blocks.iter().fold(0, |end, b| if b.rows.start <= end { end.max(b.rows.end) } else { end })
        };
        self.layers.iter().map(end).min().unwrap_or(0)
    }
}

/// What becomes of published rows once every reader has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// Their memory is used again: the default, bounded by a few layers.
    #[default]
    Transit,
    /// They are kept, all layers of them.
    Record,
}

/// A piece on its way from one sender, with both ends of its free list.
struct Hop {
    piece: usize,
    readers: Vec<usize>,
    back: flume::Sender<Vec<u8>>,
    take: flume::Receiver<Vec<u8>>,
}

impl Hop {
    fn new((piece, readers): (usize, Vec<usize>)) -> Self {
        let (back, take) = flume::bounded(TRANSIT_SLOTS);
        for _ in 0..TRANSIT_SLOTS {
            let _ = back.try_send(Vec::new());
        }
        Self { piece, readers, back, take }
    }
}

/// See the module's text.
pub struct Board {
    schedule: Schedule,
    row_bytes: usize,
    /// Per adapter: what it sends.
    hops: Vec<Vec<Hop>>,
    mailboxes: Vec<flume::Sender<Arrival>>,
    record: Mutex<Record>,
    retention: Retention,
}

impl Board {
    /// A board for one prefill, and each adapter's mailbox. `row_bytes` is one token's K row in one layer. `record` holds the past where an
    /// adapter reads it.
    ///
    /// # Errors
    /// [`Error::Partition`] where the record is shorter than a past that somebody reads.
    pub fn new(
        schedule: &Schedule,
        row_bytes: usize,
        retention: Retention,
        record: Record,
    ) -> Result<(Self, Vec<flume::Receiver<Arrival>>)> {
        if schedule.reads_past() && record.n_tokens() < schedule.past {
            return Err(Error::Partition(format!(
                "the record holds {} of {} earlier tokens",
                record.n_tokens(),
                schedule.past
            )));
        }
        let hops = (0..schedule.n_adapters()).map(|i| schedule.sends(i).into_iter().map(Hop::new).collect()).collect();
        // Unread blocks are bounded by the free lists, or are all that there will ever be.
        let most = |needs: &Vec<usize>| {
            needs.len() * if retention == Retention::Transit { TRANSIT_SLOTS } else { schedule.layers.len() }
        };
        let (mailboxes, receivers) = schedule.needs.iter().map(|n| flume::bounded(most(n).max(1))).unzip();
        let board =
            Self { schedule: schedule.clone(), row_bytes, hops, mailboxes, record: Mutex::new(record), retention };
        Ok((board, receivers))
    }

    /// Host bytes that a prefill will hold on the board at most.
    pub fn bytes(schedule: &Schedule, row_bytes: usize, retention: Retention) -> u64 {
        let layers = match retention {
            Retention::Transit => TRANSIT_SLOTS.min(schedule.layers.len()),
            Retention::Record => schedule.layers.len(),
        };
        let sent = (0..schedule.n_adapters()).flat_map(|i| schedule.sends(i));
        let rows: usize = sent.map(|(p, _)| schedule.pieces[p].len()).sum();
        2 * (layers * rows * row_bytes) as u64
    }

    /// A block for one layer of `piece` from adapter `from`; waits for a free one.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Timeout`] where no reader gave one back, [`Error::Partition`] for a piece that the adapter does not send.
    pub fn reserve(&self, from: usize, piece: usize, wait: &Wait) -> Result<Block> {
        let rows = self.schedule.pieces[piece];
        let len = 2 * rows.len() * self.row_bytes;
        if self.retention == Retention::Record {
            return Ok(Block::new(rows, vec![0; len]));
        }
        let hop = self.hop(from, piece)?;
        let mut bytes = wait.recv(&hop.take, "a free block on the board")?.unwrap_or_default();
        bytes.resize(len, 0);
        Ok(Block { rows, bytes, home: Some(hop.back.clone()) })
    }

    /// Hands a filled block to every reader. A reader that has ended is passed over.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; never waits long, since mailboxes have room for every block that can exist. [`Error::Partition`] as in
    /// [`Board::reserve`].
    pub fn publish(
        &self,
        from: usize,
        layer: usize,
        piece: usize,
        block: Block,
        sent: Option<Sent>,
        wait: &Wait,
    ) -> Result<()> {
        let block = Arc::new(block);
        // By relay a piece is sent several times; whoever made it has it kept.
        if self.retention == Retention::Record && self.schedule.share[from].contains(&piece) {
            self.lock_record().keep(layer, Arc::clone(&block));
        }
        for &reader in &self.hop(from, piece)?.readers {
            let arrival = Arrival { layer, piece, block: Arc::clone(&block), sent };
            wait.send(&self.mailboxes[reader], arrival, "room in a mailbox")?;
        }
        Ok(())
    }

    fn hop(&self, from: usize, piece: usize) -> Result<&Hop> {
        let hop = self.hops[from].iter().find(|hop| hop.piece == piece);
        hop.ok_or_else(|| Error::Partition(format!("adapter {from} has no reader for piece {piece}")))
    }

    /// The rows of earlier turns in one layer.
    pub fn past(&self, layer: usize) -> Vec<Arc<Block>> {
        self.lock_record().blocks(layer).iter().filter(|b| b.rows.start < self.schedule.past).cloned().collect()
    }

    /// What was kept, after the prefill.
    pub fn into_record(self) -> Record {
        self.record.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_record(&self) -> std::sync::MutexGuard<'_, Record> {
        // A thread that panicked while inserting an Arc leaves the list sound; the panic itself is reported by the chain.
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
