//! Attention of one row: its keys split over workgroups, then merged.

use bytemuck::{Pod, Zeroable};

use super::attention::{CACHE_READ, DECODE_PARAMS, check_rules, score_parts};
use super::attention_decode_subgroup as subgroup;
use super::tensor::{Args, Tensor};
use super::{Kernel, Wgsl, act_part, enables, rope_cache};
use crate::dims::round_up;
use crate::dtype::{KvDtype, Scalar};
use crate::error::Result;
use crate::gpu::{GpuKind, Recording, ShaderSpec};
use crate::kernels::{AttentionDecode, RopeCache};

/// Most splits: with 32 heads, 512 workgroups.
pub(super) const SPLITS: usize = 16;

/// Keys that a workgroup takes at a time; as in the shader.
const KEYS: usize = 64;

/// Most query heads that a workgroup takes.
const MAX_HEADS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first: u32,
    keys: u32,
    split: u32,
    heads: u32,
    kv_stride: u32,
    group: u32,
    scale: f32,
    soft_cap: f32,
    bias_stride: u32,
    cached: u32,
    lap: u32,
    rotary4: u32,
    kv_heads: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MergeParams {
    splits: u32,
    heads: u32,
    head_dim: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    activation: Scalar,
    kv: KvDtype,
    /// A multiple of 4.
    head_dim: usize,
    bias: bool,
    /// Query heads of a workgroup.
    heads: usize,
    threads: u32,
}

impl Variant {
    /// Every variant for a head size.
    pub fn all(activation: Scalar, kv: KvDtype, head_dim: usize, bias: bool) -> Vec<Self> {
        let kinds = [GpuKind::Software, GpuKind::Discrete];
        let mut all = Vec::new();
        for variant in kinds.into_iter().flat_map(|kind| {
            (1..=MAX_HEADS).map(move |group| Self::choose(activation, kv, head_dim, bias, group, kind))
        }) {
            if !all.contains(&variant) {
                all.push(variant);
            }
        }
        all
    }

    /// The heads that share a K/V head, in as few and as even workgroups as registers and workgroup memory (for the queries) allow. A software
    /// GPU pays for each load of a thread, so its threads take several keys for each load of the query.
    pub fn choose(activation: Scalar, kv: KvDtype, head_dim: usize, bias: bool, group: usize, kind: GpuKind) -> Self {
        let most = (512 / head_dim).clamp(1, MAX_HEADS);
        let threads = if kind == GpuKind::Software { 16 } else { 64 };
        Self { activation, kv, head_dim, bias, heads: group.div_ceil(group.div_ceil(most)), threads }
    }

    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!(
                "attention_decode {:?} {:?} {} bias={} x{} {} threads",
                self.activation, self.kv, self.head_dim, self.bias, self.heads, self.threads
            ),
            header: format!(
                "{}const HEAD4: u32 = {}u;\nconst HEADS: u32 = {}u;\nconst THREADS: u32 = {}u;\n",
                enables(self.activation),
                self.head_dim / 4,
                self.heads,
                self.threads
            ),
            parts: [vec![act_part(self.activation), DECODE_PARAMS], score_parts(self.kv, self.bias), vec![CACHE_READ]]
                .concat(),
            op: include_str!("../../../shaders/attention_decode.wgsl"),
            entry: "attention_decode",
            overrides: Vec::new(),
            checked: false,
        }
    }
}

pub(super) fn merge_spec(activation: Scalar) -> ShaderSpec {
    ShaderSpec {
        name: format!("attention_merge {activation:?}"),
        header: enables(activation),
        parts: vec![act_part(activation)],
        op: include_str!("../../../shaders/attention_merge.wgsl"),
        entry: "attention_merge",
        overrides: Vec::new(),
        checked: false,
    }
}

/// Number of splits and keys of each, none of them empty.
fn split(keys: usize) -> (usize, usize) {
    let each = round_up(keys.div_ceil(SPLITS), KEYS);
    (keys.div_ceil(each), each)
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &AttentionDecode<'_, Wgsl>) -> Result<()> {
    record_row(kernels, rec, op, None)
}

/// Attention of a row that is turned and left in the cache on the way, where the device has the kernel for it.
pub(super) fn record_turned(
    kernels: &Wgsl,
    rec: &mut Recording,
    rope: &RopeCache<'_, Wgsl>,
    op: &AttentionDecode<'_, Wgsl>,
) -> Result<()> {
    Args("attention_decode")
        .ensure(rope.rows == (0..1) && rope.position == op.position && rope.dims == op.dims, || {
            format!("rows {:?} from position {} turned, attention at {}", rope.rows, rope.position, op.position)
        })?;
    if kernels.subgroups().is_none() {
        rope_cache::record(kernels, rec, rope)?;
        return record(kernels, rec, op);
    }
    rope_cache::check(kernels, rope)?;
    rope_cache::record_norm(kernels, rec, rope)?;
    record_row(kernels, rec, op, Some(rope))
}

fn record_row(
    kernels: &Wgsl,
    rec: &mut Recording,
    op: &AttentionDecode<'_, Wgsl>,
    rope: Option<&RopeCache<'_, Wgsl>>,
) -> Result<()> {
    let args = Args("attention_decode");
    let dims = &op.dims;
    args.heads(dims)?;
    let keys = args.end(op.position, 1)?;
    let kv = op.k.kv();
    args.holds("qkv", op.qkv, kernels.activation, 1, dims.qkv_width())?;
    args.holds("out", op.out, kernels.activation, 1, dims.q_width())?;
    args.holds("partial", op.partial, Scalar::F32, SPLITS, dims.heads * (dims.head_dim + 2))?;
    let bias_stride = check_rules(args, &op.rules, op.bias, dims.heads, keys)?;
    let first = op.rules.first_key(op.position);
    let cached = args.cache(op.k, op.v, dims, &(first..keys), op.rules.window.is_some())?;
    let subgroups = kernels.subgroups();
    let whole = subgroups.is_some() && keys - first <= subgroup::WHOLE;
    let (splits, each) = if whole { (1, keys - first) } else { split(keys - first) };
    let params = Params {
        first: args.u32(first)?,
        keys: args.u32(keys)?,
        split: args.u32(each)?,
        heads: args.u32(dims.heads)?,
        kv_stride: args.u32(dims.kv_width() / 4)?,
        group: args.u32(dims.heads / dims.kv_heads)?,
        scale: op.scale,
        soft_cap: op.rules.soft_cap.unwrap_or(0.0),
        bias_stride: args.u32(bias_stride)?,
        cached,
        lap: args.u32(first)? / cached.max(1) * cached,
        rotary4: args.u32(rope.map_or(0, |rope| rope.rotary) / 4)?,
        kv_heads: args.u32(dims.kv_heads)?,
    };
    let splits = args.u32(splits)?;
    let (bias, group) = (op.bias.is_some(), dims.heads / dims.kv_heads);
    let (kernel, heads) = match subgroups {
        Some(subgroups) => {
            let sizes = (dims.head_dim, group);
            let variant = subgroup::Variant::choose(
                subgroups,
                kernels.activation,
                kv,
                sizes,
                bias,
                whole,
                rope.map(|rope| rope.pairs),
            );
            (Kernel::AttentionDecodeSubgroup(variant), variant.heads())
        }
        None => {
            let variant = Variant::choose(kernels.activation, kv, dims.head_dim, bias, group, kernels.kind);
            (Kernel::AttentionDecode(variant), variant.heads)
        }
    };
    let tiles = args.u32(dims.kv_heads * group.div_ceil(heads))?;
    let pipeline = kernels.pipeline(kernel)?;
    let result = if whole { op.out } else { op.partial };
    let tensors = [Some(op.qkv), Some(op.k), Some(op.v), op.bias, Some(result), rope.map(|rope| rope.angles)];
    let bindings: Vec<_> = tensors.into_iter().flatten().map(Tensor::binding).collect();
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, [splits, tiles, 1])?;
    if whole {
        return Ok(());
    }
    let merge = MergeParams { splits, heads: params.heads, head_dim: args.u32(dims.head_dim)? };
    let pipeline = kernels.pipeline(Kernel::AttentionMerge(kernels.activation))?;
    let bindings = [op.partial.binding(), op.out.binding()];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&merge), &bindings, [params.heads, 1, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_cover_the_keys_and_none_is_empty() {
        for keys in (1..3000).chain([65_536, 100_001]) {
            let (splits, each) = split(keys);
            assert!(splits <= SPLITS && each % KEYS == 0, "{keys}");
            assert!((splits - 1) * each < keys && keys <= splits * each, "{keys}");
        }
    }
}
