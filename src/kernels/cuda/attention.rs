//! Causal attention of many rows by the kernel of [`attention_ptx`].

use std::f32::consts::LOG2_E;

use super::attention_ptx::{self, HEAD_DIMS, ROWS, THREADS};
use super::{Cuda, float, place};
use crate::dtype::KvDtype;
use crate::error::Result;
use crate::gpu::{Gpu, Kernel, Launch, Mixed};
use crate::kernels::Attention;
use crate::kernels::wgsl::tensor::Args;
use crate::kernels::wgsl::{Wgsl, attention};

/// A window that hides nothing; adding it to a position does not overflow.
const NO_WINDOW: usize = 1 << 30;

/// The kernels for [`HEAD_DIMS`].
pub(super) fn compile(gpu: &Gpu) -> Result<[Kernel; HEAD_DIMS.len()]> {
    let kernel = |size: u32| {
        let module = gpu.cuda_module(&attention_ptx::source(size))?;
        gpu.cuda_kernel(&module, "attention", attention_ptx::shared_bytes(size))
    };
    let [small, large] = HEAD_DIMS;
    Ok([kernel(small)?, kernel(large)?])
}

/// The kernel for a size of head.
fn kernel(cuda: &Cuda, head_dim: usize) -> Option<&Kernel> {
    HEAD_DIMS.into_iter().zip(&cuda.attention).find(|(size, _)| *size as usize == head_dim).map(|(_, kernel)| kernel)
}

/// One past the last key.
fn end(op: &Attention<'_, Wgsl>) -> usize {
    op.position.saturating_add(op.rows.len()).max(op.dense_keys)
}

/// What it takes to change sides and back (an H200: `benches/interop.rs`).
const CHANGE_SECONDS: f64 = 360e-6;

/// What CUDA's kernel is ahead of WGSL's: an H200's rates, 97 and 340 TFLOP/s.
fn gain_seconds(q_width: usize, rows: usize, past: usize) -> f64 {
    let (rows, past) = (rows as f64, past as f64);
    let flop = 4.0 * q_width as f64 * rows * (past + rows / 2.0);
    flop * (1.0 / 97e12 - 1.0 / 340e12)
}

/// Whether a kernel does what is asked for, and is worth it: where the products of these rows are WGSL's, attention has to pay for the change of
/// sides alone.
pub(super) fn suits(cuda: &Cuda, rec: &Mixed, op: &Attention<'_, Wgsl>) -> bool {
    let rows = op.rows.len();
    let gains = || gain_seconds(op.dims.q_width(), rows, op.position) > CHANGE_SECONDS;
    kernel(cuda, op.dims.head_dim).is_some()
        && op.k.kv() == KvDtype::F16
        && rows >= cuda.least_rows(false)
        && (rec.is_at_cuda() || cuda.multiplies(rows) || gains())
        && op.bias.is_none()
        && op.rules.soft_cap.is_none()
        && op.scale > 0.0
        && end(op) < NO_WINDOW
        && op.k.reaches(end(op), op.dims.kv_width())
}

pub(super) fn record(cuda: &Cuda, rec: &mut Mixed, op: &Attention<'_, Wgsl>) -> Result<()> {
    let (args, dims) = (Args("attention"), &op.dims);
    attention::params(args, &cuda.wgsl, op)?;
    let group = dims.heads / dims.kv_heads;
    let (heads, rows) = (args.u32(op.kv_heads.len() * group)?, args.u32(op.rows.len())?);
    // The kernel's heads begin with the first of those that are asked for.
    let (skipped_kv, skipped) = (op.kv_heads.start * dims.head_dim, op.kv_heads.start * group * dims.head_dim);
    let bytes = |elements: usize| elements as u64 * 2;
    let params = vec![
        place(op.qkv, op.rows.start * dims.qkv_width() + skipped)?,
        place(op.k, skipped_kv)?,
        place(op.v, skipped_kv)?,
        place(op.out, op.rows.start * dims.q_width() + skipped)?,
        u64::from(rows),
        op.position as u64,
        group as u64,
        bytes(dims.qkv_width()),
        bytes(dims.kv_width()),
        bytes(dims.q_width()),
        float(op.scale * LOG2_E),
        op.rules.window.map_or(NO_WINDOW, |window| window.min(NO_WINDOW)) as u64,
        op.dense_keys as u64,
    ];
    let grid = [heads, rows.div_ceil(ROWS), 1];
    let none = || args.error(format!("no kernel for heads of {}", dims.head_dim));
    let kernel = kernel(cuda, dims.head_dim).ok_or_else(none)?.clone();
    let launch = Launch { kernel, grid, threads: THREADS, params };
    rec.launch(launch, &[&op.qkv.buffer, &op.k.buffer, &op.v.buffer, &op.out.buffer]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_alone_changes_sides_where_that_pays() {
        let pays = |rows, past| gain_seconds(4096, rows, past) > CHANGE_SECONDS;
        assert!(!pays(32, 0) && !pays(2048, 0) && pays(4096, 0));
        // A short piece behind a long prompt has as much to do.
        assert!(!pays(256, 4096) && pays(1024, 15_360));
    }
}
