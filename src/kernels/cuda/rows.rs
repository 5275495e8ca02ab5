//! Launches of the small kernels of [`rows_ptx`]: norm, rotation, gated activations, saturation.

use super::rows_ptx::{self, THREADS};
use super::{Cuda, float, place};
use crate::config::{NormKind, RopePairs};
use crate::dtype::{KvDtype, Scalar};
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Kernel, Launch, Mixed};
use crate::kernels::wgsl::Wgsl;
use crate::kernels::wgsl::tensor::{Args, Tensor};
use crate::kernels::{Epilogue, Norm, RopeCache};

/// Elements that a thread of the flat kernels takes.
const FLAT: usize = 8;

/// The kernels, compiled.
pub(super) struct Kernels {
    norm: Kernel,
    saturate: Kernel,
    add_bias: Kernel,
    swiglu: Kernel,
    geglu: Kernel,
    rope_halves: Kernel,
    rope_adjacent: Kernel,
}

impl Kernels {
    pub fn compile(gpu: &Gpu) -> Result<Self> {
        let module = gpu.cuda_module(&rows_ptx::source())?;
        let kernel = |name| gpu.cuda_kernel(&module, name, 0);
        Ok(Self {
            norm: kernel("norm")?,
            saturate: kernel("saturate")?,
            add_bias: kernel("add_bias")?,
            swiglu: kernel("swiglu")?,
            geglu: kernel("geglu")?,
            rope_halves: kernel("rope_halves")?,
            rope_adjacent: kernel("rope_adjacent")?,
        })
    }

    /// What is beyond f16 among `len` elements from `start` on becomes its largest value. Both are multiples of 8.
    pub fn saturate(&self, rec: &mut Mixed, x: &Tensor, start: usize, len: usize) -> Result<()> {
        let params = vec![place(x, start)?, flat_count("saturate", len)?];
        rec.launch(flat(&self.saturate, params, len)?, &[&x.buffer]);
        Ok(())
    }

    /// Adds a bias to each of `rows` rows, `[rows, columns]` from element `start` on, which saturate. Start and columns are multiples of 8.
    pub fn add_bias(
        &self,
        rec: &mut Mixed,
        x: &Tensor,
        start: usize,
        bias: &Tensor,
        (rows, columns): (usize, usize),
    ) -> Result<()> {
        let count = flat_count("add_bias", rows * columns)?;
        let params = vec![place(x, start)?, place(bias, 0)?, count, flat_count("add_bias", columns)?];
        rec.launch(flat(&self.add_bias, params, rows * columns)?, &[&x.buffer, &bias.buffer]);
        Ok(())
    }

    /// `len` outputs from `start` on of the pairs (gate, up) in a buffer. Both are multiples of 8.
    pub fn gate(
        &self,
        rec: &mut Mixed,
        epilogue: Epilogue,
        pairs: &Buffer,
        out: &Tensor,
        start: usize,
        len: usize,
    ) -> Result<()> {
        let kernel = if epilogue == Epilogue::GeGlu { &self.geglu } else { &self.swiglu };
        let params = vec![pairs.cuda_address()?, place(out, start)?, flat_count("gate", len)?];
        rec.launch(flat(kernel, params, len)?, &[pairs, &out.buffer]);
        Ok(())
    }
}

/// Threads of a kernel that takes [`FLAT`] elements a thread.
fn flat_count(what: &'static str, len: usize) -> Result<u64> {
    Args(what).u32(len / FLAT).map(u64::from)
}

fn flat(kernel: &Kernel, params: Vec<u64>, len: usize) -> Result<Launch> {
    let blocks = Args("a flat kernel").u32((len / FLAT).div_ceil(THREADS as usize))?;
    Ok(Launch { kernel: kernel.clone(), grid: [blocks, 1, 1], threads: THREADS, params })
}

/// Whether the norm is one that the kernel computes.
pub(super) fn suits_norm(op: &Norm<'_, Wgsl>) -> bool {
    op.kind == NormKind::Rms && op.bias.is_none() && !op.add && op.out.scalar == Scalar::F16 && !op.rows.is_empty()
}

pub(super) fn norm(cuda: &Cuda, rec: &mut Mixed, op: &Norm<'_, Wgsl>) -> Result<()> {
    let args = Args("norm");
    args.ensure(op.width > 0 && op.width.is_multiple_of(4), || format!("width {}", op.width))?;
    args.holds("x", op.x, Scalar::F32, op.rows.end, op.width)?;
    args.holds("weight", op.weight, Scalar::F32, 1, op.width)?;
    args.holds("out", op.out, Scalar::F16, op.rows.end, op.width)?;
    let start = op.rows.start * op.width;
    let params = vec![
        place(op.x, start)?,
        place(op.weight, 0)?,
        place(op.out, start)?,
        (op.width / 4) as u64,
        float(1.0 / op.width as f32),
        float(op.eps),
    ];
    let grid = [args.u32(args.count(&op.rows)?)?, 1, 1];
    let launch = Launch { kernel: cuda.rows.norm.clone(), grid, threads: THREADS, params };
    rec.launch(launch, &[&op.x.buffer, &op.weight.buffer, &op.out.buffer]);
    Ok(())
}

/// Whether the rotation is one that the kernels compute.
pub(super) fn suits_rope(op: &RopeCache<'_, Wgsl>) -> bool {
    let end = op.position.saturating_add(op.rows.len());
    op.norm.is_none()
        && op.k.kv() == KvDtype::F16
        && op.qkv.scalar == Scalar::F16
        && !op.rows.is_empty()
        && op.k.reaches(end, op.dims.kv_width())
}

pub(super) fn rope_cache(cuda: &Cuda, rec: &mut Mixed, op: &RopeCache<'_, Wgsl>) -> Result<()> {
    let (args, dims) = (Args("rope_cache"), &op.dims);
    args.heads(dims)?;
    let rows = args.count(&op.rows)?;
    let end = args.end(op.position, rows)?;
    args.ensure(op.rotary.is_multiple_of(4) && op.rotary <= dims.head_dim, || {
        format!("{} rotary elements", op.rotary)
    })?;
    args.holds("qkv", op.qkv, Scalar::F16, op.rows.end, dims.qkv_width())?;
    args.holds("angles", op.angles, Scalar::F32, end, op.rotary)?;
    args.holds("k", op.k, Scalar::F16, end, dims.kv_width())?;
    args.holds("v", op.v, Scalar::F16, end, dims.kv_width())?;
    let per_row = dims.qkv_width() / 4;
    let params = vec![
        place(op.angles, 0)?,
        place(op.qkv, op.rows.start * dims.qkv_width())?,
        place(op.k, 0)?,
        place(op.v, 0)?,
        u64::from(args.u32(per_row)?),
        u64::from(args.u32(op.position)?),
        dims.heads as u64,
        dims.kv_heads as u64,
        (dims.head_dim / 4) as u64,
        (op.rotary / 4) as u64,
    ];
    let kernel = if op.pairs == RopePairs::Adjacent { &cuda.rows.rope_adjacent } else { &cuda.rows.rope_halves };
    let grid = [args.u32(rows)?, args.u32(per_row.div_ceil(THREADS as usize))?, 1];
    let launch = Launch { kernel: kernel.clone(), grid, threads: THREADS, params };
    rec.launch(launch, &[&op.angles.buffer, &op.qkv.buffer, &op.k.buffer, &op.v.buffer]);
    Ok(())
}
