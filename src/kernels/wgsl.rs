//! The kernels as WGSL compute shaders: a typed call per entry point. Records and checks; owns no memory beyond its pipelines.
//!
//! Each family below has plain-data `Params` (the uniform struct of its shader), a `Variant` (all that makes one compiled shader differ from
//! another), a pure choice of the variant from sizes and capabilities, and a function that records. Every index that a shader forms follows
//! from parameters which are checked here against the tensors' lengths, so that the shaders run without bounds checks of their own.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{
    ArgMax, Attention, AttentionDecode, Embed, Epilogue, Kernels, MatrixSource, Norm, Phase, Product, RopeCache,
};
use crate::cancel::Wait;
use crate::config::RopePairs;
use crate::dtype::{Dtype, KvDtype, Scalar};
use crate::error::{Error, Result};
use crate::gpu::{Download, Gpu, GpuKind, Pipeline, Recording, ShaderSpec, Submission};

mod arg_max;
mod attention;
mod attention_decode;
mod embed;
mod matrix;
mod matvec;
mod norm;
mod planes;
mod product;
mod rope_cache;
mod tensor;

pub use matrix::Matrix;
use tensor::Args;
pub use tensor::Tensor;

/// A GPU as a device that can run a model: f32 arithmetic, cache in f16 or f32.
pub struct Wgsl {
    gpu: Arc<Gpu>,
    /// What the variants are chosen for.
    kind: GpuKind,
    pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
}

impl Wgsl {
    /// Kernels on this device. Each is compiled when it is first recorded.
    pub fn new(gpu: Arc<Gpu>) -> Result<Self> {
        let kind = gpu.info().kind;
        Self::as_on(kind, gpu)
    }

    /// The variants that a GPU of another kind would take, on this device; every variant runs everywhere.
    pub fn as_on(kind: GpuKind, gpu: Arc<Gpu>) -> Result<Self> {
        Ok(Self { gpu, kind, pipelines: Mutex::default() })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// As [`Kernels::matrix`], in buffers of at most `max_bytes`: what a device with smaller bindings would do.
    pub fn matrix_in_parts(&self, label: &str, source: &MatrixSource, max_bytes: u64) -> Result<Matrix> {
        Matrix::upload_in_parts(&self.gpu, label, source, max_bytes)
    }

    fn pipeline(&self, kernel: Kernel) -> Result<Arc<Pipeline>> {
        let lock = || self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = lock().get(&kernel) {
            return Ok(pipeline.clone());
        }
        let pipeline = self.gpu.pipeline(&kernel.spec())?;
        Ok(lock().entry(kernel).or_insert(pipeline).clone())
    }

    fn max_groups(&self) -> u32 {
        self.gpu.caps().max_workgroups_per_dim
    }

    /// Byte range of elements, which has to start and end on words.
    fn words(&self, what: &'static str, tensor: &Tensor, elements: &Range<usize>) -> Result<Range<u64>> {
        let args = Args(what);
        args.ensure(elements.start <= elements.end && elements.end <= tensor.len, || {
            format!("elements {elements:?} of `{}`, which has {}", tensor.buffer.label(), tensor.len)
        })?;
        let size = tensor.scalar.bytes() as u64;
        let bytes = elements.start as u64 * size..elements.end as u64 * size;
        args.ensure(bytes.start % 4 == 0 && bytes.end % 4 == 0, || format!("bytes {bytes:?} are no whole words"))?;
        Ok(bytes)
    }
}

/// Every kernel in every variant: the key of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kernel {
    Embed(embed::Variant),
    Norm(norm::Variant),
    Product(product::Variant),
    MatVec(matvec::Variant),
    RopeCache(rope_cache::Variant),
    Attention(attention::Variant),
    AttentionDecode(attention_decode::Variant),
    AttentionMerge,
    ArgMax(arg_max::Variant),
}

impl Kernel {
    fn spec(self) -> ShaderSpec {
        match self {
            Kernel::Embed(variant) => variant.spec(),
            Kernel::Norm(variant) => variant.spec(),
            Kernel::Product(variant) => variant.spec(),
            Kernel::MatVec(variant) => variant.spec(),
            Kernel::RopeCache(variant) => variant.spec(),
            Kernel::Attention(variant) => variant.spec(),
            Kernel::AttentionDecode(variant) => variant.spec(),
            Kernel::AttentionMerge => attention_decode::merge_spec(),
            Kernel::ArgMax(variant) => variant.spec(),
        }
    }
}

/// The shaders of every kernel and variant, for validation without a device; those that depend on a head's size for each of `head_dims`.
pub fn all_specs(head_dims: &[usize]) -> Vec<ShaderSpec> {
    let caches = [KvDtype::F16, KvDtype::F32];
    let mut kernels = vec![Kernel::AttentionMerge];
    kernels.extend(norm::Variant::ALL.map(Kernel::Norm));
    kernels.extend(arg_max::Variant::ALL.map(Kernel::ArgMax));
    for kv in caches {
        kernels.extend(
            [RopePairs::Halves, RopePairs::Adjacent]
                .map(|pairs| Kernel::RopeCache(rope_cache::Variant::new(kv, pairs))),
        );
        for &head_dim in head_dims {
            kernels.push(Kernel::Attention(attention::Variant { kv, head_dim }));
            kernels.extend(attention_decode::Variant::all(kv, head_dim).into_iter().map(Kernel::AttentionDecode));
        }
    }
    for weight in Dtype::ALL {
        kernels.push(Kernel::Embed(embed::Variant { weight }));
        for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu] {
            kernels.extend(product::Variant::all(weight, epilogue).map(Kernel::Product));
            kernels.extend(matvec::Variant::all(weight, epilogue).map(Kernel::MatVec));
        }
    }
    kernels.into_iter().map(Kernel::spec).collect()
}

/// The part of a shader that reads a weight format.
const fn weight_part(format: Dtype) -> &'static str {
    match format {
        Dtype::F32 => include_str!("../../shaders/lib/weight_f32.wgsl"),
        Dtype::F16 => include_str!("../../shaders/lib/weight_f16.wgsl"),
        Dtype::Bf16 => include_str!("../../shaders/lib/weight_bf16.wgsl"),
        Dtype::Q8_0 => include_str!("../../shaders/lib/weight_q8_0.wgsl"),
        Dtype::Q4_0 => include_str!("../../shaders/lib/weight_q4_0.wgsl"),
        Dtype::Q4_1 => include_str!("../../shaders/lib/weight_q4_1.wgsl"),
    }
}

/// The part of a shader that reads and writes cache elements.
const fn kv_part(kv: KvDtype) -> &'static str {
    match kv {
        KvDtype::F16 => include_str!("../../shaders/lib/kv_f16.wgsl"),
        KvDtype::F32 => include_str!("../../shaders/lib/kv_f32.wgsl"),
    }
}

impl Kernels for Wgsl {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Recording = Recording;
    type Submitted = Submission;
    type Download = Download;

    fn name(&self) -> &str {
        &self.gpu.info().name
    }

    fn activation(&self) -> Scalar {
        Scalar::F32
    }

    fn row_tile(&self) -> usize {
        product::MAX_TILE_M as usize
    }

    fn key_tile(&self) -> usize {
        attention::KEY_TILE
    }

    fn decode_splits(&self) -> usize {
        attention_decode::SPLITS
    }

    fn tensor(&self, label: &str, scalar: Scalar, len: usize) -> Result<Tensor> {
        Args("tensor").ensure(scalar != Scalar::F16 || len.is_multiple_of(2), || {
            format!("`{label}`: {len} halves, two to a word")
        })?;
        let memory = |needed| Error::Memory {
            adapter: self.name().to_owned(),
            what: label.to_owned(),
            needed,
            available: self.gpu.caps().max_binding_bytes,
        };
        let bytes = Tensor::bytes(scalar, len).ok_or_else(|| memory(u64::MAX))?;
        if bytes > self.gpu.caps().max_binding_bytes {
            return Err(memory(bytes));
        }
        Ok(Tensor { buffer: self.gpu.buffer(label, bytes)?, scalar, len })
    }

    fn matrix_bytes(&self, source: &MatrixSource) -> u64 {
        Matrix::bytes(source)
    }

    fn matrix(&self, label: &str, source: &MatrixSource) -> Result<Matrix> {
        Matrix::upload(&self.gpu, label, source)
    }

    fn write(&self, to: &Tensor, offset: usize, bytes: &[u8]) -> Result<()> {
        let size = to.scalar.bytes();
        Args("write")
            .ensure(bytes.len().is_multiple_of(size), || format!("{} bytes of {:?}", bytes.len(), to.scalar))?;
        let end = Args("write").end(offset, bytes.len() / size)?;
        let range = self.words("write", to, &(offset..end))?;
        self.gpu.write(&to.buffer, range.start, bytes)
    }

    fn begin(&self) -> Recording {
        self.gpu.recording()
    }

    fn embed(&self, rec: &mut Recording, op: Embed<'_, Self>) -> Result<()> {
        embed::record(self, rec, &op)
    }

    fn norm(&self, rec: &mut Recording, op: Norm<'_, Self>) -> Result<()> {
        norm::record(self, rec, &op)
    }

    fn product(&self, rec: &mut Recording, op: Product<'_, Self>) -> Result<()> {
        match op.phase {
            Phase::Prefill => product::record(self, rec, &op),
            Phase::Decode => matvec::record(self, rec, &op),
        }
    }

    fn rope_cache(&self, rec: &mut Recording, op: RopeCache<'_, Self>) -> Result<()> {
        rope_cache::record(self, rec, &op)
    }

    fn attention(&self, rec: &mut Recording, op: Attention<'_, Self>) -> Result<()> {
        attention::record(self, rec, &op)
    }

    fn attention_decode(&self, rec: &mut Recording, op: AttentionDecode<'_, Self>) -> Result<()> {
        attention_decode::record(self, rec, &op)
    }

    fn arg_max(&self, rec: &mut Recording, op: ArgMax<'_, Self>) -> Result<()> {
        arg_max::record(self, rec, &op)
    }

    fn download(&self, rec: &mut Recording, from: &Tensor, range: Range<usize>) -> Result<Download> {
        let range = self.words("download", from, &range)?;
        rec.download(&from.buffer, range)
    }

    fn submit(&self, rec: Recording, wait: &Wait) -> Result<Submission> {
        wait.cancel.check()?;
        self.gpu.submit(rec)
    }

    fn wait(&self, point: &Submission, wait: &Wait) -> Result<()> {
        self.gpu.wait(point, wait)
    }

    fn collect(&self, download: Download, after: &Submission, wait: &Wait, read: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.gpu.collect(download, after, wait, read)
    }

    fn free_memory(&self) -> Option<u64> {
        self.gpu.free_memory()
    }
}
