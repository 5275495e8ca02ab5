//! Activations of one share on one device, allocated once and used by every layer.

use crate::dims::{GRANULE, round_up};
use crate::dtype::Scalar;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::model::Model;

/// Rows of logits computed at a time: a vocabulary of 128k takes 16 MB.
pub(super) const HEAD_ROWS: usize = 32;

/// See the module's text. `A` is the device's activation type.
pub struct Scratch<K: Kernels> {
    pub(super) rows: usize,
    /// U32 `[rows]`.
    pub(super) ids: K::Tensor,
    /// The residual stream, F32 `[rows, hidden]`.
    pub(super) x: K::Tensor,
    /// Normed rows, A `[rows, hidden]`.
    pub(super) h: K::Tensor,
    /// What joins the residual stream through a norm, F32 `[rows, hidden]`; empty where no such norms are.
    pub(super) branch: K::Tensor,
    /// A `[rows, qkv_width]`.
    pub(super) qkv: K::Tensor,
    /// A `[rows, q_width]`.
    pub(super) attn: K::Tensor,
    /// A `[mlp_rows, ffn]`, see [`Model::mlp_rows`].
    pub(super) gate: K::Tensor,
    /// F32 `[HEAD_ROWS, vocab]`.
    pub(super) logits: K::Tensor,
    /// U32 `[1]`.
    pub(super) token: K::Tensor,
    /// F32 `[splits, heads, head_dim + 2]`.
    pub(super) partial: K::Tensor,
}

/// Name, type and length of each tensor for a share of `rows`, in the order of [`Scratch`]'s fields.
pub(super) fn sizes<K: Kernels>(model: &Model<K>, rows: usize) -> [(&'static str, Scalar, usize); 10] {
    let (c, k) = (&model.config, &model.kernels);
    let (a, tile) = (k.activation(), k.row_multiple());
    let padded = round_up(rows, tile);
    [
        ("token ids", Scalar::U32, padded),
        ("residual", Scalar::F32, padded * c.hidden),
        ("normed", a, padded * c.hidden),
        ("branch", Scalar::F32, if c.post_norms { padded * c.hidden } else { 0 }),
        ("qkv", a, padded * c.qkv_width()),
        ("attention", a, padded * c.q_width()),
        ("mlp", a, round_up(rows.min(model.mlp_rows()), tile) * c.ffn),
        ("logits", Scalar::F32, round_up(rows.min(HEAD_ROWS), tile) * c.vocab),
        ("token", Scalar::U32, 1),
        ("split attention", Scalar::F32, k.decode_splits() * c.n_heads * (c.head_dim + 2)),
    ]
}

impl<K: Kernels> Model<K> {
    /// Rows of the MLP computed at a time: its intermediate is the widest activation (Llama-7B: 90 MB at 4,096 rows in f16).
    pub(super) fn mlp_rows(&self) -> usize {
        self.kernels.rows_at_once(self.config.ffn).max(GRANULE)
    }

    /// Rows of the longest share whose activations fit the device's tensors: with 2 GiB a binding 87,360 of Llama-7B.
    pub fn max_rows(&self) -> usize {
        let c = &self.config;
        let activated = c.hidden.max(c.qkv_width()).max(c.q_width()) * self.kernels.activation().bytes();
        let row_bytes = activated.max(c.hidden * Scalar::F32.bytes()).max(1) as u64;
        let rows = usize::try_from(self.kernels.max_tensor_bytes() / row_bytes).unwrap_or(usize::MAX);
        rows / self.kernels.row_multiple() * self.kernels.row_multiple()
    }

    /// Activations for shares of up to `rows` tokens.
    ///
    /// # Errors
    /// What the device says where memory is short.
    pub fn scratch(&self, rows: usize) -> Result<Scratch<K>> {
        let [ids, x, h, branch, qkv, attn, gate, logits, token, partial] = sizes(self, rows);
        let make = |(label, scalar, len)| self.kernels.tensor(label, scalar, len);
        Ok(Scratch {
            rows,
            ids: make(ids)?,
            x: make(x)?,
            h: make(h)?,
            branch: make(branch)?,
            qkv: make(qkv)?,
            attn: make(attn)?,
            gate: make(gate)?,
            logits: make(logits)?,
            token: make(token)?,
            partial: make(partial)?,
        })
    }
}

impl<K: Kernels> Scratch<K> {
    /// Rows that fit.
    pub fn rows(&self) -> usize {
        self.rows
    }
}
