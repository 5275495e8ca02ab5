//! Products by cuBLASLt. The epilogues that it lacks are kernels of their own: a gated activation of the pairs that a product leaves in a buffer
//! between, a bias in f32, and, since it rounds what is too large for f16 to infinity, saturation.

use super::{Cuda, ROWS_AT_ONCE, place};
use crate::dims::round_up;
use crate::dtype::{Dtype, Scalar};
use crate::error::Result;
use crate::gpu::{MatMul, Mixed};
use crate::kernels::wgsl::planes::BLOCK;
use crate::kernels::wgsl::tensor::Args;
use crate::kernels::wgsl::{Matrix, Wgsl, product};
use crate::kernels::{Epilogue, Phase, Product};

/// Whether a matrix is one of f16 whose rows and columns keep every address at 16 bytes.
pub(super) fn suits(weight: &Matrix) -> bool {
    let part_suits = |rows: &std::ops::Range<usize>| rows.start.is_multiple_of(16) && rows.end.is_multiple_of(16);
    weight.width().is_multiple_of(8)
        && weight.parts().iter().all(|part| part.format == Dtype::F16 && part_suits(&part.rows))
}

/// Whether everything about a call but its matrix suits.
pub(super) fn suits_call(cuda: &Cuda, op: &Product<'_, Wgsl>) -> bool {
    let epilogue = match op.epilogue {
        Epilogue::Store => op.bias.is_none() || op.out.scalar == Scalar::F16,
        Epilogue::Add | Epilogue::SwiGlu | Epilogue::GeGlu => op.bias.is_none(),
        Epilogue::Gelu => false,
    };
    op.phase == Phase::Prefill && op.rows.len() >= cuda.least_rows && epilogue
}

pub(super) fn record(cuda: &Cuda, rec: &mut Mixed, op: &Product<'_, Wgsl>) -> Result<()> {
    let rows = product::check(Args("product"), &cuda.wgsl, op)?;
    if op.epilogue.gated() {
        return record_gated(cuda, rec, op, rows);
    }
    let (n, x) = (op.weight.rows(), place(op.x, op.rows.start * op.weight.width())?);
    let wide = op.out.scalar == Scalar::F32;
    for part in op.weight.parts() {
        let sizes = MatMul { wide, add: op.epilogue == Epilogue::Add, ..sizes(op.weight, rows, part.rows.len(), n) };
        let out = place(op.out, op.out_row * n + part.rows.start)?;
        let buffers = [&op.x.buffer, part.quants(), &op.out.buffer];
        rec.multiply(sizes, [x, part.quants().cuda_address()?, out], &buffers);
    }
    match op.bias {
        Some(bias) => cuda.rows.add_bias(rec, op.out, op.out_row * n, bias, (rows, n)),
        None if wide => Ok(()),
        None => cuda.rows.saturate(rec, op.out, op.out_row * n, rows * n),
    }
}

/// The pairs of some rows, then their activation.
fn record_gated(cuda: &Cuda, rec: &mut Mixed, op: &Product<'_, Wgsl>, rows: usize) -> Result<()> {
    let (n, width) = (op.weight.rows(), op.weight.width());
    let no_room = || Args("product").error(format!("no room for pairs of {n} columns"));
    let pairs =
        cuda.pairs().as_ref().filter(|p| p.bytes() >= (2 * ROWS_AT_ONCE * n) as u64).cloned().ok_or_else(no_room)?;
    for first in (0..rows).step_by(ROWS_AT_ONCE) {
        let m = ROWS_AT_ONCE.min(rows - first);
        let x = place(op.x, (op.rows.start + first) * width)?;
        for part in op.weight.parts() {
            let sizes = sizes(op.weight, m, part.rows.len(), n);
            let out = pairs.cuda_address()? + 2 * part.rows.start as u64;
            rec.multiply(sizes, [x, part.quants().cuda_address()?, out], &[&op.x.buffer, part.quants(), &pairs]);
        }
        let out = (op.out_row + first) * (n / 2);
        cuda.rows.gate(rec, op.epilogue, &pairs, op.out, out, m * n / 2)?;
    }
    Ok(())
}

/// A product of `m` rows with `n` rows of a matrix, to rows of `stride` elements of f16.
fn sizes(weight: &Matrix, m: usize, n: usize, stride: usize) -> MatMul {
    let width = weight.width();
    let strides = [width, round_up(width, BLOCK), stride].map(|s| s as u64);
    MatMul { m: m as u64, n: n as u64, k: width as u64, strides, wide: false, add: false }
}
