//! Products by cuBLASLt, of f16 weights and of those that are made f16 before ([`weights`](super::weights)). The epilogues that it lacks are kernels of
//! their own: a gated activation of the pairs that a product leaves in a buffer between, GELU, a bias in f32, and, since it rounds what is too
//! large for f16 to infinity, saturation.

use super::weights::{converts, for_each_run};
use super::{Cuda, ROWS_AT_ONCE, place};
use crate::dims::round_up;
use crate::dtype::{Dtype, Scalar};
use crate::error::Result;
use crate::gpu::{MatMul, Mixed};
use crate::kernels::wgsl::matrix::Part;
use crate::kernels::wgsl::planes::BLOCK;
use crate::kernels::wgsl::tensor::Args;
use crate::kernels::wgsl::{Matrix, Wgsl, product};
use crate::kernels::{Epilogue, MatrixSource, Phase, Product, RowOrder};

/// Whether a matrix is of f16, or can be made so, with rows and columns that keep every address at 16 bytes.
pub(super) fn suits(weight: &Matrix) -> bool {
    let width = weight.width();
    let part_suits = |part: &Part| {
        let format = part.format == Dtype::F16 || converts(part.format, width);
        format && part.rows.start.is_multiple_of(16) && part.rows.end.is_multiple_of(16)
    };
    width.is_multiple_of(8) && weight.parts().iter().all(part_suits)
}

/// Whether some of a matrix is made f16 for each product.
pub(super) fn is_converted(weight: &Matrix) -> bool {
    weight.parts().iter().any(|part| part.format != Dtype::F16)
}

/// Whether everything about a call but its matrix suits. Where CUDA's work stands already, few rows are done there, too.
pub(super) fn suits_call(cuda: &Cuda, rec: &Mixed, op: &Product<'_, Wgsl>) -> bool {
    let enough = op.rows.len() >= cuda.least_rows(is_converted(op.weight)) || rec.is_at_cuda();
    op.phase == Phase::Prefill && enough && !(op.epilogue.gated() && op.bias.is_some())
}

pub(super) fn record(cuda: &Cuda, rec: &mut Mixed, op: &Product<'_, Wgsl>) -> Result<()> {
    let rows = product::check(Args("product"), &cuda.wgsl, op)?;
    if op.epilogue.gated() {
        return record_gated(cuda, rec, op, rows);
    }
    let (n, x) = (op.weight.rows(), place(op.x, op.rows.start * op.weight.width())?);
    let wide = op.out.scalar == Scalar::F32;
    for_each_run(cuda, rec, op.weight, |rec, columns, weights| {
        let sizes = MatMul { wide, add: op.epilogue == Epilogue::Add, ..sizes(op.weight, rows, columns.len(), n) };
        let out = place(op.out, op.out_row * n + columns.start)?;
        rec.multiply(sizes, [x, weights.cuda_address()?, out], &[&op.x.buffer, weights, &op.out.buffer]);
        Ok(())
    })?;
    let start = op.out_row * n;
    match op.bias {
        bias if op.epilogue == Epilogue::Gelu => cuda.rows.gelu(rec, op.out, start, bias, (rows, n)),
        Some(bias) => cuda.rows.add_bias(rec, op.out, start, bias, (rows, n)),
        None if wide => Ok(()),
        None => cuda.rows.saturate(rec, op.out, start, rows * n),
    }
}

/// The pairs of some rows, then their activation.
fn record_gated(cuda: &Cuda, rec: &mut Mixed, op: &Product<'_, Wgsl>, rows: usize) -> Result<()> {
    let (n, width) = (op.weight.rows(), op.weight.width());
    let no_room = || Args("product").error(format!("no room for pairs of {n} columns"));
    let pairs = cuda.pairs.of(pair_bytes(n)).ok_or_else(no_room)?;
    for first in (0..rows).step_by(ROWS_AT_ONCE) {
        let m = ROWS_AT_ONCE.min(rows - first);
        let x = place(op.x, (op.rows.start + first) * width)?;
        for_each_run(cuda, rec, op.weight, |rec, columns, weights| {
            let sizes = sizes(op.weight, m, columns.len(), n);
            let out = pairs.cuda_address()? + 2 * columns.start as u64;
            rec.multiply(sizes, [x, weights.cuda_address()?, out], &[&op.x.buffer, weights, &pairs]);
            Ok(())
        })?;
        let out = (op.out_row + first) * (n / 2);
        cuda.rows.gate(rec, op.epilogue, &pairs, op.out, out, m * n / 2)?;
    }
    Ok(())
}

/// What gated products of a matrix with `n` rows leave before their activation.
pub(super) fn pair_bytes(n: usize) -> u64 {
    (2 * ROWS_AT_ONCE as u64).saturating_mul(n as u64)
}

/// The same for a matrix that is not there yet.
pub(super) fn pairs_of(source: &MatrixSource) -> u64 {
    let rows = source.parts.iter().map(|tensor| tensor.shape.first().copied().unwrap_or(0)).sum();
    if source.rows == RowOrder::Alternating { pair_bytes(rows) } else { 0 }
}

/// A product of `m` rows with `n` rows of a matrix, to rows of `stride` elements of f16.
fn sizes(weight: &Matrix, m: usize, n: usize, stride: usize) -> MatMul {
    let width = weight.width();
    let strides = [width, round_up(width, BLOCK), stride].map(|s| s as u64);
    MatMul { m: m as u64, n: n as u64, k: width as u64, strides, wide: false, add: false }
}
