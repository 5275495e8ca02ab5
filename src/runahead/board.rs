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
use crate::gpu::{HostMemory, PeerMemory};
use crate::runahead::experiment::Sent;
use crate::runahead::pool::HostPool;
use crate::runahead::schedule::Schedule;

/// Layers of one piece that may be on the board at a time. Two would let an adapter be one layer ahead of its slowest reader; with three it does not
/// stall while a reader is busy with a layer.
const TRANSIT_SLOTS: usize = 3;

/// K rows, then V rows, `[tokens, kv_heads, head_dim]` each, of one layer.
#[derive(Debug)]
pub struct Block {
    /// Which tokens.
    pub rows: Piece,
    bytes: Bytes,
    len: usize,
    wanted: Wanted,
    /// The rows in the memory of the device that sent them.
    peer: Option<PeerMemory>,
    home: Option<Home>,
}

/// Where the readers of some rows look for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// In host memory.
    pub host: bool,
    /// In the memory of the device that made them.
    pub peer: bool,
}

impl Wanted {
    /// In host memory alone.
    pub const HOST: Self = Self { host: true, peer: false };
}

/// What a block is made of.
#[derive(Debug)]
enum Bytes {
    /// Memory that devices can import, of which the block may use only a part.
    Pages(HostMemory),
    /// Any other.
    Heap(Vec<u8>),
}

/// Where a block's memory goes when nobody needs it any more.
#[derive(Debug)]
struct Home {
    pool: HostPool,
    free: flume::Sender<()>,
}

impl Block {
    /// A block that belongs to no free list: `bytes` holds the K rows, then the V rows.
    pub fn new(rows: Piece, bytes: Vec<u8>) -> Self {
        Self { rows, len: bytes.len(), bytes: Bytes::Heap(bytes), wanted: Wanted::HOST, peer: None, home: None }
    }

    /// As [`Block::new`], copied to where devices can read it by themselves.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn in_pages(rows: Piece, bytes: &[u8]) -> Result<Self> {
        let pages = HostMemory::from_bytes(bytes)?;
        let len = bytes.len();
        Ok(Self { rows, len, bytes: Bytes::Pages(pages), wanted: Wanted::HOST, peer: None, home: None })
    }

    /// For rows that pass from an adapter to itself, as they would to another one, through memory of the pool.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn on_trial(rows: Piece, row_bytes: usize, wanted: Wanted, pool: &HostPool) -> Result<Self> {
        let len = 2 * rows.len() * row_bytes;
        let home = Some(Home { pool: pool.clone(), free: flume::bounded(0).0 });
        Ok(Self { rows, bytes: Bytes::Pages(pool.take(len)?), len, wanted, peer: None, home })
    }

    /// The K rows, and behind them the V rows, where devices can read them by themselves.
    pub fn pages(&self) -> Option<&HostMemory> {
        if let Bytes::Pages(pages) = &self.bytes { Some(pages) } else { None }
    }

    /// As [`Block::pages`], to be filled.
    pub fn pages_mut(&mut self) -> Option<&mut HostMemory> {
        if let Bytes::Pages(pages) = &mut self.bytes { Some(pages) } else { None }
    }

    /// Where its readers look for the rows.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// The rows as [`Kernels::copy_to_peers`](crate::kernels::Kernels::copy_to_peers) left them, K before V; without them, everybody needs the
    /// bytes here.
    pub fn set_peer(&mut self, memory: Option<PeerMemory>) {
        if memory.is_none() {
            self.wanted = Wanted::HOST;
        }
        self.peer = memory;
    }

    /// The rows in the memory of the device that sent them.
    pub fn peer(&self) -> Option<&PeerMemory> {
        self.peer.as_ref()
    }

    /// Byte of [`Block::pages`] at which the V rows begin.
    pub fn v_offset(&self) -> usize {
        self.len / 2
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Pages(pages) => &pages[..self.len],
            Bytes::Heap(bytes) => bytes,
        }
    }

    /// K rows and V rows of those positions of `rows` that it holds, and which these are.
    pub fn part(&self, rows: Piece) -> (Piece, &[u8], &[u8]) {
        let start = rows.start.clamp(self.rows.start, self.rows.end);
        let end = rows.end.clamp(start, self.rows.end);
        let (k, v) = self.bytes().split_at(self.len / 2);
        let at = |position: usize| k.len() / self.rows.len().max(1) * (position - self.rows.start);
        (Piece::new(start, end), &k[at(start)..at(end)], &v[at(start)..at(end)])
    }

    /// K rows and V rows, to be filled.
    pub fn halves_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        let len = self.len;
        let bytes = match &mut self.bytes {
            Bytes::Pages(pages) => &mut pages[..len],
            Bytes::Heap(bytes) => bytes,
        };
        bytes.split_at_mut(len / 2)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let (Some(home), Bytes::Pages(pages)) = (self.home.take(), &mut self.bytes) {
            home.pool.put(std::mem::take(pages));
            // The list has room for every block that came from it; a closed list means that the prefill is over.
            let _ = home.free.try_send(());
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
                let (rows, k, v) = block.part(Piece::new(0, n_tokens));
                *block = Arc::new(Block::new(rows, [k, v].concat()));
            }
        }
    }

    /// Up to which position the rows of a layer from `start` on are there without a gap.
    pub fn end(&self, layer: usize, start: usize) -> usize {
        self.layers[layer].iter().fold(start, |end, b| if b.rows.start <= end { end.max(b.rows.end) } else { end })
    }

    /// Forgets a layer's blocks from `start` on.
    pub fn forget_from(&mut self, layer: usize, start: usize) {
        self.layers[layer].retain(|b| b.rows.start < start);
    }

    /// Lets go of the blocks of a layer that end before `start`.
    pub fn forget_before(&mut self, layer: usize, start: usize) {
        self.layers[layer].retain(|b| b.rows.end > start);
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
    /// A free list counts; the memory is the pool's.
    back: flume::Sender<()>,
    take: flume::Receiver<()>,
}

impl Hop {
    fn new((piece, readers): (usize, Vec<usize>)) -> Self {
        let (back, take) = flume::bounded(TRANSIT_SLOTS);
        for _ in 0..TRANSIT_SLOTS {
            let _ = back.try_send(());
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
    pool: HostPool,
    /// Which adapters hand rows to each other without the host.
    peers: Vec<bool>,
}

impl Board {
    /// A board for one prefill, and each adapter's mailbox. `row_bytes` is one token's K row in one layer. `record` holds the past where an
    /// adapter reads it; blocks are made of `pool`'s memory.
    ///
    /// # Errors
    /// [`Error::Partition`] where the record is shorter than a past that somebody reads.
    pub fn new(
        schedule: &Schedule,
        row_bytes: usize,
        retention: Retention,
        record: Record,
        pool: HostPool,
    ) -> Result<(Self, Vec<flume::Receiver<Arrival>>)> {
        for layer in schedule.layers.clone().filter(|_| schedule.reads_past()) {
            let end = record.end(layer, schedule.past_read(layer).start);
            if end < schedule.past {
                let past = schedule.past;
                return Err(Error::Partition(format!(
                    "the record holds {end} of {past} earlier tokens of layer {layer}"
                )));
            }
        }
        let hops = (0..schedule.n_adapters()).map(|i| schedule.sends(i).into_iter().map(Hop::new).collect()).collect();
        // Unread blocks are bounded by the free lists, or are all that there will ever be.
        let most = |needs: &Vec<usize>| {
            needs.len() * if retention == Retention::Transit { TRANSIT_SLOTS } else { schedule.layers.len() }
        };
        let (mailboxes, receivers) = schedule.needs.iter().map(|n| flume::bounded(most(n).max(1))).unzip();
        let board = Self {
            schedule: schedule.clone(),
            row_bytes,
            hops,
            mailboxes,
            record: Mutex::new(record),
            retention,
            pool,
            peers: Vec::new(),
        };
        Ok((board, receivers))
    }

    /// The same board, where `peers` says of each adapter whether it hands rows on to others of the kind without the host.
    pub fn with_peers(self, peers: Vec<bool>) -> Self {
        Self { peers, ..self }
    }

    /// Host bytes that a prefill will hold on the board at most.
    pub fn bytes(schedule: &Schedule, row_bytes: usize, retention: Retention) -> u64 {
        let rows = |(i, p)| {
            let rows = schedule.layers.clone().map(|layer| schedule.rows_sent(i, p, layer).len());
            match retention {
                // A block is as large as the largest that it has been.
                Retention::Transit => TRANSIT_SLOTS.min(schedule.layers.len()) * rows.max().unwrap_or(0),
                Retention::Record => rows.sum(),
            }
        };
        2 * (sent(schedule).map(rows).sum::<usize>() * row_bytes) as u64
    }

    /// Bytes of the smallest block of a prefill: idle memory that is smaller is of no use to it.
    pub fn least_block_bytes(schedule: &Schedule, row_bytes: usize) -> usize {
        let rows = |(i, p)| schedule.layers.clone().map(move |layer| schedule.rows_sent(i, p, layer).len());
        2 * sent(schedule).flat_map(rows).filter(|&n| n > 0).min().unwrap_or(0) * row_bytes
    }

    /// A block for what adapter `from` sends of `piece` in a layer ([`Schedule::rows_sent`]); waits for a free one.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Partition`] for a piece that the adapter does not send.
    pub fn reserve(&self, from: usize, layer: usize, piece: usize, wait: &Wait) -> Result<Block> {
        let rows = self.schedule.rows_sent(from, piece, layer);
        let len = 2 * rows.len() * self.row_bytes;
        if self.retention == Retention::Record {
            // Kept for long: not a byte more than it needs, and none of a device's.
            let bytes = Bytes::Pages(HostMemory::new(len)?);
            return Ok(Block { rows, bytes, len, wanted: Wanted::HOST, peer: None, home: None });
        }
        let (hop, wanted) = (self.hop(from, piece)?, self.wanted(from, piece)?);
        // A slow reader gives one back for each layer that it has computed.
        wait.recv_patiently(&hop.take)?;
        let home = Home { pool: self.pool.clone(), free: hop.back.clone() };
        Ok(Block { rows, bytes: Bytes::Pages(self.pool.take(len)?), len, wanted, peer: None, home: Some(home) })
    }

    /// Where the readers of a piece that adapter `from` sends look for its rows.
    ///
    /// # Errors
    /// [`Error::Partition`] for a piece that the adapter does not send.
    pub fn wanted(&self, from: usize, piece: usize) -> Result<Wanted> {
        let is_peer = |adapter: usize| self.peers.get(adapter).copied().unwrap_or(false);
        if self.retention == Retention::Record || !is_peer(from) {
            return Ok(Wanted::HOST);
        }
        let readers = &self.hop(from, piece)?.readers;
        let [host, peer] = [false, true].map(|kind| readers.iter().any(|&reader| is_peer(reader) == kind));
        Ok(Wanted { host, peer })
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

/// Adapters with the pieces that they send.
fn sent(schedule: &Schedule) -> impl Iterator<Item = (usize, usize)> + '_ {
    (0..schedule.n_adapters()).flat_map(|i| schedule.sends(i).into_iter().map(move |(p, _)| (i, p)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cancel::Cancel;

    #[test]
    fn a_slow_reader_is_waited_for_however_long_it_takes() {
        let schedule = Schedule::runahead(0, &[16, 16], 8);
        let (board, mailboxes) =
            Board::new(&schedule, 4, Retention::Transit, Record::new(8), HostPool::default()).unwrap();
        let cancel = Cancel::new();
        let wait = Wait { limit: Duration::from_millis(1), ..Wait::new(&cancel) };
        for layer in 0..TRANSIT_SLOTS {
            let block = board.reserve(0, layer, 0, &wait).unwrap();
            board.publish(0, layer, 0, block, None, &wait).unwrap();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Many times the limit, and of what a wait sleeps at a time.
                std::thread::sleep(Duration::from_millis(200));
                drop(mailboxes[1].recv().unwrap());
            });
            board.reserve(0, TRANSIT_SLOTS, 0, &wait).unwrap();
        });
        cancel.cancel();
        assert!(matches!(board.reserve(0, TRANSIT_SLOTS + 1, 0, &wait), Err(Error::Cancelled)));
    }
}
