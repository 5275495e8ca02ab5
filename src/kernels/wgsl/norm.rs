//! RMSNorm and LayerNorm.

use bytemuck::{Pod, Zeroable};

use super::tensor::{Args, Tensor};
use super::{Kernel, Wgsl, act_part, enables};
use crate::config::NormKind;
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
    /// Element type of the output.
    out: Scalar,
    kind: NormKind,
    bias: bool,
    add: bool,
    threads: u32,
}

impl Variant {
    pub fn all(activation: Scalar) -> impl Iterator<Item = Self> {
        let gpus = [GpuKind::Software, GpuKind::Discrete];
        let flags = [(false, false), (false, true), (true, false), (true, true)];
        [NormKind::Rms, NormKind::Layer].into_iter().flat_map(move |kind| {
            flags
                .into_iter()
                .flat_map(move |(bias, add)| gpus.map(|gpu| Self::choose(activation, kind, bias, add, gpu)))
        })
    }

    /// The same for every row count, since it decides the order of the sum. A software GPU pays for each step of the reduction.
    pub const fn choose(activation: Scalar, kind: NormKind, bias: bool, add: bool, gpu: GpuKind) -> Self {
        let threads = match gpu {
            GpuKind::Software => 16,
            _ => 128,
        };
        let out = if add { Scalar::F32 } else { activation };
        Self { out, kind, bias, add, threads }
    }

    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!(
                "norm {:?} {:?} bias={} add={} {} threads",
                self.out, self.kind, self.bias, self.add, self.threads
            ),
            header: format!(
                "{}const LAYER = {};\nconst ADD = {};\n",
                enables(self.out),
                self.kind == NormKind::Layer,
                self.add
            ),
            parts: vec![
                act_part(self.out),
                if self.bias {
                    include_str!("../../../shaders/lib/norm_bias.wgsl")
                } else {
                    include_str!("../../../shaders/lib/norm_no_bias.wgsl")
                },
            ],
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
    let variant = Variant::choose(kernels.activation, op.kind, op.bias.is_some(), op.add, kernels.kind);
    args.holds("out", op.out, variant.out, op.rows.end, op.width)?;
    if let Some(bias) = op.bias {
        args.holds("bias", bias, Scalar::F32, 1, op.width)?;
    }
    let rows = args.count(&op.rows)?;
    let params = Params {
        rows: args.u32(rows)?,
        start: args.u32(op.rows.start * op.width / 4)?,
        width4: args.u32(op.width / 4)?,
        inverse_width: 1.0 / op.width as f32,
        eps: op.eps,
    };
    let pipeline = kernels.pipeline(Kernel::Norm(variant))?;
    let bindings: Vec<_> =
        [Some(op.x), Some(op.weight), op.bias, Some(op.out)].into_iter().flatten().map(Tensor::binding).collect();
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, args.grid(rows, kernels.max_groups())?)
}

/// The part by which a row is normed on its way into a product, or taken as it is, and its overrides.
pub(super) fn on_the_way(normed: Option<u32>) -> (&'static str, Vec<(&'static str, f64)>) {
    match normed {
        Some(bits) => {
            let eps = ("EPS", f64::from(f32::from_bits(bits)));
            (include_str!("../../../shaders/lib/matvec_normed.wgsl"), vec![eps])
        }
        None => (include_str!("../../../shaders/lib/matvec_plain.wgsl"), Vec::new()),
    }
}
