//! Launches of the small kernels of [`rows_ptx`]: norm, rotation, activations, biases, saturation.

use super::rows_ptx::{self, THREADS};
use super::{Cuda, float, place};
use crate::config::{NormKind, RopePairs};
use crate::dtype::{KvDtype, Scalar};
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Kernel, Launch, Mixed};
use crate::kernels::wgsl::Wgsl;
use crate::kernels::wgsl::tensor::{Args, Tensor};
use crate::kernels::{Epilogue, Norm, RopeCache};

/// Elements that a thread of the flat kernels takes, in f16 and in f32.
const FLAT: usize = 8;
const FLAT_WIDE: usize = 4;

/// The kernels, compiled.
pub(super) struct Kernels {
    rms_norm: Kernel,
    layer_norm: Kernel,
    saturate: Kernel,
    add_bias: Kernel,
    add_bias_wide: Kernel,
    gelu: Kernel,
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
            rms_norm: kernel("rms_norm")?,
            layer_norm: kernel("layer_norm")?,
            saturate: kernel("saturate")?,
            add_bias: kernel("add_bias")?,
            add_bias_wide: kernel("add_bias_wide")?,
            gelu: kernel("gelu")?,
            swiglu: kernel("swiglu")?,
            geglu: kernel("geglu")?,
            rope_halves: kernel("rope_halves")?,
            rope_adjacent: kernel("rope_adjacent")?,
        })
    }

    /// What is beyond f16 among `len` elements from `start` on becomes its largest value. Both are multiples of 8.
    pub fn saturate(&self, rec: &mut Mixed, x: &Tensor, start: usize, len: usize) -> Result<()> {
        let params = vec![place(x, start)?, flat_count("saturate", len / FLAT)?];
        rec.launch(flat(&self.saturate, params, len / FLAT)?, &[&x.buffer]);
        Ok(())
    }

    /// Adds a bias to each of `rows` rows, `[rows, columns]` from element `start` on. Start and columns are multiples of 8.
    pub fn add_bias(
        &self,
        rec: &mut Mixed,
        x: &Tensor,
        start: usize,
        bias: &Tensor,
        (rows, columns): (usize, usize),
    ) -> Result<()> {
        if x.scalar == Scalar::F16 {
            return finish(&self.add_bias, FLAT, rec, x, start, Some(bias), (rows, columns));
        }
        finish(&self.add_bias_wide, FLAT_WIDE, rec, x, start, Some(bias), (rows, columns))
    }

    /// The same, also without bias, and GELU of the sums, in f16.
    pub fn gelu(
        &self,
        rec: &mut Mixed,
        x: &Tensor,
        start: usize,
        bias: Option<&Tensor>,
        (rows, columns): (usize, usize),
    ) -> Result<()> {
        finish(&self.gelu, FLAT, rec, x, start, bias, (rows, columns))
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
        let params = vec![pairs.cuda_address()?, place(out, start)?, flat_count("gate", len / FLAT)?];
        rec.launch(flat(kernel, params, len / FLAT)?, &[pairs, &out.buffer]);
        Ok(())
    }
}

/// A kernel that goes over rows in place, `each` elements a thread.
fn finish(
    kernel: &Kernel,
    each: usize,
    rec: &mut Mixed,
    x: &Tensor,
    start: usize,
    bias: Option<&Tensor>,
    (rows, columns): (usize, usize),
) -> Result<()> {
    let threads = rows * columns / each;
    let address = bias.map_or(Ok(0), |bias| place(bias, 0))?;
    let params = vec![place(x, start)?, address, flat_count("bias", threads)?, flat_count("bias", columns / each)?];
    let buffers: Vec<&Buffer> = [Some(x), bias].into_iter().flatten().map(|tensor| &tensor.buffer).collect();
    rec.launch(flat(kernel, params, threads)?, &buffers);
    Ok(())
}

/// A number of threads as a parameter.
fn flat_count(what: &'static str, threads: usize) -> Result<u64> {
    Args(what).u32(threads).map(u64::from)
}

/// Threads that share nothing.
fn flat(kernel: &Kernel, params: Vec<u64>, threads: usize) -> Result<Launch> {
    let blocks = Args("a flat kernel").u32(threads.div_ceil(THREADS as usize))?;
    Ok(Launch { kernel: kernel.clone(), grid: [blocks, 1, 1], threads: THREADS, params })
}

/// Whether the norm is one that the kernel computes.
pub(super) fn suits_norm(op: &Norm<'_, Wgsl>) -> bool {
    !op.add && op.out.scalar == Scalar::F16 && !op.rows.is_empty()
}

pub(super) fn norm(cuda: &Cuda, rec: &mut Mixed, op: &Norm<'_, Wgsl>) -> Result<()> {
    let args = Args("norm");
    args.ensure(op.width > 0 && op.width.is_multiple_of(4), || format!("width {}", op.width))?;
    args.holds("x", op.x, Scalar::F32, op.rows.end, op.width)?;
    args.holds("weight", op.weight, Scalar::F32, 1, op.width)?;
    args.holds("out", op.out, Scalar::F16, op.rows.end, op.width)?;
    if let Some(bias) = op.bias {
        args.holds("bias", bias, Scalar::F32, 1, op.width)?;
    }
    let start = op.rows.start * op.width;
    let params = vec![
        place(op.x, start)?,
        place(op.weight, 0)?,
        op.bias.map_or(Ok(0), |bias| place(bias, 0))?,
        place(op.out, start)?,
        (op.width / 4) as u64,
        float(1.0 / op.width as f32),
        float(op.eps),
    ];
    let grid = [args.u32(args.count(&op.rows)?)?, 1, 1];
    let kernel = match op.kind {
        NormKind::Rms => &cuda.rows.rms_norm,
        NormKind::Layer => &cuda.rows.layer_norm,
    };
    let buffers: Vec<&Buffer> =
        [Some(op.x), Some(op.weight), op.bias, Some(op.out)].into_iter().flatten().map(|t| &t.buffer).collect();
    rec.launch(Launch { kernel: kernel.clone(), grid, threads: THREADS, params }, &buffers);
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
