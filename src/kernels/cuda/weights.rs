//! Weights that cuBLASLt does not take as they are: a slice of a matrix's rows at a time is made f16 in a buffer beside, just before its product.

use std::ops::Range;

use super::weights_ptx::{self, BLOCK_UNITS, EIGHT, THREADS, WIDTH_STEP};
use super::{Cuda, Room};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Kernel, Launch, Mixed};
use crate::kernels::MatrixSource;
use crate::kernels::wgsl::Matrix;
use crate::kernels::wgsl::matrix::Part;
use crate::kernels::wgsl::planes::RowBytes;
use crate::kernels::wgsl::tensor::Args;

/// The largest slice in f16, which holds a whole matrix of most models: Llama-3-8B in Q4_K takes 23.2 ms at 512 rows on an H200, and 26.3 in slices of
/// 64 MiB, though these stay in the cache between a kernel and the product.
const SLICE_BYTES: usize = 256 << 20;

/// Slices begin at multiples of so many rows.
const SLICE_STEP: usize = 256;

/// The kernels, and the room for what they make.
pub(super) struct Converter {
    /// In the order of [`Dtype::ALL`]; none for f16.
    kernels: Vec<(Dtype, Kernel)>,
    room: Room,
}

impl Converter {
    pub fn compile(gpu: &Gpu) -> Result<Self> {
        let module = gpu.cuda_module(&weights_ptx::source())?;
        let formats = Dtype::ALL.into_iter().filter_map(|format| Some((format, weights_ptx::name(format)?)));
        let kernel = |(format, name): (Dtype, String)| Ok((format, gpu.cuda_kernel(&module, &name, 0)?));
        Ok(Self { kernels: formats.map(kernel).collect::<Result<_>>()?, room: Room::new("weights in f16") })
    }

    /// Room for the slices of a matrix, made while weights are uploaded.
    pub fn make_room(&self, gpu: &Gpu, source: &MatrixSource) -> Result<()> {
        self.room.make(gpu, room_bytes(source))
    }
}

/// Whether a matrix of this format and width can be made f16. The kernels with matrix units, which WGSL has for these widths, take the same numbers.
pub(super) fn converts(format: Dtype, width: usize) -> bool {
    format != Dtype::F16 && width.is_multiple_of(WIDTH_STEP)
}

/// What [`Converter::make_room`] takes.
pub(super) fn room_bytes(source: &MatrixSource) -> u64 {
    let width = source.parts.first().and_then(|tensor| tensor.shape.get(1)).copied().unwrap_or(0);
    let rows: usize = source.parts.iter().map(|tensor| tensor.shape.first().copied().unwrap_or(0)).sum();
    let converted = source.parts.iter().any(|tensor| tensor.dtype != Dtype::F16);
    if converted { (rows.min(most_rows(width)) as u64).saturating_mul(2 * width as u64) } else { 0 }
}

/// Rows of the largest slice of a matrix of this width.
fn most_rows(width: usize) -> usize {
    (SLICE_BYTES / (2 * width.max(1)) / SLICE_STEP).max(1) * SLICE_STEP
}

/// Slices of a part with so many rows, equally long as far as may be.
fn slices(rows: &Range<usize>, width: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let n = rows.len().div_ceil(most_rows(width)).max(1);
    let (step, end) = (rows.len().div_ceil(n).next_multiple_of(SLICE_STEP).max(1), rows.end);
    rows.clone().step_by(step).map(move |start| start..end.min(start + step))
}

/// Goes over a matrix in runs of rows that are f16 in a buffer: `each` is told which rows, and records what is done with them.
pub(super) fn for_each_run(
    cuda: &Cuda,
    rec: &mut Mixed,
    weight: &Matrix,
    mut each: impl FnMut(&mut Mixed, Range<usize>, &Buffer) -> Result<()>,
) -> Result<()> {
    for part in weight.parts() {
        if part.format == Dtype::F16 {
            each(rec, part.rows.clone(), part.quants())?;
            continue;
        }
        let width = weight.width();
        for rows in slices(&part.rows, width) {
            let bytes = (rows.len() * width * 2) as u64;
            let none = || Args("product").error(format!("no room for {bytes} bytes of weights in f16"));
            let room = cuda.converter.room.of(bytes).ok_or_else(none)?;
            convert(cuda, rec, part, width, &rows, &room)?;
            each(rec, rows, &room)?;
        }
    }
    Ok(())
}

/// Makes f16 of some rows of a matrix's part.
fn convert(cuda: &Cuda, rec: &mut Mixed, part: &Part, width: usize, rows: &Range<usize>, out: &Buffer) -> Result<()> {
    let args = Args("weights");
    let none = || args.error(format!("no kernel for {}", part.format.name()));
    let (_, kernel) = cuda.converter.kernels.iter().find(|(format, _)| *format == part.format).ok_or_else(none)?;
    let (row_bytes, before) = (RowBytes::new(part.format, width), rows.start - part.rows.start);
    // Formats without scales read none.
    let scales = part.scales().unwrap_or(part.quants());
    let units = rows.len() * width / EIGHT;
    let params = vec![
        part.quants().cuda_address()? + (before * row_bytes.quants) as u64,
        scales.cuda_address()? + (before * row_bytes.scales) as u64,
        out.cuda_address()?,
        u64::from(args.u32(units)?),
    ];
    let grid = [args.u32(units.div_ceil(BLOCK_UNITS))?, 1, 1];
    rec.launch(Launch { kernel: kernel.clone(), grid, threads: THREADS, params }, &[part.quants(), scales, out]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::RowOrder;
    use crate::weights::WeightTensor;

    #[test]
    fn slices_cover_a_part_and_fit_the_room_that_is_counted() {
        for (rows, width) in
            [(16, 64), (28_672, 4096), (128_256, 4096), (4096, 14_336), (152_064, 8192), (48, 65_536 * 16)]
        {
            let tensor =
                |dtype| WeightTensor { name: String::new(), dtype, shape: vec![rows, width], data: Vec::new().into() };
            let source = |dtype| MatrixSource { parts: vec![tensor(dtype)], rows: RowOrder::Stacked };
            let room = room_bytes(&source(Dtype::Q8_0));
            assert!(room <= SLICE_BYTES as u64 || width * SLICE_STEP * 2 > SLICE_BYTES, "{room}");
            let mut end = 32;
            for slice in slices(&(32..32 + rows), width) {
                assert!(slice.start == end && (slice.start - 32).is_multiple_of(SLICE_STEP), "{slice:?}");
                assert!((slice.len() * width * 2) as u64 <= room, "{slice:?}");
                end = slice.end;
            }
            assert_eq!(end, 32 + rows);
            assert_eq!(room_bytes(&source(Dtype::F16)), 0);
        }
        assert!(converts(Dtype::Q4K, 256) && converts(Dtype::Bf16, 64));
        assert!(!converts(Dtype::Q8_0, 96) && !converts(Dtype::F16, 64));
    }
}
