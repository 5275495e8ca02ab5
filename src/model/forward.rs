//! One layer's operations in order, recorded for a share of rows.
//!
//! A layer is recorded in two halves, because the hand-off falls between them: [`Model::qkv`] makes the share's own K/V rows and needs nobody,
//! [`Model::attend`] needs the rows of all earlier tokens. What is too much for one submission is cut by the [`Batch`] that it is recorded in: between
//! operations, by rows, and attention by K/V heads where the rows of one tile are too much.

use std::ops::Range;

use crate::config::{Mlp, Residual, RopePairs};
use crate::dims::{GRANULE, Piece};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::kernels::{
    ArgMax, Attention, AttentionDecode, Embed, Epilogue, HeadNorm, Kernels, Norm, Phase, Product, RopeCache,
    ScoreRules, SoftCap,
};
use crate::model::pace::{HEAD_STEPS, ROW_STEPS, Work};
use crate::model::scratch::HEAD_ROWS;
use crate::model::{Batch, KvCache, Linear, Model, NormWeights, Scratch};

/// Which scores attention computes. No bit depends on it: those that the mask hides are computed in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Those that a row may see.
    Visible,
    /// All up to the end of the row's piece.
    Block,
    /// Those of this many keys.
    All(usize),
}

/// The pieces of a share with their rows in the scratch tensors.
fn rows_of(pieces: &[Piece]) -> impl Iterator<Item = (Range<usize>, Piece)> + '_ {
    pieces.iter().scan(0, |at, &piece| {
        let rows = *at..*at + piece.len();
        *at = rows.end;
        Some((rows, piece))
    })
}

impl<K: Kernels> Model<K> {
    /// Token ids into the scratch, seen by the next submission.
    ///
    /// # Errors
    /// The device's.
    pub fn set_tokens(&self, s: &Scratch<K>, ids: &[u32]) -> Result<()> {
        self.kernels.write(&s.ids, 0, bytemuck::cast_slice(ids))
    }

    /// Embeds rows `0..n`.
    ///
    /// # Errors
    /// The device's, here and below: a size that does not fit its tensor.
    pub fn embed(&self, batch: &mut Batch<'_, K>, s: &Scratch<K>, n: usize) -> Result<()> {
        self.embed_ids(batch, &s.ids, s, n)
    }

    /// Embeds, as row 0, the token that [`Model::greedy`] has chosen last.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn embed_chosen(&self, batch: &mut Batch<'_, K>, s: &Scratch<K>) -> Result<()> {
        self.embed_ids(batch, &s.token, s, 1)
    }

    fn embed_ids(&self, batch: &mut Batch<'_, K>, ids: &K::Tensor, s: &Scratch<K>, rows: usize) -> Result<()> {
        let (table, out, scale) = (&self.embedding, &s.x, self.config.embedding_scale);
        let rec = batch.add_whole(Work::elements((rows * self.config.hidden) as f64))?;
        self.kernels.embed(rec, Embed { ids, table, out, rows, scale })
    }

    /// First half of a layer: norm, fused QKV product, rotation, K/V rows into the cache.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn qkv(
        &self,
        batch: &mut Batch<'_, K>,
        layer: usize,
        s: &Scratch<K>,
        cache: &KvCache<K>,
        pieces: &[Piece],
    ) -> Result<()> {
        let n = pieces.iter().map(|p| p.len()).sum();
        self.qkv_product(batch, layer, s, n, Phase::Prefill)?;
        for (rows, piece) in rows_of(pieces) {
            let mut left = rows.clone();
            while let Some(part) = batch.next(&mut left, &ROW_STEPS, |rows| self.rope_work(rows))? {
                let position = piece.start + (part.start - rows.start);
                let op = self.rope_op(layer, s, cache, part.clone(), position);
                self.kernels.rope_cache(batch.add(self.rope_work(part)), op)?;
            }
        }
        Ok(())
    }

    /// The norm before attention and the QKV product, of rows `0..n`.
    fn qkv_product(
        &self,
        batch: &mut Batch<'_, K>,
        layer: usize,
        s: &Scratch<K>,
        n: usize,
        phase: Phase,
    ) -> Result<()> {
        let w = &self.layers[layer];
        if w.mlp_norm.is_some() {
            return self.normed(batch, s, &w.attn_norm, (&w.qkv, &s.qkv), 0..n, Epilogue::Store, phase);
        }
        // The MLP takes these rows, too.
        self.norm(batch, s, &w.attn_norm, 0..n)?;
        self.multiply(batch, &s.h, &w.qkv, (&s.qkv, 0), 0..n, Epilogue::Store, phase)
    }

    fn rope_work(&self, rows: Range<usize>) -> Work {
        Work::elements((rows.len() * self.dims.qkv_width()) as f64)
    }

    fn rope_op<'a>(
        &'a self,
        layer: usize,
        s: &'a Scratch<K>,
        cache: &'a KvCache<K>,
        rows: Range<usize>,
        position: usize,
    ) -> RopeCache<'a, K> {
        let of_layer = &self.config.layers[layer];
        let angles = of_layer.rope.and_then(|i| Some((&self.config.ropes[i], self.angles.get(i)?)));
        let (rotary, pairs) = angles.map_or((0, RopePairs::Halves), |(rope, _)| (rope.rotary, rope.pairs));
        let eps = self.config.norm_eps;
        RopeCache {
            qkv: &s.qkv,
            angles: angles.map_or(&self.no_angles, |(_, angles)| angles),
            k: cache.k(layer),
            v: cache.v(layer),
            ring: of_layer.window.is_some(),
            rows,
            position,
            dims: self.dims,
            pairs,
            rotary,
            norm: self.layers[layer].head_norms.as_ref().map(|[q, k]| HeadNorm { q, k, eps }),
        }
    }

    /// Second half of a layer for the rows `want` of the share: attention over the cache, output product, MLP.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn attend(
        &self,
        batch: &mut Batch<'_, K>,
        layer: usize,
        s: &Scratch<K>,
        cache: &KvCache<K>,
        pieces: &[Piece],
        want: Range<usize>,
        scores: Scores,
    ) -> Result<()> {
        for (rows, piece) in rows_of(pieces) {
            let mut left = rows.start.max(want.start)..rows.end.min(want.end);
            let dense_keys = match scores {
                Scores::Visible => 0,
                Scores::Block => piece.end,
                Scores::All(keys) => keys,
            };
            let position = |row: usize| piece.start + (row - rows.start);
            let rules = self.rules(layer);
            let work = |part: Range<usize>| {
                let scores = n_scores(position(part.start)..position(part.end), rules.window, dense_keys);
                // A row alone takes as long as a tile.
                let rows_computed = part.len().max(GRANULE) as f64 / part.len() as f64;
                Work::scores(scores * rows_computed * (2 * self.dims.q_width()) as f64)
            };
            while let Some(part) = batch.next(&mut left, &ROW_STEPS, work)? {
                let n_heads = self.dims.kv_heads;
                let of_heads = |heads: Range<usize>| work(part.clone()).part(heads.len() as f64 / n_heads as f64);
                let mut heads_left = 0..n_heads;
                while let Some(kv_heads) = batch.next(&mut heads_left, &HEAD_STEPS, of_heads)? {
                    let op = Attention {
                        qkv: &s.qkv,
                        k: cache.k(layer),
                        v: cache.v(layer),
                        out: &s.attn,
                        rows: part.clone(),
                        position: position(part.start),
                        dense_keys,
                        kv_heads: kv_heads.clone(),
                        dims: self.dims,
                        scale: self.config.attention_scale,
                        rules,
                        bias: self.score_bias.as_ref(),
                    };
                    self.kernels.attention(batch.add(of_heads(kv_heads)), op)?;
                }
            }
        }
        self.finish(batch, layer, s, want, Phase::Prefill)
    }

    /// A whole layer for the one row at `position`: its K/V row into the cache, and what `qkv` and `attend` do for a share.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn decode(
        &self,
        batch: &mut Batch<'_, K>,
        layer: usize,
        s: &Scratch<K>,
        cache: &KvCache<K>,
        position: usize,
    ) -> Result<()> {
        self.qkv_product(batch, layer, s, 1, Phase::Decode)?;
        let rope = self.rope_op(layer, s, cache, 0..1, position);
        let attention = AttentionDecode {
            qkv: &s.qkv,
            k: cache.k(layer),
            v: cache.v(layer),
            out: &s.attn,
            partial: &s.partial,
            position,
            dims: self.dims,
            scale: self.config.attention_scale,
            rules: self.rules(layer),
            bias: self.score_bias.as_ref(),
        };
        let keys = position - self.rules(layer).first_key(position) + 1;
        let attended = Work::elements((2 * keys * self.dims.kv_width()) as f64);
        let rec = batch.add_whole(self.rope_work(0..1) + attended)?;
        self.kernels.rope_attention_decode(rec, rope, attention)?;
        self.finish(batch, layer, s, 0..1, Phase::Decode)
    }

    /// Output product and MLP, each added to the residual stream.
    fn finish(
        &self,
        batch: &mut Batch<'_, K>,
        layer: usize,
        s: &Scratch<K>,
        want: Range<usize>,
        phase: Phase,
    ) -> Result<()> {
        let w = &self.layers[layer];
        // In a parallel block the MLP reads the residual stream as attention found it; where both share a norm, its rows are still in `s.h`.
        let parallel = self.config.residual != Residual::Sequential;
        if let Some(norm) = w.mlp_norm.as_ref().filter(|_| parallel) {
            self.norm(batch, s, norm, want.clone())?;
        }
        let (out, epilogue) = self.branch(s, w.attn_post_norm.is_some());
        self.multiply(batch, &s.attn, &w.attn_out, (out, want.start), want.clone(), epilogue, phase)?;
        self.join(batch, s, w.attn_post_norm.as_ref(), want.clone())?;
        let activation = match self.config.mlp {
            Mlp::SwiGlu => Epilogue::SwiGlu,
            Mlp::GeGlu => Epilogue::GeGlu,
            Mlp::Gelu => Epilogue::Gelu,
        };
        let (out, epilogue) = self.branch(s, w.mlp_post_norm.is_some());
        let most = self.mlp_rows();
        for start in want.clone().step_by(most) {
            let rows = start..want.end.min(start + most);
            let n = rows.len();
            match w.mlp_norm.as_ref().filter(|_| !parallel) {
                Some(norm) => self.normed(batch, s, norm, (&w.up, &s.gate), rows.clone(), activation, phase)?,
                None => self.multiply(batch, &s.h, &w.up, (&s.gate, 0), rows.clone(), activation, phase)?,
            }
            self.multiply(batch, &s.gate, &w.down, (out, rows.start), 0..n, epilogue, phase)?;
        }
        self.join(batch, s, w.mlp_post_norm.as_ref(), want)
    }

    /// Where half a block leaves its result: in the residual stream, or beside it where a norm follows.
    fn branch<'a>(&self, s: &'a Scratch<K>, post_norm: bool) -> (&'a K::Tensor, Epilogue) {
        if post_norm { (&s.branch, Epilogue::Store) } else { (&s.x, Epilogue::Add) }
    }

    /// The norm behind half a block, added to the residual stream.
    fn join(
        &self,
        batch: &mut Batch<'_, K>,
        s: &Scratch<K>,
        post_norm: Option<&NormWeights<K>>,
        rows: Range<usize>,
    ) -> Result<()> {
        let Some(norm) = post_norm else { return Ok(()) };
        self.norm_parts(batch, rows, |rows| Norm { x: &s.branch, out: &s.x, add: true, ..self.norm_op(s, norm, rows) })
    }

    /// The largest number of rows that [`Model::head`] takes at once.
    pub const HEAD_ROWS: usize = HEAD_ROWS;

    /// Last norm and output head of `rows` (at most [`Model::HEAD_ROWS`]); their logits are the first rows of [`Model::logits`].
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn head(&self, batch: &mut Batch<'_, K>, s: &Scratch<K>, rows: Range<usize>, phase: Phase) -> Result<()> {
        self.normed(batch, s, &self.output_norm, (&self.head, &s.logits), rows, Epilogue::Store, phase)
    }

    /// Copies the first `n` rows of logits out, F32 `[n, vocab]`.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn logits(&self, batch: &mut Batch<'_, K>, s: &Scratch<K>, n: usize) -> Result<K::Download> {
        let len = n * self.config.vocab;
        if let Some(cap) = self.config.logit_soft_cap {
            self.kernels.soft_cap(batch.add(Work::elements(len as f64)), SoftCap { x: &s.logits, len, cap })?;
        }
        let bytes = (len * Scalar::F32.bytes()) as u64;
        self.kernels.download(batch.add(Work::copied_bytes(bytes)), &s.logits, 0..len)
    }

    /// The id with the largest logit of row 0, U32 `[1]`.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn greedy(&self, batch: &mut Batch<'_, K>, s: &Scratch<K>) -> Result<K::Download> {
        let rec = batch.add(Work::elements(self.config.vocab as f64));
        self.kernels.arg_max(rec, ArgMax { x: &s.logits, row: 0, width: self.config.vocab, out: &s.token })?;
        self.kernels.download(rec, &s.token, 0..1)
    }

    fn rules(&self, layer: usize) -> ScoreRules {
        ScoreRules { window: self.config.layers[layer].window, soft_cap: self.config.attention_soft_cap }
    }

    fn norm(&self, batch: &mut Batch<'_, K>, s: &Scratch<K>, norm: &NormWeights<K>, rows: Range<usize>) -> Result<()> {
        self.norm_parts(batch, rows, |rows| self.norm_op(s, norm, rows))
    }

    fn norm_parts<'a>(
        &self,
        batch: &mut Batch<'_, K>,
        mut rows: Range<usize>,
        op: impl Fn(Range<usize>) -> Norm<'a, K>,
    ) -> Result<()> {
        let work = |rows: Range<usize>| Work::elements((rows.len() * self.config.hidden) as f64);
        while let Some(part) = batch.next(&mut rows, &ROW_STEPS, work)? {
            self.kernels.norm(batch.add(work(part.clone())), op(part))?;
        }
        Ok(())
    }

    /// A norm of the residual stream.
    fn norm_op<'a>(&self, s: &'a Scratch<K>, norm: &'a NormWeights<K>, rows: Range<usize>) -> Norm<'a, K> {
        Norm {
            x: &s.x,
            weight: &norm.weight,
            bias: norm.bias.as_ref(),
            out: &s.h,
            rows,
            width: self.config.hidden,
            eps: self.config.norm_eps,
            kind: self.config.norm,
            add: false,
        }
    }

    /// A norm of `rows` of the residual stream and their product, into `out` from its first row on.
    fn normed(
        &self,
        batch: &mut Batch<'_, K>,
        s: &Scratch<K>,
        norm: &NormWeights<K>,
        (linear, out): (&Linear<K>, &K::Tensor),
        rows: Range<usize>,
        epilogue: Epilogue,
        phase: Phase,
    ) -> Result<()> {
        let normed = |rows: Range<usize>| Work::elements((rows.len() * self.config.hidden) as f64);
        let work = |rows: Range<usize>| normed(rows.clone()) + linear.work(rows);
        let mut left = rows.clone();
        while let Some(part) = batch.next(&mut left, &ROW_STEPS, work)? {
            let out_row = part.start - rows.start;
            let product = self.product_op(&s.h, linear, (out, out_row), part.clone(), epilogue, phase);
            let rec = batch.add(work(part.clone()));
            self.kernels.norm_product(rec, self.norm_op(s, norm, part), product)?;
        }
        Ok(())
    }

    /// A product of `rows` of `x`; the first result goes into row `out.1` of `out.0`.
    fn multiply(
        &self,
        batch: &mut Batch<'_, K>,
        x: &K::Tensor,
        linear: &Linear<K>,
        out: (&K::Tensor, usize),
        rows: Range<usize>,
        epilogue: Epilogue,
        phase: Phase,
    ) -> Result<()> {
        let mut left = rows.clone();
        while let Some(part) = batch.next(&mut left, &ROW_STEPS, |rows| linear.work(rows))? {
            let out = (out.0, out.1 + (part.start - rows.start));
            let rec = batch.add(linear.work(part.clone()));
            self.kernels.product(rec, self.product_op(x, linear, out, part, epilogue, phase))?;
        }
        Ok(())
    }

    fn product_op<'a>(
        &self,
        x: &'a K::Tensor,
        linear: &'a Linear<K>,
        out: (&'a K::Tensor, usize),
        rows: Range<usize>,
        epilogue: Epilogue,
        phase: Phase,
    ) -> Product<'a, K> {
        let (weight, bias) = (&linear.weight, linear.bias.as_ref());
        Product { x, weight, bias, out: out.0, rows, out_row: out.1, epilogue, phase }
    }
}

impl<K: Kernels> Linear<K> {
    /// What a product of these rows is. A few take as long as it takes to read the weights.
    fn work(&self, rows: Range<usize>) -> Work {
        match rows.len() {
            0..GRANULE => Work::elements(self.n_elements as f64),
            n => Work::products(n as f64 * self.n_elements as f64),
        }
    }
}

/// Scores that attention computes for rows at these positions, for one head: each row's visible keys, or `dense_keys` of them where those are more,
/// less what the window has passed.
fn n_scores(positions: Range<usize>, window: Option<usize>, dense_keys: usize) -> f64 {
    let triangle = |n: usize| n as f64 * (n as f64 + 1.0) / 2.0;
    let up_to = |n: usize| {
        let dense = n.min(dense_keys);
        let computed = dense as f64 * dense_keys as f64 + triangle(n) - triangle(dense);
        computed - window.map_or(0.0, |window| triangle(n.saturating_sub(window)))
    };
    up_to(positions.end) - up_to(positions.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_counted_as_they_are_computed() {
        for positions in [0..1, 0..100, 17..50, 90..300] {
            for window in [None, Some(1), Some(40), Some(1000)] {
                for dense_keys in [0, 10, 60, 500] {
                    let first = |p: usize| window.map_or(0, |w| (p + 1).saturating_sub(w));
                    let want: usize = positions.clone().map(|p| (p + 1).max(dense_keys) - first(p)).sum();
                    assert_eq!(n_scores(positions.clone(), window, dense_keys), want as f64);
                }
            }
        }
    }
}
