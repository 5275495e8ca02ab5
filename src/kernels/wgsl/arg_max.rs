//! Index of the largest element of a row.

use bytemuck::{Pod, Zeroable};

use super::subgroups::Subgroups;
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

/// Threads at most, with subgroups.
const THREADS: u32 = 1024;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    start: u32,
    width: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    /// A power of two without subgroups, a multiple of theirs with them.
    threads: u32,
    subgroups: Option<Subgroups>,
}

impl Variant {
    /// Those without subgroups.
    pub const ALL: [Self; 2] = [Self { threads: 16, subgroups: None }, Self { threads: 256, subgroups: None }];

    pub const fn by_subgroups(subgroups: Subgroups, most_threads: u32) -> Self {
        let threads = if most_threads < THREADS { most_threads } else { THREADS };
        Self { threads: threads / subgroups.lanes * subgroups.lanes, subgroups: Some(subgroups) }
    }

    fn choose(kernels: &Wgsl) -> Self {
        match kernels.subgroups() {
            Some(subgroups) => Self::by_subgroups(subgroups, kernels.gpu.caps().max_workgroup_invocations),
            None => Self::ALL[usize::from(kernels.kind != GpuKind::Software)],
        }
    }

    pub fn spec(self) -> ShaderSpec {
        let Self { threads, subgroups } = self;
        let (by, lanes, part) = match subgroups {
            Some(Subgroups { lanes }) => (
                format!(" subgroups of {lanes}"),
                format!("const LANES: u32 = {lanes}u;\n"),
                include_str!("../../../shaders/lib/top_by_subgroups.wgsl"),
            ),
            None => (String::new(), String::new(), include_str!("../../../shaders/lib/top_by_halves.wgsl")),
        };
        ShaderSpec {
            name: format!("arg_max {threads} threads{by}"),
            header: format!(
                "const THREADS: u32 = {threads}u;\n{lanes}const EACH: u32 = {EACH}u;\n{}",
                unroll(SOURCE, &[("EACH", EACH)])
            ),
            parts: vec![part],
            op: "",
            entry: "arg_max",
            overrides: Vec::new(),
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
    let pipeline = kernels.pipeline(Kernel::ArgMax(Variant::choose(kernels)))?;
    let bindings = [op.x.binding(), op.out.binding()];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, [1, 1, 1])
}
