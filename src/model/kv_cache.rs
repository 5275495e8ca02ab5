//! The K/V cache of one device: per layer one K and one V tensor `[rows, kv_heads, head_dim]`, where position `p` has row `p % rows`.
//!
//! A layer that sees everything has a row for every token of the session. One with a window is a ring, which keeps the last rows only: it is never
//! moved or compacted, and where a row stands follows from its position alone.

use std::ops::Range;
use std::sync::Arc;

use crate::config::{LayerKind, ModelConfig};
use crate::dims::{Piece, round_up};
use crate::dtype::KvDtype;
use crate::error::Result;
use crate::kernels::{Kernels, Run};
use crate::model::Model;

/// How many layers a cache holds at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// Every layer: the adapter that decodes.
    All,
    /// A ring: an adapter that only prefills works on two layers at a time (the attention of one and the K/V of the next), and a third lets rows
    /// of the layer after arrive early. Llama-7B at 16k tokens: 0.8 GiB instead of 8.
    Ring,
}

impl Slots {
    const RING: usize = 3;

    /// Number of layers held, for a model of `n_layers`.
    pub fn count(self, n_layers: usize) -> usize {
        match self {
            Slots::All => n_layers,
            Slots::Ring => n_layers.min(Self::RING),
        }
    }
}

/// How much a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Tokens of a session.
    pub tokens: usize,
    /// Layers.
    pub slots: Slots,
    /// Rows of layers with a window beside the window's own: as many as are computed in one go, or may be cut back.
    pub beside: usize,
}

impl CacheSize {
    /// Rows of each slot, multiples of `key_tile`: those behind the last token stay zero, so that kernels may read whole tiles. `windows` has the
    /// keys that a row sees at most for each of `n_layers`; layers beyond it have no window.
    pub fn rows(self, n_layers: usize, windows: &[Option<usize>], key_tile: usize) -> Vec<usize> {
        let whole = round_up(self.tokens, key_tile);
        let window = |layer: usize| windows.get(layer).copied().flatten();
        let rows = |layer: usize| match window(layer).map(|window| window.saturating_add(self.beside)) {
            Some(rows) if rows < whole => round_up(rows, key_tile),
            _ => whole,
        };
        let n = self.slots.count(n_layers);
        (0..n).map(|slot| (slot..n_layers).step_by(n).map(rows).max().unwrap_or(0)).collect()
    }
}

/// See the module's text. Cloning shares the tensors.
pub struct KvCache<K: Kernels> {
    k: Vec<K::Tensor>,
    v: Vec<K::Tensor>,
    rows: Vec<usize>,
    size: CacheSize,
    config: Arc<ModelConfig>,
    dtype: KvDtype,
}

impl<K: Kernels> Model<K> {
    /// A zeroed cache.
    ///
    /// # Errors
    /// What the device says where memory is short.
    pub fn cache(&self, size: CacheSize, dtype: KvDtype) -> Result<KvCache<K>> {
        let rows = size.rows(self.config.n_layers, &self.config.windows(), self.kernels.key_tile());
        let width = self.config.kv_width();
        let make = |what: &str| -> Result<Vec<K::Tensor>> {
            let tensor = |(i, rows)| self.kernels.cache(&format!("{what} cache {i}"), dtype.scalar(), rows * width);
            rows.iter().enumerate().map(tensor).collect()
        };
        Ok(KvCache { k: make("K")?, v: make("V")?, rows, size, config: Arc::clone(&self.config), dtype })
    }
}

impl<K: Kernels> KvCache<K> {
    /// One with room for `beside` rows beside each window. Layers whose room is enough share their tensors with this one, others start zeroed.
    ///
    /// # Errors
    /// What the device says where memory is short.
    pub fn with_room(&self, kernels: &K, beside: usize) -> Result<Self> {
        let size = CacheSize { beside, ..self.size };
        let rows = size.rows(self.config.n_layers, &self.config.windows(), kernels.key_tile());
        let width = self.config.kv_width();
        let make = |what: &str, old: &[K::Tensor]| -> Result<Vec<K::Tensor>> {
            let tensor = |i: usize| match rows[i] == self.rows[i] {
                true => Ok(old[i].clone()),
                false => kernels.cache(&format!("{what} cache {i}"), self.dtype.scalar(), rows[i] * width),
            };
            (0..rows.len()).map(tensor).collect()
        };
        let (k, v) = (make("K", &self.k)?, make("V", &self.v)?);
        Ok(Self { k, v, rows, size, config: Arc::clone(&self.config), dtype: self.dtype })
    }

    /// Bytes of those slots that a cache of this size would share with this one.
    pub fn bytes_shared(&self, size: CacheSize, key_tile: usize) -> u64 {
        let rows = size.rows(self.config.n_layers, &self.config.windows(), key_tile);
        let same = rows.iter().zip(&self.rows).filter(|(new, old)| new == old);
        same.map(|(rows, _)| 2 * (rows * self.row_bytes()) as u64).sum()
    }

    /// Rows of a layer.
    pub fn rows(&self, layer: usize) -> usize {
        self.rows[layer % self.rows.len()]
    }

    /// K of a layer.
    pub fn k(&self, layer: usize) -> &K::Tensor {
        &self.k[layer % self.k.len()]
    }

    /// V of a layer.
    pub fn v(&self, layer: usize) -> &K::Tensor {
        &self.v[layer % self.v.len()]
    }

    /// Number of layers held at a time: layer `l` takes the place of layer `l - n`.
    pub fn n_slots(&self) -> usize {
        self.k.len()
    }

    /// What it holds.
    pub fn size(&self) -> CacheSize {
        self.size
    }

    /// Element type.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Bytes of one token's K row (V's are as many).
    pub fn row_bytes(&self) -> usize {
        self.config.kv_width() * self.dtype.scalar().bytes()
    }

    /// The fewest tokens, beside none, to which a conversation can be cut back once the rows of `end` tokens have been written: the row after them
    /// must find all keys that its window reaches.
    pub fn least_kept(&self, end: usize) -> usize {
        let least = |(layer, kind): (usize, &LayerKind)| {
            let lost = end.saturating_sub(self.rows(layer));
            kind.window.filter(|_| lost > 0).map_or(0, |window| lost.saturating_add(window - 1))
        };
        self.config.layers.iter().enumerate().map(least).max().unwrap_or(0)
    }

    /// Where rows stand.
    pub fn places(&self, layer: usize, rows: Piece) -> Places<K> {
        let (ring, width, mut at) = (self.rows(layer).max(1), self.config.kv_width(), rows.start);
        let elements = std::iter::from_fn(move || {
            let row = at % ring;
            let n = (rows.end - at).min(ring - row);
            at += n;
            (n > 0).then(|| row * width..(row + n) * width)
        });
        let (k, v) = (self.k(layer).clone(), self.v(layer).clone());
        Places { k, v, elements: elements.collect(), scalar_bytes: self.dtype.scalar().bytes() }
    }

    /// Writes the K and V rows of a layer.
    ///
    /// # Errors
    /// The device's.
    pub fn write(&self, kernels: &K, layer: usize, rows: Piece, mut k: &[u8], mut v: &[u8]) -> Result<()> {
        for place in self.places(layer, rows).elements {
            let bytes = place.len() * self.dtype.scalar().bytes();
            kernels.write(self.k(layer), place.start, &k[..bytes])?;
            kernels.write(self.v(layer), place.start, &v[..bytes])?;
            (k, v) = (&k[bytes..], &v[bytes..]);
        }
        Ok(())
    }
}

/// K and V rows of one layer as they stand in its tensors: in several runs where the end of a ring tears them.
pub struct Places<K: Kernels> {
    k: K::Tensor,
    v: K::Tensor,
    /// Of both, in the order of the rows.
    elements: Vec<Range<usize>>,
    scalar_bytes: usize,
}

impl<K: Kernels> Places<K> {
    /// The same rows in host memory, K from one byte on and V from another.
    pub fn runs(&self, k_at: usize, v_at: usize) -> Vec<Run<'_, K>> {
        let (mut runs, mut at) = (Vec::with_capacity(2 * self.elements.len()), 0);
        for elements in &self.elements {
            let run = |tensor, start| Run { tensor, elements: elements.clone(), host_offset: start + at };
            runs.extend([run(&self.k, k_at), run(&self.v, v_at)]);
            at += elements.len() * self.scalar_bytes;
        }
        runs
    }

    /// Records the copies of K and V to the host, run by run.
    ///
    /// # Errors
    /// The device's.
    pub fn download(&self, kernels: &K, rec: &mut K::Recording) -> Result<Vec<[K::Download; 2]>> {
        let mut copy = |elements: &Range<usize>| -> Result<[K::Download; 2]> {
            Ok([kernels.download(rec, &self.k, elements.clone())?, kernels.download(rec, &self.v, elements.clone())?])
        };
        self.elements.iter().map(&mut copy).collect()
    }
}
