//! Causal attention of many rows on matrix units.

use super::attention::{PARAMS, bindings, n_heads, params, score_parts};
use super::coop::Coop;
use super::tensor::Args;
use super::unroll::unroll;
use super::{Kernel, Wgsl};
use crate::dtype::KvDtype;
use crate::error::Result;
use crate::gpu::{Recording, ShaderSpec};
use crate::kernels::{Attention, ScoreRules};

/// Head sizes that have a kernel; others take the one without matrix units.
pub(super) const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

/// Keys of a tile, counted from key 0.
pub(super) const KEYS: u32 = 32;

const SUBGROUPS: u32 = 4;

const ATTENTION: &str = include_str!("../../../shaders/attention_coop.wgsl");

/// Tiles of rows up to which those of all heads come before the next. Llama-2-7B's heads on an H200, 1,024 rows: 68 TFLOP/s with heads one after
/// another, 92 so; 4,096 rows: 93 and 95. With more, heads one after another share their keys in the cache.
const SHORT: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub coop: Coop,
    /// One of [`HEAD_DIMS`].
    pub head_dim: usize,
    /// Whether scores know no window, bound or bias: half the time of a long prompt would go into looking (H100: 54 TFLOP/s instead of 100).
    plain: bool,
    bias: bool,
    /// Blocks of 16 rows that a subgroup takes.
    blocks: u32,
}

impl Variant {
    pub fn all() -> impl Iterator<Item = Self> {
        let variant = |head_dim, plain, bias| Self { coop: Coop::USUAL, head_dim, plain, bias, blocks: 1 };
        HEAD_DIMS.into_iter().flat_map(move |head_dim| {
            [(true, false), (false, false), (false, true)].map(|(plain, bias)| variant(head_dim, plain, bias))
        })
    }

    /// The head's size, the cache's type and the rules decide, never the rows.
    pub fn choose(coop: Option<Coop>, op: &Attention<'_, Wgsl>) -> Option<Self> {
        let suits = op.k.kv() == KvDtype::F16 && HEAD_DIMS.contains(&op.dims.head_dim);
        let bias = op.bias.is_some();
        let plain = !bias && op.rules == ScoreRules::default();
        coop.filter(|_| suits).map(|coop| Self { coop, head_dim: op.dims.head_dim, plain, bias, blocks: 1 })
    }

    pub fn spec(self) -> ShaderSpec {
        let constants = [
            ("HEAD", self.head_dim as u32),
            ("KEYS", KEYS),
            ("BLOCKS", self.blocks),
            ("SUBGROUPS", SUBGROUPS),
            ("SHORT", SHORT),
        ];
        let threads = SUBGROUPS * self.coop.lanes;
        let head = self.head_dim as u32;
        let counts = [
            ("BLOCKS", self.blocks),
            ("HEAD_BLOCKS", head / 16),
            ("KEY_BLOCKS", KEYS / 16),
            ("LOADS", (KEYS * head / 8).div_ceil(threads)),
            ("OWN", KEYS / 4 / (self.coop.lanes / 16)),
            ("SUBGROUPS", SUBGROUPS),
        ];
        ShaderSpec {
            name: format!(
                "attention_coop {} plain={} bias={} {} rows",
                self.head_dim,
                self.plain,
                self.bias,
                self.rows()
            ),
            header: format!(
                "{}const IS_PLAIN: bool = {};\n{}",
                self.coop.header(&constants),
                self.plain,
                unroll(ATTENTION, &counts)
            ),
            parts: [vec![PARAMS], score_parts(KvDtype::F16, self.bias)].concat(),
            op: include_str!("../../../shaders/lib/octet.wgsl"),
            entry: "attention",
            overrides: Vec::new(),
            checked: false,
        }
    }

    const fn rows(self) -> u32 {
        SUBGROUPS * self.blocks * 16
    }
}

pub(super) fn record(kernels: &Wgsl, variant: Variant, rec: &mut Recording, op: &Attention<'_, Wgsl>) -> Result<()> {
    let args = Args("attention");
    let params = params(args, kernels, op)?;
    if params.rows == 0 {
        return Ok(());
    }
    let pipeline = kernels.pipeline(Kernel::AttentionCoop(variant))?;
    let grid = [params.rows.div_ceil(variant.rows()), n_heads(args, op)?, 1];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings(op), grid)
}
