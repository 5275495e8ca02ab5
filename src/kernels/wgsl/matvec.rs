//! Products of one row with a weight matrix, for decoding.

use super::product::{Types, bindings, check, params, parts};
use super::tensor::Args;
use super::{Kernel, Wgsl, enables};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::{GpuKind, Recording, ShaderSpec};
use crate::kernels::{Epilogue, Product};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    types: Types,
    weight: Dtype,
    epilogue: Epilogue,
    bias: bool,
    threads: u32,
    /// Columns of a workgroup, a multiple of 4: each element of `x` is loaded once for all of them.
    columns: u32,
}

impl Variant {
    pub fn all(types: Types, weight: Dtype, epilogue: Epilogue, bias: bool) -> [Self; 2] {
        [GpuKind::Software, GpuKind::Discrete].map(|kind| Self::choose(types, weight, epilogue, bias, kind))
    }

    /// A software GPU pays for each load of a thread and each step of the reduction.
    pub const fn choose(types: Types, weight: Dtype, epilogue: Epilogue, bias: bool, kind: GpuKind) -> Self {
        let (threads, columns) = match kind {
            GpuKind::Software => (8, 8),
            _ => (64, 4),
        };
        Self { types, weight, epilogue, bias, threads, columns }
    }

    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!(
                "matvec {} {} {:?} bias={} {}x{}",
                self.types.name(),
                self.weight.name(),
                self.epilogue,
                self.bias,
                self.threads,
                self.columns
            ),
            header: format!("{}const COLUMNS: u32 = {}u;\n", enables(self.types.x), self.columns),
            parts: parts(self.types, self.weight, self.epilogue, self.bias),
            op: include_str!("../../../shaders/matvec.wgsl"),
            entry: "matvec",
            overrides: vec![("THREADS", f64::from(self.threads))],
            checked: false,
        }
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &Product<'_, Wgsl>) -> Result<()> {
    let args = Args("matvec");
    let rows = check(args, kernels, op)?;
    let types = Types::of(op);
    args.ensure(rows == 1, || format!("{rows} rows where decoding has one"))?;
    for part in op.weight.parts() {
        let params = params(args, op, part)?;
        let variant = Variant::choose(types, part.format, op.epilogue, op.bias.is_some(), kernels.kind);
        let pipeline = kernels.pipeline(Kernel::MatVec(variant))?;
        let grid = args.grid(part.rows.len().div_ceil(variant.columns as usize), kernels.max_groups())?;
        rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings(op, part), grid)?;
    }
    Ok(())
}
