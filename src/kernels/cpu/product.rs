//! `x * weight^T`: tiles of decoded weights for many rows, dot products over the file's blocks for one.

use std::ops::Range;

use super::matrix::Matrix;
use super::tensor::Tensor;
use super::{Context, Scratch};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::kernels::{self, Epilogue, Phase};

/// A recorded product.
pub(super) struct Product {
    x: Tensor,
    weight: Matrix,
    bias: Option<Tensor>,
    out: Tensor,
    rows: Range<usize>,
    out_row: usize,
    epilogue: Epilogue,
    phase: Phase,
}

/// Decoded weights of a task stay within this, so that they and the rows of x in use stay in a core's second-level cache (1 MiB on the
/// machine that was measured, 256 KiB on small ones).
const PANEL_BYTES: usize = 256 << 10;
/// Elements of k that a panel holds; longer rows are taken in steps.
const PANEL_K: usize = 2048;
/// Rows of x between two decodings of a panel where k is taken in steps. With [`PANEL_BYTES`] it bounds the time between two looks at the
/// cancel: 33 MFLOP, 10 ms at the slowest level.
const ROW_BLOCK: usize = 256;
/// Elements of a row that are decoded before they are transposed: 16 rows of them are 16 KiB. A multiple of the formats' blocks.
const DECODE_K: usize = 256;
/// Rows of x that pass a strip of the panel together: a multiple of the rows that any level's tile holds (4, 6, 8).
const TILE_ROWS: usize = 24;
/// Fewer weight bytes than this for a thread are not worth waking it.
const TASK_BYTES: usize = 16 << 10;

impl Product {
    pub fn new(op: &kernels::Product<'_, super::Cpu>) -> Result<Self> {
        let (n, width) = (op.weight.rows(), op.weight.width());
        let out_width = if op.epilogue.gated() { n / 2 } else { n };
        if op.epilogue.gated() && !n.is_multiple_of(2) {
            return Err(op.out.fault(format_args!("a gate over an odd number of rows, {n}")));
        }
        if op.rows.start > op.rows.end || (op.phase == Phase::Decode && op.rows.len() > 1) {
            return Err(op.x.fault(format_args!("rows {:?} of a product, {:?}", op.rows, op.phase)));
        }
        op.x.expect(&[Scalar::F32], op.rows.end, width)?;
        op.out.expect(&[Scalar::F32], op.out_row.saturating_add(op.rows.len()), out_width)?;
        if let Some(bias) = op.bias {
            bias.expect(&[Scalar::F32], 1, n)?;
            Tensor::expect_distinct(&[bias, op.out])?;
        }
        Tensor::expect_distinct(&[op.x, op.out])?;
        Ok(Self {
            x: op.x.clone(),
            weight: op.weight.clone(),
            bias: op.bias.cloned(),
            out: op.out.clone(),
            rows: op.rows.clone(),
            out_row: op.out_row,
            epilogue: op.epilogue,
            phase: op.phase,
        })
    }

    /// Elements of a row of `out`.
    fn out_width(&self) -> usize {
        if self.epilogue.gated() { self.weight.rows() / 2 } else { self.weight.rows() }
    }

    pub fn run(&self, ctx: &Context<'_>) -> Result<()> {
        let (x, mut out) = (self.x.read()?, self.out.write()?);
        let bias = self.bias.as_ref().map(Tensor::read).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.f32());
        let (width, out_width) = (self.weight.width(), self.out_width());
        if self.rows.is_empty() || out_width == 0 {
            return Ok(());
        }
        let x = &x.f32()[self.rows.start * width..self.rows.end * width];
        let out = &mut out.f32_mut()[self.out_row * out_width..(self.out_row + self.rows.len()) * out_width];
        match self.phase {
            Phase::Prefill => self.tiles(ctx, x, bias, out),
            Phase::Decode => self.vector(ctx, x, bias, out),
        }
    }

    /// One row: memory-bound, each thread streams its rows of the weights once.
    fn vector(&self, ctx: &Context<'_>, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) -> Result<()> {
        let gated = self.epilogue.gated();
        let row_bytes = self.weight.run(0, 1, 1).map_or(1, |run| run.stride.max(1)) * if gated { 2 } else { 1 };
        let per = out.len().div_ceil(ctx.threads() * 4).max(TASK_BYTES.div_ceil(row_bytes)).next_multiple_of(2);
        ctx.for_each(out.chunks_mut(per).collect(), |i, out, scratch| {
            let first = i * per;
            let [buffer] = scratch.slices([2 * out.len()]);
            let (sums, up) = buffer.split_at_mut(out.len());
            if gated {
                self.dots(ctx, x, 2 * first, 2, sums);
                self.dots(ctx, x, 2 * first + 1, 2, up);
            } else {
                self.dots(ctx, x, first, 1, sums);
            }
            self.finish(ctx, first, bias, sums, up, out);
            Ok(())
        })
    }

    /// Sums of the weight rows `first`, `first + step` …
    fn dots(&self, ctx: &Context<'_>, x: &[f32], first: usize, step: usize, mut out: &mut [f32]) {
        for run in self.weight.runs(first, step, out.len()) {
            let (here, rest) = out.split_at_mut(run.rows);
            ctx.simd.dots(run.dtype, run.bytes, run.stride, x, here);
            out = rest;
        }
    }

    /// Many rows: the columns of `out` are cut into tasks, each with a panel of decoded weights of its own.
    fn tiles(&self, ctx: &Context<'_>, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) -> Result<()> {
        let (width, out_width) = (self.weight.width(), out.len() / self.rows.len());
        let strip = 2 * ctx.simd.lanes();
        // Gate and up rows stand side by side in a panel, so it holds half as many columns of `out`.
        let halves = if self.epilogue.gated() { 2 } else { 1 };
        let fits = PANEL_BYTES / (4 * width.min(PANEL_K) * strip).max(1) / halves;
        let share = out_width.div_ceil(strip * ctx.threads() * 4);
        let per = strip * fits.min(share).max(1);
        ctx.for_each(columns(out, out_width, per), |i, mut out, scratch| {
            let panel = Panel { weight: &self.weight, first: i * per, columns: out[0].len(), halves, strip };
            for (block, out) in out.chunks_mut(ROW_BLOCK).enumerate() {
                let start = block * ROW_BLOCK * width;
                self.block(ctx, &panel, block == 0, &x[start..start + out.len() * width], bias, out, scratch)?;
            }
            Ok(())
        })
    }

    /// A task's columns of up to [`ROW_BLOCK`] rows.
    fn block(
        &self,
        ctx: &Context<'_>,
        panel: &Panel<'_>,
        first: bool,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [&mut [f32]],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let width = self.weight.width();
        let (half, n) = (panel.half(), panel.half() * panel.halves);
        let depth = width.min(PANEL_K);
        // The weights stand first, so they are still there in a task's later blocks.
        let [weights, sums, decoded] = scratch.slices([n * depth, out.len() * n, ctx.simd.lanes() * DECODE_K]);
        for k in (0..width.max(1)).step_by(PANEL_K) {
            ctx.cancel.check()?;
            let depth = (width - k).min(PANEL_K);
            if first || width > PANEL_K {
                panel.decode(ctx, k, depth, weights, decoded);
            }
            // Rows outside, strips inside: the rows stay in the first-level cache while the panel passes.
            for (r, sums) in sums.chunks_mut(TILE_ROWS * n).enumerate() {
                for s in 0..n / panel.strip {
                    ctx.simd.tile(super::simd::Tile {
                        a: &x[r * TILE_ROWS * width + k..],
                        a_stride: width,
                        b: &weights[s * panel.strip * depth..(s + 1) * panel.strip * depth],
                        b_stride: panel.strip,
                        c: &mut sums[s * panel.strip..],
                        c_stride: n,
                        m: TILE_ROWS.min(out.len() - r * TILE_ROWS),
                        n: panel.strip,
                        k: depth,
                        add: k > 0,
                    });
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums.chunks_exact_mut(n)) {
            let (sums, up) = sums.split_at_mut(half);
            self.finish(ctx, panel.first, bias, sums, up, out);
        }
        Ok(())
    }

    /// Bias and epilogue of the columns of `out`, the first of which is column `first`. `sums` are theirs, or those of their gates, and `up` the
    /// other sums of gated columns.
    fn finish(
        &self,
        ctx: &Context<'_>,
        first: usize,
        bias: Option<&[f32]>,
        sums: &mut [f32],
        up: &mut [f32],
        out: &mut [f32],
    ) {
        let sums = &mut sums[..out.len()];
        let up = if self.epilogue.gated() { &mut up[..out.len()] } else { &mut [] };
        if let Some(bias) = bias {
            let step = if self.epilogue.gated() { 2 } else { 1 };
            let add = |sums: &mut [f32], from: usize| {
                sums.iter_mut().zip(bias[from..].iter().step_by(step)).for_each(|(sum, bias)| *sum += bias);
            };
            add(sums, step * first);
            if self.epilogue.gated() {
                add(up, step * first + 1);
            }
        }
        match self.epilogue {
            Epilogue::Store => out.copy_from_slice(sums),
            Epilogue::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum),
            Epilogue::SwiGlu => ctx.simd.swiglu(sums, up, out),
            Epilogue::GeGlu => ctx.simd.geglu(sums, up, out),
            Epilogue::Gelu => ctx.simd.gelu(sums, out),
        }
    }
}

/// Columns of `out` that a task computes, and the weight rows behind them.
struct Panel<'a> {
    weight: &'a Matrix,
    /// First column of `out`.
    first: usize,
    /// Columns of `out`.
    columns: usize,
    /// 2 where a gate and an up row make a column.
    halves: usize,
    /// Weight rows that lie side by side for the tile routine.
    strip: usize,
}

impl Panel<'_> {
    /// Columns of one half, with padding.
    fn half(&self) -> usize {
        self.columns.next_multiple_of(self.strip)
    }

    /// Decodes `k..k + depth` of the panel's weight rows into `[strips, depth, strip]`; padding columns become zero.
    fn decode(&self, ctx: &Context<'_>, k: usize, depth: usize, weights: &mut [f32], decoded: &mut [f32]) {
        let lanes = ctx.simd.lanes();
        let groups = self.half() / lanes;
        for group in 0..groups * self.halves {
            let (h, column) = (group / groups, group % groups * lanes);
            let count = lanes.min(self.columns.saturating_sub(column));
            let first = (self.first + column) * self.halves + h;
            let (strip, place) = (group * lanes / self.strip, group * lanes % self.strip);
            let strip = &mut weights[strip * self.strip * depth..(strip + 1) * self.strip * depth];
            for at in (0..depth).step_by(DECODE_K) {
                let len = DECODE_K.min(depth - at);
                let mut rows = decoded.chunks_exact_mut(DECODE_K);
                for run in self.weight.runs(first, self.halves, count) {
                    let skip = (k + at) / run.dtype.block_len() * run.dtype.block_bytes();
                    for (i, row) in rows.by_ref().take(run.rows).enumerate() {
                        ctx.simd.decode(run.dtype, &run.bytes[i * run.stride + skip..], &mut row[..len]);
                    }
                }
                rows.for_each(|row| row[..len].fill(0.0));
                ctx.simd.transpose(decoded, DECODE_K, &mut strip[at * self.strip + place..], self.strip, len);
            }
        }
    }
}

/// Cuts rows of `width` elements into stretches of `per` columns: one list of row pieces for each stretch.
pub(super) fn columns(out: &mut [f32], width: usize, per: usize) -> Vec<Vec<&mut [f32]>> {
    let rows = out.len() / width;
    let mut tasks: Vec<Vec<&mut [f32]>> = (0..width.div_ceil(per)).map(|_| Vec::with_capacity(rows)).collect();
    for row in out.chunks_exact_mut(width) {
        for (task, piece) in tasks.iter_mut().zip(row.chunks_mut(per)) {
            task.push(piece);
        }
    }
    tasks
}
