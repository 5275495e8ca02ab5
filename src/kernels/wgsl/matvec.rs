//! Products of one row with a weight matrix, for decoding.

use super::product::{bindings, check, params, parts};
use super::tensor::Args;
use super::{Kernel, Wgsl};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::{GpuKind, Recording, ShaderSpec};
use crate::kernels::{Epilogue, Product};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    weight: Dtype,
    epilogue: Epilogue,
    threads: u32,
    /// Columns of a workgroup, a multiple of 4: each element of `x` is loaded once for all of them.
    columns: u32,
}

impl Variant {
    pub fn all(weight: Dtype, epilogue: Epilogue) -> [Self; 2] {
        [GpuKind::Software, GpuKind::Discrete].map(|kind| Self::choose(weight, epilogue, kind))
    }

    /// A software GPU pays for each load of a thread and each step of the reduction.
    pub const fn choose(weight: Dtype, epilogue: Epilogue, kind: GpuKind) -> Self {
        let (threads, columns) = match kind {
            GpuKind::Software => (8, 8),
            _ => (64, 4),
        };
        Self { weight, epilogue, threads, columns }
    }

    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!("matvec {} {:?} {}x{}", self.weight.name(), self.epilogue, self.threads, self.columns),
            header: format!("const COLUMNS: u32 = {}u;\n", self.columns),
            parts: parts(self.weight, self.epilogue),
            op: include_str!("../../../shaders/matvec.wgsl"),
            entry: "matvec",
            overrides: vec![("THREADS", f64::from(self.threads))],
            checked: false,
        }
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &Product<'_, Wgsl>) -> Result<()> {
    let args = Args("matvec");
    let rows = check(args, op)?;
    args.ensure(rows == 1, || format!("{rows} rows where decoding has one"))?;
    for part in op.weight.parts() {
        let params = params(args, op, part)?;
        let variant = Variant::choose(part.format, op.epilogue, kernels.kind);
        let pipeline = kernels.pipeline(Kernel::MatVec(variant))?;
        let grid = args.grid(part.rows.len().div_ceil(variant.columns as usize), kernels.max_groups())?;
        rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings(op, part), grid)?;
    }
    Ok(())
}
