//! Weight matrices of the CPU adapter: rows looked up in the blocks of the file's mapping.

use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kernels::{MatrixSource, RowOrder};
use crate::weights::Bytes;

/// A matrix `[rows, width]` that reads the file's own blocks. Clones share it.
#[derive(Clone, Debug)]
pub struct Matrix(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Vec<Part>,
    order: RowOrder,
    rows: usize,
    width: usize,
}

/// One tensor of the file.
#[derive(Debug)]
struct Part {
    dtype: Dtype,
    data: Bytes,
    rows: usize,
    row_bytes: usize,
}

/// Rows of one tensor that follow one another.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub dtype: Dtype,
    /// The first row's first byte and all that follow in the tensor.
    pub bytes: &'a [u8],
    /// From one row to the next.
    pub stride: usize,
    /// Number of rows.
    pub rows: usize,
}

impl Matrix {
    /// Checks that the parts form one matrix and that their bytes are all there.
    pub(super) fn new(adapter: &str, label: &str, source: &MatrixSource) -> Result<Self> {
        let fault = |reason: String| Error::Adapter {
            adapter: adapter.to_owned(),
            reason: format!("matrix `{label}`: {reason}"),
        };
        let mut parts = Vec::with_capacity(source.parts.len());
        let mut width = None;
        for tensor in &source.parts {
            let &[n, w] = tensor.shape.as_slice() else {
                return Err(fault(format!("`{}` has shape {:?}, not two dimensions", tensor.name, tensor.shape)));
            };
            if *width.get_or_insert(w) != w {
                return Err(fault(format!("`{}` has width {w}, another part has {width:?}", tensor.name)));
            }
            let row_bytes = tensor.dtype.bytes(w)?;
            if n.checked_mul(row_bytes).is_none_or(|bytes| bytes > tensor.data.len()) {
                let found = tensor.data.len();
                return Err(fault(format!("`{}` has {found} bytes for {n} rows of {row_bytes}", tensor.name)));
            }
            parts.push(Part { dtype: tensor.dtype, data: tensor.data.clone(), rows: n, row_bytes });
        }
        let Some(width) = width else { return Err(fault("no part".to_owned())) };
        if source.rows == RowOrder::Alternating && !(parts.len() == 2 && parts[0].rows == parts[1].rows) {
            let rows: Vec<_> = parts.iter().map(|p| p.rows).collect();
            return Err(fault(format!("alternating rows need two parts of one shape, not rows {rows:?}")));
        }
        let rows = parts.iter().try_fold(0usize, |sum, p| sum.checked_add(p.rows));
        let rows = rows.ok_or_else(|| fault("too many rows".to_owned()))?;
        Ok(Self(Arc::new(Inner { parts, order: source.rows, rows, width })))
    }

    /// Number of rows, of all parts together.
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.0.width
    }

    /// Row `i` and, where they lie behind it in the same tensor, rows `i + step`, `i + 2 step` … up to `count` rows in all.
    /// None where `i` is past the end.
    pub(super) fn run(&self, i: usize, step: usize, count: usize) -> Option<Run<'_>> {
        let (part, row, part_step) = match self.0.order {
            RowOrder::Alternating => {
                // Odd steps change tensors: only the first row can be given.
                let part = self.0.parts.get(i % 2)?;
                (part, i / 2, if step.is_multiple_of(2) { Some(step / 2) } else { None })
            }
            RowOrder::Stacked => {
                let mut row = i;
                let part = self.0.parts.iter().find(|part| {
                    let here = row < part.rows;
                    if !here {
                        row -= part.rows;
                    }
                    here
                })?;
                (part, row, Some(step))
            }
        };
        let left = part.rows.checked_sub(row).filter(|&left| left > 0)?;
        let (rows, stride) = match part_step {
            Some(step) => (count.min(left.div_ceil(step.max(1))), step * part.row_bytes),
            None => (count.min(1), part.row_bytes),
        };
        Some(Run { dtype: part.dtype, bytes: part.data.get(row * part.row_bytes..)?, stride, rows })
    }

    /// The rows `first`, `first + step` … `count` of them, as runs.
    pub(super) fn runs(&self, first: usize, step: usize, count: usize) -> impl Iterator<Item = Run<'_>> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let run = self.run(first + done * step, step, count - done).filter(|run| run.rows > 0)?;
            done += run.rows;
            Some(run)
        })
    }
}
