//! Causal attention over the K/V cache: blocks of keys with an online softmax for many rows, splits over keys for one.

use std::ops::Range;

use super::product::columns;
use super::rows::soft_bound;
use super::simd::Tile;
use super::tensor::{Floats, KEY_BLOCK, Tensor, expect_heads};
use super::{Context, Scratch};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::kernels::{self, HeadDims, ScoreRules};

/// Query rows times heads of a group that share a decoded block.
const QUERY_BLOCK: usize = 96;
/// Keys that are worth a split of their own when one row is computed.
const SPLIT_KEYS: usize = 128;
/// Stands for "no key yet": finite, so that differences of maxima never are NaN.
const NO_KEY: f32 = -1e30;

/// Recorded attention of many rows.
pub(super) struct Attention {
    qkv: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    rows: Range<usize>,
    position: usize,
    /// Rows of the cache, a ring.
    cached: usize,
    dense_keys: usize,
    kv_heads: Range<usize>,
    dims: HeadDims,
    scale: f32,
    rules: ScoreRules,
    bias: Option<Tensor>,
}

/// What the rows attend to.
#[derive(Clone, Copy)]
struct Cache<'a> {
    k: Floats<'a>,
    v: Floats<'a>,
    /// `[heads, keys]`, see [`kernels::Attention::bias`].
    bias: Option<&'a [f32]>,
}

/// An error unless window, soft-cap and bias make sense for `keys` keys.
fn expect_rules(op: &Tensor, rules: ScoreRules, bias: Option<&Tensor>, heads: usize, keys: usize) -> Result<()> {
    if rules.window == Some(0) || rules.soft_cap.is_some_and(|cap| !(cap > 0.0 && cap.is_finite())) {
        return Err(op.fault(format_args!("{rules:?}")));
    }
    bias.map_or(Ok(()), |bias| bias.expect(&[Scalar::F32], heads, keys))
}

/// Bytes of one head of the cache from `row` on, and from one row to the next.
fn head_rows(cache: Floats<'_>, dims: HeadDims, head: usize, row: usize) -> (&[u8], usize) {
    let size = cache.dtype.block_bytes();
    let stride = dims.kv_width() * size;
    (&cache.bytes[row * stride + head * dims.head_dim * size..], stride)
}

/// Scaled scores of one head for the keys from `first` on: bias, then soft-cap.
fn rescore(scores: &mut [f32], rules: ScoreRules, bias: Option<&[f32]>, first: usize) {
    if let Some(bias) = bias {
        scores.iter_mut().zip(&bias[first..]).for_each(|(s, bias)| *s += bias);
    }
    if let Some(cap) = rules.soft_cap {
        soft_bound(scores, cap);
    }
}

impl Attention {
    pub fn new(op: &kernels::Attention<'_, super::Cpu>) -> Result<Self> {
        let dims = op.dims;
        expect_heads(op.qkv, dims)?;
        if op.rows.start > op.rows.end {
            return Err(op.qkv.fault(format_args!("rows {:?}", op.rows)));
        }
        if op.kv_heads.start > op.kv_heads.end || op.kv_heads.end > dims.kv_heads {
            return Err(op.qkv.fault(format_args!("K/V heads {:?} of {}", op.kv_heads, dims.kv_heads)));
        }
        op.qkv.expect(&[Scalar::F32], op.rows.end, dims.qkv_width())?;
        op.out.expect(&[Scalar::F32], op.rows.end, dims.q_width())?;
        let (keys, ring) = (op.position.saturating_add(op.rows.len()), op.rules.window.is_some());
        let end = if ring { keys } else { keys.max(op.dense_keys) };
        let cached = Tensor::cached(op.k, op.v, dims.kv_width(), &(op.rules.first_key(op.position)..end), ring)?;
        expect_rules(op.qkv, op.rules, op.bias, dims.heads, keys)?;
        Tensor::expect_distinct(&[op.qkv, op.k, op.v, op.out])?;
        Ok(Self {
            qkv: op.qkv.clone(),
            k: op.k.clone(),
            v: op.v.clone(),
            out: op.out.clone(),
            rows: op.rows.clone(),
            position: op.position,
            cached,
            dense_keys: op.dense_keys,
            kv_heads: op.kv_heads.clone(),
            dims,
            scale: op.scale,
            rules: op.rules,
            bias: op.bias.cloned(),
        })
    }

    pub fn run(&self, ctx: &Context<'_>) -> Result<()> {
        let (qkv, k, v, mut out) = (self.qkv.read()?, self.k.read()?, self.v.read()?, self.out.write()?);
        let (q_width, qkv_width) = (self.dims.q_width(), self.dims.qkv_width());
        if self.rows.is_empty() {
            return Ok(());
        }
        let group = self.dims.heads / self.dims.kv_heads;
        let n_queries = (QUERY_BLOCK / group).max(1);
        let out = &mut out.f32_mut()[self.rows.start * q_width..self.rows.end * q_width];
        let mut tasks = Vec::new();
        let of_heads = columns(out, q_width, group * self.dims.head_dim).into_iter().enumerate();
        for (head, rows) in of_heads.filter(|(head, _)| self.kv_heads.contains(head)) {
            let mut rows = rows.into_iter();
            for first in (0..self.rows.len()).step_by(n_queries) {
                tasks.push((head, first, rows.by_ref().take(n_queries).collect::<Vec<_>>()));
            }
        }
        let qkv = &qkv.f32()[self.rows.start * qkv_width..self.rows.end * qkv_width];
        let bias = self.bias.as_ref().map(Tensor::read).transpose()?;
        let cache = Cache { k: k.floats(), v: v.floats(), bias: bias.as_ref().map(|bias| bias.f32()) };
        ctx.for_each(tasks, |_, (head, first, mut out), scratch| {
            self.queries(ctx, head, self.position + first, &qkv[first * qkv_width..], cache, &mut out, scratch)
        })
    }

    /// The query rows behind `out`, of the heads that share K/V head `head`; the first row is at `position` and at the start of `qkv`.
    fn queries(
        &self,
        ctx: &Context<'_>,
        head: usize,
        position: usize,
        qkv: &[f32],
        Cache { k, v, bias }: Cache<'_>,
        out: &mut [&mut [f32]],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let head_dim = self.dims.head_dim;
        let group = self.dims.heads / self.dims.kv_heads;
        let rows = out.len() * group;
        let keys = (position + out.len()).max(self.dense_keys);
        let padded = head_dim.next_multiple_of(ctx.simd.lanes());
        let [q, scores, sums, keys_t, values, state, decoded] = scratch.slices([
            rows * head_dim,
            rows * KEY_BLOCK,
            rows * padded,
            head_dim * KEY_BLOCK,
            KEY_BLOCK * padded,
            2 * rows,
            ctx.simd.lanes() * head_dim,
        ]);
        let width = group * head_dim;
        for (q, qkv) in q.chunks_exact_mut(width).zip(qkv.chunks(self.dims.qkv_width())) {
            q.iter_mut().zip(&qkv[head * width..]).for_each(|(q, x)| *q = x * self.scale);
        }
        let (maxima, totals) = state.split_at_mut(rows);
        maxima.fill(NO_KEY);
        totals.fill(0.0);
        sums.fill(0.0);
        values.fill(0.0);
        let first_block = self.rules.first_key(position) / KEY_BLOCK * KEY_BLOCK;
        for start in (first_block..keys).step_by(KEY_BLOCK) {
            ctx.cancel.check()?;
            let n = KEY_BLOCK.min(keys - start);
            self.keys(ctx, k, head, start..start + n, keys_t, decoded);
            self.values(ctx, v, head, start..start + n, values, padded);
            ctx.simd.tile(Tile {
                a: q,
                a_stride: head_dim,
                b: keys_t,
                b_stride: KEY_BLOCK,
                c: scores,
                c_stride: KEY_BLOCK,
                m: rows,
                n: n.next_multiple_of(ctx.simd.lanes()),
                k: head_dim,
                add: false,
            });
            for (r, (scores, sums)) in scores.chunks_exact_mut(KEY_BLOCK).zip(sums.chunks_exact_mut(padded)).enumerate()
            {
                let at = position + r / group;
                let end = (at + 1).saturating_sub(start).min(n);
                let first = self.rules.first_key(at).saturating_sub(start).min(end);
                scores[..first].fill(0.0);
                scores[end..n].fill(0.0);
                if first == end {
                    continue;
                }
                let bias = bias.map(|bias| &bias[(head * group + r % group) * (bias.len() / self.dims.heads)..]);
                rescore(&mut scores[first..end], self.rules, bias, start + first);
                let (max, sum) = ctx.simd.softmax(&mut scores[first..end], maxima[r]);
                if max > maxima[r] {
                    let factor = (maxima[r] - max).exp();
                    sums.iter_mut().for_each(|x| *x *= factor);
                    totals[r] *= factor;
                    maxima[r] = max;
                }
                totals[r] += sum;
            }
            ctx.simd.tile(Tile {
                a: scores,
                a_stride: KEY_BLOCK,
                b: values,
                b_stride: padded,
                c: sums,
                c_stride: padded,
                m: rows,
                n: padded,
                k: n,
                add: true,
            });
        }
        for (r, sums) in sums.chunks_exact(padded).enumerate() {
            let (factor, g) = (1.0 / totals[r], r % group);
            let out = &mut out[r / group][g * head_dim..(g + 1) * head_dim];
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * factor);
        }
        Ok(())
    }

    /// Keys as f32, transposed: `[head_dim, KEY_BLOCK]`.
    fn keys(
        &self,
        ctx: &Context<'_>,
        k: Floats<'_>,
        head: usize,
        keys: Range<usize>,
        out: &mut [f32],
        decoded: &mut [f32],
    ) {
        let (lanes, head_dim) = (ctx.simd.lanes(), self.dims.head_dim);
        let (bytes, stride) = head_rows(k, self.dims, head, keys.start % self.cached);
        for first in (0..keys.len()).step_by(lanes) {
            for (i, row) in decoded.chunks_exact_mut(head_dim).enumerate() {
                if first + i < keys.len() {
                    ctx.simd.decode(k.dtype, &bytes[(first + i) * stride..], row);
                } else {
                    row.fill(0.0);
                }
            }
            ctx.simd.transpose(decoded, head_dim, &mut out[first..], KEY_BLOCK, head_dim);
        }
    }

    /// Values as f32: `[keys, padded]`.
    fn values(
        &self,
        ctx: &Context<'_>,
        v: Floats<'_>,
        head: usize,
        keys: Range<usize>,
        out: &mut [f32],
        padded: usize,
    ) {
        let (bytes, stride) = head_rows(v, self.dims, head, keys.start % self.cached);
        for (i, row) in out.chunks_exact_mut(padded).take(keys.len()).enumerate() {
            ctx.simd.decode(v.dtype, &bytes[i * stride..], &mut row[..self.dims.head_dim]);
        }
    }
}

/// Recorded attention of one row.
pub(super) struct AttentionDecode {
    qkv: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    partial: Tensor,
    position: usize,
    /// Rows of the cache, a ring.
    cached: usize,
    dims: HeadDims,
    scale: f32,
    rules: ScoreRules,
    bias: Option<Tensor>,
}

impl AttentionDecode {
    pub fn new(op: &kernels::AttentionDecode<'_, super::Cpu>, splits: usize) -> Result<Self> {
        let dims = op.dims;
        expect_heads(op.qkv, dims)?;
        op.qkv.expect(&[Scalar::F32], 1, dims.qkv_width())?;
        op.out.expect(&[Scalar::F32], 1, dims.q_width())?;
        op.partial.expect(&[Scalar::F32], splits, dims.heads.saturating_mul(dims.head_dim + 2))?;
        let keys = op.rules.first_key(op.position)..op.position.saturating_add(1);
        let cached = Tensor::cached(op.k, op.v, dims.kv_width(), &keys, op.rules.window.is_some())?;
        expect_rules(op.qkv, op.rules, op.bias, dims.heads, keys.end)?;
        Tensor::expect_distinct(&[op.qkv, op.k, op.v, op.out, op.partial])?;
        Ok(Self {
            qkv: op.qkv.clone(),
            k: op.k.clone(),
            v: op.v.clone(),
            out: op.out.clone(),
            partial: op.partial.clone(),
            position: op.position,
            cached,
            dims,
            scale: op.scale,
            rules: op.rules,
            bias: op.bias.cloned(),
        })
    }

    pub fn run(&self, ctx: &Context<'_>) -> Result<()> {
        let (qkv, k, v) = (self.qkv.read()?, self.k.read()?, self.v.read()?);
        let (mut partial, mut out) = (self.partial.write()?, self.out.write()?);
        let bias = self.bias.as_ref().map(Tensor::read).transpose()?;
        let (first, head_dim) = (self.rules.first_key(self.position), self.dims.head_dim);
        let keys = self.position + 1 - first;
        let splits = keys.div_ceil(SPLIT_KEYS).min(ctx.splits()).max(1);
        let per = keys.div_ceil(splits);
        let room = self.dims.heads * (head_dim + 2);
        let partial = &mut partial.f32_mut()[..keys.div_ceil(per) * room];
        let q = &qkv.f32()[..self.dims.q_width()];
        let cache = Cache { k: k.floats(), v: v.floats(), bias: bias.as_ref().map(|bias| bias.f32()) };
        ctx.for_each(partial.chunks_exact_mut(room).collect(), |i, partial, scratch| {
            for (head, partial) in partial.chunks_exact_mut(head_dim + 2).enumerate() {
                ctx.cancel.check()?;
                let keys = first + i * per..first + keys.min((i + 1) * per);
                self.split(ctx, &q[head * head_dim..], head, keys, cache, partial, scratch);
            }
            Ok(())
        })?;
        let out = &mut out.f32_mut()[..self.dims.q_width()];
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let parts = || partial.chunks_exact(room).map(|split| &split[head * (head_dim + 2)..][..head_dim + 2]);
            let max = parts().fold(NO_KEY, |max, part| max.max(part[head_dim]));
            out.fill(0.0);
            let mut total = 0.0;
            for part in parts() {
                let factor = (part[head_dim] - max).exp();
                total += factor * part[head_dim + 1];
                out.iter_mut().zip(part).for_each(|(out, x)| *out += factor * x);
            }
            out.iter_mut().for_each(|x| *x /= total);
        }
        Ok(())
    }

    /// One head over some keys: unnormalised output, then maximum and sum.
    fn split(
        &self,
        ctx: &Context<'_>,
        q: &[f32],
        head: usize,
        keys: Range<usize>,
        Cache { k, v, bias }: Cache<'_>,
        partial: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let head_dim = self.dims.head_dim;
        let [scores] = scratch.slices([keys.len()]);
        let kv_head = head / (self.dims.heads / self.dims.kv_heads);
        // The keys up to the end of the ring, and those that stand at its start.
        let torn = keys.len().min(self.cached - keys.start % self.cached);
        let (bytes, stride) = head_rows(k, self.dims, kv_head, keys.start % self.cached);
        ctx.simd.dots(k.dtype, bytes, stride, &q[..head_dim], &mut scores[..torn]);
        ctx.simd.dots(k.dtype, head_rows(k, self.dims, kv_head, 0).0, stride, &q[..head_dim], &mut scores[torn..]);
        scores.iter_mut().for_each(|s| *s *= self.scale);
        let bias = bias.map(|bias| &bias[head * (bias.len() / self.dims.heads)..]);
        rescore(scores, self.rules, bias, keys.start);
        let (max, sum) = ctx.simd.softmax(scores, NO_KEY);
        let (out, state) = partial.split_at_mut(head_dim);
        out.fill(0.0);
        let (bytes, stride) = head_rows(v, self.dims, kv_head, keys.start % self.cached);
        ctx.simd.mix(v.dtype, bytes, stride, &scores[..torn], out);
        ctx.simd.mix(v.dtype, head_rows(v, self.dims, kv_head, 0).0, stride, &scores[torn..], out);
        state.copy_from_slice(&[max, sum]);
    }
}
