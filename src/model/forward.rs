//! One layer's operations in order, recorded for a share of rows.
//!
//! A layer is recorded in two halves, because the hand-off falls between them: [`Model::qkv`] makes the share's own K/V rows and needs nobody,
//! [`Model::attend`] needs the rows of all earlier tokens.

use std::ops::Range;

use crate::dims::Piece;
use crate::error::Result;
use crate::kernels::{ArgMax, Attention, AttentionDecode, Embed, Epilogue, Kernels, Norm, Phase, Product, RopeCache};
use crate::model::scratch::{HEAD_ROWS, MLP_ROWS};
use crate::model::{KvCache, Model, Scratch};

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
        self.kernels.embed(rec, Embed { ids: &s.ids, table: &self.embedding, out: &s.x, rows: n })
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
        let n = pieces.iter().map(|p| p.len()).sum();
        self.norm(rec, s, &w.attn_norm, 0..n)?;
        self.multiply(rec, &s.h, &w.qkv, &s.qkv, 0..n, Epilogue::Store, phase)?;
        for (rows, piece) in rows_of(pieces) {
            let op = RopeCache {
                qkv: &s.qkv,
                angles: &self.angles,
                k: cache.k(layer),
                v: cache.v(layer),
                rows,
                position: piece.start,
                dims: self.dims,
                pairs: self.config.rope.pairs,
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
                dims: self.dims,
                scale: self.scale(),
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
            scale: self.scale(),
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
        self.multiply(rec, &s.attn, &w.attn_out, &s.x, want.clone(), Epilogue::Add, phase)?;
        self.norm(rec, s, &w.mlp_norm, want.clone())?;
        for start in want.clone().step_by(MLP_ROWS) {
            let rows = start..want.end.min(start + MLP_ROWS);
            let n = rows.len();
            let gate = Product {
                x: &s.h,
                weight: &w.gate_up,
                out: &s.gate,
                rows: rows.clone(),
                out_row: 0,
                epilogue: Epilogue::SwiGlu,
                phase,
            };
            self.kernels.product(rec, gate)?;
            let down = Product {
                x: &s.gate,
                weight: &w.down,
                out: &s.x,
                rows: 0..n,
                out_row: rows.start,
                epilogue: Epilogue::Add,
                phase,
            };
            self.kernels.product(rec, down)?;
        }
        Ok(())
    }

    /// The largest number of rows that [`Model::head`] takes at once.
    pub const HEAD_ROWS: usize = HEAD_ROWS;

    /// Last norm and output head of `rows` (at most [`Model::HEAD_ROWS`]); their logits are the first rows of [`Model::logits`].
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn head(&self, rec: &mut K::Recording, s: &Scratch<K>, rows: Range<usize>, phase: Phase) -> Result<()> {
        self.norm(rec, s, &self.output_norm, rows.clone())?;
        let op =
            Product { x: &s.h, weight: &self.head, out: &s.logits, rows, out_row: 0, epilogue: Epilogue::Store, phase };
        self.kernels.product(rec, op)
    }

    /// Copies the first `n` rows of logits out, F32 `[n, vocab]`.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn logits(&self, rec: &mut K::Recording, s: &Scratch<K>, n: usize) -> Result<K::Download> {
        self.kernels.download(rec, &s.logits, 0..n * self.config.vocab)
    }

    /// The id with the largest logit of row 0, U32 `[1]`.
    ///
    /// # Errors
    /// See [`Model::embed`].
    pub fn greedy(&self, rec: &mut K::Recording, s: &Scratch<K>) -> Result<K::Download> {
        self.kernels.arg_max(rec, ArgMax { x: &s.logits, row: 0, width: self.config.vocab, out: &s.token })?;
        self.kernels.download(rec, &s.token, 0..1)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }

    fn norm(&self, rec: &mut K::Recording, s: &Scratch<K>, weight: &K::Tensor, rows: Range<usize>) -> Result<()> {
        let op = Norm { x: &s.x, weight, out: &s.h, rows, width: self.config.hidden, eps: self.config.norm_eps };
        self.kernels.norm(rec, op)
    }

    /// A product whose output rows are those of its input.
    fn multiply(
        &self,
        rec: &mut K::Recording,
        x: &K::Tensor,
        weight: &K::Matrix,
        out: &K::Tensor,
        rows: Range<usize>,
        epilogue: Epilogue,
        phase: Phase,
    ) -> Result<()> {
        let out_row = rows.start;
        self.kernels.product(rec, Product { x, weight, out, rows, out_row, epilogue, phase })
    }
}
