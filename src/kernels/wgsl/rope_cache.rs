//! The norm of heads, rotary embedding and the write into the K/V cache.

use bytemuck::{Pod, Zeroable};

use super::tensor::Args;
use super::{Kernel, Wgsl, act_part, enables, kv_part};
use crate::config::RopePairs;
use crate::dtype::{KvDtype, Scalar};
use crate::error::Result;
use crate::gpu::{Recording, ShaderSpec};
use crate::kernels::RopeCache;

/// Threads of a workgroup; as in the shader.
const THREADS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    count: u32,
    per_row: u32,
    start2: u32,
    position: u32,
    heads: u32,
    kv_heads: u32,
    head4: u32,
    rotary4: u32,
    cached: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    count: u32,
    start4: u32,
    per_row: u32,
    heads: u32,
    kv_heads: u32,
    head4: u32,
    inverse_width: f32,
    eps: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    activation: Scalar,
    kv: KvDtype,
    pairs: RopePairs,
}

impl Variant {
    pub fn new(activation: Scalar, kv: KvDtype, pairs: RopePairs) -> Self {
        Self { activation, kv, pairs }
    }

    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!("rope_cache {:?} {:?} {:?}", self.activation, self.kv, self.pairs),
            header: enables(self.activation),
            parts: vec![act_part(self.activation), kv_part(self.kv), pairs_part(self.pairs)],
            op: include_str!("../../../shaders/rope_cache.wgsl"),
            entry: "rope_cache",
            overrides: Vec::new(),
            checked: false,
        }
    }
}

/// The part that turns pairs.
pub(super) const fn pairs_part(pairs: RopePairs) -> &'static str {
    match pairs {
        RopePairs::Adjacent => include_str!("../../../shaders/lib/pairs_adjacent.wgsl"),
        RopePairs::Halves => include_str!("../../../shaders/lib/pairs_halves.wgsl"),
    }
}

pub(super) fn norm_spec(activation: Scalar) -> ShaderSpec {
    ShaderSpec {
        name: format!("head_norm {activation:?}"),
        header: enables(activation),
        parts: vec![act_part(activation)],
        op: include_str!("../../../shaders/head_norm.wgsl"),
        entry: "head_norm",
        overrides: Vec::new(),
        checked: false,
    }
}

/// Checks everything but the norm.
pub(super) fn check(kernels: &Wgsl, op: &RopeCache<'_, Wgsl>) -> Result<Params> {
    let args = Args("rope_cache");
    let dims = &op.dims;
    args.heads(dims)?;
    let rows = args.count(&op.rows)?;
    let end = args.end(op.position, rows)?;
    args.holds("qkv", op.qkv, kernels.activation, op.rows.end, dims.qkv_width())?;
    args.ensure(op.rotary.is_multiple_of(4) && op.rotary <= dims.head_dim, || {
        format!("{} rotary elements", op.rotary)
    })?;
    args.holds("angles", op.angles, Scalar::F32, end, op.rotary)?;
    let cached = args.cache(op.k, op.v, dims, &(op.position..end), op.ring)?;
    let per_row = dims.qkv_width() / 4;
    Ok(Params {
        count: args.u32(rows * per_row)?,
        per_row: args.u32(per_row)?,
        start2: args.u32(op.rows.start * dims.qkv_width() / 2)?,
        position: args.u32(op.position)?,
        heads: args.u32(dims.heads)?,
        kv_heads: args.u32(dims.kv_heads)?,
        head4: args.u32(dims.head_dim / 4)?,
        rotary4: args.u32(op.rotary / 4)?,
        cached,
    })
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &RopeCache<'_, Wgsl>) -> Result<()> {
    let params = check(kernels, op)?;
    record_norm(kernels, rec, op)?;
    let pipeline = kernels.pipeline(Kernel::RopeCache(Variant::new(kernels.activation, op.k.kv(), op.pairs)))?;
    let bindings = [op.angles.binding(), op.qkv.binding(), op.k.binding(), op.v.binding()];
    let grid = Args("rope_cache").grid((params.count as usize).div_ceil(THREADS), kernels.max_groups())?;
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, grid)
}

/// The norm of the heads, where there is one.
pub(super) fn record_norm(kernels: &Wgsl, rec: &mut Recording, op: &RopeCache<'_, Wgsl>) -> Result<()> {
    let Some(norm) = &op.norm else { return Ok(()) };
    let (args, dims, rows) = (Args("head_norm"), &op.dims, op.rows.len());
    args.holds("q", norm.q, Scalar::F32, 1, dims.head_dim)?;
    args.holds("k", norm.k, Scalar::F32, 1, dims.head_dim)?;
    let count = rows * (dims.heads + dims.kv_heads);
    let params = NormParams {
        count: args.u32(count)?,
        start4: args.u32(op.rows.start * dims.qkv_width() / 4)?,
        per_row: args.u32(dims.qkv_width() / 4)?,
        heads: args.u32(dims.heads)?,
        kv_heads: args.u32(dims.kv_heads)?,
        head4: args.u32(dims.head_dim / 4)?,
        inverse_width: 1.0 / dims.head_dim as f32,
        eps: norm.eps,
    };
    let pipeline = kernels.pipeline(Kernel::HeadNorm(kernels.activation))?;
    let bindings = [norm.q.binding(), norm.k.binding(), op.qkv.binding()];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, args.grid(count, kernels.max_groups())?)
}
