//! Two sides compared: largest differences, and what they mean.

use std::fmt;

use runahead::dtype::KvDtype;

use super::side::Side;
use super::tolerance;

/// Two arrays of equal shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Largest absolute difference; infinite where a value is no number.
    most: f64,
    /// Whether all bits are equal.
    equal_bits: bool,
}

impl Difference {
    fn between(a: &[f32], b: &[f32]) -> Self {
        let equal_bits = a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits());
        let apart = |(x, y): (&f32, &f32)| {
            let apart = (f64::from(*x) - f64::from(*y)).abs();
            if apart.is_finite() { apart } else { f64::INFINITY }
        };
        let most = if a.len() == b.len() { a.iter().zip(b).map(apart).fold(0.0, f64::max) } else { f64::INFINITY };
        Self { most, equal_bits }
    }
}

/// The greedy answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Greedy {
    Equal {
        n: usize,
    },
    /// From this token on, where the reference's logits of the two tokens are so far apart.
    Differ {
        at: usize,
        margin: f64,
    },
}

/// See [`Comparison::verdict`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    BitForBit,
    /// All within the tolerance, which is a fraction of the logits' standard deviation, as are the other numbers here.
    Within {
        tolerance: f64,
        off: f64,
    },
    /// Bits differ where they must not.
    BitsDiffer,
    Beyond {
        tolerance: f64,
        off: f64,
    },
    /// Another token, though its logit is further away than the tolerance explains.
    TokenDiffers {
        tolerance: f64,
        at: usize,
        margin: f64,
    },
    NotFinite,
}

/// A chain against its reference.
pub struct Comparison {
    /// K and V of each layer.
    layers: Vec<(Difference, Difference)>,
    logits: Difference,
    /// Of the reference's logits.
    deviation: f64,
    finite: bool,
    greedy: Greedy,
}

impl Comparison {
    /// Compares; the prompt had `n_prompt` tokens, and rows of logits have `vocab` values.
    pub fn new(reference: &Side, chain: &Side, n_prompt: usize, vocab: usize) -> Self {
        let layers = reference.layers.iter().zip(&chain.layers);
        let row = |i: usize| &reference.logits[(n_prompt - 1 + i) * vocab..][..vocab];
        let differs = reference.greedy.iter().zip(&chain.greedy).position(|(a, b)| a != b);
        let greedy = match differs {
            None => Greedy::Equal { n: reference.greedy.len() },
            Some(at) => {
                let logit = |side: &Side| f64::from(row(at)[side.greedy[at] as usize]);
                Greedy::Differ { at, margin: (logit(reference) - logit(chain)).abs() }
            }
        };
        Self {
            layers: layers.map(|(a, b)| (Difference::between(&a.0, &b.0), Difference::between(&a.1, &b.1))).collect(),
            logits: Difference::between(&reference.logits, &chain.logits),
            deviation: deviation(&reference.logits),
            finite: reference.logits.iter().chain(&chain.logits).all(|x| x.is_finite()),
            greedy,
        }
    }

    /// What the differences mean. `same_gpu`: one GPU on both sides, which is held to equal bits.
    pub fn verdict(&self, same_gpu: bool, kv: KvDtype) -> Verdict {
        let equal_layers = self.layers.iter().all(|(k, v)| k.equal_bits && v.equal_bits);
        let equal_tokens = matches!(self.greedy, Greedy::Equal { .. });
        let (tolerance, off) = (tolerance(kv), self.logits.most / self.deviation);
        if !self.finite {
            return Verdict::NotFinite;
        }
        if equal_layers && equal_tokens && self.logits.equal_bits {
            return Verdict::BitForBit;
        }
        if same_gpu {
            return Verdict::BitsDiffer;
        }
        // A comparison with NaN (all logits alike) is no pass.
        if off.is_nan() || off > tolerance {
            return Verdict::Beyond { tolerance, off };
        }
        match self.greedy {
            // Both logits may be off by the tolerance.
            Greedy::Differ { at, margin } if margin / self.deviation > 2.0 * tolerance => {
                Verdict::TokenDiffers { tolerance, at, margin: margin / self.deviation }
            }
            _ => Verdict::Within { tolerance, off },
        }
    }

    /// The differences for people.
    pub fn table(&self) -> String {
        let mut text = "largest absolute difference\nlayer          K          V\n".to_owned();
        for (layer, (k, v)) in self.layers.iter().enumerate() {
            text.push_str(&format!("{layer:5} {:>10} {:>10}\n", short(k.most), short(v.most)));
        }
        let off = short(self.logits.most / self.deviation);
        text.push_str(&format!("logits {:>9} ({off} of their standard deviation)\n", short(self.logits.most)));
        text.push_str(&match self.greedy {
            Greedy::Equal { n } => format!("greedy tokens: {n} of {n} equal\n"),
            Greedy::Differ { at, margin } => {
                let margin = short(margin / self.deviation);
                format!("greedy tokens: {at} equal, then two that are {margin} of a standard deviation apart\n")
            }
        });
        text
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::BitForBit => {
                f.write_str("bit for bit: K and V of every layer, all logits and all tokens are equal")
            }
            Verdict::Within { tolerance, off } => {
                write!(
                    f,
                    "within tolerance: logits differ by {off:.1e} of their standard deviation, {tolerance:.0e} allowed"
                )
            }
            Verdict::BitsDiffer => f.write_str("bits differ, although one GPU computed both sides"),
            Verdict::Beyond { tolerance, off } => {
                write!(f, "logits differ by {off:.1e} of their standard deviation, {tolerance:.0e} allowed")
            }
            Verdict::TokenDiffers { tolerance, at, margin } => write!(
                f,
                "greedy token {at} differs by {margin:.1e} of the logits' standard deviation, {:.0e} allowed",
                2.0 * tolerance
            ),
            Verdict::NotFinite => f.write_str("some logits are infinite or no numbers"),
        }
    }
}

/// Standard deviation.
fn deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

fn short(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of four logits; deviation 1 in the reference.
    fn side(shift: f32, token: u32) -> Side {
        let logits = vec![-1.0, 1.0, -1.0, 1.0 + shift, -1.0, 1.0, -1.0, 1.0];
        Side { logits, layers: vec![(vec![0.5; 4], vec![0.25; 4])], greedy: vec![token, 1] }
    }

    fn verdict(chain: &Side, same_gpu: bool, kv: KvDtype) -> Verdict {
        Comparison::new(&side(0.0, 1), chain, 1, 4).verdict(same_gpu, kv)
    }

    #[test]
    fn equal_bits_pass_everywhere() {
        for same_gpu in [false, true] {
            assert_eq!(verdict(&side(0.0, 1), same_gpu, KvDtype::F32), Verdict::BitForBit);
        }
    }

    #[test]
    fn one_gpu_is_held_to_its_bits() {
        assert_eq!(verdict(&side(1e-6, 1), true, KvDtype::F16), Verdict::BitsDiffer);
        let mut chain = side(0.0, 1);
        chain.layers[0].1[3] = -0.25;
        assert_eq!(verdict(&chain, true, KvDtype::F16), Verdict::BitsDiffer);
        // Zeros of both signs are equal numbers, not equal bits.
        assert!(!Difference::between(&[0.0], &[-0.0]).equal_bits);
    }

    #[test]
    fn the_cache_type_sets_the_tolerance() {
        assert!(matches!(verdict(&side(0.01, 1), false, KvDtype::F16), Verdict::Within { .. }));
        assert!(matches!(verdict(&side(0.01, 1), false, KvDtype::F32), Verdict::Beyond { .. }));
        assert!(matches!(verdict(&side(0.03, 1), false, KvDtype::F16), Verdict::Beyond { .. }));
        assert_eq!(verdict(&side(f32::NAN, 1), false, KvDtype::F16), Verdict::NotFinite);
    }

    #[test]
    fn another_token_passes_only_where_the_two_are_close() {
        // Token 3 ties with token 1; token 2 is two deviations behind.
        assert!(matches!(verdict(&side(0.001, 3), false, KvDtype::F16), Verdict::Within { .. }));
        assert!(matches!(verdict(&side(0.001, 2), false, KvDtype::F16), Verdict::TokenDiffers { at: 0, .. }));
    }
}
