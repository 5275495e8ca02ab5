//! Where a model's matrices and vectors lie in its files: found by role, checked, fused tensors taken apart.

use std::cell::RefCell;
use std::collections::HashSet;

use half::{bf16, f16};

use crate::config::{Mlp, ModelConfig, Residual};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kernels::{MatrixSource, RowOrder};
use crate::weights::{LayerRole, Role, WeightTensor, Weights};

/// A matrix with its bias.
pub(super) struct LinearSource {
    pub matrix: MatrixSource,
    /// In the order of the matrix's rows.
    pub bias: Option<Vec<f32>>,
}

/// A norm's weight and bias.
pub(super) struct NormSource {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

/// All of one block.
pub(super) struct LayerSource {
    pub attn_norm: NormSource,
    pub qkv: LinearSource,
    /// Of queries and of keys.
    pub head_norms: Option<[Vec<f32>; 2]>,
    pub attn_out: LinearSource,
    pub attn_post_norm: Option<NormSource>,
    /// None where the MLP reads what attention reads.
    pub mlp_norm: Option<NormSource>,
    /// Gate and up rows alternate where the MLP is gated.
    pub up: LinearSource,
    pub down: LinearSource,
    pub mlp_post_norm: Option<NormSource>,
}

/// Finds tensors and checks their shapes.
pub(super) struct Sources<'a> {
    weights: &'a Weights,
    config: &'a ModelConfig,
    biases: RefCell<HashSet<String>>,
}

impl<'a> Sources<'a> {
    pub fn new(weights: &'a Weights, config: &'a ModelConfig) -> Self {
        Self { weights, config, biases: RefCell::default() }
    }

    pub fn embedding(&self) -> Result<MatrixSource> {
        Ok(stacked(vec![self.weights.matrix(Role::TokenEmbedding, self.config.vocab, self.config.hidden)?]))
    }

    /// The output head, where it is not the embedding.
    pub fn head(&self) -> Result<Option<LinearSource>> {
        let head = || self.linear(Role::OutputHead, self.config.vocab, self.config.hidden);
        if self.config.tied_head { Ok(None) } else { head().map(Some) }
    }

    pub fn output_norm(&self) -> Result<NormSource> {
        self.norm(Role::OutputNorm)
    }

    pub fn layer(&self, n: usize) -> Result<LayerSource> {
        let c = self.config;
        let role = |part| Role::Layer(n, part);
        let post = |part| if c.post_norms { self.norm(role(part)).map(Some) } else { Ok(None) };
        let shared = c.residual == Residual::Parallel { shared_norm: true };
        let head_norm = |part| self.norm_weight(role(part), c.head_dim);
        Ok(LayerSource {
            attn_norm: self.norm(role(LayerRole::AttnNorm))?,
            qkv: self.qkv(n)?,
            head_norms: if c.head_norm {
                Some([head_norm(LayerRole::QNorm)?, head_norm(LayerRole::KNorm)?])
            } else {
                None
            },
            attn_out: self.linear(role(LayerRole::AttnOut), c.hidden, c.q_width())?,
            attn_post_norm: post(LayerRole::AttnPostNorm)?,
            mlp_norm: if shared { None } else { Some(self.norm(role(LayerRole::MlpNorm))?) },
            up: self.up(n)?,
            down: self.linear(role(LayerRole::Down), c.hidden, c.ffn)?,
            mlp_post_norm: post(LayerRole::MlpPostNorm)?,
        })
    }

    /// An error that names a bias which belongs to no tensor of the model: a file says more than would be computed.
    pub fn expect_all_biases_used(&self) -> Result<()> {
        let used = self.biases.borrow();
        match self.weights.biases().find(|name| !used.contains(*name)) {
            Some(name) => Err(Error::Unsupported { what: "bias", name: name.to_owned() }),
            None => Ok(()),
        }
    }

    fn linear(&self, role: Role, rows: usize, width: usize) -> Result<LinearSource> {
        let matrix = stacked(vec![self.weights.matrix(role, rows, width)?]);
        Ok(LinearSource { matrix, bias: self.bias(role, rows)? })
    }

    fn bias(&self, role: Role, len: usize) -> Result<Option<Vec<f32>>> {
        self.bias_tensor(role, len)?.map(|tensor| values(&tensor)).transpose()
    }

    fn bias_tensor(&self, role: Role, len: usize) -> Result<Option<WeightTensor>> {
        let tensor = self.weights.bias(role, len)?;
        self.biases.borrow_mut().extend(tensor.as_ref().map(|tensor| tensor.name.clone()));
        Ok(tensor)
    }

    fn norm(&self, role: Role) -> Result<NormSource> {
        let weight = self.norm_weight(role, self.config.hidden)?;
        Ok(NormSource { weight, bias: self.bias(role, self.config.hidden)? })
    }

    fn norm_weight(&self, role: Role, len: usize) -> Result<Vec<f32>> {
        let mut weight = values(&self.weights.vector(role, len)?)?;
        if self.config.norm_plus_one {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(weight)
    }

    /// Queries, keys, values, one after the other.
    fn qkv(&self, n: usize) -> Result<LinearSource> {
        let c = self.config;
        let role = |part| Role::Layer(n, part);
        let (parts, bias) = if self.weights.has(role(LayerRole::Qkv)) {
            let role = role(LayerRole::Qkv);
            let fused = self.weights.matrix(role, c.qkv_width(), c.hidden)?;
            let bias = self.bias_tensor(role, c.qkv_width())?;
            let bias = bias.map(|bias| self.split_qkv(&bias)).transpose()?;
            (self.split_qkv(&fused)?, bias.map(|parts| parts.map(Some)))
        } else {
            let roles = [(LayerRole::Q, c.q_width()), (LayerRole::K, c.kv_width()), (LayerRole::V, c.kv_width())];
            let [q, k, v] = roles.map(|(part, rows)| self.weights.matrix(role(part), rows, c.hidden));
            let [q_bias, k_bias, v_bias] = roles.map(|(part, rows)| self.bias_tensor(role(part), rows));
            let bias = [q_bias?, k_bias?, v_bias?];
            ([q?, k?, v?], bias.iter().any(Option::is_some).then_some(bias))
        };
        let widths = [c.q_width(), c.kv_width(), c.kv_width()];
        let bias = bias.map(|parts| {
            let parts = parts.iter().zip(widths);
            parts.map(|(part, n)| part.as_ref().map_or_else(|| Ok(vec![0.0; n]), values)).collect::<Result<Vec<_>>>()
        });
        let bias = bias.transpose()?.map(|parts| parts.concat());
        Ok(LinearSource { matrix: stacked(parts.into()), bias })
    }

    /// Rows of a fused tensor, or elements of its bias, apart.
    fn split_qkv(&self, fused: &WeightTensor) -> Result<[WeightTensor; 3]> {
        let c = self.config;
        let (q, kv, d) = (c.q_width(), c.kv_width(), c.head_dim);
        if !self.weights.naming().grouped_qkv(&c.architecture) || c.n_kv_heads == 1 {
            return Ok([rows(fused, 0, q)?, rows(fused, q, q + kv)?, rows(fused, q + kv, q + 2 * kv)?]);
        }
        let heads = c.n_heads / c.n_kv_heads;
        let pick = |first: usize, n: usize| {
            let groups = (0..c.n_kv_heads).map(|group| (group * (heads + 2) + first) * d);
            gather(fused, groups.map(|start| start..start + n * d))
        };
        Ok([pick(0, heads)?, pick(heads, 1)?, pick(heads + 1, 1)?])
    }

    /// The MLP's first matrix.
    fn up(&self, n: usize) -> Result<LinearSource> {
        let c = self.config;
        let role = |part| Role::Layer(n, part);
        if c.mlp == Mlp::Gelu {
            return self.linear(role(LayerRole::Up), c.ffn, c.hidden);
        }
        let [gate, up] = if self.weights.has(role(LayerRole::Gate)) {
            [LayerRole::Gate, LayerRole::Up].map(|part| self.linear(role(part), c.ffn, c.hidden))
        } else {
            let fused = self.weights.matrix(role(LayerRole::GateUp), 2 * c.ffn, c.hidden)?;
            let bias = self.bias(role(LayerRole::GateUp), 2 * c.ffn)?;
            [0, c.ffn].map(|first| {
                let matrix = stacked(vec![rows(&fused, first, first + c.ffn)?]);
                Ok(LinearSource { matrix, bias: bias.as_ref().map(|bias| bias[first..first + c.ffn].to_vec()) })
            })
        };
        let (gate, up) = (gate?, up?);
        let bias = (gate.bias.is_some() || up.bias.is_some()).then(|| {
            let [gate, up] = [gate.bias, up.bias].map(|bias| bias.unwrap_or_else(|| vec![0.0; c.ffn]));
            gate.into_iter().zip(up).flat_map(|(gate, up)| [gate, up]).collect()
        });
        let parts = [gate.matrix.parts, up.matrix.parts].concat();
        Ok(LinearSource { matrix: MatrixSource { parts, rows: RowOrder::Alternating }, bias })
    }
}

fn stacked(parts: Vec<WeightTensor>) -> MatrixSource {
    MatrixSource { parts, rows: RowOrder::Stacked }
}

/// Bytes of a row of a matrix, or of an element of a vector.
fn row_bytes(tensor: &WeightTensor) -> Result<usize> {
    tensor.dtype.bytes(tensor.shape[1..].iter().product())
}

/// Rows `start..end` of a tensor; the bytes stay where they are.
fn rows(tensor: &WeightTensor, start: usize, end: usize) -> Result<WeightTensor> {
    let bytes = row_bytes(tensor)?;
    let data = tensor.data.slice(start * bytes..end * bytes);
    let data = data.ok_or_else(|| Error::Config(format!("tensor `{}` has no rows {start}..{end}", tensor.name)))?;
    let shape = [&[end - start], &tensor.shape[1..]].concat();
    Ok(WeightTensor { name: tensor.name.clone(), dtype: tensor.dtype, shape, data })
}

/// Stretches of rows, copied one after the other.
fn gather(tensor: &WeightTensor, stretches: impl Iterator<Item = std::ops::Range<usize>>) -> Result<WeightTensor> {
    let (mut data, mut n) = (Vec::new(), 0);
    for range in stretches {
        data.extend_from_slice(&rows(tensor, range.start, range.end)?.data);
        n += range.len();
    }
    let shape = [&[n], &tensor.shape[1..]].concat();
    Ok(WeightTensor { name: tensor.name.clone(), dtype: tensor.dtype, shape, data: data.into() })
}

/// Elements of a vector.
fn values(tensor: &WeightTensor) -> Result<Vec<f32>> {
    let pairs = || tensor.data.as_chunks::<2>().0.iter().copied();
    match tensor.dtype {
        Dtype::F32 => Ok(tensor.data.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect()),
        Dtype::F16 => Ok(pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::Bf16 => Ok(pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
        other => {
            Err(Error::Unsupported { what: "type of a vector", name: format!("{} ({})", other.name(), tensor.name) })
        }
    }
}
