//! Causal attention of many rows.

use bytemuck::{Pod, Zeroable};

use super::tensor::Args;
use super::{Kernel, Wgsl, kv_part};
use crate::dtype::{KvDtype, Scalar};
use crate::error::Result;
use crate::gpu::{Recording, ShaderSpec};
use crate::kernels::Attention;

/// Keys that pass through workgroup memory together, counted from key 0; as in the shader.
pub(super) const KEY_TILE: usize = 32;

/// Rows of a workgroup; as in the shader.
const ROWS: u32 = 16;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    position: u32,
    q_start: u32,
    q_stride: u32,
    kv_stride: u32,
    out_start: u32,
    out_stride: u32,
    group: u32,
    scale: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub kv: KvDtype,
    /// A multiple of 4.
    pub head_dim: usize,
}

impl Variant {
    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!("attention {:?} {}", self.kv, self.head_dim),
            header: format!("const HEAD4: u32 = {}u;\n", self.head_dim / 4),
            parts: vec![kv_part(self.kv)],
            op: include_str!("../../../shaders/attention.wgsl"),
            entry: "attention",
            overrides: Vec::new(),
            checked: false,
        }
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &Attention<'_, Wgsl>) -> Result<()> {
    let args = Args("attention");
    let dims = &op.dims;
    args.heads(dims)?;
    let rows = args.count(&op.rows)?;
    let end = args.end(op.position, rows)?;
    let kv = op.k.kv();
    args.holds("qkv", op.qkv, Scalar::F32, op.rows.end, dims.qkv_width())?;
    args.holds("k", op.k, kv.scalar(), end, dims.kv_width())?;
    args.holds("v", op.v, kv.scalar(), end, dims.kv_width())?;
    args.holds("out", op.out, Scalar::F32, op.rows.end, dims.q_width())?;
    let params = Params {
        rows: args.u32(rows)?,
        position: args.u32(op.position)?,
        q_start: args.u32(op.rows.start * dims.qkv_width() / 4)?,
        q_stride: args.u32(dims.qkv_width() / 4)?,
        kv_stride: args.u32(dims.kv_width() / 4)?,
        out_start: args.u32(op.rows.start * dims.q_width() / 4)?,
        out_stride: args.u32(dims.q_width() / 4)?,
        group: args.u32(dims.heads / dims.kv_heads)?,
        scale: op.scale,
    };
    let pipeline = kernels.pipeline(Kernel::Attention(Variant { kv, head_dim: dims.head_dim }))?;
    let bindings = [op.qkv.binding(), op.k.binding(), op.v.binding(), op.out.binding()];
    let grid = [params.rows.div_ceil(ROWS), args.u32(dims.heads)?, 1];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, grid)
}
