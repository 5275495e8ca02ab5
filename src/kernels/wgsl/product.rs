//! Products of many rows with a weight matrix, in tiles; the parameters and checks are also those of [`matvec`](super::matvec).

use bytemuck::{Pod, Zeroable};

use super::matrix::{Matrix, Part};
use super::planes::BLOCK;
use super::tensor::Args;
use super::{Kernel, Wgsl, act_part, enables, weight_part};
use crate::dims::round_up;
use crate::dtype::{Dtype, Scalar};
use crate::error::Result;
use crate::gpu::{Binding, GpuKind, Recording, ShaderSpec};
use crate::kernels::{Epilogue, Product, RowOrder};

/// Rows of the largest tile.
pub(super) const MAX_TILE_M: u32 = 64;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub(super) struct Params {
    pub rows: u32,
    x_start: u32,
    pub width4: u32,
    pub blocks: u32,
    pub n: u32,
    pub out_start: u32,
    pub out_stride: u32,
    first: u32,
}

impl Params {
    /// A product of one row with a matrix `[n, width]`.
    pub const fn of_row(width: u32, n: u32) -> Self {
        let blocks = width.div_ceil(BLOCK as u32);
        Self { rows: 1, x_start: 0, width4: width / 4, blocks, n, out_start: 0, out_stride: n, first: 0 }
    }

    /// Whether a row ends within a block.
    pub const fn ragged(&self) -> bool {
        !self.width4.is_multiple_of(BLOCK as u32 / 4)
    }

    /// These, as a constant of a shader.
    pub fn constant(&self) -> String {
        let Self { rows, x_start, width4, blocks, n, out_start, out_stride, first } = self;
        format!(
            "const params = Params({rows}u, {x_start}u, {width4}u, {blocks}u, {n}u, {out_start}u, {out_stride}u, {first}u);\n"
        )
    }
}

/// Element types of a product's input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Types {
    pub x: Scalar,
    pub out: Scalar,
}

impl Types {
    /// Every pair that kernels with this activation type meet under an epilogue.
    fn all(activation: Scalar, epilogue: Epilogue) -> Vec<Self> {
        let pair = |out| Self { x: activation, out };
        match epilogue {
            Epilogue::Add => vec![pair(Scalar::F32)],
            Epilogue::Store if activation != Scalar::F32 => vec![pair(activation), pair(Scalar::F32)],
            _ => vec![pair(activation)],
        }
    }

    const fn of(op: &Product<'_, Wgsl>) -> Self {
        Self { x: op.x.scalar, out: op.out.scalar }
    }

    /// F16 where either is.
    pub fn half(self) -> Scalar {
        if self.out == Scalar::F16 { self.out } else { self.x }
    }
}

/// What all kernels for a product have in common, however they go about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub types: Types,
    pub weight: Dtype,
    pub epilogue: Epilogue,
    pub bias: bool,
}

/// Where a dispatch gives the parameters.
pub(super) const GIVEN: &str = include_str!("../../../shaders/lib/product_given.wgsl");

impl Form {
    /// Of a product with a part of its matrix.
    pub const fn of(op: &Product<'_, Wgsl>, part: &Part) -> Self {
        Self { types: Types::of(op), weight: part.format, epilogue: op.epilogue, bias: op.bias.is_some() }
    }

    /// Every one that kernels with this activation type meet.
    pub fn all(activation: Scalar) -> impl Iterator<Item = Self> {
        let of = move |(weight, epilogue)| {
            let types = Types::all(activation, epilogue).into_iter();
            types.flat_map(move |types| [false, true].map(|bias| Self { types, weight, epilogue, bias }))
        };
        Dtype::ALL.into_iter().flat_map(|weight| Epilogue::ALL.map(|epilogue| (weight, epilogue))).flat_map(of)
    }

    /// The same with `x` from the residual stream, to be normed on the way.
    pub const fn normed(self) -> Self {
        Self { types: Types { x: Scalar::F32, ..self.types }, ..self }
    }

    pub fn name(self) -> String {
        let Self { types, weight, epilogue, bias } = self;
        format!("{:?}->{:?} {} {epilogue:?} bias={bias}", types.x, types.out, weight.name())
    }

    /// The parts of a shader: types, the struct of the parameters, weight format, bias, epilogue.
    pub fn parts(self) -> Vec<&'static str> {
        let mut parts = self.input_parts();
        parts.push(finish_part(self.epilogue));
        parts
    }

    /// All but the epilogue.
    pub fn input_parts(self) -> Vec<&'static str> {
        let Self { types, weight, bias, .. } = self;
        let out = match types.out {
            Scalar::F16 => include_str!("../../../shaders/lib/out_f16.wgsl"),
            _ => include_str!("../../../shaders/lib/out_f32.wgsl"),
        };
        let bias = if bias {
            include_str!("../../../shaders/lib/bias.wgsl")
        } else {
            include_str!("../../../shaders/lib/no_bias.wgsl")
        };
        let params = include_str!("../../../shaders/lib/product_params.wgsl");
        vec![act_part(types.x), out, params, weight_part(weight), bias]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    form: Form,
    tile: Tile,
}

/// How the work is cut. The bits of a row do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Rows and columns of a workgroup.
    m: u32,
    n: u32,
    /// Rows and columns of a thread: squares of this side.
    thread: u32,
    /// Elements of `k` in workgroup memory at a time.
    step: u32,
}

impl Tile {
    /// A software GPU pays for each load of a thread (llvmpipe: 8.3 GFLOP/s a core with 8x8 sums a thread, 4.5 with 4x4).
    const SOFTWARE: [Tile; 3] = [
        Tile { m: 16, n: 64, thread: 8, step: 32 },
        Tile { m: 32, n: 64, thread: 8, step: 32 },
        Tile { m: MAX_TILE_M, n: 64, thread: 8, step: 32 },
    ];
    /// Many small threads where the work is small; the last one is the fastest where there is enough (H100: 25 to 30 TFLOP/s, the one before it 21).
    const HARDWARE: [Tile; 4] = [
        Tile { m: 16, n: 64, thread: 4, step: 16 },
        Tile { m: 32, n: 64, thread: 4, step: 16 },
        Tile { m: MAX_TILE_M, n: 64, thread: 4, step: 16 },
        Tile { m: MAX_TILE_M, n: 128, thread: 8, step: 16 },
    ];
    /// The last tile wants twice as many workgroups as keep the device `busy`.
    fn choose(kind: GpuKind, rows: usize, n: usize, busy: usize) -> Self {
        let large = Self::HARDWARE[3];
        let workgroups = rows.div_ceil(large.m as usize) * n.div_ceil(large.n as usize);
        match (kind, rows) {
            (GpuKind::Software, 0..=16) => Self::SOFTWARE[0],
            (GpuKind::Software, 17..=32) => Self::SOFTWARE[1],
            (GpuKind::Software, _) => Self::SOFTWARE[2],
            (_, 0..=16) => Self::HARDWARE[0],
            (_, 17..=32) => Self::HARDWARE[1],
            _ if workgroups / 2 < busy => Self::HARDWARE[2],
            _ => large,
        }
    }
}

impl Variant {
    pub fn all(form: Form) -> impl Iterator<Item = Self> {
        Tile::SOFTWARE.into_iter().chain(Tile::HARDWARE).map(move |tile| Self { form, tile })
    }

    pub fn spec(self) -> ShaderSpec {
        let Tile { m, n, thread, step } = self.tile;
        let overrides = [
            ("TILE_M", m),
            ("TILE_N", n),
            ("ROW_GROUPS", m / thread),
            ("COLUMN_GROUPS", n / thread),
            ("X_TILE", m * step / 4),
            ("W_TILE", n * step / 4),
        ];
        ShaderSpec {
            name: format!("product {} {m}x{n}x{step}/{thread}", self.form.name()),
            header: format!(
                "{}const THREAD_TILE: u32 = {thread}u;\nconst STEP: u32 = {step}u;\n",
                enables(self.form.types.x)
            ),
            parts: [self.form.parts(), vec![GIVEN]].concat(),
            op: include_str!("../../../shaders/product.wgsl"),
            entry: "product",
            overrides: overrides.map(|(name, value)| (name, f64::from(value))).to_vec(),
            checked: false,
        }
    }

    /// Tiles of rows, then of columns: workgroups that run at the same time share a tile of weights.
    fn grid(self, rows: u32, n: u32) -> [u32; 3] {
        [rows.div_ceil(self.tile.m), n.div_ceil(self.tile.n), 1]
    }
}

pub(super) const fn finish_part(epilogue: Epilogue) -> &'static str {
    match epilogue {
        Epilogue::Store => include_str!("../../../shaders/lib/finish_store.wgsl"),
        Epilogue::Add => include_str!("../../../shaders/lib/finish_add.wgsl"),
        Epilogue::SwiGlu => include_str!("../../../shaders/lib/finish_swiglu.wgsl"),
        Epilogue::GeGlu => include_str!("../../../shaders/lib/finish_geglu.wgsl"),
        Epilogue::Gelu => include_str!("../../../shaders/lib/finish_gelu.wgsl"),
    }
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &Product<'_, Wgsl>) -> Result<()> {
    let rows = check(Args("product"), kernels, op)?;
    for part in op.weight.parts() {
        let params = params(Args("product"), op, part)?;
        let tile = Tile::choose(kernels.kind, rows, part.rows.len(), kernels.busy());
        let variant = Variant { form: Form::of(op, part), tile };
        let pipeline = kernels.pipeline(Kernel::Product(variant))?;
        let grid = variant.grid(params.rows, params.n);
        rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings(op, part), grid)?;
    }
    Ok(())
}

/// Number of rows, once all arguments are known to agree.
pub(in crate::kernels) fn check(args: Args, kernels: &Wgsl, op: &Product<'_, Wgsl>) -> Result<usize> {
    let rows = args.count(&op.rows)?;
    let out_scalar = match op.epilogue {
        Epilogue::Add => Scalar::F32,
        Epilogue::Store if op.out.scalar == Scalar::F32 => Scalar::F32,
        _ => kernels.activation,
    };
    args.holds("x", op.x, kernels.activation, op.rows.end, op.weight.width())?;
    args.holds("out", op.out, out_scalar, args.end(op.out_row, rows)?, out_width(op.weight, op.epilogue))?;
    if let Some(bias) = op.bias {
        args.holds("bias", bias, Scalar::F32, 1, op.weight.rows())?;
    }
    args.ensure(!op.epilogue.gated() || op.weight.order() == RowOrder::Alternating, || {
        "the rows of a gated matrix alternate between gate and up".to_owned()
    })?;
    Ok(rows)
}

fn out_width(weight: &Matrix, epilogue: Epilogue) -> usize {
    if epilogue.gated() { weight.rows() / 2 } else { weight.rows() }
}

/// Parameters for one part of a checked product.
pub(super) fn params(args: Args, op: &Product<'_, Wgsl>, part: &Part) -> Result<Params> {
    let width = op.weight.width();
    let out_width = out_width(op.weight, op.epilogue);
    let column = if op.epilogue.gated() { part.rows.start / 2 } else { part.rows.start };
    Ok(Params {
        rows: args.u32(op.rows.len())?,
        x_start: args.u32(op.rows.start * width / 4)?,
        width4: args.u32(width / 4)?,
        blocks: args.u32(round_up(width, BLOCK) / BLOCK)?,
        n: args.u32(part.rows.len())?,
        out_start: args.u32(op.out_row * out_width + column)?,
        out_stride: args.u32(out_width)?,
        first: args.u32(part.rows.start)?,
    })
}

pub(super) fn bindings<'a>(op: &Product<'a, Wgsl>, part: &'a Part) -> Vec<Binding<'a>> {
    let bias = op.bias.map(|bias| bias.binding());
    std::iter::once(op.x.binding()).chain(part.bindings()).chain(bias).chain([op.out.binding()]).collect()
}
