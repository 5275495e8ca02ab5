//! The operations as naive formulas in f64, weights decoded straight from their block definitions, and seeded random content.

use half::{bf16, f16};
use runahead::config::{NormKind, RopePairs};
use runahead::dtype::{Dtype, IQ4_NL_VALUES};
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
    assert!(width.is_multiple_of(dtype.block_len()), "{} {width}", dtype.name());
    // Random bytes, with f16 factors of the given size from byte `at` on.
    let blocks = |data: &mut Vec<u8>, random: &mut Random, at: usize, factors: &[f32]| {
        let start = data.len() + at;
        data.extend((0..dtype.block_bytes()).map(|_| random.byte()));
        for (i, &factor) in factors.iter().enumerate() {
            data[start + 2 * i..][..2].copy_from_slice(&random.scale(factor).to_le_bytes());
        }
    };
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
            Dtype::Q5_0 => blocks(&mut data, random, 0, &[1.0 / 16.0]),
            Dtype::Q5_1 => blocks(&mut data, random, 0, &[1.0 / 16.0, 1.0]),
            Dtype::Iq4Nl => blocks(&mut data, random, 0, &[1.0 / 128.0]),
            Dtype::Q2K => blocks(&mut data, random, 80, &[1.0 / 45.0, 1.0 / 15.0]),
            Dtype::Q3K => blocks(&mut data, random, 108, &[1.0 / 128.0]),
            Dtype::Q4K => blocks(&mut data, random, 0, &[1.0 / 512.0, 1.0 / 63.0]),
            Dtype::Q5K => blocks(&mut data, random, 0, &[1.0 / 1024.0, 1.0 / 63.0]),
            Dtype::Q6K => blocks(&mut data, random, 208, &[1.0 / 4096.0]),
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
            _ => values.extend((0..tensor.dtype.block_len()).map(|i| element(tensor.dtype, block, i))),
        }
    }
    values
}

/// Element `i` of a block whose codes are put together from several places.
fn element(dtype: Dtype, b: &[u8], i: usize) -> f64 {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f64();
    let nibble = |start: usize| (b[start + i % 16] >> (4 * (i / 16))) & 15;
    let fifth = |start: usize| ((b[start + i / 8] >> (i % 8)) & 1) << 4;
    // Super-blocks: byte `l` of a run of bytes holds elements `l`, `l + run` …, low bits first.
    let k_nibble = |start: usize, run: usize| (b[start + i / (2 * run) * run + i % run] >> (4 * (i / run % 2))) & 15;
    let k_pair = |start: usize| (b[start + i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4))) & 3;
    let k_bit = |start: usize| (b[start + i % 32] >> (i / 32)) & 1;
    // Six-bit scale and minimum of Q4_K and Q5_K.
    let six = || {
        let (s, j) = (&b[4..16], i / 32);
        if j < 4 {
            (f64::from(s[j] % 64), f64::from(s[j + 4] % 64))
        } else {
            let (scale, least) = (s[j + 4] % 16 + s[j - 4] / 64 * 16, s[j + 4] / 16 + s[j] / 64 * 16);
            (f64::from(scale), f64::from(least))
        }
    };
    match dtype {
        Dtype::Q5_0 => half(0) * (f64::from(nibble(6) + fifth(2)) - 16.0),
        Dtype::Q5_1 => half(0) * f64::from(nibble(8) + fifth(4)) + half(2),
        Dtype::Iq4Nl => half(0) * f64::from(IQ4_NL_VALUES[usize::from(nibble(2))]),
        Dtype::Q2K => half(80) * f64::from(b[i / 16] % 16 * k_pair(16)) - half(82) * f64::from(b[i / 16] / 16),
        Dtype::Q3K => {
            let (s, j) = (&b[96..108], i / 16);
            let scale = ((s[j % 8] >> (4 * (j / 8))) & 15) + (((s[8 + j % 4] >> (2 * (j / 4))) & 3) << 4);
            half(108) * (f64::from(scale) - 32.0) * (f64::from(k_pair(32) + 4 * k_bit(0)) - 4.0)
        }
        Dtype::Q4K => half(0) * six().0 * f64::from(k_nibble(16, 32)) - half(2) * six().1,
        Dtype::Q5K => half(0) * six().0 * f64::from(k_nibble(48, 32) + 16 * k_bit(16)) - half(2) * six().1,
        Dtype::Q6K => {
            let code = f64::from(k_nibble(0, 64) + 16 * k_pair(128)) - 32.0;
            half(208) * f64::from(b[192 + i / 16].cast_signed()) * code
        }
        other => panic!("no decoder for {}", other.name()),
    }
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

/// A norm of one row.
pub fn norm(x: &[f64], weight: &[f64], bias: Option<&[f64]>, eps: f64, kind: NormKind) -> Vec<Value> {
    let n = x.len() as f64;
    let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / n } else { 0.0 };
    let square = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (square + eps).sqrt();
    let element = |(i, (v, w)): (usize, (&f64, &f64))| {
        let bias = bias.map_or(0.0, |bias| bias[i]);
        // The mean is off by as much as the largest element of the row is.
        let size =
            if kind == NormKind::Layer { v.abs() + x.iter().fold(0.0, |m: f64, v| m.max(v.abs())) } else { v.abs() };
        Value { want: (v - mean) * factor * w + bias, scale: size * (factor * w).abs() + bias.abs() }
    };
    x.iter().zip(weight).enumerate().map(element).collect()
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

/// `gelu(sum[2c]) * sum[2c + 1]`, GELU's tanh form, whose derivative is at most 1.13.
pub fn geglu(sums: &[Value]) -> Vec<Value> {
    let pair = |pair: &[Value]| {
        let (gate, up) = (pair[0], pair[1]);
        let u = (2.0 / std::f64::consts::PI).sqrt() * (gate.want + 0.044715 * gate.want.powi(3));
        let gelu = gate.want / 2.0 * (1.0 + u.tanh());
        let want = gelu * up.want;
        let scale = 1.13 * gate.scale * up.want.abs() + gelu.abs() * up.scale + want.abs() * (1.0 + 2.0 * u.abs());
        Value { want, scale }
    };
    sums.chunks_exact(2).map(pair).collect()
}

/// `gelu(sum)`, the exact form.
pub fn gelu(sums: &[Value]) -> Vec<Value> {
    let one = |sum: &Value| {
        let want = sum.want / 2.0 * (1.0 + erf(sum.want * std::f64::consts::FRAC_1_SQRT_2));
        Value { want, scale: 1.13 * sum.scale + want.abs() }
    };
    sums.iter().map(one).collect()
}

/// The error function by the series of positive terms `e^-x^2 2 / sqrt(pi) sum of 2^n x^(2n+1) / (2n+1)!!`.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return 1f64.copysign(x);
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

/// Rotates the leading elements of all heads of one row; `angles` are `(cos, sin)` of each of their pairs at the row's position.
pub fn rope(row: &[f64], angles: &[f64], head_dim: usize, pairs: RopePairs) -> Vec<Value> {
    let rotary = angles.len();
    let mut out: Vec<_> = row.iter().map(|&want| Value { want, scale: 0.0 }).collect();
    for head in 0..row.len() / head_dim {
        for pair in 0..rotary / 2 {
            let (a, b) = match pairs {
                RopePairs::Adjacent => (2 * pair, 2 * pair + 1),
                RopePairs::Halves => (pair, pair + rotary / 2),
            };
            let (a, b) = (head * head_dim + a, head * head_dim + b);
            let (cos, sin) = (angles[2 * pair], angles[2 * pair + 1]);
            out[a] = dot(&[row[a], row[b]], &[cos, -sin]);
            out[b] = dot(&[row[b], row[a]], &[cos, sin]);
        }
    }
    out
}

/// How scores are made of dot products.
pub struct Scores<'a> {
    pub scale: f64,
    pub soft_cap: Option<f64>,
    /// Of each head, for the keys given.
    pub bias: Option<&'a [&'a [f64]]>,
}

impl Scores<'_> {
    fn score(&self, head: usize, key: usize, dot: Value) -> Value {
        let bias = self.bias.map_or(0.0, |bias| bias[head][key]);
        let (want, scale) = (dot.want * self.scale + bias, dot.scale * self.scale.abs() + bias.abs());
        match self.soft_cap {
            Some(cap) => Value { want: cap * (want / cap).tanh(), scale: scale + cap },
            None => Value { want, scale },
        }
    }
}

/// Attention of one row over all `keys` given (cache rows, as many `values`). An error `e` of the scores multiplies the weights by
/// up to `exp(2 e)`, so the scale grows with the largest sum of magnitudes in a score.
pub fn attention(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], dims: HeadDims, rule: &Scores<'_>) -> Vec<Value> {
    let (head_dim, group) = (dims.head_dim, dims.heads / dims.kv_heads);
    let mut out = Vec::with_capacity(q.len());
    for head in 0..dims.heads {
        let (q_at, kv_at) = (head * head_dim, head / group * head_dim);
        let dots = keys.iter().map(|key| dot(&q[q_at..q_at + head_dim], &key[kv_at..kv_at + head_dim]));
        let scores: Vec<_> = dots.enumerate().map(|(key, dot)| rule.score(head, key, dot)).collect();
        let largest = scores.iter().fold(f64::MIN, |m, s| m.max(s.want));
        let weights: Vec<_> = scores.iter().map(|s| (s.want - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let spread = 1.0 + 2.0 * scores.iter().fold(0.0f64, |m, s| m.max(s.scale));
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
