//! Work that does nothing but multiply and add, or read, to measure what a device can do at most.

use bytemuck::{Pod, Zeroable};

use super::coop::Coop;
use super::tensor::Args;
use super::unroll::unroll;
use super::{Kernel, Tensor, Wgsl};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::gpu::{Recording, ShaderSpec};

/// Threads of a workgroup.
const THREADS: u32 = 256;
/// Workgroups: several for each compute unit of the largest GPUs.
const GROUPS: u32 = 1056;
/// Sums of a thread or a subgroup.
const SUMS: u32 = 8;

/// Loads of a thread that are under way together.
const LOADS: u32 = 8;

/// Elements of the F32 tensor that [`Wgsl::record_ceiling`] and [`Wgsl::record_read`] write to.
pub const CEILING_LEN: usize = (4 * THREADS * GROUPS) as usize;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    iterations: u32,
    factor: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ReadParams {
    count: u32,
}

pub(super) fn read_spec() -> ShaderSpec {
    ShaderSpec {
        name: "ceiling read".to_owned(),
        header: format!(
            "const THREADS: u32 = {THREADS}u;\nconst LOADS: u32 = {LOADS}u;\n{}",
            unroll(include_str!("../../../shaders/ceiling_read.wgsl"), &[("LOADS", LOADS)])
        ),
        parts: Vec::new(),
        op: "",
        entry: "ceiling",
        overrides: Vec::new(),
        checked: false,
    }
}

pub(super) fn spec(coop: Option<Coop>) -> ShaderSpec {
    let source = |header: String, text: &str| header + &unroll(text, &[("SUMS", SUMS)]);
    let header = match coop {
        Some(coop) => source(coop.header(&[("THREADS", THREADS)]), include_str!("../../../shaders/ceiling_coop.wgsl")),
        None => source(format!("const THREADS: u32 = {THREADS}u;\n"), include_str!("../../../shaders/ceiling.wgsl")),
    };
    let units = if coop.is_some() { " coop" } else { "" };
    ShaderSpec {
        name: format!("ceiling{units}"),
        header,
        parts: Vec::new(),
        op: "",
        entry: "ceiling",
        overrides: Vec::new(),
        checked: false,
    }
}

impl Wgsl {
    /// Records `iterations` of multiply-adds in registers, on matrix units where products use them; `out` is F32 `[`[`CEILING_LEN`]`]`. Gives the number
    /// of floating-point operations.
    ///
    /// # Errors
    /// [`Error::Shader`](crate::Error::Shader) for another tensor.
    pub fn record_ceiling(&self, rec: &mut Recording, out: &Tensor, iterations: u32) -> Result<f64> {
        Args("ceiling").holds("out", out, Scalar::F32, CEILING_LEN, 1)?;
        let params = Params { iterations, factor: 1e-3 };
        let pipeline = self.pipeline(Kernel::Ceiling(self.coop))?;
        rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &[out.binding()], [GROUPS, 1, 1])?;
        // A thread's sum is a vector of four; a subgroup's one of 16x16, each element with 16 products.
        let (workers, products) = match self.coop {
            Some(coop) => (THREADS / coop.lanes, 16 * 16 * 16),
            None => (THREADS, 4),
        };
        let adds = f64::from(iterations) * f64::from(workers * GROUPS) * f64::from(SUMS * products);
        Ok(2.0 * adds)
    }

    /// Records the reading of a whole F32 tensor, whose length is a multiple of 4; `out` as in [`record_ceiling`](Self::record_ceiling).
    ///
    /// # Errors
    /// [`Error::Shader`](crate::Error::Shader) for other tensors.
    pub fn record_read(&self, rec: &mut Recording, from: &Tensor, out: &Tensor) -> Result<()> {
        let args = Args("ceiling read");
        args.holds("out", out, Scalar::F32, CEILING_LEN, 1)?;
        args.holds("from", from, Scalar::F32, from.len / 4, 4)?;
        args.ensure(from.len > 0 && from.len.is_multiple_of(4), || format!("{} elements", from.len))?;
        let params = ReadParams { count: args.u32(from.len / 4)? };
        let pipeline = self.pipeline(Kernel::CeilingRead)?;
        let bindings = [from.binding(), out.binding()];
        rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, [GROUPS, 1, 1])
    }
}
