//! Rotary embedding and the write into the K/V cache.

use bytemuck::{Pod, Zeroable};

use super::tensor::Args;
use super::{Kernel, Wgsl, kv_part};
use crate::config::RopePairs;
use crate::dtype::{KvDtype, Scalar};
use crate::error::Result;
use crate::gpu::{Recording, ShaderSpec};
use crate::kernels::RopeCache;

/// Threads of a workgroup; as in the shader.
const THREADS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    per_row: u32,
    start2: u32,
    position: u32,
    heads: u32,
    kv_heads: u32,
    head4: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    kv: KvDtype,
    adjacent: bool,
}

impl Variant {
    pub fn new(kv: KvDtype, pairs: RopePairs) -> Self {
        Self { kv, adjacent: pairs == RopePairs::Adjacent }
    }

    pub fn spec(self) -> ShaderSpec {
        let pairs = if self.adjacent {
            include_str!("../../../shaders/lib/pairs_adjacent.wgsl")
        } else {
            include_str!("../../../shaders/lib/pairs_halves.wgsl")
        };
        ShaderSpec {
            name: format!("rope_cache {:?} {}", self.kv, if self.adjacent { "adjacent" } else { "halves" }),
            header: String::new(),
            parts: vec![kv_part(self.kv), pairs],
            op: include_str!("../../../shaders/rope_cache.wgsl"),
            entry: "rope_cache",
            overrides: Vec::new(),
            checked: false,
        }
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &RopeCache<'_, Wgsl>) -> Result<()> {
    let args = Args("rope_cache");
    let dims = &op.dims;
    args.heads(dims)?;
    let rows = args.count(&op.rows)?;
    let end = args.end(op.position, rows)?;
    args.holds("qkv", op.qkv, Scalar::F32, op.rows.end, dims.qkv_width())?;
    args.holds("angles", op.angles, Scalar::F32, end, dims.head_dim)?;
    let kv = op.k.kv();
    args.holds("k", op.k, kv.scalar(), end, dims.kv_width())?;
    args.holds("v", op.v, kv.scalar(), end, dims.kv_width())?;
    let per_row = dims.qkv_width() / 4;
    let params = Params {
        count: args.u32(rows * per_row)?,
        per_row: args.u32(per_row)?,
        start2: args.u32(op.rows.start * dims.qkv_width() / 2)?,
        position: args.u32(op.position)?,
        heads: args.u32(dims.heads)?,
        kv_heads: args.u32(dims.kv_heads)?,
        head4: args.u32(dims.head_dim / 4)?,
    };
    let pipeline = kernels.pipeline(Kernel::RopeCache(Variant::new(kv, op.pairs)))?;
    let bindings = [op.angles.binding(), op.qkv.binding(), op.k.binding(), op.v.binding()];
    let grid = args.grid((rows * per_row).div_ceil(THREADS), kernels.max_groups())?;
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, grid)
}
