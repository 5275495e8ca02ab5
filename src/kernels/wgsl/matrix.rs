//! Weight matrices on the device: which parts a matrix falls into, and their upload in bounded pieces.
//!
//! A part is a run of matrix rows of one format in one buffer (two where the format has scales); each product takes one dispatch a part. A
//! matrix has several parts where tensors of different formats are stacked, or where a buffer or its binding would be too large.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::planes::{RowBytes, repack, repack_as_f32};
use super::tensor::Args;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::{Binding, Buffer, Gpu};
use crate::kernels::{MatrixSource, RowOrder};
use crate::weights::WeightTensor;

/// Bytes of the rows that a thread writes at a time, and threads at most. On an H200 13.5 GB of F16 took 593 ms so, by 16 threads and 2 MiB 691.
const FLOATS: (usize, usize) = (4 << 20, 8);

/// The same for formats that are repacked: what fits a core's cache is still there when it is copied into staging memory. On an H200 4.5 GB of Q4_K took
/// 285 ms so, by 8 threads 317, by 16 threads and 4 MiB 435.
const QUANTISED: (usize, usize) = (1 << 20, 16);

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
#[derive(Debug)]
pub(in crate::kernels) struct Part {
    pub format: Dtype,
    /// Rows of the matrix; the first one is even where rows alternate.
    pub rows: Range<usize>,
    quants: Buffer,
    scales: Option<Buffer>,
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
    /// Uploads. Errors: [`Error::Shader`] where the tensors do not form a matrix, else what the device says.
    pub(super) fn upload(gpu: &Gpu, label: &str, source: &MatrixSource) -> Result<Self> {
        Self::upload_in_parts(gpu, label, source, gpu.caps().max_binding_bytes.min(gpu.caps().max_buffer_bytes))
    }

    /// As [`upload`](Self::upload), with no buffer above `max_bytes`.
    pub(super) fn upload_in_parts(gpu: &Gpu, label: &str, source: &MatrixSource, max_bytes: u64) -> Result<Self> {
        let plan = Plan::new(source, max_bytes)?;
        let parts = plan.parts.iter().map(|(format, rows)| {
            let bytes = RowBytes::new(*format, plan.width);
            let size = |row: usize| (row * rows.len()) as u64;
            let quants = gpu.buffer(label, size(bytes.quants))?;
            let scales = if bytes.scales > 0 { Some(gpu.buffer(label, size(bytes.scales))?) } else { None };
            let part = Part { format: *format, rows: rows.clone(), quants, scales };
            plan.fill(gpu, &part)?;
            Ok(part)
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        Ok(Self(Arc::new(Inner { rows: plan.rows, width: plan.width, order: source.rows, parts })))
    }

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
struct Plan<'a> {
    tensors: &'a [WeightTensor],
    order: RowOrder,
    rows: usize,
    width: usize,
    /// Format and rows of each part.
    parts: Vec<(Dtype, Range<usize>)>,
}

impl<'a> Plan<'a> {
    fn new(source: &'a MatrixSource, max_bytes: u64) -> Result<Self> {
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

    /// Writes a part's rows, runs of them by several threads: a run goes straight from the file where its rows stand there as on the device, else it is
    /// repacked. One thread is far slower than the bus, whether it repacks or only copies into staging memory.
    fn fill(&self, gpu: &Gpu, part: &Part) -> Result<()> {
        let bytes = RowBytes::new(part.format, self.width);
        let straight =
            self.order == RowOrder::Stacked && bytes.scales == 0 && part.format.bytes(self.width)? == bytes.quants;
        let (run_bytes, most_threads) = if bytes.scales > 0 { QUANTISED } else { FLOATS };
        let step = (run_bytes / bytes.total()).clamp(1, part.rows.len());
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let held = if straight { 0 } else { step };
            // Zeroed once: a row's padding is never written.
            let (mut quants, mut scales) = (vec![0; held * bytes.quants], vec![0; held * bytes.scales]);
            loop {
                let start = part.rows.start + next.fetch_add(1, Ordering::Relaxed) * step;
                if start >= part.rows.end {
                    return Ok(());
                }
                let rows = start..part.rows.end.min(start + step);
                if straight {
                    self.write_through(gpu, part, rows, bytes.quants)?;
                    continue;
                }
                let n = rows.len();
                let (quants, scales) = (&mut quants[..n * bytes.quants], &mut scales[..n * bytes.scales]);
                self.repack_rows(part.format, rows, quants, scales)?;
                let at = |row_bytes: usize| ((start - part.rows.start) * row_bytes) as u64;
                gpu.write(&part.quants, at(bytes.quants), quants)?;
                if let Some(buffer) = &part.scales {
                    gpu.write(buffer, at(bytes.scales), scales)?;
                }
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = cores.min(most_threads).min(part.rows.len().div_ceil(step));
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                thread.join().unwrap_or_else(|_| Err(Args("matrix").error("a thread died")))
            };
            let mine = work();
            others.into_iter().map(join).fold(mine, Result::and)
        })
    }

    /// Rows of a part whose elements stand in the file as on the device.
    fn write_through(&self, gpu: &Gpu, part: &Part, run: Range<usize>, row_bytes: usize) -> Result<()> {
        let mut first = 0;
        for tensor in self.tensors {
            let rows = first..first + tensor.shape[0];
            first = rows.end;
            let here = run.start.max(rows.start)..run.end.min(rows.end);
            if !here.is_empty() {
                let bytes = (here.start - rows.start) * row_bytes..(here.end - rows.start) * row_bytes;
                gpu.write(&part.quants, ((here.start - part.rows.start) * row_bytes) as u64, &tensor.data[bytes])?;
            }
        }
        Ok(())
    }

    /// Repacks rows of the matrix.
    fn repack_rows(&self, format: Dtype, rows: Range<usize>, quants: &mut [u8], scales: &mut [u8]) -> Result<()> {
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
