//! The kernels on an NVIDIA GPU that Vulkan and CUDA share: prefill by cuBLASLt and kernels in PTX, all else by the WGSL kernels, on the same tensors.
//!
//! Each operation is recorded for the side that suits it. Products and attention, where the time goes, are CUDA's wherever it has a kernel for
//! them and there are rows enough; norm and rotation, which are small, are done where the products are, so that a layer does not change sides
//! for them; everything of one row (decode, the last row's head), embedding, biases of gated products, soft-caps and other sizes of heads are WGSL's.
//!
//! The granule invariant does not hold here: which algorithm cuBLASLt takes, and with it the order of a row's sums, depends on the number of rows.
//! Attention, norm and rotation keep it. `verify` compares within the tolerance of f16.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wgsl::tensor::Args;
use super::wgsl::{Matrix, Tensor, Wgsl};
use super::{
    ArgMax, Attention, AttentionDecode, Embed, HeadNorm, Kernels, MAX_ROWS_AT_ONCE, MatrixSource, Norm, Part, Phase,
    Product, RopeCache, RowOrder, Run, SoftCap,
};
use crate::cancel::{Cancel, Wait};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::gpu::{Buffer, Download, Gpu, HostMemory, Kernel, Mixed, PeerMemory, Submission};

mod attention;
mod attention_ptx;
mod epilogues_ptx;
mod product;
#[cfg(test)]
mod ptx_check;
#[cfg(test)]
mod ptx_run;
mod rows;
mod rows_ptx;
mod weights;
mod weights_ptx;

/// Rows of the widest activations computed at a time. cuBLASLt on an H200, TFLOP/s for 22016 x 4096 and 4096 x 11008: 725 and 722 at 512 rows, 759 and 779 at 4,096.
const ROWS_AT_ONCE: usize = MAX_ROWS_AT_ONCE;

/// Rows below which an operation is WGSL's.
///
/// An H200 takes 17 ms for Llama-2-7B's layers by WGSL at 16 rows, and 11 by CUDA at 32.
const LEAST_ROWS: usize = 16;

/// The same where weights are made f16 first, which takes as long for few rows as for many.
///
/// An H200 takes 21.8 ms for Llama-3-8B in Q4_K by WGSL at 128 rows and 17.7 by CUDA.
const LEAST_ROWS_CONVERTED: usize = 128;

/// Matrices that suit cuBLASLt beside which there must be more for a model's products to be CUDA's: the embedding and the head, which files keep in
/// f16 whatever the layers' format.
const OUTSIDE_LAYERS: usize = 2;

/// An NVIDIA GPU with CUDA beside wgpu.
pub struct Cuda {
    wgsl: Wgsl,
    /// [`LEAST_ROWS`] and [`LEAST_ROWS_CONVERTED`].
    least_rows: [usize; 2],
    /// Whether rows go to other devices directly.
    peers: bool,
    /// Whether small operations are done where the products are.
    follows: bool,
    rows: rows::Kernels,
    /// One for each size of head in [`attention_ptx::HEAD_DIMS`].
    attention: [Kernel; attention_ptx::HEAD_DIMS.len()],
    converter: weights::Converter,
    /// Matrices that suit cuBLASLt, and those of them that are made f16 first.
    n_suiting: AtomicUsize,
    n_converted: AtomicUsize,
    /// What gated products make before their activation, F16 `[ROWS_AT_ONCE, n]` for the largest `n`.
    pairs: Room,
}

/// Scratch memory for one operation at a time, which grows while weights are uploaded.
struct Room {
    label: &'static str,
    buffer: Mutex<Option<Buffer>>,
}

impl Room {
    fn new(label: &'static str) -> Self {
        Self { label, buffer: Mutex::default() }
    }

    fn buffer(&self) -> MutexGuard<'_, Option<Buffer>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it hold so many bytes at least.
    fn make(&self, gpu: &Gpu, bytes: u64) -> Result<()> {
        let mut buffer = self.buffer();
        if buffer.as_ref().map_or(0, Buffer::bytes) < bytes {
            // The smaller one goes first.
            *buffer = None;
            *buffer = Some(gpu.buffer(self.label, bytes)?);
        }
        Ok(())
    }

    /// The memory, where it holds so many bytes.
    fn of(&self, bytes: u64) -> Option<Buffer> {
        self.buffer().as_ref().filter(|buffer| buffer.bytes() >= bytes).cloned()
    }
}

impl Cuda {
    /// Kernels on a device that was given CUDA ([`Gpu::with_cuda`]) and has matrix units.
    ///
    /// Errors: [`Error::Shader`](crate::Error::Shader) where its activations are not f16, or the driver's.
    pub fn new(gpu: Arc<Gpu>) -> Result<Self> {
        let (rows, attention) = (rows::Kernels::compile(&gpu)?, attention::compile(&gpu)?);
        let converter = weights::Converter::compile(&gpu)?;
        let wgsl = Wgsl::new(gpu)?;
        Args("CUDA").ensure(wgsl.activation() == Scalar::F16, || "activations are not f16 here".to_owned())?;
        Ok(Self {
            wgsl,
            least_rows: [LEAST_ROWS, LEAST_ROWS_CONVERTED],
            follows: true,
            peers: false,
            rows,
            attention,
            converter,
            n_suiting: AtomicUsize::new(0),
            n_converted: AtomicUsize::new(0),
            pairs: Room::new("gate and up"),
        })
    }

    /// The same, which hands rows to other devices with CUDA directly.
    pub fn with_peers(self) -> Self {
        Self { peers: true, ..self }
    }

    /// The same with every operation on CUDA's side that it has a kernel for, however small: tries the kernels, and all ways of changing sides.
    pub fn eager(gpu: Arc<Gpu>) -> Result<Self> {
        Ok(Self { least_rows: [1; 2], follows: false, ..Self::new(gpu)? })
    }

    fn gpu(&self) -> &Arc<Gpu> {
        self.wgsl.gpu()
    }

    /// Rows below which products are WGSL's, of weights as they are or of those that are made f16.
    fn least_rows(&self, converted: bool) -> usize {
        self.least_rows[usize::from(converted)]
    }

    /// Whether the products of the model's layers are CUDA's for so many rows.
    fn multiplies(&self, rows: usize) -> bool {
        let beside = |n: &AtomicUsize| n.load(Ordering::Relaxed) > OUTSIDE_LAYERS;
        rows >= self.least_rows(beside(&self.n_converted)) && (beside(&self.n_suiting) || !self.follows)
    }

    /// Whether a small operation is CUDA's. Between products that are, it is wherever the recording stands: recordings begin anew where a stage is cut by the
    /// time that it takes, and the two sides round a row now and then to another f16.
    fn stays(&self, rec: &Mixed, rows: usize) -> bool {
        rec.is_at_cuda() || self.multiplies(rows) || !self.follows
    }
}

/// An address in a tensor.
fn place(tensor: &Tensor, element: usize) -> Result<u64> {
    Ok(tensor.buffer.cuda_address()? + (element * tensor.scalar.bytes()) as u64)
}

/// A launch's parameter.
fn float(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// The same runs for the kernels below.
fn for_wgsl<'a>(runs: &[Run<'a, Cuda>]) -> Vec<Run<'a, Wgsl>> {
    let run = |Run { tensor, elements, host_offset }: &Run<'a, Cuda>| Run {
        tensor: *tensor,
        elements: elements.clone(),
        host_offset: *host_offset,
    };
    runs.iter().map(run).collect()
}

fn norm_for_wgsl<'a>(op: Norm<'a, Cuda>) -> Norm<'a, Wgsl> {
    let Norm { x, weight, bias, out, rows, width, eps, kind, add } = op;
    Norm { x, weight, bias, out, rows, width, eps, kind, add }
}

fn product_for_wgsl<'a>(op: Product<'a, Cuda>) -> Product<'a, Wgsl> {
    let Product { x, weight, bias, out, rows, out_row, epilogue, phase } = op;
    Product { x, weight, bias, out, rows, out_row, epilogue, phase }
}

fn rope_for_wgsl<'a>(op: RopeCache<'a, Cuda>) -> RopeCache<'a, Wgsl> {
    let RopeCache { qkv, angles, k, v, ring, rows, position, dims, pairs, rotary, norm } = op;
    let norm = norm.map(|HeadNorm { q, k, eps }| HeadNorm { q, k, eps });
    RopeCache { qkv, angles, k, v, ring, rows, position, dims, pairs, rotary, norm }
}

fn decode_for_wgsl<'a>(op: AttentionDecode<'a, Cuda>) -> AttentionDecode<'a, Wgsl> {
    let AttentionDecode { qkv, k, v, out, partial, position, dims, scale, rules, bias } = op;
    AttentionDecode { qkv, k, v, out, partial, position, dims, scale, rules, bias }
}

impl Kernels for Cuda {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Recording = Mixed;
    type Submitted = Submission;
    type Download = Download;
    /// Two queues take turns, and neither's clock knows the other's work: nothing is timed.
    type Timing = ();

    fn name(&self) -> &str {
        self.wgsl.name()
    }

    fn products(&self) -> &'static str {
        "cublaslt"
    }

    fn activation(&self) -> Scalar {
        self.wgsl.activation()
    }

    fn row_multiple(&self) -> usize {
        self.wgsl.row_multiple()
    }

    fn key_tile(&self) -> usize {
        self.wgsl.key_tile()
    }

    fn rows_at_once(&self, _width: usize) -> usize {
        ROWS_AT_ONCE
    }

    fn tile_rows(&self) -> usize {
        // As WGSL's on the same device: cuBLASLt does not tell.
        self.wgsl.tile_rows()
    }

    fn max_tensor_bytes(&self) -> u64 {
        self.wgsl.max_tensor_bytes()
    }

    fn busy_workgroups(&self) -> Option<usize> {
        self.wgsl.busy_workgroups()
    }

    fn set_busy_workgroups(&self, n: usize) {
        self.wgsl.set_busy_workgroups(n);
    }

    fn works_beside_host(&self) -> bool {
        self.wgsl.works_beside_host()
    }

    fn decode_splits(&self) -> usize {
        self.wgsl.decode_splits()
    }

    fn tensor(&self, label: &str, scalar: Scalar, len: usize) -> Result<Tensor> {
        self.wgsl.tensor(label, scalar, len)
    }

    fn cache(&self, label: &str, scalar: Scalar, len: usize) -> Result<Tensor> {
        self.wgsl.cache(label, scalar, len)
    }

    fn matrix_bytes(&self, source: &MatrixSource) -> u64 {
        self.wgsl.matrix_bytes(source)
    }

    fn matrices(
        &self,
        sources: &[(&str, &MatrixSource)],
        cancel: &Cancel,
        step: &mut dyn FnMut(usize),
    ) -> Result<Vec<Matrix>> {
        let matrices = self.wgsl.matrices(sources, cancel, step)?;
        for (matrix, (_, source)) in matrices.iter().zip(sources).filter(|(matrix, _)| product::suits(matrix)) {
            self.n_suiting.fetch_add(1, Ordering::Relaxed);
            if product::is_converted(matrix) {
                self.n_converted.fetch_add(1, Ordering::Relaxed);
                self.converter.make_room(self.gpu(), source)?;
            }
            if source.rows == RowOrder::Alternating {
                self.pairs.make(self.gpu(), product::pair_bytes(matrix.rows()))?;
            }
        }
        Ok(matrices)
    }

    fn workspace_bytes(&self, sources: &mut dyn Iterator<Item = &MatrixSource>) -> u64 {
        let needs = sources.map(|source| (product::pairs_of(source), weights::room_bytes(source)));
        let most = needs.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)));
        most.map_or(0, |(pairs, converted)| pairs + converted)
    }

    fn write(&self, to: &Tensor, offset: usize, bytes: &[u8]) -> Result<()> {
        self.wgsl.write(to, offset, bytes)
    }

    fn begin(&self) -> Mixed {
        self.gpu().mixed()
    }

    fn begin_timed(&self) -> (Mixed, ()) {
        (self.begin(), ())
    }

    fn embed(&self, rec: &mut Mixed, op: Embed<'_, Self>) -> Result<()> {
        let Embed { ids, table, out, rows, scale } = op;
        self.wgsl.embed(rec.gpu(), Embed { ids, table, out, rows, scale })
    }

    fn norm(&self, rec: &mut Mixed, op: Norm<'_, Self>) -> Result<()> {
        let op = norm_for_wgsl(op);
        if self.stays(rec, op.rows.len()) && rows::suits_norm(&op) {
            return rows::norm(self, rec, &op);
        }
        self.wgsl.norm(rec.gpu(), op)
    }

    fn product(&self, rec: &mut Mixed, op: Product<'_, Self>) -> Result<()> {
        let op = product_for_wgsl(op);
        if product::suits(op.weight) && product::suits_call(self, rec, &op) {
            return product::record(self, rec, &op);
        }
        self.wgsl.product(rec.gpu(), op)
    }

    fn norm_product(&self, rec: &mut Mixed, norm: Norm<'_, Self>, product: Product<'_, Self>) -> Result<()> {
        if product.phase == Phase::Decode {
            return self.wgsl.norm_product(rec.gpu(), norm_for_wgsl(norm), product_for_wgsl(product));
        }
        self.norm(rec, norm)?;
        self.product(rec, product)
    }

    fn rope_cache(&self, rec: &mut Mixed, op: RopeCache<'_, Self>) -> Result<()> {
        let op = rope_for_wgsl(op);
        if self.stays(rec, op.rows.len()) && rows::suits_rope(&op) {
            return rows::rope_cache(self, rec, &op);
        }
        self.wgsl.rope_cache(rec.gpu(), op)
    }

    fn attention(&self, rec: &mut Mixed, op: Attention<'_, Self>) -> Result<()> {
        let Attention { qkv, k, v, out, rows, kv_heads, position, dense_keys, dims, scale, rules, bias } = op;
        let op = Attention { qkv, k, v, out, rows, kv_heads, position, dense_keys, dims, scale, rules, bias };
        if attention::suits(self, rec, &op) {
            return attention::record(self, rec, &op);
        }
        self.wgsl.attention(rec.gpu(), op)
    }

    fn attention_decode(&self, rec: &mut Mixed, op: AttentionDecode<'_, Self>) -> Result<()> {
        self.wgsl.attention_decode(rec.gpu(), decode_for_wgsl(op))
    }

    fn rope_attention_decode(
        &self,
        rec: &mut Mixed,
        rope: RopeCache<'_, Self>,
        attention: AttentionDecode<'_, Self>,
    ) -> Result<()> {
        self.wgsl.rope_attention_decode(rec.gpu(), rope_for_wgsl(rope), decode_for_wgsl(attention))
    }

    fn soft_cap(&self, rec: &mut Mixed, op: SoftCap<'_, Self>) -> Result<()> {
        let SoftCap { x, len, cap } = op;
        self.wgsl.soft_cap(rec.gpu(), SoftCap { x, len, cap })
    }

    fn arg_max(&self, rec: &mut Mixed, op: ArgMax<'_, Self>) -> Result<()> {
        let ArgMax { x, row, width, out } = op;
        self.wgsl.arg_max(rec.gpu(), ArgMax { x, row, width, out })
    }

    fn download(&self, rec: &mut Mixed, from: &Tensor, range: Range<usize>) -> Result<Download> {
        self.wgsl.download(rec.gpu(), from, range)
    }

    fn submit(&self, rec: Mixed, wait: &Wait) -> Result<Submission> {
        wait.cancel.check()?;
        self.gpu().submit_mixed(rec)
    }

    fn wait(&self, point: &Submission, wait: &Wait) -> Result<()> {
        self.wgsl.wait(point, wait)
    }

    fn collect(&self, download: Download, after: &Submission, wait: &Wait, read: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.wgsl.collect(download, after, wait, read)
    }

    fn parts(&self, (): (), _after: &Submission, _wait: &Wait) -> Result<Vec<Part>> {
        Ok(Vec::new())
    }

    fn copies_beside(&self) -> bool {
        self.wgsl.copies_beside()
    }

    fn copy_out(&self, runs: &[Run<'_, Self>], to: &mut HostMemory, wait: &Wait) -> Result<bool> {
        self.wgsl.copy_out(&for_wgsl(runs), to, wait)
    }

    fn copy_in(&self, from: &HostMemory, runs: &[Run<'_, Self>], wait: &Wait) -> Result<bool> {
        self.wgsl.copy_in(from, &for_wgsl(runs), wait)
    }

    fn has_peers(&self) -> bool {
        self.peers
    }

    fn copy_to_peers(&self, rec: &mut Mixed, runs: &[Run<'_, Self>]) -> Result<Option<PeerMemory>> {
        self.gpu().copy_to_peers(rec, &self.wgsl.host_copies("copy_to_peers", &for_wgsl(runs))?)
    }

    fn copy_from_peer(&self, from: &PeerMemory, runs: &[Run<'_, Self>], wait: &Wait) -> Result<bool> {
        self.gpu().copy_from_peer(from, &self.wgsl.host_copies("copy_from_peer", &for_wgsl(runs))?, wait)
    }

    fn free_memory(&self) -> Option<u64> {
        self.wgsl.free_memory()
    }
}
