//! Weights from a file onto a device.

use std::sync::Arc;
use std::time::Duration;

use half::bf16;

use crate::cancel::Cancel;
use crate::config::{ModelConfig, Rope};
use crate::dtype::Scalar;
use crate::error::{Error, Result};
use crate::kernels::{HeadDims, Kernels, MatrixSource};
use crate::model::sources::{LayerSource, LinearSource, NormSource, Sources};
use crate::model::{Layer, Linear, Model, NormWeights, Pace, memory};
use crate::weights::Weights;

/// How a model is loaded.
pub struct LoadOptions<'a> {
    /// Tokens that positions are prepared for.
    pub context: usize,
    /// How long one submission may take. `None` where a long one harms nobody: a device that looks at the cancel by itself.
    pub submission: Option<Duration>,
    /// Looked at between tensors.
    pub cancel: &'a Cancel,
    /// Called with bytes of the file done and in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Builds the model of what is on the device, and puts vectors there.
struct Upload<'a, K: Kernels> {
    kernels: &'a K,
    /// Those that are still to be used, in the order of [`matrices`].
    matrices: std::vec::IntoIter<K::Matrix>,
}

/// Every matrix of a model with its label, in the order in which they are used here.
fn matrices<'a>(
    embedding: &'a MatrixSource,
    head: Option<&'a LinearSource>,
    layers: &'a [LayerSource],
) -> Vec<(&'static str, &'a MatrixSource)> {
    let of_layer = |l: &'a LayerSource| {
        let linears = [("qkv", &l.qkv), ("attention output", &l.attn_out), ("gate and up", &l.up), ("down", &l.down)];
        linears.map(|(label, linear)| (label, &linear.matrix))
    };
    let outside = [("embedding", embedding)].into_iter().chain(head.map(|head| ("head", &head.matrix)));
    outside.chain(layers.iter().flat_map(of_layer)).collect()
}

impl<K: Kernels> Upload<'_, K> {
    fn matrix(&mut self) -> Result<K::Matrix> {
        self.matrices.next().ok_or_else(|| Error::Shader {
            name: "matrix".to_owned(),
            reason: "fewer were made than a model has".to_owned(),
        })
    }

    fn vector(&self, values: &[f32]) -> Result<K::Tensor> {
        let out = self.kernels.tensor("vector", Scalar::F32, values.len())?;
        self.kernels.write(&out, 0, bytemuck::cast_slice(values))?;
        Ok(out)
    }

    fn linear(&mut self, source: &LinearSource) -> Result<Linear<K>> {
        let bias = source.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(Linear { weight: self.matrix()?, bias, n_elements: n_elements(&source.matrix) })
    }

    fn norm(&self, source: &NormSource) -> Result<NormWeights<K>> {
        let bias = source.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(NormWeights { weight: self.vector(&source.weight)?, bias })
    }

    fn layer(&mut self, source: &LayerSource) -> Result<Layer<K>> {
        let norm = |norm: &Option<NormSource>| norm.as_ref().map(|norm| self.norm(norm)).transpose();
        let head_norm = |norm: &[Vec<f32>; 2]| Ok([self.vector(&norm[0])?, self.vector(&norm[1])?]);
        let attn_norm = self.norm(&source.attn_norm)?;
        let head_norms = source.head_norms.as_ref().map(head_norm).transpose()?;
        let (mlp_norm, attn_post_norm) = (norm(&source.mlp_norm)?, norm(&source.attn_post_norm)?);
        let mlp_post_norm = norm(&source.mlp_post_norm)?;
        Ok(Layer {
            attn_norm,
            qkv: self.linear(&source.qkv)?,
            head_norms,
            attn_out: self.linear(&source.attn_out)?,
            attn_post_norm,
            mlp_norm,
            up: self.linear(&source.up)?,
            down: self.linear(&source.down)?,
            mlp_post_norm,
        })
    }
}

fn bytes(source: &MatrixSource) -> u64 {
    source.parts.iter().map(|tensor| tensor.data.len() as u64).sum()
}

fn n_elements(source: &MatrixSource) -> usize {
    source.parts.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
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
        let sources = Sources::new(weights, &config);
        let (embedding, output_norm, head) = (sources.embedding()?, sources.output_norm()?, sources.head()?);
        let layers = (0..config.n_layers).map(|n| sources.layer(n)).collect::<Result<Vec<_>>>()?;
        sources.expect_all_biases_used()?;

        let sources = matrices(&embedding, head.as_ref(), &layers);
        let all = || sources.iter().map(|(_, matrix)| *matrix);
        let weights_bytes: u64 = all().map(|matrix| kernels.matrix_bytes(matrix)).sum();
        memory::check(&*kernels, "weights", weights_bytes.saturating_add(kernels.workspace_bytes(&mut all())))?;

        let total = all().map(bytes).sum();
        let mut done = 0;
        let mut step = |i: usize| {
            (options.progress)(done, total);
            done += bytes(sources[i].1);
        };
        let made = kernels.matrices(&sources, options.cancel, &mut step)?;
        (options.progress)(total, total);
        let mut upload = Upload { kernels: &*kernels, matrices: made.into_iter() };
        let table = upload.matrix()?;
        let head = match &head {
            Some(head) => upload.linear(head)?,
            None => Linear { weight: table.clone(), bias: None, n_elements: config.hidden * config.vocab },
        };
        let layers = layers.iter().map(|layer| upload.layer(layer)).collect::<Result<_>>()?;
        let output_norm = upload.norm(&output_norm)?;
        let alibi = config.alibi.map(|strength| upload_alibi(&*kernels, &config, strength, options.context));
        let angles = |rope: &Rope| upload_angles(&*kernels, rope, options.context);
        Ok(Self {
            output_norm,
            angles: config.ropes.iter().map(angles).collect::<Result<_>>()?,
            no_angles: kernels.tensor("no angles", Scalar::F32, 4)?,
            score_bias: alibi.transpose()?,
            dims: HeadDims { heads: config.n_heads, kv_heads: config.n_kv_heads, head_dim: config.head_dim },
            pace: Pace::new(options.submission),
            context: options.context,
            embedding: table,
            head,
            layers,
            kernels,
            config,
        })
    }
}

/// Cosines and sines are made here in f64, because a GPU's own are inexact for large angles and would differ between vendors.
fn upload_angles<K: Kernels>(kernels: &K, rope: &Rope, context: usize) -> Result<K::Tensor> {
    const ROWS: usize = 4096;
    let (frequencies, magnitude) = (rope.frequencies(context), rope.magnitude());
    let width = 2 * frequencies.len();
    let out = kernels.tensor("rope angles", Scalar::F32, context * width)?;
    for start in (0..context).step_by(ROWS) {
        let values: Vec<f32> = (start..context.min(start + ROWS))
            .flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
            .flat_map(|angle| [(magnitude * angle.cos()) as f32, (magnitude * angle.sin()) as f32])
            .collect();
        kernels.write(&out, start * width, bytemuck::cast_slice(&values))?;
    }
    Ok(out)
}

/// ALiBi's slopes times key positions, `[heads, context]`. The models that have it were trained, and are run by Hugging Face transformers, with
/// slope, position and product rounded to bf16 each, and with the sum of score and bias scaled.
fn upload_alibi<K: Kernels>(kernels: &K, config: &ModelConfig, strength: f32, context: usize) -> Result<K::Tensor> {
    let scale = f64::from(strength) * f64::from(config.attention_scale);
    let round = |x: f64| f64::from(bf16::from_f64(x).to_f32());
    let out = kernels.tensor("score bias", Scalar::F32, config.n_heads * context)?;
    for (head, slope) in alibi_slopes(config.n_heads).into_iter().enumerate() {
        let values: Vec<f32> =
            (0..context).map(|key| (round(round(slope) * round(key as f64)) * scale) as f32).collect();
        kernels.write(&out, head * context, bytemuck::cast_slice(&values))?;
    }
    Ok(out)
}

/// A geometric series for the largest power of two of heads; the others take every second slope of the series for twice as many.
fn alibi_slopes(heads: usize) -> Vec<f64> {
    let whole = 1 << heads.ilog2();
    let series = |n: usize, i: usize| (-8.0 * i as f64 / n as f64).exp2();
    let first = (1..=whole).map(|i| series(whole, i));
    first.chain((0..heads - whole).map(|i| series(2 * whole, 2 * i + 1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_for_any_number_of_heads() {
        assert_eq!(alibi_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(alibi_slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        assert_eq!(alibi_slopes(1), [0.00390625]);
    }
}
