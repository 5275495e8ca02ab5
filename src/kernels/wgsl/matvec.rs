//! Products of one row with a weight matrix, for decoding.

use super::matrix::Part;
use super::product::{Form, GIVEN, Params, bindings, check, params};
use super::tensor::Args;
use super::unroll::unroll;
use super::{Kernel, Wgsl, enables};
use super::{matvec_subgroup, norm};
use crate::config::NormKind;
use crate::dtype::Scalar;
use crate::error::Result;
use crate::gpu::{GpuKind, Recording, ShaderSpec};
use crate::kernels::{Norm, Phase, Product};

const MATVEC: &str = include_str!("../../../shaders/matvec.wgsl");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    form: Form,
    /// The bits of epsilon, where the row is normed on the way.
    normed: Option<u32>,
    threads: u32,
    /// Columns of a workgroup, a multiple of 4: each element of `x` is loaded once for all of them.
    columns: u32,
}

impl Variant {
    pub fn all(form: Form) -> impl Iterator<Item = Self> {
        let choose = move |kind| {
            let plain = Self::choose(form, kind);
            let normed = Self { form: form.normed(), normed: Some(1e-5_f32.to_bits()), ..plain };
            std::iter::once(plain).chain(form.weight.is_float().then_some(normed))
        };
        [GpuKind::Software, GpuKind::Discrete].into_iter().flat_map(choose)
    }

    /// A software GPU pays for each load of a thread and each step of the reduction.
    pub const fn choose(form: Form, kind: GpuKind) -> Self {
        let (threads, columns) = match kind {
            GpuKind::Software => (8, 8),
            _ => (128, 4),
        };
        Self { form, normed: None, threads, columns }
    }

    pub fn spec(self) -> ShaderSpec {
        let Self { form, threads, columns, .. } = self;
        let normed = if self.normed.is_some() { " normed" } else { "" };
        let mut parts = form.parts();
        let (norm, overrides) = norm::on_the_way(self.normed);
        parts.extend([GIVEN, norm]);
        ShaderSpec {
            name: format!("matvec{normed} {} {threads}x{columns}", form.name()),
            header: format!(
                "{}const THREADS: u32 = {threads}u;\nconst QUADS: u32 = {}u;\nconst SPREAD: bool = {};\n{}",
                enables(form.types.half()),
                columns / 4,
                form.weight.is_float(),
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
        && op.weight.parts().iter().all(|part| {
            part.format.is_float()
                || params(Args("matvec"), op, part)
                    .is_ok_and(|params| by_subgroups(kernels, op, part, params, Some(norm.eps)).is_some())
        })
}

/// The variant for subgroups of a known size, where there is one; `normed` is the norm's epsilon.
fn by_subgroups(
    kernels: &Wgsl,
    op: &Product<'_, Wgsl>,
    part: &Part,
    params: Params,
    normed: Option<f32>,
) -> Option<matvec_subgroup::Variant> {
    matvec_subgroup::Variant::choose(kernels, Form::of(op, part), params, normed)
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
    for part in op.weight.parts() {
        let params = params(args, op, part)?;
        // Where they are part of the shader, none are given.
        let (kernel, workgroups, given) = match by_subgroups(kernels, op, part, params, norm.map(|norm| norm.eps)) {
            Some(variant) => (Kernel::MatVecSubgroup(variant), variant.workgroups(), &[][..]),
            None => {
                let plain = Variant::choose(Form::of(op, part), kernels.kind);
                let variant = Variant { normed: norm.map(|norm| norm.eps.to_bits()), ..plain };
                let workgroups = part.rows.len().div_ceil(variant.columns as usize);
                (Kernel::MatVec(variant), workgroups, bytemuck::bytes_of(&params))
            }
        };
        let pipeline = kernels.pipeline(kernel)?;
        let grid = args.grid(workgroups, kernels.max_groups())?;
        let mut bindings = bindings(op, part);
        bindings.extend(norm.map(|norm| norm.weight.binding()));
        rec.dispatch(&pipeline, given, &bindings, grid)?;
    }
    Ok(())
}
