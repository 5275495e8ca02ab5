//! Products of one row with quantised weights in integers, where activations are f16: the variant of [`matvec`](super::matvec) for devices whose subgroups
//! have a known size.

use super::norm;
use super::product::{Types, parts};
use super::subgroups::Subgroups;
use super::unroll::unroll;
use super::{Wgsl, enables};
use crate::dtype::{Dtype, Scalar};
use crate::gpu::ShaderSpec;
use crate::kernels::Epilogue;

const SOURCE: &str = include_str!("../../../shaders/matvec_bytes.wgsl");

/// Subgroups of a workgroup.
const SUBGROUPS: u32 = 16;

/// Columns of a subgroup.
const COLUMNS: u32 = 2;

/// Most workgroups, as many as an H200 has multiprocessors.
const GROUPS: u32 = 132;

/// Room for a row of `x` comes in steps of this many blocks of 32.
const ROOM: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    types: Types,
    weight: Dtype,
    epilogue: Epilogue,
    bias: bool,
    /// The bits of epsilon, where the row is normed on the way.
    normed: Option<u32>,
    subgroups: Subgroups,
    /// Blocks of 32 elements that `x` may have.
    blocks: u32,
}

impl Variant {
    /// Every variant for a weight format and an epilogue.
    pub fn all(types: Types, weight: Dtype, epilogue: Epilogue, bias: bool) -> impl Iterator<Item = Self> {
        let plain = Self { types, weight, epilogue, bias, normed: None, subgroups: Subgroups::USUAL, blocks: ROOM };
        let types = Types { x: Scalar::F32, ..types };
        let both = [plain, Self { types, normed: Some(1e-5_f32.to_bits()), ..plain }];
        both.into_iter().filter(move |_| part(weight).is_some())
    }

    /// Nothing where [`matvec`](super::matvec) has to do: f32 activations would lose precision, some formats are not there, and a row of `x` has to fit
    /// workgroup memory.
    pub fn choose(
        kernels: &Wgsl,
        types: Types,
        weight: Dtype,
        epilogue: Epilogue,
        bias: bool,
        width: usize,
    ) -> Option<Self> {
        let subgroups = kernels.subgroups().filter(|_| kernels.activation == Scalar::F16)?;
        part(weight)?;
        let caps = kernels.gpu.caps();
        let blocks = u32::try_from(width).ok()?.div_ceil(32).next_multiple_of(ROOM);
        let fits = SUBGROUPS * subgroups.lanes <= caps.max_workgroup_invocations
            && memory_bytes(blocks) <= caps.workgroup_memory_bytes;
        fits.then_some(Self { types, weight, epilogue, bias, normed: None, subgroups, blocks })
    }

    /// The same with RMSNorm on the way.
    pub const fn normed(self, eps: f32) -> Self {
        Self { normed: Some(eps.to_bits()), ..self }
    }

    /// Workgroups for a part of `rows` rows of the matrix.
    pub fn workgroups(rows: usize) -> usize {
        rows.div_ceil((SUBGROUPS * COLUMNS) as usize).min(GROUPS as usize)
    }

    pub fn spec(self) -> ShaderSpec {
        let Self { types, weight, epilogue, bias, normed, subgroups: Subgroups { lanes }, blocks } = self;
        // The same bytes under way for each format.
        let ahead = if weight == Dtype::Q8_0 { 2 } else { 4 };
        let half = if types.out == Scalar::F16 { types.out } else { types.x };
        let mut parts = parts(types, weight, epilogue, bias);
        parts.extend(part(weight).unwrap_or_default());
        let (norm, overrides) = norm::on_the_way(normed);
        parts.push(norm);
        ShaderSpec {
            name: format!(
                "matvec in bytes{} {} {} {epilogue:?} bias={bias} subgroups of {lanes}, {blocks} blocks",
                if normed.is_some() { " normed" } else { "" },
                types.name(),
                weight.name()
            ),
            header: format!(
                "{}const LANES: u32 = {lanes}u;\nconst SUBGROUPS: u32 = {SUBGROUPS}u;\nconst KEPT: u32 = SUBGROUPS;\n\
                 const BLOCKS: u32 = {blocks}u;\nconst COLUMNS: u32 = {COLUMNS}u;\nconst AHEAD: u32 = {ahead}u;\n{}",
                enables(half),
                unroll(SOURCE, &[("COLUMNS", COLUMNS), ("AHEAD", ahead)])
            ),
            parts,
            op: "",
            entry: "matvec",
            overrides,
            checked: false,
        }
    }
}

/// Workgroup memory for a row of so many blocks, and for the sums of squares.
const fn memory_bytes(blocks: u32) -> u32 {
    4 * (blocks + 1) * 16 + 8 * blocks + 4 * SUBGROUPS
}

/// The parts that multiply a format's codes as they are, beside those that read it; nothing where there are none.
fn part(weight: Dtype) -> Option<Vec<&'static str>> {
    const NIBBLES: &str = include_str!("../../../shaders/lib/bytes_nibbles.wgsl");
    const FIFTH_BITS: &str = include_str!("../../../shaders/lib/bytes_fifth_bits.wgsl");
    Some(match weight {
        Dtype::Q8_0 => vec![include_str!("../../../shaders/lib/bytes_q8_0.wgsl")],
        Dtype::Q4_0 => vec![NIBBLES, include_str!("../../../shaders/lib/bytes_q4_0.wgsl")],
        Dtype::Q4_1 => vec![NIBBLES, include_str!("../../../shaders/lib/bytes_q4_1.wgsl")],
        Dtype::Q5_0 => vec![NIBBLES, FIFTH_BITS, include_str!("../../../shaders/lib/bytes_q5_0.wgsl")],
        Dtype::Q5_1 => vec![NIBBLES, FIFTH_BITS, include_str!("../../../shaders/lib/bytes_q5_1.wgsl")],
        Dtype::Q4K => vec![NIBBLES, include_str!("../../../shaders/lib/bytes_q4_k.wgsl")],
        Dtype::Q5K => vec![NIBBLES, FIFTH_BITS, include_str!("../../../shaders/lib/bytes_q5_k.wgsl")],
        Dtype::Q6K => vec![NIBBLES, include_str!("../../../shaders/lib/bytes_q6_k.wgsl")],
        _ => return None,
    })
}
