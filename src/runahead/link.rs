//! The host link `copy`: K/V rows from one adapter's cache to the board and from the board into another's, by copies that work on any back end.
//!
//! Contract, which other links share: `export` is recorded with the work that makes the rows; `publish` runs on the courier once that work is
//! submitted and may block; `import` runs on the worker and is seen by every submission after it.

use crate::cancel::Wait;
use crate::dims::Piece;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::model::KvCache;
use crate::runahead::board::{Block, Board};
use crate::runahead::experiment::Sent;

/// Rows of one piece in one layer on their way out of an adapter.
pub struct Export<K: Kernels> {
    /// Which piece.
    pub piece: usize,
    /// K and V together.
    pub bytes: u64,
    copies: Vec<[K::Download; 2]>,
}

/// Where rows go, and what is to be said of them.
pub struct Address<'a> {
    /// The board.
    pub board: &'a Board,
    /// The sending adapter.
    pub from: usize,
    /// The layer.
    pub layer: usize,
    /// When a shaped link has them through.
    pub sent: Option<Sent>,
}

/// Records the copies of a piece's rows out of the cache.
///
/// # Errors
/// The device's.
pub fn export<K: Kernels>(
    kernels: &K,
    rec: &mut K::Recording,
    cache: &KvCache<K>,
    layer: usize,
    piece: usize,
    rows: Piece,
) -> Result<Export<K>> {
    let copies = cache.download(kernels, rec, layer, rows)?;
    let bytes = 2 * (rows.len() * cache.row_bytes()) as u64;
    Ok(Export { piece, bytes, copies })
}

/// Waits for the rows, copies them to the board and tells the readers.
///
/// # Errors
/// A cancel, a lost adapter, or a board whose readers gave nothing back in time.
pub fn publish<K: Kernels>(
    kernels: &K,
    export: Export<K>,
    after: &K::Submitted,
    to: &Address<'_>,
    wait: &Wait,
) -> Result<()> {
    let mut block = to.board.reserve(to.from, to.layer, export.piece, wait)?;
    let (k, v) = block.halves_mut();
    let mut at = 0;
    for [of_k, of_v] in export.copies {
        let start = at;
        kernels.collect(of_k, after, wait, &mut |bytes| {
            at = start + bytes.len();
            k[start..at].copy_from_slice(bytes);
        })?;
        kernels.collect(of_v, after, wait, &mut |bytes| v[start..start + bytes.len()].copy_from_slice(bytes))?;
    }
    to.board.publish(to.from, to.layer, export.piece, block, to.sent, wait)
}

/// Copies those of a block's rows into the cache that are among `rows`: in a ring, older ones would take the place of rows that are needed. Returns the
/// bytes fetched.
///
/// # Errors
/// The device's.
pub fn import<K: Kernels>(kernels: &K, cache: &KvCache<K>, layer: usize, block: &Block, rows: Piece) -> Result<u64> {
    let (rows, k, v) = block.part(rows);
    cache.write(kernels, layer, rows, k, v)?;
    Ok((k.len() + v.len()) as u64)
}
