//! The operations of a transformer layer as one trait, implemented by [`wgsl`] on GPUs and by [`cpu`], and with the feature `cuda` a third time, over `wgsl`.
//!
//! Contract. A method with a `Recording` only *records*: nothing runs, nothing is allocated on the device, nothing is waited for. `submit` hands
//! a recording to the device; submissions of one device run strictly in order and each sees the writes of those before it. A `write` is seen by
//! every submission after it. The one thing that ever blocks is `wait`/`collect` (and, on the CPU adapter, `submit`, which computes in place).
//!
//! Granule invariant. Prefill operations (`Phase::Prefill`) give each row bits that depend on that row and the rows before it alone, never on
//! how many rows were recorded together or where a tile began. Decode operations may use other orders of summation.
//!
//! Rows beyond what an operation names stay untouched. All sums are f32; stores to f16 saturate at ±65504.

use std::ops::Range;
use std::time::Duration;

use crate::cancel::{Cancel, Wait};
use crate::config::{NormKind, RopePairs};
use crate::dtype::Scalar;
use crate::error::{Error, Result};
use crate::gpu::{HostMemory, PeerMemory};
use crate::weights::WeightTensor;

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod wgsl;

/// What [`Kernels::rows_at_once`] gives at most.
pub const MAX_ROWS_AT_ONCE: usize = 4096;

/// A device that can run a model.
pub trait Kernels: Send + Sync + Sized + 'static {
    /// A flat array of scalars on the device. Cheap to clone: clones share the storage.
    type Tensor: Clone + Send + Sync;
    /// A weight matrix `[out, in]` in the form the device reads fastest. Cheap to clone.
    type Matrix: Clone + Send + Sync;
    /// Work as a value.
    type Recording: Send;
    /// A point in the device's queue.
    type Submitted: Clone + Send + Sync;
    /// A copy of tensor elements on its way to the host.
    type Download: Send + Sync;
    /// When the parts of a recording run.
    type Timing: Send;

    /// The adapter's name, for errors.
    fn name(&self) -> &str;
    /// Who computes the products of a prefill: `wgsl`, `cublaslt` or `native`.
    fn products(&self) -> &'static str;
    /// Element type of activations between operations (the residual stream is always f32).
    fn activation(&self) -> Scalar;
    /// Activation tensors hold a multiple of this many rows.
    fn row_multiple(&self) -> usize;
    /// Rows of an activation of `width` elements that a caller had best compute at a time, where it need not keep all: a multiple of the granule.
    fn rows_at_once(&self, width: usize) -> usize;
    /// Rows of the tiles of long products: one that is not full takes as long as a full one.
    /// 1 where rows take as long as there are.
    fn tile_rows(&self) -> usize;
    /// Cache tensors hold a multiple of this many rows; so a tile of keys, which starts at a multiple of it, is never torn by the end of a ring.
    fn key_tile(&self) -> usize;
    /// The largest tensor that can be made, in bytes.
    fn max_tensor_bytes(&self) -> u64 {
        u64::MAX
    }
    /// Workgroups of a product that keep the device busy: where there would be fewer, smaller tiles spread the work. `None` where nothing is chosen by
    /// it. No bit depends on it.
    fn busy_workgroups(&self) -> Option<usize> {
        None
    }
    /// Sets it, for what is recorded from now on.
    fn set_busy_workgroups(&self, _n: usize) {}
    /// Whether work goes on while the host prepares more, at no cost to the host: then it pays to submit what may turn out not to be wanted.
    fn works_beside_host(&self) -> bool;
    /// Number of key splits that [`AttentionDecode::partial`] must have room for.
    fn decode_splits(&self) -> usize;

    /// A zeroed tensor.
    fn tensor(&self, label: &str, scalar: Scalar, len: usize) -> Result<Self::Tensor>;
    /// As `tensor`, for rows that change hands: what `copy_out` and `copy_in` reach where the device has them.
    fn cache(&self, label: &str, scalar: Scalar, len: usize) -> Result<Self::Tensor> {
        self.tensor(label, scalar, len)
    }
    /// Bytes on the device that `matrix` will take, without making it.
    fn matrix_bytes(&self, source: &MatrixSource) -> u64;
    /// Bytes that products with these matrices take beside them.
    fn workspace_bytes(&self, _sources: &mut dyn Iterator<Item = &MatrixSource>) -> u64 {
        0
    }
    /// Uploads (GPU: repacked; CPU: keeps reading the file's mapping) what has these labels. `step` is called with the index of each before it is made,
    /// when those before it are nearly there. A cancel ends it within a run of rows.
    fn matrices(
        &self,
        sources: &[(&str, &MatrixSource)],
        cancel: &Cancel,
        step: &mut dyn FnMut(usize),
    ) -> Result<Vec<Self::Matrix>>;
    /// Uploads one.
    fn matrix(&self, label: &str, source: &MatrixSource) -> Result<Self::Matrix> {
        self.matrices(&[(label, source)], &Cancel::new(), &mut |_| ())?
            .pop()
            .ok_or_else(|| Error::Shader { name: "matrix".to_owned(), reason: format!("`{label}` was not made") })
    }
    /// Host bytes into a tensor, from element `offset` on. `bytes.len()` is a multiple of 4.
    fn write(&self, to: &Self::Tensor, offset: usize, bytes: &[u8]) -> Result<()>;

    /// An empty recording.
    fn begin(&self) -> Self::Recording;
    /// As [`begin`](Self::begin), for a recording whose parts are timed.
    fn begin_timed(&self) -> (Self::Recording, Self::Timing);
    /// Row lookup: `out[r] = table[ids[r]]`.
    fn embed(&self, rec: &mut Self::Recording, op: Embed<'_, Self>) -> Result<()>;
    /// A norm of each row, see [`NormKind`].
    fn norm(&self, rec: &mut Self::Recording, op: Norm<'_, Self>) -> Result<()>;
    /// `x * weight^T` with an epilogue.
    fn product(&self, rec: &mut Self::Recording, op: Product<'_, Self>) -> Result<()>;
    /// A norm and the product of its rows, whose `x` is the norm's `out`. Where a device can do both at once (in decode), `out` stays as it was.
    fn norm_product(&self, rec: &mut Self::Recording, norm: Norm<'_, Self>, product: Product<'_, Self>) -> Result<()> {
        self.norm(rec, norm)?;
        self.product(rec, product)
    }
    /// Rotates Q in place and K into the cache, copies V into the cache.
    fn rope_cache(&self, rec: &mut Self::Recording, op: RopeCache<'_, Self>) -> Result<()>;
    /// Causal attention of many rows over the cache.
    fn attention(&self, rec: &mut Self::Recording, op: Attention<'_, Self>) -> Result<()>;
    /// Attention of one row, its keys split over the device and merged.
    fn attention_decode(&self, rec: &mut Self::Recording, op: AttentionDecode<'_, Self>) -> Result<()>;
    /// Row 0 of `qkv` into the cache and its attention. Where a device can do both at once, Q and K in `qkv` stay as they were.
    fn rope_attention_decode(
        &self,
        rec: &mut Self::Recording,
        rope: RopeCache<'_, Self>,
        attention: AttentionDecode<'_, Self>,
    ) -> Result<()> {
        self.rope_cache(rec, rope)?;
        self.attention_decode(rec, attention)
    }
    /// `x = cap * tanh(x / cap)` in place (Gemma 2's logits).
    fn soft_cap(&self, rec: &mut Self::Recording, op: SoftCap<'_, Self>) -> Result<()>;
    /// Index of the largest element of a row; the lowest index among equals.
    fn arg_max(&self, rec: &mut Self::Recording, op: ArgMax<'_, Self>) -> Result<()>;
    /// Copies elements out, as they stand at this point of the recording. `range` starts and ends at multiples of 4 bytes.
    fn download(&self, rec: &mut Self::Recording, from: &Self::Tensor, range: Range<usize>) -> Result<Self::Download>;

    /// Hands the work over. The CPU computes here and looks at the cancel between operations.
    fn submit(&self, rec: Self::Recording, wait: &Wait) -> Result<Self::Submitted>;
    /// Blocks until all up to this point has run.
    fn wait(&self, point: &Self::Submitted, wait: &Wait) -> Result<()>;
    /// Waits for the submission that holds the download, then shows the bytes to `read` and recycles the staging memory.
    fn collect(
        &self,
        download: Self::Download,
        after: &Self::Submitted,
        wait: &Wait,
        read: &mut dyn FnMut(&[u8]),
    ) -> Result<()>;
    /// When the parts of a timed recording ran, in order; waits for its submission. Nothing where the device has no clock.
    fn parts(&self, timing: Self::Timing, after: &Self::Submitted, wait: &Wait) -> Result<Vec<Part>>;
    /// Whether `copy_out` and `copy_in` are there.
    fn copies_beside(&self) -> bool {
        false
    }
    /// Copies elements to host memory beside the queue, at once: whoever calls has waited for the submissions that write them, and lets none that
    /// writes them again begin before this returns. `false`, with nothing copied, where the device has no such way.
    fn copy_out(&self, _runs: &[Run<'_, Self>], _to: &mut HostMemory, _wait: &Wait) -> Result<bool> {
        Ok(false)
    }
    /// Copies host memory to elements in the same way; every submission after this returned sees them.
    fn copy_in(&self, _from: &HostMemory, _runs: &[Run<'_, Self>], _wait: &Wait) -> Result<bool> {
        Ok(false)
    }
    /// Whether `copy_to_peers` and `copy_from_peer` are there.
    fn has_peers(&self) -> bool {
        false
    }
    /// Copies elements, as they stand at this point of the recording, to memory that other devices of the machine reach. `None`, with nothing recorded,
    /// where there is no such way.
    fn copy_to_peers(&self, _rec: &mut Self::Recording, _runs: &[Run<'_, Self>]) -> Result<Option<PeerMemory>> {
        Ok(None)
    }
    /// Copies from there to elements, on the terms of `copy_in`.
    fn copy_from_peer(&self, _from: &PeerMemory, _runs: &[Run<'_, Self>], _wait: &Wait) -> Result<bool> {
        Ok(false)
    }
    /// Memory that this adapter can still give, in bytes, where the system tells.
    fn free_memory(&self) -> Option<u64>;
}

/// Elements of a tensor and their place in host memory.
pub struct Run<'a, K: Kernels> {
    /// Made by [`Kernels::cache`].
    pub tensor: &'a K::Tensor,
    /// Which of its elements.
    pub elements: Range<usize>,
    /// Their first byte in the host memory.
    pub host_offset: usize,
}

/// Whether many rows of a prompt or one row of an answer are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Bound by the granule invariant.
    Prefill,
    /// One row, any order of summation: matrix-vector kernels.
    Decode,
}

/// What a device does in a part of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Products, and all that is small beside them: norms, rotations, lookups.
    Products,
    /// Attention of many rows.
    Attention,
    /// Copies towards the host.
    Download,
}

/// A part of a recording as it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What.
    pub work: Work,
    /// By the device's own clock, from a moment that is the same for all its submissions.
    pub start: Duration,
    /// By the same clock.
    pub end: Duration,
}

/// Where a weight matrix comes from: tensors `[rows, width]` of the same width, from the file.
#[derive(Clone, Debug)]
pub struct MatrixSource {
    /// The tensors.
    pub parts: Vec<WeightTensor>,
    /// How their rows form the matrix.
    pub rows: RowOrder,
}

/// How the rows of several tensors form one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// One tensor's rows after the other's (Q, K, V).
    Stacked,
    /// Row 0 of each, row 1 of each … (gate and up, for a [gated](Epilogue::gated) epilogue); two parts of one shape.
    Alternating,
}

/// See [`Kernels::embed`].
pub struct Embed<'a, K: Kernels> {
    /// Token ids, U32 `[rows]`, each below the table's row count (checked by the caller).
    pub ids: &'a K::Tensor,
    /// `[vocab, width]`.
    pub table: &'a K::Matrix,
    /// F32 `[rows, width]`.
    pub out: &'a K::Tensor,
    /// Number of rows.
    pub rows: usize,
    /// Multiplies every element (Gemma: `sqrt(hidden)`).
    pub scale: f32,
}

/// See [`Kernels::norm`].
pub struct Norm<'a, K: Kernels> {
    /// F32 `[.., width]`.
    pub x: &'a K::Tensor,
    /// F32 `[width]`.
    pub weight: &'a K::Tensor,
    /// F32 `[width]`, added last.
    pub bias: Option<&'a K::Tensor>,
    /// Activation type `[.., width]`; F32 where `add` is set.
    pub out: &'a K::Tensor,
    /// Rows, the same in `x` and `out`.
    pub rows: Range<usize>,
    /// Elements of a row.
    pub width: usize,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// What is computed.
    pub kind: NormKind,
    /// `out += norm` instead of `out = norm`: the norm behind a block whose result joins the residual stream.
    pub add: bool,
}

/// What a product does with its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `out = sum`, activation type `[.., n]` (F32 where `out` is F32).
    Store,
    /// `out += sum`, F32 `[.., n]`: the residual stream.
    Add,
    /// `out[c] = silu(sum[2c]) * sum[2c + 1]`, activation type `[.., n / 2]`, for [`RowOrder::Alternating`] matrices (Shazeer 2020).
    SwiGlu,
    /// As `SwiGlu` with GELU's tanh form: `gelu(z) = z / (1 + exp(-2 u))`, `u = sqrt(2 / pi) (z + 0.044715 z^3)`.
    GeGlu,
    /// `out = gelu(sum)`, activation type `[.., n]`: `gelu(z) = z / 2 (1 + erf(z / sqrt(2)))` (Hendrycks and Gimpel 2016).
    Gelu,
}

impl Epilogue {
    /// All of them, for tests and tables.
    pub const ALL: [Epilogue; 5] = [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu, Epilogue::GeGlu, Epilogue::Gelu];

    /// Whether two sums make one output.
    pub const fn gated(self) -> bool {
        matches!(self, Epilogue::SwiGlu | Epilogue::GeGlu)
    }
}

/// See [`Kernels::product`].
pub struct Product<'a, K: Kernels> {
    /// Activation type `[.., width]`.
    pub x: &'a K::Tensor,
    /// `[n, width]`.
    pub weight: &'a K::Matrix,
    /// F32 `[n]`, added to the sums before the epilogue; in the order of the matrix's rows.
    pub bias: Option<&'a K::Tensor>,
    /// See [`Epilogue`].
    pub out: &'a K::Tensor,
    /// Rows of `x`. In decode there is one, and it starts at a multiple of 8 elements.
    pub rows: Range<usize>,
    /// The row of `out` that belongs to `rows.start`.
    pub out_row: usize,
    /// What becomes of the sums.
    pub epilogue: Epilogue,
    /// Prefill takes the tile kernels whatever the row count; decode (one row) the matrix-vector kernel.
    pub phase: Phase,
}

/// Sizes of attention that stay the same through a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadDims {
    /// Query heads.
    pub heads: usize,
    /// K/V heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head, a multiple of 4.
    pub head_dim: usize,
}

impl HeadDims {
    /// Elements of a row of `qkv`: `(heads + 2 kv_heads) * head_dim`.
    pub const fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Elements of a query row.
    pub const fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a cache row.
    pub const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// RMSNorm of every query and key head before its rotation (Qwen 3, Gemma 3).
pub struct HeadNorm<'a, K: Kernels> {
    /// F32 `[head_dim]`, for queries.
    pub q: &'a K::Tensor,
    /// F32 `[head_dim]`, for keys.
    pub k: &'a K::Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// See [`Kernels::rope_cache`].
pub struct RopeCache<'a, K: Kernels> {
    /// Activation type `[.., (heads + 2 kv_heads) * head_dim]`: Q, K, V of each row; Q is normed and rotated in place, K is normed in place, V stays.
    pub qkv: &'a K::Tensor,
    /// F32 `[context, rotary / 2, 2]`: cosine and sine of every position and pair; not read where `rotary` is 0.
    pub angles: &'a K::Tensor,
    /// F16 or F32 `[cached, kv_heads, head_dim]`: position `p` has row `p`, or row `p % cached` of a ring.
    pub k: &'a K::Tensor,
    /// As `k`.
    pub v: &'a K::Tensor,
    /// Whether the cache is a ring. It then holds the last `cached` rows that were written, which is enough where all rows have a window.
    pub ring: bool,
    /// Rows of `qkv`.
    pub rows: Range<usize>,
    /// Absolute position of `rows.start`.
    pub position: usize,
    /// Heads.
    pub dims: HeadDims,
    /// Which elements turn together.
    pub pairs: RopePairs,
    /// The leading elements of each head that turn, a multiple of 4; the others stay.
    pub rotary: usize,
    /// A norm before the rotation.
    pub norm: Option<HeadNorm<'a, K>>,
}

/// What changes a score beyond its scale. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreRules {
    /// The row at position `p` sees keys `p + 1 - window ..= p` alone; at least 1.
    pub window: Option<usize>,
    /// A scaled score `s` becomes `cap * tanh(s / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
}

impl ScoreRules {
    /// The first key that the row at `position` sees.
    pub fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| position.saturating_add(1).saturating_sub(window))
    }
}

/// Whether a cache of `cached` rows can hold the keys `seen` at once. A ring that goes round is a multiple of `key_tile`.
fn cache_holds(cached: usize, seen: &Range<usize>, ring: bool, key_tile: usize) -> bool {
    seen.end <= cached || ring && cached.is_multiple_of(key_tile) && seen.len() <= cached
}

/// See [`Kernels::attention`].
pub struct Attention<'a, K: Kernels> {
    /// Rotated queries inside `qkv` rows, as [`RopeCache`] leaves them.
    pub qkv: &'a K::Tensor,
    /// As [`RopeCache`] leaves it, a ring where `rules` has a window: the keys that these rows see are valid, all others finite.
    pub k: &'a K::Tensor,
    /// As `k`.
    pub v: &'a K::Tensor,
    /// Activation type `[.., heads * head_dim]`, same rows as `qkv`.
    pub out: &'a K::Tensor,
    /// Rows of `qkv` and `out`.
    pub rows: Range<usize>,
    /// Absolute position of `rows.start`; the row at position `p` sees keys `0..=p`, or those of them that a window leaves.
    pub position: usize,
    /// Scores are computed for at least this many keys and masked: work without use, as an implementation without a causal
    /// kernel has it. 0 leaves out whatever no row of a tile sees, and what a window has passed is always left out. No bit depends on it.
    pub dense_keys: usize,
    /// The K/V heads whose query heads are computed; the others' outputs stay untouched. A part of them is what is left to cut where the rows of
    /// one tile take too long. No bit depends on it.
    pub kv_heads: Range<usize>,
    /// Heads.
    pub dims: HeadDims,
    /// Multiplies every score (`head_dim^-1/2`).
    pub scale: f32,
    /// Window and soft-cap.
    pub rules: ScoreRules,
    /// F32 `[heads, keys]` for some number of keys that reaches past every position here: added to the scaled score of a head and key (ALiBi,
    /// Press, Smith, Lewis 2021).
    pub bias: Option<&'a K::Tensor>,
}

/// See [`Kernels::attention_decode`].
pub struct AttentionDecode<'a, K: Kernels> {
    /// As [`Attention::qkv`], row 0.
    pub qkv: &'a K::Tensor,
    /// As [`Attention::k`].
    pub k: &'a K::Tensor,
    /// As `k`.
    pub v: &'a K::Tensor,
    /// As [`Attention::out`], row 0.
    pub out: &'a K::Tensor,
    /// Scratch, F32 `[decode_splits, heads, head_dim + 2]`: unnormalised output, maximum and sum of each split.
    pub partial: &'a K::Tensor,
    /// Absolute position of the row; it sees keys `0..=position`.
    pub position: usize,
    /// Heads.
    pub dims: HeadDims,
    /// Multiplies every score.
    pub scale: f32,
    /// As [`Attention::rules`].
    pub rules: ScoreRules,
    /// As [`Attention::bias`].
    pub bias: Option<&'a K::Tensor>,
}

/// See [`Kernels::soft_cap`].
pub struct SoftCap<'a, K: Kernels> {
    /// F32.
    pub x: &'a K::Tensor,
    /// The first `len` elements are changed.
    pub len: usize,
    /// The bound.
    pub cap: f32,
}

/// See [`Kernels::arg_max`].
pub struct ArgMax<'a, K: Kernels> {
    /// F32 `[.., width]`.
    pub x: &'a K::Tensor,
    /// The row.
    pub row: usize,
    /// Elements of a row.
    pub width: usize,
    /// U32 `[1]`.
    pub out: &'a K::Tensor,
}
