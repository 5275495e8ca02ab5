//! Elements bounded in place.

use bytemuck::{Pod, Zeroable};

use super::tensor::Args;
use super::{Kernel, Wgsl};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::gpu::{Recording, ShaderSpec};
use crate::kernels::SoftCap;

/// Threads of a workgroup; as in the shader.
const THREADS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    cap: f32,
}

pub(super) fn spec() -> ShaderSpec {
    ShaderSpec {
        name: "soft_cap".to_owned(),
        header: String::new(),
        parts: vec![include_str!("../../../shaders/lib/soft_bound.wgsl")],
        op: include_str!("../../../shaders/soft_cap.wgsl"),
        entry: "soft_cap",
        overrides: Vec::new(),
        checked: false,
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &SoftCap<'_, Wgsl>) -> Result<()> {
    let args = Args("soft_cap");
    args.holds("x", op.x, Scalar::F32, op.len, 1)?;
    args.ensure(op.cap > 0.0 && op.cap.is_finite(), || format!("a bound of {}", op.cap))?;
    let params = Params { count: args.u32(op.len)?, cap: op.cap };
    let pipeline = kernels.pipeline(Kernel::SoftCap)?;
    let grid = args.grid(op.len.div_ceil(THREADS), kernels.max_groups())?;
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &[op.x.binding()], grid)
}
