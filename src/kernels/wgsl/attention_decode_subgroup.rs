//! Attention of one row where subgroups have a known size: the variant of [`attention_decode`](super::attention_decode) whose loop has no barrier, and
//! which needs no merge while the keys are few.

use super::attention::{CACHE_READ, DECODE_PARAMS, score_parts};
use super::rope_cache::pairs_part;
use super::subgroups::{ATTEND, Subgroups};
use super::unroll::unroll;
use super::{act_part, enables};
use crate::config::RopePairs;
use crate::dtype::{KvDtype, Scalar};
use crate::gpu::ShaderSpec;

const SOURCE: &str = include_str!("../../../shaders/attention_decode_subgroup.wgsl");

/// Keys of a step for each of those that take a key together.
const KEYS: u32 = 4;

/// Most keys that are not split. On an H200, 32 heads of 128, in microseconds: 256 keys whole 5.4, in 8 splits with their merge 8.1; 512 keys 8.1 and
/// 11.1; 1,024 keys 13.6 and 11.4.
pub(super) const WHOLE: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    activation: Scalar,
    kv: KvDtype,
    /// A multiple of 4.
    head_dim: usize,
    bias: bool,
    /// Query heads of a workgroup.
    heads: u32,
    subgroups: Subgroups,
    /// Whether a workgroup has all keys of its heads.
    whole: bool,
    /// How the row is turned on the way, where it was not before.
    turned: Option<RopePairs>,
}

impl Variant {
    /// Every variant for a head size.
    pub fn all(subgroups: Subgroups, activation: Scalar, kv: KvDtype, head_dim: usize, bias: bool) -> Vec<Self> {
        let of = |whole, group, turned| Self::choose(subgroups, activation, kv, (head_dim, group), bias, whole, turned);
        let turns = [None, Some(RopePairs::Halves), Some(RopePairs::Adjacent)].into_iter();
        let mut all: Vec<_> =
            turns.flat_map(|turned| [of(true, 1, turned), of(false, 1, turned), of(false, 2, turned)]).collect();
        all.dedup();
        all
    }

    /// A workgroup for each query head while the keys are few. Otherwise two of a K/V head share its loads where workgroup memory has room (4,096 keys,
    /// four heads to a K/V head: 14.9 µs on an H200, with one head 17.1, with four 20.9).
    pub fn choose(
        subgroups: Subgroups,
        activation: Scalar,
        kv: KvDtype,
        (head_dim, group): (usize, usize),
        bias: bool,
        whole: bool,
        turned: Option<RopePairs>,
    ) -> Self {
        let heads = if whole || group == 1 || head_dim > 128 { 1 } else { 2 };
        Self { activation, kv, head_dim, bias, heads, subgroups, whole, turned }
    }

    /// Query heads of a workgroup.
    pub const fn heads(self) -> usize {
        self.heads as usize
    }

    pub fn spec(self) -> ShaderSpec {
        let Self { activation, kv, head_dim, bias, heads, subgroups: Subgroups { lanes }, whole, turned } = self;
        let key_lanes = lanes.min(16);
        let head4 = head_dim as u32 / 4;
        let counts = [
            ("HEADS", heads),
            ("KEYS", KEYS),
            ("CHUNKS", head4.div_ceil(key_lanes)),
            ("KEY_STEPS", key_lanes.ilog2()),
            ("REST_STEPS", (lanes / key_lanes).ilog2()),
            ("SUBGROUPS", ATTEND),
        ];
        let leave = if whole {
            include_str!("../../../shaders/lib/attended_whole.wgsl")
        } else {
            include_str!("../../../shaders/lib/attended_split.wgsl")
        };
        let row = match turned {
            Some(pairs) => vec![pairs_part(pairs), include_str!("../../../shaders/lib/row_turned.wgsl")],
            None => vec![CACHE_READ, include_str!("../../../shaders/lib/row_rotated.wgsl")],
        };
        ShaderSpec {
            name: format!(
                "attention_decode {activation:?} {kv:?} {head_dim} bias={bias} x{heads} subgroups of {lanes} {}{}",
                if whole { "whole" } else { "split" },
                turned.map(|pairs| format!(" turned {pairs:?}")).unwrap_or_default()
            ),
            header: format!(
                "{}const HEAD4: u32 = {head4}u;\nconst HEADS: u32 = {heads}u;\nconst LANES: u32 = {lanes}u;\n\
                 const KEY_LANES: u32 = {key_lanes}u;\nconst SUBGROUPS: u32 = {ATTEND}u;\nconst KEYS: u32 = {KEYS}u;\n{}",
                enables(activation),
                unroll(SOURCE, &counts)
            ),
            parts: [vec![act_part(activation), DECODE_PARAMS], score_parts(kv, bias), row, vec![leave]].concat(),
            op: "",
            entry: "attention_decode",
            overrides: Vec::new(),
            checked: false,
        }
    }
}
