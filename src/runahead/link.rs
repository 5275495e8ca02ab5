//! The host link: K/V rows from one adapter's cache to the board, and from the board into another's.
//!
//! Contract, which every way keeps: `export` is recorded with the work that makes the rows; `fill` runs on the courier once that work is
//! submitted, may block, and leaves the rows in a block of the board; `import` runs on the worker, may block, and is seen by every submission after it.
//!
//! There are three ways, and each adapter has its own, so that a chain may mix them. `copy` works on any device: the rows go through its queue and
//! through memory that is mapped for the purpose. `dma` is for devices that copy between cache and board by themselves, beside the queue
//! ([`Kernels::copies_beside`]): it has no place in the order of submissions, so the host makes one. A copy out begins when the submission that
//! made the rows was waited for, and the worker computes nothing in their place before they have left; a copy in begins when the submission that
//! last read the place has run, and is over before the next one is made ([`Ring`] keeps count of both). Where such a device refuses after all,
//! its rows go the other way. `cuda`, of NVIDIA's GPUs ([`Kernels::has_peers`]), leaves host memory out: the submission that made the rows copies
//! them to other memory of its device, from which each reader copies them into its own cache, beside the queue as with `dma`. Where some reader of a
//! piece is of another kind, host memory gets its rows, too, as by `dma`; rows that are kept for later turns go there alone.

use std::str::FromStr;

use crate::cancel::Wait;
use crate::dims::Piece;
use crate::error::{Error, Result};
use crate::gpu::{PeerMemory, Transfers, copy_bytes};
use crate::kernels::Kernels;
use crate::model::{KvCache, Places};
use crate::runahead::board::{Block, Wanted};
use crate::runahead::ring::{Gone, Leaving, Ring};

/// Which way the rows of an adapter go.
///
/// `Auto` takes `Cuda` before `Dma` where adapters have both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// `Dma` for adapters with a queue for copies beside the one that computes, `Copy` for others.
    #[default]
    Auto,
    /// Through the device's queue, by the host's own copies.
    Copy,
    /// By the device itself where its driver can, even on the queue that computes.
    Dma,
    /// From device to device, between adapters that compute with CUDA; by `Auto`'s ways for others.
    Cuda,
}

impl Link {
    /// All of them.
    pub const ALL: [Link; 4] = [Link::Auto, Link::Copy, Link::Dma, Link::Cuda];

    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Link::Auto => "auto",
            Link::Copy => "copy",
            Link::Dma => "dma",
            Link::Cuda => "cuda",
        }
    }

    /// What a device is opened with for it.
    pub const fn transfers(self) -> Transfers {
        match self {
            Link::Auto | Link::Cuda => Transfers::Beside,
            Link::Copy => Transfers::None,
            Link::Dma => Transfers::Anywhere,
        }
    }

    /// Where a reader whose rows go this way looks for those of one of its kind.
    pub const fn wanted(self) -> Wanted {
        let peer = matches!(self, Link::Cuda);
        Wanted { host: !peer, peer }
    }

    /// The way that an adapter's rows go now.
    pub fn of<K: Kernels>(kernels: &K) -> Self {
        match (kernels.has_peers(), kernels.copies_beside()) {
            (true, _) => Link::Cuda,
            (false, true) => Link::Dma,
            (false, false) => Link::Copy,
        }
    }
}

impl FromStr for Link {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Link::ALL.into_iter().find(|link| link.name() == name);
        known.ok_or_else(|| Error::Unsupported { what: "link", name: name.to_owned() })
    }
}

/// Rows of one piece in one layer on their way out of an adapter.
pub struct Export<K: Kernels> {
    /// Which piece.
    pub piece: usize,
    /// K and V together.
    pub bytes: u64,
    /// What other devices read, once the submission has ended.
    peer: Option<PeerMemory>,
    /// What host memory gets, where it gets anything.
    rows: Option<Rows<K>>,
}

/// Where exported rows are.
enum Rows<K: Kernels> {
    /// Copied by the submission itself, K and V of each run of them.
    Recorded(Vec<[K::Download; 2]>),
    /// Still in the cache.
    InPlace(Places<K>, Leaving),
}

impl<K: Kernels> Export<K> {
    /// Tells when the rows have left the cache, where they are still there.
    pub fn leaving(&self) -> Option<Gone> {
        if let Some(Rows::InPlace(_, leaving)) = &self.rows { Some(leaving.watch()) } else { None }
    }
}

/// Has everything run that an earlier turn, a cancelled one perhaps, left in the queue: rows that go beside it must not meet that.
///
/// # Errors
/// The device's, or a cancel.
pub fn begin<K: Kernels>(kernels: &K, wait: &Wait) -> Result<()> {
    if Link::of(kernels) == Link::Copy {
        return Ok(());
    }
    let point = kernels.submit(kernels.begin(), wait)?;
    kernels.wait(&point, wait)
}

/// Takes a piece's rows out of the cache as the recording leaves them, to where they are wanted.
///
/// # Errors
/// The device's.
pub fn export<K: Kernels>(
    kernels: &K,
    rec: &mut K::Recording,
    cache: &KvCache<K>,
    layer: usize,
    (piece, rows): (usize, Piece),
    wanted: Wanted,
) -> Result<Export<K>> {
    let half = rows.len() * cache.row_bytes();
    let places = cache.places(layer, rows);
    let peer = if wanted.peer { kernels.copy_to_peers(rec, &places.runs(0, half))? } else { None };
    let rows = match Link::of(kernels) {
        _ if peer.is_some() && !wanted.host => None,
        Link::Copy => Some(Rows::Recorded(places.download(kernels, rec)?)),
        _ => Some(Rows::InPlace(places, Leaving::new())),
    };
    Ok(Export { piece, bytes: 2 * half as u64, peer, rows })
}

/// Waits for the rows, copies them to a block and lets go of their place.
///
/// # Errors
/// A cancel, a lost adapter.
pub fn fill<K: Kernels>(
    kernels: &K,
    export: Export<K>,
    after: &K::Submitted,
    block: &mut Block,
    wait: &Wait,
) -> Result<()> {
    if block.wanted().peer {
        block.set_peer(export.peer);
    }
    let (copies, after) = match export.rows {
        None => return kernels.wait(after, wait),
        Some(Rows::Recorded(copies)) => (copies, after.clone()),
        Some(Rows::InPlace(places, _leaving)) => {
            kernels.wait(after, wait)?;
            let runs = places.runs(0, block.v_offset());
            if let Some(pages) = block.pages_mut()
                && kernels.copy_out(&runs, pages, wait)?
            {
                return Ok(());
            }
            let mut rec = kernels.begin();
            let copies = places.download(kernels, &mut rec)?;
            // In the queue they are in front of whatever is computed in this place after `_leaving`.
            (copies, kernels.submit(rec, wait)?)
        }
    };
    let (mut to_k, mut to_v) = block.halves_mut();
    for [k, v] in copies {
        let mut n = 0;
        kernels.collect(k, &after, wait, &mut |bytes| {
            n = bytes.len();
            copy_bytes(to_k, bytes);
        })?;
        kernels.collect(v, &after, wait, &mut |bytes| copy_bytes(to_v, bytes))?;
        (to_k, to_v) = (&mut to_k[n..], &mut to_v[n..]);
    }
    Ok(())
}

/// Copies those of a block's rows into the cache that are among `rows`: in a ring, older ones would take the place of rows that are needed. Returns the
/// bytes fetched.
///
/// # Errors
/// The device's, or a cancel.
pub fn import<K: Kernels>(
    kernels: &K,
    cache: &KvCache<K>,
    layer: usize,
    (block, rows): (&Block, Piece),
    ring: &Ring<K>,
    wait: &Wait,
) -> Result<u64> {
    let (rows, k, v) = block.part(rows);
    let bytes = (k.len() + v.len()) as u64;
    let at = (rows.start - block.rows.start) * cache.row_bytes();
    let places = cache.places(layer, rows);
    let runs = places.runs(at, block.v_offset() + at);
    if let Some(peer) = block.peer().filter(|_| kernels.has_peers()) {
        ring.wait_for_readers(layer, kernels, wait)?;
        if kernels.copy_from_peer(peer, &runs, wait)? {
            return Ok(bytes);
        }
    }
    if !block.wanted().host {
        let reason = "rows were left on another device, which this adapter does not reach".to_owned();
        return Err(Error::Adapter { adapter: kernels.name().to_owned(), reason });
    }
    if let Some(pages) = block.pages().filter(|_| kernels.copies_beside()) {
        ring.wait_for_readers(layer, kernels, wait)?;
        if kernels.copy_in(pages, &runs, wait)? {
            return Ok(bytes);
        }
    }
    cache.write(kernels, layer, rows, k, v)?;
    Ok(bytes)
}
