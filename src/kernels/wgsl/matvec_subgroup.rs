//! Products of one row where subgroups have a known size: the variant of [`matvec`](super::matvec) whose workgroups go on from column to column. Quantised
//! weights are multiplied as integers, where activations are f16.

use super::norm;
use super::product::{Form, Params};
use super::subgroups::Subgroups;
use super::unroll::unroll;
use super::{Wgsl, enables};
use crate::dtype::{Dtype, Scalar};
use crate::gpu::{Caps, ShaderSpec};
use crate::kernels::Epilogue;

const SOURCE: &str = include_str!("../../../shaders/matvec_subgroup.wgsl");

/// Most workgroups, as many as an H200 has multiprocessors.
const GROUPS: u32 = 132;

/// Steps that are unrolled at most: a row of 131,072 elements has one more where subgroups have 32 lanes.
const MOST_MIDDLE: u32 = 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    form: Form,
    /// The bits of epsilon, where the row is normed on the way.
    normed: Option<u32>,
    lanes: u32,
    shape: Shape,
    /// Part of the shader, so that no dispatch waits for them, and a column's steps can be unrolled.
    params: Params,
}

/// How a workgroup's subgroups share columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Subgroups of a workgroup.
    subgroups: u32,
    /// Columns of a subgroup at a time: 1, or 2 for all epilogues.
    columns: u32,
}

impl Shape {
    /// Of 16 to 32 subgroups and 1 to 4 columns, what an H200 was fastest with. What is added to the residual stream has few columns, and more subgroups
    /// have some of them where each takes one.
    const fn choose(epilogue: Epilogue, lanes: u32, most_invocations: u32) -> Self {
        let (invocations, columns) = if matches!(epilogue, Epilogue::Add) { (1024, 1) } else { (896, 2) };
        let invocations = if most_invocations < invocations { most_invocations } else { invocations };
        Self { subgroups: invocations / lanes, columns }
    }
}

impl Variant {
    pub fn all(form: Form) -> impl Iterator<Item = Self> {
        let lanes = Subgroups::USUAL.lanes;
        let shape = Shape::choose(form.epilogue, lanes, u32::MAX);
        // A row that ends within a block, where the format has such rows, or within the last of several steps.
        let params = Params::of_row(if form.weight.is_float() { 1000 } else { 4352 }, 96);
        let plain = Self { form, normed: None, lanes, shape, params };
        let normed = Self { form: form.normed(), normed: Some(1e-5_f32.to_bits()), ..plain };
        let there = units(form.weight).is_some() && multiplies(form.weight, form.types.x);
        [plain, normed].into_iter().filter(move |_| there)
    }

    /// Nothing where [`matvec`](super::matvec) has to do: with f32 activations integers would lose precision, some formats are not there, and a row of
    /// `x` has to fit workgroup memory. `normed` is epsilon, where the row is normed on the way.
    pub fn choose(kernels: &Wgsl, form: Form, params: Params, normed: Option<f32>) -> Option<Self> {
        let Subgroups { lanes } = kernels.subgroups()?;
        units(form.weight).filter(|_| multiplies(form.weight, kernels.activation))?;
        let caps = kernels.gpu.caps();
        let form = if normed.is_some() { form.normed() } else { form };
        let shape = Shape::choose(form.epilogue, lanes, caps.max_workgroup_invocations);
        let variant = Self { form, normed: normed.map(f32::to_bits), lanes, shape, params };
        variant.fits(caps).then_some(variant)
    }

    fn fits(self, caps: &Caps) -> bool {
        self.shape.subgroups > 0
            && (self.form.weight.is_float() || self.middle() <= MOST_MIDDLE)
            && self.memory_bytes() <= u64::from(caps.workgroup_memory_bytes)
    }

    /// Units of a lane that are loaded together.
    const fn ahead(self) -> u32 {
        if matches!(self.form.weight, Dtype::F16 | Dtype::Bf16) { 4 } else { 2 }
    }

    /// Units of a lane to a block of 32 elements: eight floats each, or the block.
    const fn units_of_block(self) -> u32 {
        if self.form.weight.is_float() { 4 } else { 1 }
    }

    /// Steps of a column but the last one, which may go beyond the end of the row.
    const fn middle(self) -> u32 {
        (self.units_of_block() * self.params.blocks).div_ceil(self.ahead() * self.lanes) - 1
    }

    /// Workgroup memory for a row of x, and for sums of squares.
    fn memory_bytes(self) -> u64 {
        let blocks = u64::from(self.params.blocks);
        let row = if self.form.weight.is_float() {
            32 * blocks * self.form.types.x.bytes() as u64
        } else {
            4 * (blocks + 1) * 16 + 8 * blocks
        };
        row + 4 * u64::from(self.shape.subgroups)
    }

    pub fn workgroups(self) -> usize {
        self.params.n.div_ceil(self.shape.columns).min(GROUPS) as usize
    }

    pub fn spec(self) -> ShaderSpec {
        let Self { form, normed, lanes, shape, params } = self;
        let Shape { subgroups, columns } = shape;
        let (ahead, middle) = (self.ahead(), self.middle());
        let once = |here: bool| u32::from(here);
        let counts = [
            ("COLUMNS", columns),
            ("AHEAD", ahead),
            ("MIDDLE", middle),
            ("SHARES", subgroups.div_ceil(lanes)),
            ("PAIRS", once(columns == 2)),
            ("ONES", once(columns == 1)),
            ("WHOLE", once(!params.ragged())),
            ("RAGGED", once(params.ragged())),
            ("UNROLLED", once(!form.weight.is_float())),
            ("LOOPED", once(form.weight.is_float())),
        ];
        // Here sums are added to what stood there before they were known, and then stored.
        let (finish, standing) = match form.epilogue {
            Epilogue::Add => (Epilogue::Store, include_str!("../../../shaders/lib/standing_out.wgsl")),
            epilogue => (epilogue, include_str!("../../../shaders/lib/standing_none.wgsl")),
        };
        let (norm, overrides) = norm::on_the_way(normed);
        let mut parts = Form { epilogue: finish, ..form }.parts();
        parts.extend([standing, norm]);
        parts.extend(units(form.weight).unwrap_or_default());
        ShaderSpec {
            name: format!(
                "matvec{} {} {subgroups} subgroups of {lanes}, {}x{}",
                if normed.is_some() { " normed" } else { "" },
                form.name(),
                params.n,
                4 * params.width4
            ),
            header: format!(
                "{}{}const LANES: u32 = {lanes}u;\nconst SUBGROUPS: u32 = {subgroups}u;\nconst KEPT: u32 = SUBGROUPS;\n\
                 const BLOCKS: u32 = params.blocks;\nconst UNITS: u32 = {}u;\nconst COLUMNS: u32 = {columns}u;\nconst AHEAD: u32 = {ahead}u;\n\
                 const MIDDLE: u32 = {middle}u;\n{}",
                enables(form.types.half()),
                params.constant(),
                self.units_of_block(),
                unroll(SOURCE, &counts)
            ),
            parts,
            op: "",
            entry: "matvec",
            overrides,
            checked: false,
        }
    }
}

/// Whether weights of a format are multiplied here where activations are of a type.
fn multiplies(weight: Dtype, activation: Scalar) -> bool {
    weight.is_float() || activation == Scalar::F16
}

/// The parts that keep x and multiply a format's weights with it, beside those that read it; nothing where there are none.
fn units(weight: Dtype) -> Option<Vec<&'static str>> {
    const FLOATS: &str = include_str!("../../../shaders/lib/units_floats.wgsl");
    const BYTES: &str = include_str!("../../../shaders/lib/units_bytes.wgsl");
    const NIBBLES: &str = include_str!("../../../shaders/lib/bytes_nibbles.wgsl");
    const FIFTH_BITS: &str = include_str!("../../../shaders/lib/bytes_fifth_bits.wgsl");
    Some(match weight {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => vec![FLOATS],
        Dtype::Q8_0 => vec![BYTES, include_str!("../../../shaders/lib/bytes_q8_0.wgsl")],
        Dtype::Q4_0 => vec![BYTES, NIBBLES, include_str!("../../../shaders/lib/bytes_q4_0.wgsl")],
        Dtype::Q4_1 => vec![BYTES, NIBBLES, include_str!("../../../shaders/lib/bytes_q4_1.wgsl")],
        Dtype::Q5_0 => vec![BYTES, NIBBLES, FIFTH_BITS, include_str!("../../../shaders/lib/bytes_q5_0.wgsl")],
        Dtype::Q5_1 => vec![BYTES, NIBBLES, FIFTH_BITS, include_str!("../../../shaders/lib/bytes_q5_1.wgsl")],
        Dtype::Q4K => vec![BYTES, NIBBLES, include_str!("../../../shaders/lib/bytes_q4_k.wgsl")],
        Dtype::Q5K => vec![BYTES, NIBBLES, FIFTH_BITS, include_str!("../../../shaders/lib/bytes_q5_k.wgsl")],
        Dtype::Q6K => vec![BYTES, NIBBLES, include_str!("../../../shaders/lib/bytes_q6_k.wgsl")],
        Dtype::Iq4Nl | Dtype::Q2K | Dtype::Q3K => return None,
    })
}
