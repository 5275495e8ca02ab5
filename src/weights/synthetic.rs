//! Random weights: a model with no file behind it, for measuring speed where the real one is not at hand.
//!
//! The values depend on the seed, the configuration and the format alone, so that every adapter computes with the same ones. Their scale keeps
//! activations finite through any number of layers. Tensors lie behind one another in one buffer as they would in a file, and start again at its
//! front where a model is larger than the buffer: that is beyond every processor's cache, so weights are streamed from memory as a file's are.

use std::collections::HashMap;
use std::num::NonZero;

use half::f16;

use super::{Bytes, LayerRole, ModelFiles, Naming, Role, Stored, WeightTensor, Weights};
use crate::config::{Mlp, ModelConfig, NormKind, Residual};
use crate::dims::round_up;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::threads;

/// The most that the buffer takes, a larger tensor excepted.
const BUFFER_BYTES: usize = 1 << 30;
/// Tensors start at multiples of as many blocks: of 128 bytes at least, whatever the format.
const ALIGN_BLOCKS: usize = 64;
/// Blocks that are made from one state of the generator.
const CHUNK_BLOCKS: usize = 1024 * ALIGN_BLOCKS;

impl ModelFiles {
    /// A model with random matrices in `dtype`, norms near 1 and biases near 0; it has no tokenizer.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that contradict each other or are no multiple of the format's block, [`Error::Memory`] where the host has too
    /// little.
    pub fn synthetic(config: ModelConfig, dtype: Dtype, seed: u64) -> Result<Self> {
        config.validate()?;
        let weights = weights(&config, dtype, seed)?;
        let file_bytes = weights.n_bytes();
        Ok(Self { config, weights, tokenizer: None, template: None, eos: Vec::new(), file_bytes })
    }
}

fn weights(config: &ModelConfig, dtype: Dtype, seed: u64) -> Result<Weights> {
    let matrices = matrices(config);
    let align = ALIGN_BLOCKS * dtype.block_bytes();
    let too_large = || Error::Config(format!("the tensors of {} are too large", config.architecture));
    let mut sizes = Vec::with_capacity(matrices.len());
    for [rows, width] in matrices.iter().map(|(_, shape)| *shape) {
        sizes.push(dtype.bytes(width)?.checked_mul(rows).ok_or_else(too_large)?);
    }
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let total = sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(round_up(n, align))).ok_or_else(too_large)?;
    let widest = matrices.iter().map(|(_, [_, width])| *width).max().unwrap_or(1);
    let buffer = Bytes::from(random(round_up(largest.max(total.min(BUFFER_BYTES)), align), dtype, seed, widest)?);

    let naming = Naming::gguf(config);
    let mut tensors = HashMap::new();
    let mut store = |role, ending: &str, dtype, shape: &[usize], data| {
        let name = naming.stem(role) + ending;
        let tensor = WeightTensor { name: name.clone(), dtype, shape: shape.to_vec(), data };
        tensors.insert(name, Stored::Known(tensor));
    };
    let mut at = 0;
    for ((role, shape), size) in matrices.into_iter().zip(sizes) {
        if at + size > buffer.len() {
            at = 0;
        }
        store(role, ".weight", dtype, &shape, buffer.slice(at..at + size).ok_or_else(too_large)?);
        at += round_up(size, align);
    }
    for (i, (role, kind, len)) in vectors(config).into_iter().enumerate() {
        let (ending, middle) = match kind {
            Vector::Norm => (".weight", 1.0),
            Vector::Bias => (".bias", 0.0),
        };
        let values = vector(len, middle, SplitMix64::new(seed, u64::MAX - i as u64));
        store(role, ending, Dtype::F32, &[len], Bytes::from(values));
    }
    Ok(Weights::new(naming, tensors))
}

/// Every matrix of a model with its shape `[rows, width]`, in the order of files.
fn matrices(config: &ModelConfig) -> Vec<(Role, [usize; 2])> {
    let c = config;
    let mut out = vec![(Role::TokenEmbedding, [c.vocab, c.hidden])];
    for n in 0..c.n_layers {
        let layer = [
            (LayerRole::Q, [c.q_width(), c.hidden]),
            (LayerRole::K, [c.kv_width(), c.hidden]),
            (LayerRole::V, [c.kv_width(), c.hidden]),
            (LayerRole::AttnOut, [c.hidden, c.q_width()]),
            (LayerRole::Gate, [c.ffn, c.hidden]),
            (LayerRole::Up, [c.ffn, c.hidden]),
            (LayerRole::Down, [c.hidden, c.ffn]),
        ];
        let gated = c.mlp != Mlp::Gelu;
        let there = layer.into_iter().filter(|(role, _)| gated || *role != LayerRole::Gate);
        out.extend(there.map(|(role, shape)| (Role::Layer(n, role), shape)));
    }
    if !c.tied_head {
        out.push((Role::OutputHead, [c.vocab, c.hidden]));
    }
    out
}

/// What a vector is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vector {
    /// A norm's weight: values near 1.
    Norm,
    /// Values near 0.
    Bias,
}

/// Every vector of a model with its length.
fn vectors(config: &ModelConfig) -> Vec<(Role, Vector, usize)> {
    let c = config;
    let mut norms = vec![(Role::OutputNorm, c.hidden)];
    let mut biases = Vec::new();
    for n in 0..c.n_layers {
        let role = |part| Role::Layer(n, part);
        norms.push((role(LayerRole::AttnNorm), c.hidden));
        if c.residual != (Residual::Parallel { shared_norm: true }) {
            norms.push((role(LayerRole::MlpNorm), c.hidden));
        }
        if c.post_norms {
            norms.extend([LayerRole::AttnPostNorm, LayerRole::MlpPostNorm].map(|part| (role(part), c.hidden)));
        }
        if c.head_norm {
            norms.extend([LayerRole::QNorm, LayerRole::KNorm].map(|part| (role(part), c.head_dim)));
        }
        // A configuration leaves biases to the file; the files of this family have these.
        if c.architecture == "qwen2" {
            let qkv = [(LayerRole::Q, c.q_width()), (LayerRole::K, c.kv_width()), (LayerRole::V, c.kv_width())];
            biases.extend(qkv.map(|(part, len)| (role(part), len)));
        }
    }
    if c.norm == NormKind::Layer {
        biases.extend(norms.iter().copied());
    }
    let norms = norms.into_iter().map(|(role, len)| (role, Vector::Norm, len));
    norms.chain(biases.into_iter().map(|(role, len)| (role, Vector::Bias, len))).collect()
}

/// F32 values within a quarter of `middle`.
fn vector(len: usize, middle: f32, mut random: SplitMix64) -> Vec<u8> {
    let value = |bits: u64| middle - 0.25 + (bits >> 40) as f32 / (1u64 << 25) as f32;
    (0..len).flat_map(|_| value(random.next()).to_le_bytes()).collect()
}

/// `bytes` bytes of blocks (a multiple of [`ALIGN_BLOCKS`] of them), whose values have a standard deviation of `1 / sqrt(width)`, give or take the
/// factor 2 that whole exponents leave: a product's outputs are as large as its inputs.
fn random(bytes: usize, dtype: Dtype, seed: u64, width: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let memory = |_| Error::Memory {
        adapter: "host".to_owned(),
        what: "random weights".to_owned(),
        needed: bytes as u64,
        available: 0,
    };
    out.try_reserve_exact(bytes).map_err(memory)?;
    out.resize(bytes, 0);
    let pattern = Pattern::new(dtype, 1.0 / (width as f64).sqrt());
    let chunk_bytes = CHUNK_BLOCKS * dtype.block_bytes();
    let n_threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    threads::for_each(n_threads, out.chunks_mut(chunk_bytes).enumerate(), |(i, chunk)| {
        pattern.fill(chunk, SplitMix64::new(seed, i as u64));
    });
    Ok(out)
}

/// How random bits become blocks of a format, without arithmetic on numbers: a billion values take less than a second.
#[derive(Clone, Copy)]
enum Pattern {
    /// Sign, mantissa and the two lowest bits of the exponent are random; the rest of the exponent is added. Several values to a word.
    Floats { random: u64, exponents: u64 },
    /// Random bits all over (quants, and the small scales of super-blocks) but for a fixed factor, and one for the minima, at byte `at`.
    Blocks { fixed: [u8; 4], n_fixed: usize, at: usize, bytes: usize },
}

impl Pattern {
    fn new(dtype: Dtype, deviation: f64) -> Self {
        // A mantissa of 1..2 has a mean square of 7/3, four equally likely exponents one of (1 + 4 + 16 + 64) / 4.
        let exponent = (deviation / (7.0f64 / 3.0 * 85.0 / 4.0).sqrt()).log2().floor() as i64;
        let biased = |bias: i64| (exponent + bias).max(1) as u64;
        let halves = |x: u64| x * 0x0001_0001_0001_0001;
        let words = |x: u64| x * 0x0000_0001_0000_0001;
        // Standard deviation of the values at factor 1, and the minima's factor, if the format has minima, that brings their mean to 0.
        let blocks = |at, deviation_of_codes: f64, least: Option<f64>| {
            let scale = f16::from_f64(deviation / deviation_of_codes);
            let ([a, b], [c, d]) =
                (scale.to_le_bytes(), f16::from_f64(scale.to_f64() * least.unwrap_or(0.0)).to_le_bytes());
            let n_fixed = if least.is_some() { 4 } else { 2 };
            Pattern::Blocks { fixed: [a, b, c, d], n_fixed, at, bytes: dtype.block_bytes() }
        };
        match dtype {
            Dtype::F32 => Pattern::Floats { random: words(0x81ff_ffff), exponents: words(biased(127) << 23) },
            Dtype::F16 => Pattern::Floats { random: halves(0x8fff), exponents: halves(biased(15) << 10) },
            Dtype::Bf16 => Pattern::Floats { random: halves(0x81ff), exponents: halves(biased(127) << 7) },
            Dtype::Q8_0 => blocks(0, 73.9, None),
            Dtype::Q4_0 => blocks(0, 4.61, None),
            Dtype::Q4_1 => blocks(0, 4.61, Some(-7.5)),
            Dtype::Q5_0 => blocks(0, 9.23, None),
            Dtype::Q5_1 => blocks(0, 9.23, Some(-15.5)),
            Dtype::Iq4Nl => blocks(0, 67.2, None),
            Dtype::Q2K => blocks(80, 13.9, Some(1.5)),
            Dtype::Q3K => blocks(108, 43.3, None),
            Dtype::Q4K => blocks(0, 258.0, Some(7.5)),
            Dtype::Q5K => blocks(0, 527.0, Some(15.5)),
            Dtype::Q6K => blocks(208, 1365.0, None),
        }
    }

    fn fill(self, out: &mut [u8], mut bits: SplitMix64) {
        match self {
            Pattern::Floats { random, exponents } => {
                for word in out.as_chunks_mut::<8>().0 {
                    *word = ((bits.next() & random) + exponents).to_le_bytes();
                }
            }
            Pattern::Blocks { fixed, n_fixed, at, bytes } => {
                // As many blocks as are a multiple of 8 bytes and stay in the first-level cache.
                for blocks in out.chunks_mut(ALIGN_BLOCKS * bytes) {
                    for word in blocks.as_chunks_mut::<8>().0 {
                        *word = bits.next().to_le_bytes();
                    }
                    for block in blocks.chunks_exact_mut(bytes) {
                        block[at..at + n_fixed].copy_from_slice(&fixed[..n_fixed]);
                    }
                }
            }
        }
    }
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014.
struct SplitMix64(u64);

impl SplitMix64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Independent streams for different `stream`s.
    fn new(seed: u64, stream: u64) -> Self {
        Self(Self::mix(seed ^ Self::mix(stream.wrapping_mul(Self::GAMMA))))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::GAMMA);
        Self::mix(self.0)
    }

    const fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::shapes::{names, shape};

    #[test]
    fn the_seed_decides_and_nothing_repeats() {
        let bytes = 3 * CHUNK_BLOCKS * 2;
        let make = |seed| random(bytes, Dtype::F16, seed, 64).unwrap();
        let (a, b) = (make(1), make(1));
        assert!(a == b && a != make(2));
        let chunks: Vec<_> = a.chunks(CHUNK_BLOCKS * 2).collect();
        assert!(chunks[0] != chunks[1] && chunks[1] != chunks[2]);
    }

    #[test]
    fn models_have_the_published_number_of_parameters() {
        let published = [
            ("llama-2-7b", 6_738_415_616),
            ("llama-2-13b", 13_015_864_320),
            ("llama-3-8b", 8_030_261_248),
            ("llama-3.2-1b", 1_235_814_400),
            ("tinyllama-1.1b", 1_100_048_384),
            ("smollm2-135m", 134_515_008),
            ("qwen2.5-7b", 7_615_616_512),
            ("falcon-7b", 6_921_720_704),
        ];
        for (name, parameters) in published {
            let config = shape(name).unwrap();
            let matrices: usize = matrices(&config).iter().map(|(_, [rows, width])| rows * width).sum();
            let vectors: usize = vectors(&config).iter().map(|(_, _, len)| len).sum();
            assert_eq!(matrices + vectors, parameters, "{name}");
        }
        assert_eq!(names().count(), published.len() + 1, "a shape has no published number here");
    }

    #[test]
    fn every_shape_is_sound_and_its_tensors_have_their_bytes() {
        for name in names() {
            shape(name).unwrap().validate().unwrap();
        }
        for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.block_len() <= 64) {
            let files = ModelFiles::synthetic(shape("tiny").unwrap(), dtype, 7).unwrap();
            let parameters: usize = 2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64) + 5 * 64;
            assert_eq!(files.weights.n_parameters(), parameters as u64);
            let q = files.weights.matrix(Role::Layer(1, LayerRole::Q), 64, 64).unwrap();
            let k = files.weights.matrix(Role::Layer(1, LayerRole::K), 32, 64).unwrap();
            assert_eq!(q.data.len(), 64 * dtype.bytes(64).unwrap());
            assert!(q.data[..k.data.len()] != k.data[..], "{dtype:?}");
        }
        assert!(matches!(shape("llama-9"), Err(Error::Unsupported { name, .. }) if name.contains("llama-2-7b")));
        let narrow = ModelConfig { ffn: 100, ..shape("tiny").unwrap() };
        assert!(matches!(ModelFiles::synthetic(narrow, Dtype::Q8_0, 7), Err(Error::Config(_))));
        assert!(matches!(ModelFiles::synthetic(shape("tiny").unwrap(), Dtype::Q4K, 7), Err(Error::Config(_))));
    }
}
