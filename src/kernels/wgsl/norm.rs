//! RMSNorm.

use bytemuck::{Pod, Zeroable};

use super::tensor::Args;
use super::{Kernel, Wgsl};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::gpu::{GpuKind, Recording, ShaderSpec};
use crate::kernels::Norm;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    start: u32,
    width4: u32,
    inverse_width: f32,
    eps: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    threads: u32,
}

impl Variant {
    pub const ALL: [Variant; 2] = [Variant { threads: 16 }, Variant { threads: 128 }];

    /// The same for every row count, since it decides the order of the sum. A software GPU pays for each step of the reduction.
    pub const fn choose(kind: GpuKind) -> Self {
        match kind {
            GpuKind::Software => Variant { threads: 16 },
            _ => Variant { threads: 128 },
        }
    }

    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!("norm {} threads", self.threads),
            header: String::new(),
            parts: Vec::new(),
            op: include_str!("../../../shaders/norm.wgsl"),
            entry: "norm",
            overrides: vec![("THREADS", f64::from(self.threads))],
            checked: false,
        }
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &Norm<'_, Wgsl>) -> Result<()> {
    let args = Args("norm");
    args.ensure(op.width > 0 && op.width.is_multiple_of(4), || format!("width {}", op.width))?;
    args.holds("x", op.x, Scalar::F32, op.rows.end, op.width)?;
    args.holds("weight", op.weight, Scalar::F32, 1, op.width)?;
    args.holds("out", op.out, Scalar::F32, op.rows.end, op.width)?;
    let rows = args.count(&op.rows)?;
    let params = Params {
        rows: args.u32(rows)?,
        start: args.u32(op.rows.start * op.width / 4)?,
        width4: args.u32(op.width / 4)?,
        inverse_width: 1.0 / op.width as f32,
        eps: op.eps,
    };
    let pipeline = kernels.pipeline(Kernel::Norm(Variant::choose(kernels.kind)))?;
    let bindings = [op.x.binding(), op.weight.binding(), op.out.binding()];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, args.grid(rows, kernels.max_groups())?)
}
