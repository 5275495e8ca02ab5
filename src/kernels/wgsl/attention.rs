//! Causal attention of many rows.

use bytemuck::{Pod, Zeroable};

use super::tensor::{Args, Tensor};
use super::{Kernel, Wgsl, act_part, enables, kv_part};
use crate::dtype::{KvDtype, Scalar};
use crate::error::Result;
use crate::gpu::{Binding, Recording, ShaderSpec};
use crate::kernels::{Attention, ScoreRules};

/// Rows of a workgroup; as in the shader.
const ROWS: u32 = 16;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(in crate::kernels) struct Params {
    pub rows: u32,
    position: u32,
    q_start: u32,
    q_stride: u32,
    kv_stride: u32,
    out_start: u32,
    out_stride: u32,
    group: u32,
    scale: f32,
    window: u32,
    soft_cap: f32,
    bias_stride: u32,
    dense_keys: u32,
    first_head: u32,
    cached: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub activation: Scalar,
    pub kv: KvDtype,
    /// A multiple of 4.
    pub head_dim: usize,
    pub bias: bool,
}

impl Variant {
    pub fn spec(self) -> ShaderSpec {
        ShaderSpec {
            name: format!("attention {:?} {:?} {} bias={}", self.activation, self.kv, self.head_dim, self.bias),
            header: format!("{}const HEAD4: u32 = {}u;\n", enables(self.activation), self.head_dim / 4),
            parts: [vec![act_part(self.activation), PARAMS], score_parts(self.kv, self.bias)].concat(),
            op: include_str!("../../../shaders/attention.wgsl"),
            entry: "attention",
            overrides: Vec::new(),
            checked: false,
        }
    }
}

/// The part with the shaders' form of [`Params`].
pub(super) const PARAMS: &str = include_str!("../../../shaders/lib/attention_params.wgsl");

/// The part by which the kernels that attend for one row share parameters.
pub(super) const DECODE_PARAMS: &str = include_str!("../../../shaders/lib/attention_decode_params.wgsl");

/// The part for a cache that these only read.
pub(super) const CACHE_READ: &str = include_str!("../../../shaders/lib/cache_read.wgsl");

/// The parts of an attention shader: cache elements, bias of scores, soft-cap.
pub(super) fn score_parts(kv: KvDtype, bias: bool) -> Vec<&'static str> {
    let bias = if bias {
        include_str!("../../../shaders/lib/key_bias.wgsl")
    } else {
        include_str!("../../../shaders/lib/no_key_bias.wgsl")
    };
    vec![kv_part(kv), bias, include_str!("../../../shaders/lib/soft_bound.wgsl")]
}

/// Checks window, soft-cap and bias; gives the bias's keys for each head, 0 without bias.
pub(super) fn check_rules(
    args: Args,
    rules: &ScoreRules,
    bias: Option<&Tensor>,
    heads: usize,
    keys: usize,
) -> Result<usize> {
    args.ensure(rules.window != Some(0), || "a window of no keys".to_owned())?;
    args.ensure(rules.soft_cap.is_none_or(|cap| cap > 0.0 && cap.is_finite()), || format!("{rules:?}"))?;
    bias.map_or(Ok(0), |bias| {
        args.holds("bias", bias, Scalar::F32, heads, keys)?;
        Ok(bias.len / heads)
    })
}

/// Parameters, once all arguments are known to agree.
pub(in crate::kernels) fn params(args: Args, kernels: &Wgsl, op: &Attention<'_, Wgsl>) -> Result<Params> {
    let dims = &op.dims;
    args.heads(dims)?;
    args.ensure(op.kv_heads.start <= op.kv_heads.end && op.kv_heads.end <= dims.kv_heads, || {
        format!("K/V heads {:?} of {}", op.kv_heads, dims.kv_heads)
    })?;
    let rows = args.count(&op.rows)?;
    let end = args.end(op.position, rows)?.max(op.dense_keys);
    let ring = op.rules.window.is_some();
    args.holds("qkv", op.qkv, kernels.activation, op.rows.end, dims.qkv_width())?;
    let seen = op.rules.first_key(op.position)..if ring { op.position + rows } else { end };
    let cached = args.cache(op.k, op.v, dims, &seen, ring)?;
    args.holds("out", op.out, kernels.activation, op.rows.end, dims.q_width())?;
    let bias_stride = check_rules(args, &op.rules, op.bias, dims.heads, end)?;
    Ok(Params {
        rows: args.u32(rows)?,
        position: args.u32(op.position)?,
        q_start: args.u32(op.rows.start * dims.qkv_width() / 4)?,
        q_stride: args.u32(dims.qkv_width() / 4)?,
        kv_stride: args.u32(dims.kv_width() / 4)?,
        out_start: args.u32(op.rows.start * dims.q_width() / 4)?,
        out_stride: args.u32(dims.q_width() / 4)?,
        group: args.u32(dims.heads / dims.kv_heads)?,
        scale: op.scale,
        window: op.rules.window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX)),
        soft_cap: op.rules.soft_cap.unwrap_or(0.0),
        bias_stride: args.u32(bias_stride)?,
        dense_keys: args.u32(op.dense_keys)?,
        first_head: args.u32(op.kv_heads.start * (dims.heads / dims.kv_heads))?,
        cached,
    })
}

/// Query heads that are computed.
pub(super) fn n_heads(args: Args, op: &Attention<'_, Wgsl>) -> Result<u32> {
    args.u32(op.kv_heads.len() * (op.dims.heads / op.dims.kv_heads))
}

pub(super) fn bindings<'a>(op: &Attention<'a, Wgsl>) -> Vec<Binding<'a>> {
    let tensors = [Some(op.qkv), Some(op.k), Some(op.v), op.bias, Some(op.out)];
    tensors.into_iter().flatten().map(Tensor::binding).collect()
}

pub(super) fn record(kernels: &Wgsl, rec: &mut Recording, op: &Attention<'_, Wgsl>) -> Result<()> {
    let (args, kv, head_dim) = (Args("attention"), op.k.kv(), op.dims.head_dim);
    let params = params(args, kernels, op)?;
    let variant = Variant { activation: kernels.activation, kv, head_dim, bias: op.bias.is_some() };
    let pipeline = kernels.pipeline(Kernel::Attention(variant))?;
    let grid = [params.rows.div_ceil(ROWS), n_heads(args, op)?, 1];
    rec.dispatch(&pipeline, bytemuck::bytes_of(&params), &bindings(op), grid)
}
