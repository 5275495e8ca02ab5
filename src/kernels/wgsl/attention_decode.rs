//! Attention of one row: its keys split over workgroups, then merged.

use bytemuck::{Pod, Zeroable};

use super::tensor::Args;
use super::{Kernel, Wgsl, kv_part};
use crate::dims::round_up;
use crate::dtype::{KvDtype, Scalar};
use crate::error::Result;
use crate::gpu::{GpuKind, Recording, ShaderSpec};
use crate::kernels::AttentionDecode;

/// Most splits: with 32 heads, 512 workgroups.
pub(super) const SPLITS: usize = 16;

/// Keys that a workgroup takes at a time; as in the shader.
const KEYS: usize = 64;

/// Most query heads that a workgroup takes.
const MAX_HEADS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    keys: u32,
    split: u32,
    heads: u32,
    kv_stride: u32,
    group: u32,
    scale: f32,
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
    kv: KvDtype,
    /// A multiple of 4.
    head_dim: usize,
    /// Query heads of a workgroup.
    heads: usize,
    threads: u32,
}

impl Variant {
    /// Every variant for a head size.
    pub fn all(kv: KvDtype, head_dim: usize) -> Vec<Self> {
        let kinds = [GpuKind::Software, GpuKind::Discrete];
        let mut all = Vec::new();
        for variant in
            kinds.into_iter().flat_map(|kind| (1..=MAX_HEADS).map(move |group| Self::choose(kv, head_dim, group, kind)))
        {
            if !all.contains(&variant) {
                all.push(variant);
            }
        }
        all
    }

    /// The heads that share a K/V head, in as few and as even workgroups as registers and workgroup memory (for the queries) allow. A software
    /// GPU pays for each load of a thread, so its threads take several keys for each load of the query.
    pub fn choose(kv: KvDtype, head_dim: usize, group: usize, kind: GpuKind) -> Self {
        let most = (512 / head_dim).clamp(1, MAX_HEADS);
        let threads = if kind == GpuKind::Software { 16 } else { 64 };
        Self { kv, head_dim, heads: group.div_ceil(group.div_ceil(most)), threads }
    }

    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!("attention_decode {:?} {} x{} {} threads", self.kv, self.head_dim, self.heads, self.threads),
            header: format!(
                "const HEAD4: u32 = {}u;\nconst HEADS: u32 = {}u;\nconst THREADS: u32 = {}u;\n",
                self.head_dim / 4,
                self.heads,
                self.threads
            ),
            parts: vec![kv_part(self.kv)],
            op: include_str!("../../../shaders/attention_decode.wgsl"),
            entry: "attention_decode",
            overrides: Vec::new(),
            checked: false,
        }
    }
}

pub(super) fn merge_spec() -> ShaderSpec {
    ShaderSpec {
        name: "attention_merge".to_owned(),
        header: String::new(),
        parts: Vec::new(),
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
    let args = Args("attention_decode");
    let dims = &op.dims;
    args.heads(dims)?;
    let keys = args.end(op.position, 1)?;
    let kv = op.k.kv();
    args.holds("qkv", op.qkv, Scalar::F32, 1, dims.qkv_width())?;
    args.holds("k", op.k, kv.scalar(), keys, dims.kv_width())?;
    args.holds("v", op.v, kv.scalar(), keys, dims.kv_width())?;
    args.holds("out", op.out, Scalar::F32, 1, dims.q_width())?;
    args.holds("partial", op.partial, Scalar::F32, SPLITS, dims.heads * (dims.head_dim + 2))?;
    let (splits, each) = split(keys);
    let params = Params {
        keys: args.u32(keys)?,
        split: args.u32(each)?,
        heads: args.u32(dims.heads)?,
        kv_stride: args.u32(dims.kv_width() / 4)?,
        group: args.u32(dims.heads / dims.kv_heads)?,
        scale: op.scale,
    };
    let splits = args.u32(splits)?;
    let variant = Variant::choose(kv, dims.head_dim, dims.heads / dims.kv_heads, kernels.kind);
    let tiles = args.u32(dims.kv_heads)? * params.group.div_ceil(args.u32(variant.heads)?);
    let pipeline = kernels.pipeline(Kernel::AttentionDecode(variant))?;
    let bindings = [op.qkv.binding(), op.k.binding(), op.v.binding(), op.partial.binding()];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings, [splits, tiles, 1])?;

    let merge = MergeParams { splits, heads: params.heads, head_dim: args.u32(dims.head_dim)? };
    let pipeline = kernels.pipeline(Kernel::AttentionMerge)?;
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
