//! Row lookup in a weight matrix.

use bytemuck::{Pod, Zeroable};

use super::tensor::Args;
use super::{Kernel, Wgsl, weight_part};
use crate::dims::round_up;
use crate::dtype::{Dtype, Scalar};
use crate::error::Result;
use crate::gpu::{Recording, ShaderSpec};
use crate::kernels::Embed;
use crate::kernels::wgsl::planes::BLOCK;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    width4: u32,
    blocks: u32,
    first: u32,
    n: u32,
    scale: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub weight: Dtype,
}

impl Variant {
    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!("embed {}", self.weight.name()),
            header: String::new(),
            parts: vec![weight_part(self.weight)],
            op: include_str!("../../../shaders/embed.wgsl"),
            entry: "embed",
            overrides: Vec::new(),
            // The one kernel that reads indices from data.
            checked: true,
        }
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &Embed<'_, Wgsl>) -> Result<()> {
    let args = Args("embed");
    let width = op.table.width();
    args.holds("ids", op.ids, Scalar::U32, op.rows, 1)?;
    args.holds("out", op.out, Scalar::F32, op.rows, width)?;
    let grid = args.grid(op.rows, kernels.max_groups())?;
    for part in op.table.parts() {
        let params = Params {
            rows: args.u32(op.rows)?,
            width4: args.u32(width / 4)?,
            blocks: args.u32(round_up(width, BLOCK) / BLOCK)?,
            first: args.u32(part.rows.start)?,
            n: args.u32(part.rows.len())?,
            scale: op.scale,
        };
        let bindings =
            std::iter::once(op.ids.binding()).chain(part.bindings()).chain([op.out.binding()]).collect::<Vec<_>>();
        let pipeline = kernels.pipeline(Kernel::Embed(Variant { weight: part.format }))?;
        rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, grid)?;
    }
    Ok(())
}
