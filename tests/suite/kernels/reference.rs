//! The operations as naive formulas in f64, weights decoded straight from their block definitions, and seeded random content.

use half::{bf16, f16};
use runahead::config::RopePairs;
use runahead::dtype::Dtype;
use runahead::kernels::{HeadDims, MatrixSource, RowOrder};
use runahead::weights::WeightTensor;

/// What an element should be, and the sum of magnitudes that its rounding error is proportional to.
#[derive(Clone, Copy, Debug)]
pub struct Value {
    /// The exact result.
    pub want: f64,
    /// Sum of the absolute values of its terms; 0 for copies.
    pub scale: f64,
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same content on every machine.
pub struct Random(u64);

impl Random {
    /// A stream of its own for every seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add(1))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        (self.bits() >> 56) as u8
    }

    /// An index below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in `[-1, 1)`.
    pub fn symmetric(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// `len` values of [`Random::symmetric`].
    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.symmetric()).collect()
    }

    /// A block scale of either sign, `0.25..1` times `largest`.
    fn scale(&mut self, largest: f32) -> f16 {
        let x = self.symmetric();
        f16::from_f32(largest * (x * 0.75 + 0.25f32.copysign(x)))
    }
}

/// A matrix `[rows, width]` of random content; elements are of the order of 1. Quantised blocks hold random bytes, so all codes occur.
pub fn random_weight(random: &mut Random, dtype: Dtype, rows: usize, width: usize) -> WeightTensor {
    let mut data = Vec::new();
    for _ in 0..rows * width / dtype.block_len() {
        match dtype {
            Dtype::F32 => data.extend(random.symmetric().to_le_bytes()),
            Dtype::F16 => data.extend(f16::from_f32(random.symmetric()).to_le_bytes()),
            Dtype::Bf16 => data.extend(bf16::from_f32(random.symmetric()).to_le_bytes()),
            Dtype::Q8_0 => {
                data.extend(random.scale(1.0 / 128.0).to_le_bytes());
                data.extend((0..32).map(|_| random.byte()));
            }
            Dtype::Q4_0 => {
                data.extend(random.scale(1.0 / 8.0).to_le_bytes());
                data.extend((0..16).map(|_| random.byte()));
            }
            Dtype::Q4_1 => {
                data.extend(random.scale(1.0 / 8.0).to_le_bytes());
                data.extend(random.scale(1.0).to_le_bytes());
                data.extend((0..16).map(|_| random.byte()));
            }
            other => panic!("no generator for {}", other.name()),
        }
    }
    WeightTensor {
        name: format!("random {} {rows}x{width}", dtype.name()),
        dtype,
        shape: vec![rows, width],
        data: data.into(),
    }
}

/// All elements of a tensor in order.
pub fn decode_weight(tensor: &WeightTensor) -> Vec<f64> {
    let half = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64();
    let mut values = Vec::new();
    for block in tensor.data.chunks_exact(tensor.dtype.block_bytes()) {
        let nibbles = |codes: &[u8]| -> Vec<f64> {
            let low = codes.iter().map(|b| f64::from(b & 15));
            low.chain(codes.iter().map(|b| f64::from(b >> 4))).collect()
        };
        match tensor.dtype {
            Dtype::F32 => values.push(f64::from(f32::from_le_bytes([block[0], block[1], block[2], block[3]]))),
            Dtype::F16 => values.push(half(block, 0)),
            Dtype::Bf16 => values.push(bf16::from_le_bytes([block[0], block[1]]).to_f64()),
            Dtype::Q8_0 => values.extend(block[2..].iter().map(|&q| half(block, 0) * f64::from(q as i8))),
            Dtype::Q4_0 => values.extend(nibbles(&block[2..]).iter().map(|q| half(block, 0) * (q - 8.0))),
            Dtype::Q4_1 => values.extend(nibbles(&block[4..]).iter().map(|q| half(block, 0) * q + half(block, 2))),
            other => panic!("no decoder for {}", other.name()),
        }
    }
    values
}

/// The rows of a matrix in the order that `source` asks for.
pub fn matrix_rows(source: &MatrixSource) -> Vec<Vec<f64>> {
    let part_rows = |part: &WeightTensor| -> Vec<Vec<f64>> {
        decode_weight(part).chunks_exact(part.shape[1]).map(<[f64]>::to_vec).collect()
    };
    let parts: Vec<_> = source.parts.iter().map(part_rows).collect();
    match source.rows {
        RowOrder::Stacked => parts.concat(),
        RowOrder::Alternating => {
            (0..parts[0].len()).flat_map(|row| parts.iter().map(move |part| part[row].clone())).collect()
        }
    }
}

/// RMSNorm of one row.
pub fn norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<Value> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(v, w)| v * factor * w).map(|want| Value { want, scale: want.abs() }).collect()
}

/// `sum(a * b)` with the sum of magnitudes.
pub fn dot(a: &[f64], b: &[f64]) -> Value {
    let terms = a.iter().zip(b).map(|(a, b)| a * b);
    terms.fold(Value { want: 0.0, scale: 0.0 }, |sum, t| Value { want: sum.want + t, scale: sum.scale + t.abs() })
}

/// One row through a matrix.
pub fn product(x: &[f64], rows: &[Vec<f64>]) -> Vec<Value> {
    rows.iter().map(|row| dot(x, row)).collect()
}

/// `old + sum`.
pub fn add(old: &[f64], sums: &[Value]) -> Vec<Value> {
    let plus = |(o, s): (&f64, &Value)| Value { want: o + s.want, scale: s.scale + o.abs() };
    old.iter().zip(sums).map(plus).collect()
}

/// `silu(sum[2c]) * sum[2c + 1]`. The scale carries both sums' errors through the derivative of silu (at most 1.1), and the
/// error of `exp`, which WGSL allows to grow with its argument.
pub fn swiglu(sums: &[Value]) -> Vec<Value> {
    let pair = |pair: &[Value]| {
        let (gate, up) = (pair[0], pair[1]);
        let silu = gate.want / (1.0 + (-gate.want).exp());
        let want = silu * up.want;
        let scale = 1.1 * gate.scale * up.want.abs() + silu.abs() * up.scale + want.abs() * (1.0 + gate.want.abs());
        Value { want, scale }
    };
    sums.chunks_exact(2).map(pair).collect()
}

/// Rotates all heads of one row; `angles` are `(cos, sin)` of each pair at the row's position.
pub fn rope(row: &[f64], angles: &[f64], head_dim: usize, pairs: RopePairs) -> Vec<Value> {
    let mut out = vec![Value { want: 0.0, scale: 0.0 }; row.len()];
    for head in 0..row.len() / head_dim {
        for pair in 0..head_dim / 2 {
            let (a, b) = match pairs {
                RopePairs::Adjacent => (2 * pair, 2 * pair + 1),
                RopePairs::Halves => (pair, pair + head_dim / 2),
            };
            let (a, b) = (head * head_dim + a, head * head_dim + b);
            let (cos, sin) = (angles[2 * pair], angles[2 * pair + 1]);
            out[a] = dot(&[row[a], row[b]], &[cos, -sin]);
            out[b] = dot(&[row[b], row[a]], &[cos, sin]);
        }
    }
    out
}

/// Attention of one row over all `keys` given (cache rows, as many `values`). An error `e` of the scores multiplies the weights by
/// up to `exp(2 e)`, so the scale grows with the largest sum of magnitudes in a score.
pub fn attention(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], dims: HeadDims, scale: f64) -> Vec<Value> {
    let (head_dim, group) = (dims.head_dim, dims.heads / dims.kv_heads);
    let mut out = Vec::with_capacity(q.len());
    for head in 0..dims.heads {
        let (q_at, kv_at) = (head * head_dim, head / group * head_dim);
        let scores: Vec<_> =
            keys.iter().map(|key| dot(&q[q_at..q_at + head_dim], &key[kv_at..kv_at + head_dim])).collect();
        let largest = scores.iter().fold(f64::MIN, |m, s| m.max(s.want * scale));
        let weights: Vec<_> = scores.iter().map(|s| (s.want * scale - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let spread = 1.0 + 2.0 * scores.iter().fold(0.0f64, |m, s| m.max(s.scale * scale.abs()));
        for d in kv_at..kv_at + head_dim {
            let column: Vec<_> = values.iter().map(|row| row[d] / total).collect();
            let sum = dot(&weights, &column);
            out.push(Value { want: sum.want, scale: sum.scale * spread });
        }
    }
    out
}

/// The lowest index of the largest element.
pub fn arg_max(x: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(dtype: Dtype, data: Vec<u8>) -> Vec<f64> {
        let shape = vec![1, data.len() / dtype.block_bytes() * dtype.block_len()];
        decode_weight(&WeightTensor { name: String::new(), dtype, shape, data: data.into() })
    }

    #[test]
    fn blocks_decode_to_values_worked_out_by_hand() {
        // f16: 0x3800 is 0.5, 0xBC00 is -1.
        let nibbles: Vec<u8> = (0..16).map(|j| j | (15 - j) << 4).collect();
        let q4_0 = decoded(Dtype::Q4_0, [&[0x00, 0x38], &nibbles[..]].concat());
        assert_eq!([q4_0[0], q4_0[1], q4_0[15], q4_0[16], q4_0[31]], [-4.0, -3.5, 3.5, 3.5, -4.0]);
        let q4_1 = decoded(Dtype::Q4_1, [&[0x00, 0x38, 0x00, 0xBC], &nibbles[..]].concat());
        assert_eq!([q4_1[0], q4_1[1], q4_1[15], q4_1[16], q4_1[31]], [-1.0, -0.5, 6.5, 6.5, -1.0]);
        let codes: Vec<u8> = (0..32).map(|j| if j == 31 { 0x80 } else { j }).collect();
        let q8_0 = decoded(Dtype::Q8_0, [&[0x00, 0xBC], &codes[..]].concat());
        assert_eq!([q8_0[0], q8_0[1], q8_0[30], q8_0[31]], [0.0, -1.0, -30.0, 128.0]);
        assert_eq!(decoded(Dtype::Bf16, vec![0xC0, 0x3F, 0x00, 0xC0]), [1.5, -2.0]);
        assert_eq!(decoded(Dtype::F16, vec![0x00, 0x38, 0x00, 0xBC]), [0.5, -1.0]);
        assert_eq!(decoded(Dtype::F32, 0.1f32.to_le_bytes().to_vec()), [f64::from(0.1f32)]);
    }
}
