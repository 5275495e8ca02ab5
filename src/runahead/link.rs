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

/// Rows of one piece in one layer on their way out of an adapter.
pub struct Export<K: Kernels> {
    piece: usize,
    k: K::Download,
    v: K::Download,
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
    let range = rows.start * cache.width()..rows.end * cache.width();
    let k = kernels.download(rec, cache.k(layer), range.clone())?;
    let v = kernels.download(rec, cache.v(layer), range)?;
    Ok(Export { piece, k, v })
}

/// Waits for the rows, copies them to the board and tells the readers. Returns the bytes published.
///
/// # Errors
/// A cancel, a lost adapter, or a board whose readers gave nothing back in time.
pub fn publish<K: Kernels>(
    kernels: &K,
    export: Export<K>,
    after: &K::Submitted,
    layer: usize,
    board: &Board,
    wait: &Wait,
) -> Result<u64> {
    let mut block = board.reserve(export.piece, wait)?;
    let (k, v) = block.halves_mut();
    kernels.collect(export.k, after, wait, &mut |bytes| k.copy_from_slice(bytes))?;
    kernels.collect(export.v, after, wait, &mut |bytes| v.copy_from_slice(bytes))?;
    let bytes = (block.k().len() + block.v().len()) as u64;
    board.publish(layer, export.piece, block, wait)?;
    Ok(bytes)
}

/// Copies a block's rows into the cache. Returns the bytes fetched.
///
/// # Errors
/// The device's.
pub fn import<K: Kernels>(kernels: &K, cache: &KvCache<K>, layer: usize, block: &Block) -> Result<u64> {
    let at = block.rows.start * cache.width();
    kernels.write(cache.k(layer), at, block.k())?;
    kernels.write(cache.v(layer), at, block.v())?;
    Ok((block.k().len() + block.v().len()) as u64)
}
