//! Index of the largest element of a row.

use bytemuck::{Pod, Zeroable};

use super::tensor::Args;
use super::unroll::unroll;
use super::{Kernel, Wgsl};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::gpu::{GpuKind, Recording, ShaderSpec};
use crate::kernels::ArgMax;

const SOURCE: &str = include_str!("../../../shaders/arg_max.wgsl");

/// Loads of a thread that are under way together.
const EACH: u32 = 16;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    start: u32,
    width: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    threads: u32,
}

impl Variant {
    pub const ALL: [Variant; 2] = [Variant { threads: 16 }, Variant { threads: 256 }];

    pub const fn choose(kind: GpuKind) -> Self {
        match kind {
            GpuKind::Software => Variant { threads: 16 },
            _ => Variant { threads: 256 },
        }
    }

    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!("arg_max {} threads", self.threads),
            header: format!("const EACH: u32 = {EACH}u;\n{}", unroll(SOURCE, &[("EACH", EACH)])),
            parts: Vec::new(),
            op: "",
            entry: "arg_max",
            overrides: vec![("THREADS", f64::from(self.threads))],
            checked: false,
        }
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &ArgMax<'_, Wgsl>) -> Result<()> {
    let args = Args("arg_max");
    args.ensure(op.width > 0, || "a row without elements".to_owned())?;
    args.holds("x", op.x, Scalar::F32, args.end(op.row, 1)?, op.width)?;
    args.holds("out", op.out, Scalar::U32, 1, 1)?;
    let params = Params { start: args.u32(op.row * op.width)?, width: args.u32(op.width)? };
    let pipeline = kernels.pipeline(Kernel::ArgMax(Variant::choose(kernels.kind)))?;
    let bindings = [op.x.binding(), op.out.binding()];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, [1, 1, 1])
}
