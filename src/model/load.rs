//! Weights from a file onto a device.

use std::sync::Arc;

use half::{bf16, f16};

use crate::cancel::Cancel;
use crate::config::ModelConfig;
use crate::dtype::{Dtype, Scalar};
use crate::error::{Error, Result};
use crate::kernels::{HeadDims, Kernels, MatrixSource, RowOrder};
use crate::model::{Layer, Model, memory};
use crate::weights::{LayerRole, Role, WeightTensor, Weights};

/// How a model is loaded.
pub struct LoadOptions<'a> {
    /// Tokens that positions are prepared for.
    pub context: usize,
    /// Looked at between tensors.
    pub cancel: &'a Cancel,
    /// Called with bytes of the file done and in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Finds a model's tensors and checks their shapes.
struct Sources<'a> {
    weights: &'a Weights,
    config: &'a ModelConfig,
}

impl Sources<'_> {
    fn matrix(&self, rows: RowOrder, parts: &[(Role, usize)], width: usize) -> Result<MatrixSource> {
        let parts = parts.iter().map(|&(role, n)| self.weights.matrix(role, n, width)).collect::<Result<_>>()?;
        Ok(MatrixSource { parts, rows })
    }

    fn embedding(&self) -> Result<MatrixSource> {
        self.matrix(RowOrder::Stacked, &[(Role::TokenEmbedding, self.config.vocab)], self.config.hidden)
    }

    fn head(&self) -> Result<MatrixSource> {
        self.matrix(RowOrder::Stacked, &[(Role::OutputHead, self.config.vocab)], self.config.hidden)
    }

    /// QKV, attention output, gate and up, down.
    fn layer(&self, n: usize) -> Result<[MatrixSource; 4]> {
        let c = self.config;
        let role = |r| Role::Layer(n, r);
        let (q, kv) = (c.q_width(), c.kv_width());
        let qkv = [(role(LayerRole::Q), q), (role(LayerRole::K), kv), (role(LayerRole::V), kv)];
        let gate_up = [(role(LayerRole::Gate), c.ffn), (role(LayerRole::Up), c.ffn)];
        Ok([
            self.matrix(RowOrder::Stacked, &qkv, c.hidden)?,
            self.matrix(RowOrder::Stacked, &[(role(LayerRole::AttnOut), c.hidden)], q)?,
            self.matrix(RowOrder::Alternating, &gate_up, c.hidden)?,
            self.matrix(RowOrder::Stacked, &[(role(LayerRole::Down), c.hidden)], c.ffn)?,
        ])
    }
}

impl<K: Kernels> Model<K> {
    /// Checks every tensor and the memory, then uploads.
    ///
    /// # Errors
    /// A missing or ill-shaped tensor by name, too little memory, a cancel, or the device's own.
    pub fn load(
        kernels: Arc<K>,
        config: Arc<ModelConfig>,
        weights: &Weights,
        options: &LoadOptions<'_>,
    ) -> Result<Self> {
        let sources = Sources { weights, config: &config };
        let embedding = sources.embedding()?;
        let head = if config.tied_head { None } else { Some(sources.head()?) };
        let layers = (0..config.n_layers).map(|n| sources.layer(n)).collect::<Result<Vec<_>>>()?;

        let all = || [&embedding].into_iter().chain(&head).chain(layers.iter().flatten());
        memory::check(&*kernels, "weights", all().map(|m| kernels.matrix_bytes(m)).sum())?;
        let total: u64 = all().flat_map(|m| &m.parts).map(|t| t.data.len() as u64).sum();
        let mut done = 0;
        let mut upload = |label: &str, source: &MatrixSource| -> Result<K::Matrix> {
            options.cancel.check()?;
            let matrix = kernels.matrix(label, source)?;
            done += source.parts.iter().map(|t| t.data.len() as u64).sum::<u64>();
            (options.progress)(done, total);
            Ok(matrix)
        };
        let vector = |role, len| upload_vector(&*kernels, &weights.vector(role, len)?);

        let embedding = upload("embedding", &embedding)?;
        let head = head.map(|h| upload("head", &h)).transpose()?.unwrap_or_else(|| embedding.clone());
        let layers = layers
            .iter()
            .enumerate()
            .map(|(n, [qkv, attn_out, gate_up, down])| {
                Ok(Layer {
                    attn_norm: vector(Role::Layer(n, LayerRole::AttnNorm), config.hidden)?,
                    qkv: upload("qkv", qkv)?,
                    attn_out: upload("attention output", attn_out)?,
                    mlp_norm: vector(Role::Layer(n, LayerRole::MlpNorm), config.hidden)?,
                    gate_up: upload("gate and up", gate_up)?,
                    down: upload("down", down)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            output_norm: vector(Role::OutputNorm, config.hidden)?,
            angles: upload_angles(&*kernels, &config, options.context)?,
            dims: HeadDims { heads: config.n_heads, kv_heads: config.n_kv_heads, head_dim: config.head_dim },
            context: options.context,
            kernels,
            config,
            embedding,
            head,
            layers,
        })
    }
}

fn upload_vector<K: Kernels>(kernels: &K, tensor: &WeightTensor) -> Result<K::Tensor> {
    let values = floats(tensor)?;
    let out = kernels.tensor(&tensor.name, Scalar::F32, values.len())?;
    kernels.write(&out, 0, bytemuck::cast_slice(&values))?;
    Ok(out)
}

/// Values of an unquantised tensor; norms never are quantised.
fn floats(tensor: &WeightTensor) -> Result<Vec<f32>> {
    let pairs = || tensor.data.chunks_exact(2).map(|b| [b[0], b[1]]);
    match tensor.dtype {
        Dtype::F32 => Ok(tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Ok(pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::Bf16 => Ok(pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
        other => {
            Err(Error::Unsupported { what: "type of a norm", name: format!("{} ({})", other.name(), tensor.name) })
        }
    }
}

/// Cosines and sines are made here in f64, because a GPU's own are inexact for large angles and would differ between vendors.
fn upload_angles<K: Kernels>(kernels: &K, config: &ModelConfig, context: usize) -> Result<K::Tensor> {
    const ROWS: usize = 4096;
    let frequencies = config.rope.frequencies(config.head_dim);
    let width = 2 * frequencies.len();
    let out = kernels.tensor("rope angles", Scalar::F32, context * width)?;
    for start in (0..context).step_by(ROWS) {
        let values: Vec<f32> = (start..context.min(start + ROWS))
            .flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
            .flat_map(|angle| [angle.cos() as f32, angle.sin() as f32])
            .collect();
        kernels.write(&out, start * width, bytemuck::cast_slice(&values))?;
    }
    Ok(out)
}
