//! The kernels as WGSL compute shaders: a typed call per entry point. Records and checks; owns no memory beyond its pipelines.
//!
//! Each family below has plain-data `Params` (the immediate struct of its shader), a `Variant` (all that makes one compiled shader differ from
//! another), a pure choice of the variant from sizes and capabilities, and a function that records. Every index that a shader forms follows
//! from parameters which are checked here against the tensors' lengths, so that the shaders run without bounds checks of their own.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{
    ArgMax, Attention, AttentionDecode, Embed, Kernels, MatrixSource, Norm, Part, Phase, Product, RopeCache, Run,
    SoftCap, Work,
};
use crate::cancel::{Cancel, Wait};
use crate::config::RopePairs;
use crate::dtype::{Dtype, KvDtype, Scalar};
use crate::error::{Error, Result};
use crate::gpu::{
    Buffer, Caps, Download, Gpu, GpuKind, HostCopy, HostMemory, Pipeline, Recording, ShaderSpec, Stretch, Submission,
    Tier, Timing, Transfers,
};

mod arg_max;
pub(super) mod attention;
mod attention_coop;
mod attention_decode;
mod attention_decode_subgroup;
mod ceiling;
mod coop;
mod embed;
pub(super) mod matrix;
mod matvec;
mod matvec_subgroup;
mod norm;
pub(super) mod planes;
pub(super) mod product;
mod product_coop;
mod rope_cache;
mod soft_cap;
mod subgroups;
pub(super) mod tensor;
mod unroll;
mod upload;

pub use ceiling::CEILING_LEN;
use coop::Coop;
pub use matrix::Matrix;
use product::Form;
use subgroups::Subgroups;
use tensor::Args;
pub use tensor::Tensor;

/// Workgroups that keep a large GPU busy, as long as nothing was measured: H100 and H200 have 132 compute units.
const BUSY_WORKGROUPS: usize = 128;

/// A GPU as a device that can run a model: sums in f32, activations and cache in f16 or f32.
pub struct Wgsl {
    gpu: Arc<Gpu>,
    /// What the variants are chosen for.
    kind: GpuKind,
    activation: Scalar,
    /// Where the activations are f16 and the device has matrix units for them.
    coop: Option<Coop>,
    /// Where the device's have one size.
    subgroups: Option<Subgroups>,
    busy_workgroups: AtomicUsize,
    pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
}

/// Rows of the tiles of long products ([`Kernels::tile_rows`]) on matrix units, or without.
const fn tile_rows(coop: bool) -> usize {
    if coop { product_coop::TILE_ROWS } else { product::MAX_TILE_M as usize }
}

impl Wgsl {
    /// [`Kernels::tile_rows`] of a device of these capabilities, before it is opened.
    pub fn tile_rows_of(caps: &Caps) -> usize {
        tile_rows(Coop::of(caps).is_some())
    }

    /// Kernels on this device, with the activation type that suits it: f16 where matrix units take f16, else f32. Each is compiled when it is
    /// first recorded.
    pub fn new(gpu: Arc<Gpu>) -> Result<Self> {
        let activation = if Coop::of(gpu.caps()).is_some() { Scalar::F16 } else { Scalar::F32 };
        Self::with_activation(activation, gpu)
    }

    /// With the variants that a GPU of another kind would take; every variant runs everywhere.
    pub fn as_on(self, kind: GpuKind) -> Self {
        Self { kind, ..self }
    }

    /// As [`new`](Self::new), with activations in F16 or F32.
    ///
    /// Errors: [`Error::Shader`] for another type, or for F16 on a device without it.
    pub fn with_activation(activation: Scalar, gpu: Arc<Gpu>) -> Result<Self> {
        let possible = match activation {
            Scalar::F32 => true,
            Scalar::F16 => gpu.caps().tier >= Tier::F16,
            Scalar::U32 => false,
        };
        Args("activations").ensure(possible, || format!("{activation:?} on tier {}", gpu.caps().tier.name()))?;
        let coop = Coop::of(gpu.caps()).filter(|_| activation == Scalar::F16);
        Ok(Self {
            kind: gpu.info().kind,
            subgroups: Subgroups::of(gpu.caps()),
            gpu,
            activation,
            coop,
            busy_workgroups: BUSY_WORKGROUPS.into(),
            pipelines: Mutex::default(),
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// As [`Kernels::matrix`], in buffers of at most `max_bytes`: what a device with smaller bindings would do.
    pub fn matrix_in_parts(&self, label: &str, source: &MatrixSource, max_bytes: u64) -> Result<Matrix> {
        let made = upload::upload(&self.gpu, &[(label, source)], max_bytes, &Cancel::new(), &mut |_| ())?;
        made.into_iter().next().ok_or_else(|| Args("matrix").error("none was made"))
    }

    fn pipeline(&self, kernel: Kernel) -> Result<Arc<Pipeline>> {
        let lock = || self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = lock().get(&kernel) {
            return Ok(pipeline.clone());
        }
        let pipeline = self.gpu.pipeline(&kernel.spec())?;
        Ok(lock().entry(kernel).or_insert(pipeline).clone())
    }

    /// Subgroups for kernels that work by them. A software GPU gains nothing: what they spare it is barriers.
    fn subgroups(&self) -> Option<Subgroups> {
        self.subgroups.filter(|_| self.kind != GpuKind::Software)
    }

    fn busy(&self) -> usize {
        self.busy_workgroups.load(Ordering::Relaxed)
    }

    fn max_groups(&self) -> u32 {
        self.gpu.caps().max_workgroups_per_dim
    }

    /// A tensor in a buffer that `make` makes.
    fn tensor_in(
        &self,
        label: &str,
        scalar: Scalar,
        len: usize,
        make: impl FnOnce(u64) -> Result<Buffer>,
    ) -> Result<Tensor> {
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
        Ok(Tensor { buffer: make(bytes)?, scalar, len })
    }

    /// Runs of elements as parts of their buffers.
    pub(super) fn host_copies<'a>(&self, what: &'static str, runs: &[Run<'a, Self>]) -> Result<Vec<HostCopy<'a>>> {
        let part = |run: &Run<'a, Self>| {
            let range = self.words(what, run.tensor, &run.elements)?;
            let (offset, bytes) = (range.start, range.end - range.start);
            Ok(HostCopy { buffer: &run.tensor.buffer, offset, host_offset: run.host_offset as u64, bytes })
        };
        runs.iter().map(part).collect()
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
    ProductCoop(product_coop::Variant),
    MatVec(matvec::Variant),
    MatVecSubgroup(matvec_subgroup::Variant),
    HeadNorm(Scalar),
    RopeCache(rope_cache::Variant),
    Attention(attention::Variant),
    AttentionCoop(attention_coop::Variant),
    AttentionDecode(attention_decode::Variant),
    AttentionDecodeSubgroup(attention_decode_subgroup::Variant),
    AttentionMerge(Scalar),
    SoftCap,
    ArgMax(arg_max::Variant),
    Ceiling(Option<Coop>),
    CeilingRead,
}

impl Kernel {
    fn spec(self) -> ShaderSpec {
        match self {
            Kernel::Embed(variant) => variant.spec(),
            Kernel::Norm(variant) => variant.spec(),
            Kernel::Product(variant) => variant.spec(),
            Kernel::ProductCoop(variant) => variant.spec(),
            Kernel::MatVec(variant) => variant.spec(),
            Kernel::MatVecSubgroup(variant) => variant.spec(),
            Kernel::HeadNorm(activation) => rope_cache::norm_spec(activation),
            Kernel::RopeCache(variant) => variant.spec(),
            Kernel::Attention(variant) => variant.spec(),
            Kernel::AttentionCoop(variant) => variant.spec(),
            Kernel::AttentionDecode(variant) => variant.spec(),
            Kernel::AttentionDecodeSubgroup(variant) => variant.spec(),
            Kernel::AttentionMerge(activation) => attention_decode::merge_spec(activation),
            Kernel::SoftCap => soft_cap::spec(),
            Kernel::ArgMax(variant) => variant.spec(),
            Kernel::Ceiling(coop) => ceiling::spec(coop),
            Kernel::CeilingRead => ceiling::read_spec(),
        }
    }
}

/// The shaders of every kernel and variant, for validation without a device; those that depend on a head's size for each of `head_dims`.
pub fn all_specs(activation: Scalar, head_dims: &[usize]) -> Vec<ShaderSpec> {
    let caches = [KvDtype::F16, KvDtype::F32];
    let mut kernels = vec![
        Kernel::AttentionMerge(activation),
        Kernel::HeadNorm(activation),
        Kernel::SoftCap,
        Kernel::Ceiling(None),
        Kernel::CeilingRead,
    ];
    kernels.extend(norm::Variant::all(activation).map(Kernel::Norm));
    kernels.extend(arg_max::Variant::ALL.map(Kernel::ArgMax));
    for kv in caches {
        kernels.extend(
            [RopePairs::Halves, RopePairs::Adjacent]
                .map(|pairs| Kernel::RopeCache(rope_cache::Variant::new(activation, kv, pairs))),
        );
        for &head_dim in head_dims {
            for bias in [false, true] {
                kernels.push(Kernel::Attention(attention::Variant { activation, kv, head_dim, bias }));
                let decode = attention_decode::Variant::all(activation, kv, head_dim, bias);
                kernels.extend(decode.into_iter().map(Kernel::AttentionDecode));
            }
        }
    }
    kernels.extend(Dtype::ALL.map(|weight| Kernel::Embed(embed::Variant { weight })));
    kernels.extend(Form::all(activation).flat_map(product::Variant::all).map(Kernel::Product));
    kernels.extend(Form::all(activation).flat_map(matvec::Variant::all).map(Kernel::MatVec));
    kernels.into_iter().map(Kernel::spec).collect()
}

/// The shaders that need matrix units, for validation without a device.
pub fn coop_specs() -> Vec<ShaderSpec> {
    let mut kernels = vec![Kernel::Ceiling(Some(Coop::USUAL))];
    kernels.extend(attention_coop::Variant::all().map(Kernel::AttentionCoop));
    kernels.extend(Form::all(Scalar::F16).flat_map(product_coop::Variant::all).map(Kernel::ProductCoop));
    kernels.into_iter().map(Kernel::spec).collect()
}

/// The shaders that work by subgroups of 8, of 32 and of 64 invocations, for validation without a device.
pub fn subgroup_specs(activation: Scalar, head_dims: &[usize]) -> Vec<ShaderSpec> {
    let mut kernels = Vec::new();
    for subgroups in [Subgroups { lanes: 8 }, Subgroups::USUAL, Subgroups { lanes: 64 }] {
        kernels.push(Kernel::ArgMax(arg_max::Variant::by_subgroups(subgroups, u32::MAX)));
        for (kv, &head_dim) in
            [KvDtype::F16, KvDtype::F32].iter().flat_map(|kv| head_dims.iter().map(move |d| (*kv, d)))
        {
            for bias in [false, true] {
                let all = attention_decode_subgroup::Variant::all(subgroups, activation, kv, head_dim, bias);
                kernels.extend(all.into_iter().map(Kernel::AttentionDecodeSubgroup));
            }
        }
    }
    kernels.extend(Form::all(activation).flat_map(matvec_subgroup::Variant::all).map(Kernel::MatVecSubgroup));
    kernels.into_iter().map(Kernel::spec).collect()
}

/// A weight format with what all of them share.
macro_rules! with_sums {
    ($($path:literal),*) => {
        concat!(
            include_str!("../../shaders/lib/dot8.wgsl"),
            $(include_str!($path)),*,
            include_str!("../../shaders/lib/weight8.wgsl")
        )
    };
}

/// One that is written over the functions of `codes.wgsl`.
macro_rules! with_codes {
    ($($path:literal),*) => {
        with_sums!("../../shaders/lib/codes.wgsl", $($path),*)
    };
}

/// The part of a shader that reads a weight format.
const fn weight_part(format: Dtype) -> &'static str {
    match format {
        Dtype::F32 => {
            with_sums!("../../shaders/lib/weight_f32.wgsl", "../../shaders/lib/dot32_spread.wgsl")
        }
        Dtype::F16 => {
            with_sums!("../../shaders/lib/weight_f16.wgsl", "../../shaders/lib/dot32_spread.wgsl")
        }
        Dtype::Bf16 => {
            with_sums!("../../shaders/lib/weight_bf16.wgsl", "../../shaders/lib/dot32_spread.wgsl")
        }
        Dtype::Q8_0 => with_codes!("../../shaders/lib/weight_q8_0.wgsl"),
        Dtype::Q4_0 => with_codes!("../../shaders/lib/weight_q4_0.wgsl"),
        Dtype::Q4_1 => with_codes!("../../shaders/lib/weight_q4_1.wgsl"),
        Dtype::Q5_0 => with_codes!("../../shaders/lib/weight_q5_0.wgsl"),
        Dtype::Q5_1 => with_codes!("../../shaders/lib/weight_q5_1.wgsl"),
        Dtype::Iq4Nl => with_codes!("../../shaders/lib/weight_iq4_nl.wgsl"),
        Dtype::Q2K => with_codes!("../../shaders/lib/weight_q2_k.wgsl"),
        Dtype::Q3K => with_codes!("../../shaders/lib/weight_q3_k.wgsl"),
        Dtype::Q4K => with_codes!("../../shaders/lib/scales_k.wgsl", "../../shaders/lib/weight_q4_k.wgsl"),
        Dtype::Q5K => with_codes!("../../shaders/lib/scales_k.wgsl", "../../shaders/lib/weight_q5_k.wgsl"),
        Dtype::Q6K => with_codes!("../../shaders/lib/weight_q6_k.wgsl"),
    }
}

/// Tags of timed recordings; what is recorded first has 0.
const PRODUCTS: u8 = 0;
/// See [`PRODUCTS`].
const ATTENTION: u8 = 1;

/// The directives that a shader with this activation type begins with.
fn enables(activation: Scalar) -> String {
    if activation == Scalar::F16 { "enable f16;\n".to_owned() } else { String::new() }
}

/// The part of a shader that reads and writes activations.
const fn act_part(activation: Scalar) -> &'static str {
    match activation {
        Scalar::F16 => include_str!("../../shaders/lib/act_f16.wgsl"),
        _ => include_str!("../../shaders/lib/act_f32.wgsl"),
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
    type Timing = Timing;

    fn name(&self) -> &str {
        &self.gpu.info().name
    }

    fn products(&self) -> &'static str {
        "wgsl"
    }

    fn activation(&self) -> Scalar {
        self.activation
    }

    fn row_multiple(&self) -> usize {
        product::MAX_TILE_M as usize
    }

    fn rows_at_once(&self, width: usize) -> usize {
        // A product of 22016 x 4096 reaches 205 TFLOP/s with 512 rows on an H100 and 236 with 4,096. A software GPU gains nothing.
        let most = if self.kind == GpuKind::Software { 512 } else { super::MAX_ROWS_AT_ONCE };
        let fit = self.gpu.caps().max_binding_bytes / (width.max(1) * self.activation.bytes()) as u64;
        let tile = self.row_multiple();
        usize::try_from(fit).unwrap_or(most).min(most) / tile * tile
    }

    fn tile_rows(&self) -> usize {
        tile_rows(self.coop.is_some())
    }

    fn max_tensor_bytes(&self) -> u64 {
        self.gpu.caps().max_binding_bytes
    }

    fn busy_workgroups(&self) -> Option<usize> {
        // A software GPU's tiles depend on the rows alone.
        (self.kind != GpuKind::Software).then(|| self.busy())
    }

    fn set_busy_workgroups(&self, n: usize) {
        self.busy_workgroups.store(n, Ordering::Relaxed);
    }

    fn works_beside_host(&self) -> bool {
        self.kind != GpuKind::Software
    }

    fn key_tile(&self) -> usize {
        tensor::KEY_TILE
    }

    fn decode_splits(&self) -> usize {
        attention_decode::SPLITS
    }

    fn tensor(&self, label: &str, scalar: Scalar, len: usize) -> Result<Tensor> {
        self.tensor_in(label, scalar, len, |bytes| self.gpu.buffer(label, bytes))
    }

    fn cache(&self, label: &str, scalar: Scalar, len: usize) -> Result<Tensor> {
        self.tensor_in(label, scalar, len, |bytes| self.gpu.shared_buffer(label, bytes))
    }

    fn matrix_bytes(&self, source: &MatrixSource) -> u64 {
        Matrix::bytes(source)
    }

    fn matrices(
        &self,
        sources: &[(&str, &MatrixSource)],
        cancel: &Cancel,
        step: &mut dyn FnMut(usize),
    ) -> Result<Vec<Matrix>> {
        let caps = self.gpu.caps();
        upload::upload(&self.gpu, sources, caps.max_binding_bytes.min(caps.max_buffer_bytes), cancel, step)
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

    fn begin_timed(&self) -> (Recording, Timing) {
        let mut rec = self.gpu.recording();
        let timing = rec.timed();
        (rec, timing)
    }

    fn embed(&self, rec: &mut Recording, op: Embed<'_, Self>) -> Result<()> {
        embed::record(self, rec, &op)
    }

    fn norm(&self, rec: &mut Recording, op: Norm<'_, Self>) -> Result<()> {
        norm::record(self, rec, &op)
    }

    fn product(&self, rec: &mut Recording, op: Product<'_, Self>) -> Result<()> {
        match (op.phase, self.coop) {
            (Phase::Prefill, Some(coop)) if product_coop::suits(op.weight.width()) => {
                product_coop::record(self, coop, rec, &op)
            }
            (Phase::Prefill, _) => product::record(self, rec, &op),
            (Phase::Decode, _) => matvec::record(self, rec, &op),
        }
    }

    fn norm_product(&self, rec: &mut Recording, norm: Norm<'_, Self>, product: Product<'_, Self>) -> Result<()> {
        if matvec::takes_norm(self, &norm, &product) {
            return matvec::record_normed(self, rec, &norm, &product);
        }
        self.norm(rec, norm)?;
        self.product(rec, product)
    }

    fn rope_cache(&self, rec: &mut Recording, op: RopeCache<'_, Self>) -> Result<()> {
        rope_cache::record(self, rec, &op)
    }

    fn attention(&self, rec: &mut Recording, op: Attention<'_, Self>) -> Result<()> {
        rec.tag(ATTENTION);
        let recorded = match attention_coop::Variant::choose(self.coop, &op) {
            Some(variant) => attention_coop::record(self, variant, rec, &op),
            None => attention::record(self, rec, &op),
        };
        rec.tag(PRODUCTS);
        recorded
    }

    fn attention_decode(&self, rec: &mut Recording, op: AttentionDecode<'_, Self>) -> Result<()> {
        attention_decode::record(self, rec, &op)
    }

    fn rope_attention_decode(
        &self,
        rec: &mut Recording,
        rope: RopeCache<'_, Self>,
        attention: AttentionDecode<'_, Self>,
    ) -> Result<()> {
        attention_decode::record_turned(self, rec, &rope, &attention)
    }

    fn soft_cap(&self, rec: &mut Recording, op: SoftCap<'_, Self>) -> Result<()> {
        soft_cap::record(self, rec, &op)
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

    fn parts(&self, timing: Timing, after: &Submission, wait: &Wait) -> Result<Vec<Part>> {
        let part = |Stretch { tag, start, end }: Stretch| {
            let work = match tag {
                Some(ATTENTION) => Work::Attention,
                Some(_) => Work::Products,
                None => Work::Download,
            };
            Part { work, start, end }
        };
        let mut parts: Vec<Part> = self.gpu.times(&timing, after, wait)?.into_iter().map(part).collect();
        // Copies have no times of their own: they lie between two passes.
        for i in 1..parts.len() {
            if parts[i].work == Work::Download {
                parts[i].start = parts[i - 1].end;
            }
        }
        Ok(parts)
    }

    fn copies_beside(&self) -> bool {
        self.gpu.opened_with().transfers != Transfers::None
    }

    fn copy_out(&self, runs: &[Run<'_, Self>], to: &mut HostMemory, wait: &Wait) -> Result<bool> {
        self.gpu.copy_to_host(&self.host_copies("copy_out", runs)?, to, wait)
    }

    fn copy_in(&self, from: &HostMemory, runs: &[Run<'_, Self>], wait: &Wait) -> Result<bool> {
        self.gpu.copy_from_host(from, &self.host_copies("copy_in", runs)?, wait)
    }

    fn free_memory(&self) -> Option<u64> {
        self.gpu.free_memory()
    }
}
