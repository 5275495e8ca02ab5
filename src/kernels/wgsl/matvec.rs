//! Products of one row with a weight matrix, for decoding.

use super::matrix::Part;
use super::product::{Types, bindings, check, params, parts};
use super::tensor::Args;
use super::unroll::unroll;
use super::{Kernel, Wgsl, enables};
use super::{matvec_subgroup, norm};
use crate::config::NormKind;
use crate::dtype::{Dtype, Scalar};
use crate::error::Result;
use crate::gpu::{GpuKind, Recording, ShaderSpec};
use crate::kernels::{Epilogue, Norm, Phase, Product};

const MATVEC: &str = include_str!("../../../shaders/matvec.wgsl");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    types: Types,
    weight: Dtype,
    epilogue: Epilogue,
    bias: bool,
    /// The bits of epsilon, where the row is normed on the way.
    normed: Option<u32>,
    threads: u32,
    /// Columns of a workgroup, a multiple of 4: each element of `x` is loaded once for all of them.
    columns: u32,
}

impl Variant {
    pub fn all(types: Types, weight: Dtype, epilogue: Epilogue, bias: bool) -> impl Iterator<Item = Self> {
        let choose = move |kind| {
            let plain = Self::choose(types, weight, epilogue, bias, kind);
            let normed = Self { types: Types { x: Scalar::F32, ..types }, normed: Some(1e-5_f32.to_bits()), ..plain };
            std::iter::once(plain).chain(weight.is_float().then_some(normed))
        };
        [GpuKind::Software, GpuKind::Discrete].into_iter().flat_map(choose)
    }

    /// A software GPU pays for each load of a thread and each step of the reduction.
    pub const fn choose(types: Types, weight: Dtype, epilogue: Epilogue, bias: bool, kind: GpuKind) -> Self {
        let (threads, columns) = match kind {
            GpuKind::Software => (8, 8),
            _ => (128, 4),
        };
        Self { types, weight, epilogue, bias, normed: None, threads, columns }
    }

    pub fn spec(self) -> ShaderSpec {
        let Self { types, weight, epilogue, bias, threads, columns, .. } = self;
        let normed = if self.normed.is_some() { " normed" } else { "" };
        let half = if types.out == Scalar::F16 { types.out } else { types.x };
        let mut parts = parts(types, weight, epilogue, bias);
        let (norm, overrides) = norm::on_the_way(self.normed);
        parts.push(norm);
        ShaderSpec {
            name: format!(
                "matvec{normed} {} {} {epilogue:?} bias={bias} {threads}x{columns}",
                types.name(),
                weight.name()
            ),
            header: format!(
                "{}const THREADS: u32 = {threads}u;\nconst QUADS: u32 = {}u;\nconst SPREAD: bool = {};\n{}",
                enables(half),
                columns / 4,
                weight.is_float(),
                unroll(MATVEC, &[("QUADS", columns / 4), ("FOUR", 4)])
            ),
            parts,
            op: "",
            entry: "matvec",
            overrides,
            checked: false,
        }
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &Product<'_, Wgsl>) -> Result<()> {
    check(Args("matvec"), kernels, op)?;
    record_parts(kernels, rec, op, None)
}

/// Whether a norm can be had on the way into a product. Where a thread has blocks of quantised weights it cannot: the strided loads of `x` and the gain
/// as f32 would be more than those of the weights.
pub(super) fn takes_norm(kernels: &Wgsl, norm: &Norm<'_, Wgsl>, op: &Product<'_, Wgsl>) -> bool {
    op.phase == Phase::Decode
        && norm.kind == NormKind::Rms
        && norm.bias.is_none()
        && !norm.add
        && norm.rows == op.rows
        && op.rows.len() == 1
        && op
            .weight
            .parts()
            .iter()
            .all(|part| part.format.is_float() || by_subgroups(kernels, op, part, Some(norm.eps)).is_some())
}

/// The variant for subgroups of a known size, where there is one; `normed` is the norm's epsilon.
fn by_subgroups(
    kernels: &Wgsl,
    op: &Product<'_, Wgsl>,
    part: &Part,
    normed: Option<f32>,
) -> Option<matvec_subgroup::Variant> {
    let (types, bias) = (Types::of(op), op.bias.is_some());
    matvec_subgroup::Variant::choose(kernels, types, part.format, op.epilogue, bias, op.weight.width(), normed)
}

/// A product of a normed row; the product's `x` is not touched.
pub(super) fn record_normed(
    kernels: &Wgsl,
    rec: &mut Recording,
    norm: &Norm<'_, Wgsl>,
    op: &Product<'_, Wgsl>,
) -> Result<()> {
    check(Args("matvec"), kernels, op)?;
    let args = Args("normed matvec");
    args.ensure(norm.width == op.weight.width(), || {
        format!("a norm of {} elements before a product of {}", norm.width, op.weight.width())
    })?;
    args.holds("x", norm.x, Scalar::F32, norm.rows.end, norm.width)?;
    args.holds("weight", norm.weight, Scalar::F32, 1, norm.width)?;
    record_parts(kernels, rec, &Product { x: norm.x, rows: op.rows.clone(), ..*op }, Some(norm))
}

fn record_parts(
    kernels: &Wgsl,
    rec: &mut Recording,
    op: &Product<'_, Wgsl>,
    norm: Option<&Norm<'_, Wgsl>>,
) -> Result<()> {
    let args = Args("matvec");
    args.ensure(op.rows.len() == 1, || format!("{} rows where decoding has one", op.rows.len()))?;
    args.ensure((op.rows.start * op.weight.width()).is_multiple_of(8), || {
        format!("row {} of {} elements does not start at a multiple of 8", op.rows.start, op.weight.width())
    })?;
    let types = Types::of(op);
    for part in op.weight.parts() {
        let params = params(args, op, part)?;
        let (kernel, workgroups) = match by_subgroups(kernels, op, part, norm.map(|norm| norm.eps)) {
            Some(variant) => (Kernel::MatVecSubgroup(variant), variant.workgroups(part.rows.len())),
            None => {
                let plain = Variant::choose(types, part.format, op.epilogue, op.bias.is_some(), kernels.kind);
                let variant = Variant { normed: norm.map(|norm| norm.eps.to_bits()), ..plain };
                (Kernel::MatVec(variant), part.rows.len().div_ceil(variant.columns as usize))
            }
        };
        let pipeline = kernels.pipeline(kernel)?;
        let grid = args.grid(workgroups, kernels.max_groups())?;
        let mut bindings = bindings(op, part);
        bindings.extend(norm.map(|norm| norm.weight.binding()));
        rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, grid)?;
    }
    Ok(())
}
