//! Weight matrices on the device: which parts a matrix falls into, and their upload in bounded pieces.
//!
//! A part is a run of matrix rows of one format in one buffer (two where the format has scales); each product takes one dispatch a part. A
//! matrix has several parts where tensors of different formats are stacked, or where a buffer or its binding would be too large.

use std::ops::Range;
use std::sync::Arc;

use super::planes::{RowBytes, repack, repack_as_f32};
use super::tensor::Args;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::{Binding, Buffer};
use crate::kernels::{MatrixSource, RowOrder};
use crate::weights::WeightTensor;

/// Cuts fall on multiples of this many rows, the width of a product's tile, where a part holds so many.
const CUT_ROWS: usize = 64;

/// A weight matrix `[rows, width]`, repacked. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Matrix(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rows: usize,
    width: usize,
    order: RowOrder,
    parts: Vec<Part>,
}

/// Rows of a matrix that lie in one buffer.
#[derive(Clone, Debug)]
pub(in crate::kernels) struct Part {
    pub format: Dtype,
    /// Rows of the matrix; the first one is even where rows alternate.
    pub rows: Range<usize>,
    pub(super) quants: Buffer,
    pub(super) scales: Option<Buffer>,
}

impl Part {
    /// The plane of quants: for formats without scales, the rows themselves, padded to a whole number of blocks.
    #[cfg(feature = "cuda")]
    pub fn quants(&self) -> &Buffer {
        &self.quants
    }

    /// The plane of scales, where the format has one.
    #[cfg(feature = "cuda")]
    pub fn scales(&self) -> Option<&Buffer> {
        self.scales.as_ref()
    }

    /// The storage bindings that `shaders/lib/weight_*` declares.
    pub fn bindings(&self) -> impl Iterator<Item = Binding<'_>> {
        [Some(&self.quants), self.scales.as_ref()].into_iter().flatten().map(Binding::whole)
    }
}

impl Matrix {
    /// Bytes on the device that the matrix will take; 0 for tensors that form no matrix, which an upload refuses.
    pub(super) fn bytes(source: &MatrixSource) -> u64 {
        let Ok(plan) = Plan::new(source, u64::MAX) else { return 0 };
        plan.parts.iter().map(|(format, rows)| (RowBytes::new(*format, plan.width).total() * rows.len()) as u64).sum()
    }

    pub(in crate::kernels) fn rows(&self) -> usize {
        self.0.rows
    }

    pub(in crate::kernels) fn width(&self) -> usize {
        self.0.width
    }

    pub(super) fn order(&self) -> RowOrder {
        self.0.order
    }

    pub(in crate::kernels) fn parts(&self) -> &[Part] {
        &self.0.parts
    }
}

/// What an upload will do; known before any memory is taken.
pub(super) struct Plan<'a> {
    tensors: &'a [WeightTensor],
    order: RowOrder,
    rows: usize,
    width: usize,
    /// Format and rows of each part.
    pub parts: Vec<(Dtype, Range<usize>)>,
}

impl<'a> Plan<'a> {
    /// In parts whose buffers take at most `max_bytes`. Errors: [`Error::Shader`] where the tensors form no matrix.
    pub fn new(source: &'a MatrixSource, max_bytes: u64) -> Result<Self> {
        let (rows, width) = shape(source)?;
        let mut runs: Vec<(Dtype, Range<usize>)> = Vec::new();
        match source.rows {
            RowOrder::Stacked => {
                for tensor in &source.parts {
                    let start = runs.last().map_or(0, |(_, rows)| rows.end);
                    let end = start + tensor.shape[0];
                    match runs.last_mut() {
                        Some((format, rows)) if *format == tensor.dtype => rows.end = end,
                        _ => runs.push((tensor.dtype, start..end)),
                    }
                }
            }
            RowOrder::Alternating => {
                // A product's epilogue needs both rows of a pair in one tile, hence in one format; F32 holds the values of any. Files that
                // quantise gate and up differently are rare enough to pay with memory.
                let same = source.parts.iter().all(|tensor| tensor.dtype == source.parts[0].dtype);
                runs.push((if same { source.parts[0].dtype } else { Dtype::F32 }, 0..rows));
            }
        }
        let mut parts = Vec::new();
        for (format, run) in runs {
            let row_bytes = RowBytes::new(format, width).quants as u64;
            let most = usize::try_from(max_bytes / row_bytes).unwrap_or(usize::MAX);
            let step = if most >= CUT_ROWS { most / CUT_ROWS * CUT_ROWS } else { most / 2 * 2 };
            if step == 0 {
                return Err(refuse(source, format!("two rows take {} bytes, a buffer {max_bytes}", 2 * row_bytes)));
            }
            parts.extend(
                run.clone().step_by(step).map(|start| (format, start..run.end.min(start.saturating_add(step)))),
            );
        }
        Ok(Self { tensors: &source.parts, order: source.rows, rows, width, parts })
    }

    /// Bytes of a row of a part in this format.
    pub fn row_bytes(&self, format: Dtype) -> RowBytes {
        RowBytes::new(format, self.width)
    }

    /// The matrix, once its parts have buffers.
    pub fn matrix(&self, parts: Vec<Part>) -> Matrix {
        Matrix(Arc::new(Inner { rows: self.rows, width: self.width, order: self.order, parts }))
    }

    /// Repacks rows of the matrix.
    pub fn repack(&self, format: Dtype, rows: Range<usize>, quants: &mut [u8], scales: &mut [u8]) -> Result<()> {
        let bytes = RowBytes::new(format, self.width);
        for (i, row) in rows.enumerate() {
            let (dtype, row) = self.row(row)?;
            let quants = &mut quants[i * bytes.quants..(i + 1) * bytes.quants];
            if dtype == format {
                repack(dtype, row, quants, &mut scales[i * bytes.scales..(i + 1) * bytes.scales]);
            } else {
                repack_as_f32(dtype, row, quants);
            }
        }
        Ok(())
    }

    /// Format and bytes of a row of the matrix in the file.
    fn row(&self, row: usize) -> Result<(Dtype, &'a [u8])> {
        let (tensor, row) = match self.order {
            RowOrder::Stacked => {
                let mut row = row;
                let found = self.tensors.iter().find(|tensor| {
                    let here = row < tensor.shape[0];
                    row -= if here { 0 } else { tensor.shape[0] };
                    here
                });
                (found, row)
            }
            RowOrder::Alternating => (self.tensors.get(row % 2), row / 2),
        };
        let tensor = tensor.ok_or_else(|| Args("matrix").error(format!("there is no row {row}")))?;
        let bytes = tensor.dtype.bytes(self.width)?;
        Ok((tensor.dtype, &tensor.data[row * bytes..(row + 1) * bytes]))
    }
}

/// Rows and width of the whole, once every tensor is known to have the bytes that its shape promises.
fn shape(source: &MatrixSource) -> Result<(usize, usize)> {
    let mut rows = 0usize;
    let mut width = None;
    for tensor in &source.parts {
        let &[n, w] = tensor.shape.as_slice() else {
            return Err(refuse(source, format!("`{}` has shape {:?}", tensor.name, tensor.shape)));
        };
        let bytes = tensor.dtype.bytes(w)?.checked_mul(n);
        if w == 0 || n == 0 || w % 4 != 0 || *width.get_or_insert(w) != w || bytes != Some(tensor.data.len()) {
            let (name, held) = (&tensor.name, tensor.data.len());
            return Err(refuse(source, format!("`{name}` of shape {:?} with {held} bytes", tensor.shape)));
        }
        rows = rows.saturating_add(n);
    }
    let pairs = source.parts.len() == 2 && source.parts[0].shape == source.parts[1].shape;
    match (width, source.rows) {
        (Some(width), RowOrder::Stacked) => Ok((rows, width)),
        (Some(width), RowOrder::Alternating) if pairs => Ok((rows, width)),
        _ => Err(refuse(source, "rows alternate between two tensors of one shape".to_owned())),
    }
}

fn refuse(source: &MatrixSource, reason: String) -> Error {
    let names = source.parts.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(", ");
    Args("matrix").error(format!("({names}): {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor whose every byte is `fill`.
    fn tensor(dtype: Dtype, rows: usize, width: usize, fill: u8) -> WeightTensor {
        let data = vec![fill; rows * dtype.bytes(width).unwrap()].into();
        WeightTensor { name: format!("{dtype:?}"), dtype, shape: vec![rows, width], data }
    }

    fn plan(parts: &[WeightTensor], rows: RowOrder, max_bytes: u64) -> Result<Vec<(Dtype, Range<usize>)>> {
        let source = MatrixSource { parts: parts.to_vec(), rows };
        let plan = Plan::new(&source, max_bytes)?;
        // Every row of the matrix, in order, comes from the tensor that it should.
        let first_bytes = (0..plan.rows).map(|row| plan.row(row).unwrap().1[0]).collect::<Vec<_>>();
        let expected = match rows {
            RowOrder::Stacked => parts.iter().flat_map(|t| vec![t.data[0]; t.shape[0]]).collect::<Vec<_>>(),
            RowOrder::Alternating => (0..plan.rows).map(|row| parts[row % 2].data[0]).collect(),
        };
        assert_eq!(first_bytes, expected);
        Ok(plan.parts)
    }

    #[test]
    fn neighbours_of_one_format_share_a_part() {
        let tensors = [
            tensor(Dtype::F16, 192, 64, 1),
            tensor(Dtype::F16, 64, 64, 2),
            tensor(Dtype::Q8_0, 64, 64, 3),
            tensor(Dtype::F16, 3, 64, 4),
        ];
        let expected = vec![(Dtype::F16, 0..256), (Dtype::Q8_0, 256..320), (Dtype::F16, 320..323)];
        assert_eq!(plan(&tensors, RowOrder::Stacked, u64::MAX).unwrap(), expected);
    }

    #[test]
    fn alternating_formats_agree_or_become_f32() {
        let same = [tensor(Dtype::Q4_0, 5, 64, 1), tensor(Dtype::Q4_0, 5, 64, 2)];
        assert_eq!(plan(&same, RowOrder::Alternating, u64::MAX).unwrap(), [(Dtype::Q4_0, 0..10)]);
        let mixed = [tensor(Dtype::Q4_0, 5, 64, 1), tensor(Dtype::F16, 5, 64, 2)];
        assert_eq!(plan(&mixed, RowOrder::Alternating, u64::MAX).unwrap(), [(Dtype::F32, 0..10)]);
    }

    #[test]
    fn parts_stay_below_the_limit_and_begin_at_even_rows() {
        // 128 bytes a row.
        let tensors = [tensor(Dtype::F16, 150, 64, 1), tensor(Dtype::F16, 51, 64, 2)];
        let cut = |max_bytes| plan(&tensors, RowOrder::Stacked, max_bytes).unwrap().into_iter().map(|(_, rows)| rows);
        assert_eq!(cut(128 * 201).collect::<Vec<_>>(), [0..192, 192..201]);
        assert_eq!(cut(128 * 100).collect::<Vec<_>>(), [0..64, 64..128, 128..192, 192..201]);
        assert_eq!(cut(128 * 63 + 127).collect::<Vec<_>>(), [0..62, 62..124, 124..186, 186..201]);
        for max_bytes in [256, 300, 128 * 7, 128 * 65] {
            let parts = cut(max_bytes).collect::<Vec<_>>();
            assert!(parts.iter().all(|rows| rows.len() as u64 * 128 <= max_bytes && rows.start % 2 == 0));
            assert_eq!(parts.iter().map(ExactSizeIterator::len).sum::<usize>(), 201);
        }
        assert!(plan(&tensors, RowOrder::Stacked, 255).is_err());
    }

    #[test]
    fn bytes_count_padding_and_scales() {
        let bytes = |tensor| Matrix::bytes(&MatrixSource { parts: vec![tensor], rows: RowOrder::Stacked });
        assert_eq!(bytes(tensor(Dtype::F32, 3, 36, 0)), 3 * 64 * 4);
        assert_eq!(bytes(tensor(Dtype::Q8_0, 2, 96, 0)), 2 * (96 + 8));
        assert_eq!(bytes(tensor(Dtype::Q4_1, 2, 96, 0)), 2 * (48 + 12));
        assert_eq!(bytes(WeightTensor { shape: vec![4, 36], ..tensor(Dtype::F32, 3, 36, 0) }), 0);
    }
}
