//! One layer's operations in order, recorded for a share of rows.
//!
//! A layer is recorded in two halves, because the hand-off falls between them: [`Model::qkv`] makes the share's own K/V rows and needs nobody,
//! [`Model::attend`] needs the rows of all earlier tokens.

use std::ops::Range;

use crate::config::{Mlp, Residual, RopePairs};
use crate::dims::Piece;
use crate::error::Result;
use crate::kernels::{
    ArgMax, Attention, AttentionDecode, Embed, Epilogue, HeadNorm, Kernels, Norm, Phase, Product, RopeCache,
    ScoreRules, SoftCap,
};
use crate::model::scratch::HEAD_ROWS;
use crate::model::{KvCache, Linear, Model, NormWeights, Scratch};

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
    pub fn embed(&self, rec: &mut K::Recording, s: &Scratch<K>, n: usize) -> Result<()> {
        self.embed_ids(rec, &s.ids, s, n)
    }

    /// Embeds, as row 0, the token that [`Model::greedy`] has chosen last.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn embed_chosen(&self, rec: &mut K::Recording, s: &Scratch<K>) -> Result<()> {
        self.embed_ids(rec, &s.token, s, 1)
    }

    fn embed_ids(&self, rec: &mut K::Recording, ids: &K::Tensor, s: &Scratch<K>, rows: usize) -> Result<()> {
        let (table, out, scale) = (&self.embedding, &s.x, self.config.embedding_scale);
        self.kernels.embed(rec, Embed { ids, table, out, rows, scale })
    }

    /// First half of a layer: norm, fused QKV product, rotation, K/V rows into the cache.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn qkv(
        &self,
        rec: &mut K::Recording,
        layer: usize,
        s: &Scratch<K>,
        cache: &KvCache<K>,
        pieces: &[Piece],
        phase: Phase,
    ) -> Result<()> {
        let (k, w) = (&self.kernels, &self.layers[layer]);
        let rope = self.config.layers[layer].rope;
        let angles = rope.and_then(|i| Some((&self.config.ropes[i], self.angles.get(i)?)));
        let (rotary, pairs) = angles.map_or((0, RopePairs::Halves), |(rope, _)| (rope.rotary, rope.pairs));
        let eps = self.config.norm_eps;
        let n = pieces.iter().map(|p| p.len()).sum();
        if w.mlp_norm.is_some() {
            self.normed(rec, s, &w.attn_norm, (&w.qkv, &s.qkv), 0..n, Epilogue::Store, phase)?;
        } else {
            // The MLP takes these rows, too.
            self.norm(rec, s, &w.attn_norm, 0..n)?;
            self.multiply(rec, &s.h, &w.qkv, (&s.qkv, 0), 0..n, Epilogue::Store, phase)?;
        }
        for (rows, piece) in rows_of(pieces) {
            let op = RopeCache {
                qkv: &s.qkv,
                angles: angles.map_or(&self.no_angles, |(_, angles)| angles),
                k: cache.k(layer),
                v: cache.v(layer),
                ring: self.config.layers[layer].window.is_some(),
                rows,
                position: piece.start,
                dims: self.dims,
                pairs,
                rotary,
                norm: w.head_norms.as_ref().map(|[q, k]| HeadNorm { q, k, eps }),
            };
            k.rope_cache(rec, op)?;
        }
        Ok(())
    }

    /// Second half of a layer for the rows `want` of the share: attention over the cache, output product, MLP.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn attend(
        &self,
        rec: &mut K::Recording,
        layer: usize,
        s: &Scratch<K>,
        cache: &KvCache<K>,
        pieces: &[Piece],
        want: Range<usize>,
        scores: Scores,
    ) -> Result<()> {
        for (rows, piece) in rows_of(pieces) {
            let start = rows.start.max(want.start);
            let end = rows.end.min(want.end);
            if start >= end {
                continue;
            }
            let op = Attention {
                qkv: &s.qkv,
                k: cache.k(layer),
                v: cache.v(layer),
                out: &s.attn,
                rows: start..end,
                position: piece.start + (start - rows.start),
                dense_keys: match scores {
                    Scores::Visible => 0,
                    Scores::Block => piece.end,
                    Scores::All(keys) => keys,
                },
                dims: self.dims,
                scale: self.config.attention_scale,
                rules: self.rules(layer),
                bias: self.score_bias.as_ref(),
            };
            self.kernels.attention(rec, op)?;
        }
        self.finish(rec, layer, s, want, Phase::Prefill)
    }

    /// Second half of a layer for the one row at `position`.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn attend_decode(
        &self,
        rec: &mut K::Recording,
        layer: usize,
        s: &Scratch<K>,
        cache: &KvCache<K>,
        position: usize,
    ) -> Result<()> {
        let op = AttentionDecode {
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
        self.kernels.attention_decode(rec, op)?;
        self.finish(rec, layer, s, 0..1, Phase::Decode)
    }

    /// Output product and MLP, each added to the residual stream.
    fn finish(
        &self,
        rec: &mut K::Recording,
        layer: usize,
        s: &Scratch<K>,
        want: Range<usize>,
        phase: Phase,
    ) -> Result<()> {
        let w = &self.layers[layer];
        // In a parallel block the MLP reads the residual stream as attention found it; where both share a norm, its rows are still in `s.h`.
        let parallel = self.config.residual != Residual::Sequential;
        if let Some(norm) = w.mlp_norm.as_ref().filter(|_| parallel) {
            self.norm(rec, s, norm, want.clone())?;
        }
        let (out, epilogue) = self.branch(s, w.attn_post_norm.is_some());
        self.multiply(rec, &s.attn, &w.attn_out, (out, want.start), want.clone(), epilogue, phase)?;
        self.join(rec, s, w.attn_post_norm.as_ref(), want.clone())?;
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
                Some(norm) => self.normed(rec, s, norm, (&w.up, &s.gate), rows.clone(), activation, phase)?,
                None => self.multiply(rec, &s.h, &w.up, (&s.gate, 0), rows.clone(), activation, phase)?,
            }
            self.multiply(rec, &s.gate, &w.down, (out, rows.start), 0..n, epilogue, phase)?;
        }
        self.join(rec, s, w.mlp_post_norm.as_ref(), want)
    }

    /// Where half a block leaves its result: in the residual stream, or beside it where a norm follows.
    fn branch<'a>(&self, s: &'a Scratch<K>, post_norm: bool) -> (&'a K::Tensor, Epilogue) {
        if post_norm { (&s.branch, Epilogue::Store) } else { (&s.x, Epilogue::Add) }
    }

    /// The norm behind half a block, added to the residual stream.
    fn join(
        &self,
        rec: &mut K::Recording,
        s: &Scratch<K>,
        post_norm: Option<&NormWeights<K>>,
        rows: Range<usize>,
    ) -> Result<()> {
        let Some(norm) = post_norm else { return Ok(()) };
        self.kernels.norm(rec, Norm { x: &s.branch, out: &s.x, add: true, ..self.norm_op(s, norm, rows) })
    }

    /// The largest number of rows that [`Model::head`] takes at once.
    pub const HEAD_ROWS: usize = HEAD_ROWS;

    /// Last norm and output head of `rows` (at most [`Model::HEAD_ROWS`]); their logits are the first rows of [`Model::logits`].
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn head(&self, rec: &mut K::Recording, s: &Scratch<K>, rows: Range<usize>, phase: Phase) -> Result<()> {
        self.normed(rec, s, &self.output_norm, (&self.head, &s.logits), rows, Epilogue::Store, phase)
    }

    /// Copies the first `n` rows of logits out, F32 `[n, vocab]`.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn logits(&self, rec: &mut K::Recording, s: &Scratch<K>, n: usize) -> Result<K::Download> {
        let len = n * self.config.vocab;
        if let Some(cap) = self.config.logit_soft_cap {
            self.kernels.soft_cap(rec, SoftCap { x: &s.logits, len, cap })?;
        }
        self.kernels.download(rec, &s.logits, 0..len)
    }

    /// The id with the largest logit of row 0, U32 `[1]`.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn greedy(&self, rec: &mut K::Recording, s: &Scratch<K>) -> Result<K::Download> {
        self.kernels.arg_max(rec, ArgMax { x: &s.logits, row: 0, width: self.config.vocab, out: &s.token })?;
        self.kernels.download(rec, &s.token, 0..1)
    }

    fn rules(&self, layer: usize) -> ScoreRules {
        ScoreRules { window: self.config.layers[layer].window, soft_cap: self.config.attention_soft_cap }
    }

    fn norm(&self, rec: &mut K::Recording, s: &Scratch<K>, norm: &NormWeights<K>, rows: Range<usize>) -> Result<()> {
        self.kernels.norm(rec, self.norm_op(s, norm, rows))
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
        rec: &mut K::Recording,
        s: &Scratch<K>,
        norm: &NormWeights<K>,
        (linear, out): (&Linear<K>, &K::Tensor),
        rows: Range<usize>,
        epilogue: Epilogue,
        phase: Phase,
    ) -> Result<()> {
        let product = self.product_op(&s.h, linear, (out, 0), rows.clone(), epilogue, phase);
        self.kernels.norm_product(rec, self.norm_op(s, norm, rows), product)
    }

    /// A product of `rows` of `x`; the first result goes into row `out.1` of `out.0`.
    fn multiply(
        &self,
        rec: &mut K::Recording,
        x: &K::Tensor,
        linear: &Linear<K>,
        out: (&K::Tensor, usize),
        rows: Range<usize>,
        epilogue: Epilogue,
        phase: Phase,
    ) -> Result<()> {
        self.kernels.product(rec, self.product_op(x, linear, out, rows, epilogue, phase))
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
