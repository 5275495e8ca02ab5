//! Costs from timed chunks: least squares for attention, means for the products.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::runahead::cost::{AdapterCost, Curve, Lane};

/// One timed chunk on one adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Tokens before the chunk.
    pub prefix: usize,
    /// Tokens of the chunk.
    pub tokens: usize,
    /// Scores of a layer, the mean over those that were timed ([`mean_scores`](super::mean_scores)).
    pub scores: f64,
    /// Seconds of the first half of a layer.
    pub qkv_s: f64,
    /// Seconds of a whole layer.
    pub layer_s: f64,
    /// Seconds of a layer's attention, where the device's clock tells.
    pub attention_s: Option<f64>,
    /// Seconds from the end of the last whole layer to the first token, where there was one.
    pub tail_s: Option<f64>,
}

/// Fits an adapter's costs to its samples.
#[derive(Clone, Debug)]
pub struct Fit {
    /// The adapter's name.
    pub name: String,
    /// Timed chunks: several lengths, and for one length at least two prefixes.
    pub samples: Vec<Sample>,
    /// Seconds for one token of decode, where timed.
    pub decode_s: Option<f64>,
    /// From the device to host memory.
    pub down: Lane,
    /// From host memory to the device.
    pub up: Lane,
    /// See [`AdapterCost::queue`].
    pub queue: Option<Lane>,
}

impl Fit {
    /// The costs, and how far they are from the samples ([`AdapterCost::fit_error`]).
    ///
    /// # Errors
    /// [`Error::Config`] without samples, or where attention cannot be told from the rest.
    pub fn costs(self) -> Result<AdapterCost> {
        let fail = |text: &str| Err(Error::Config(format!("costs of adapter {}: {text}", self.name)));
        let mut by_length: BTreeMap<usize, Vec<Sample>> = BTreeMap::new();
        for s in &self.samples {
            let times = [s.qkv_s, s.layer_s, s.tail_s.unwrap_or(0.0), s.attention_s.unwrap_or(0.0)];
            let sound = times.iter().all(|t| t.is_finite() && *t >= 0.0);
            if s.tokens == 0 || !sound {
                return fail(&format!("{s:?} is no timing"));
            }
            by_length.entry(s.tokens).or_default().push(*s);
        }
        if by_length.is_empty() {
            return fail("nothing was timed");
        }
        let by_clock = slope(&by_length, |s| s.attention_s).filter(|&s| s > 0.0);
        let Some(score_s) = by_clock.or_else(|| slope(&by_length, |s| Some(s.layer_s))) else {
            return fail("no length was timed behind two different prefixes");
        };
        let points = |of: &dyn Fn(&Sample) -> f64| {
            Curve::new(by_length.iter().map(|(&n, group)| (n as f64, mean(group.iter().map(of)).max(0.0))))
        };
        let costs = AdapterCost {
            name: self.name.clone(),
            qkv: points(&|s| s.qkv_s)?,
            rest: points(&|s| s.layer_s - s.qkv_s - score_s * s.scores)?,
            score_s,
            head_s: self.samples.iter().filter_map(|s| s.tail_s).reduce(f64::min).unwrap_or(0.0),
            decode_s: self.decode_s,
            down: self.down,
            up: self.up,
            queue: self.queue,
            fit_error: 0.0,
            tile_rows: 1,
            busy_workgroups: None,
        };
        let error = |s: &Sample| (costs.layer_s(s.tokens as f64, s.scores) / s.layer_s.max(1e-12) - 1.0).powi(2);
        let fit_error = mean(self.samples.iter().map(error)).sqrt();
        Ok(AdapterCost { fit_error, ..costs })
    }
}

/// Seconds per score: the least-squares slope of a time over the scores, each length with an intercept of its own; `None` where some chunk lacks the time.
/// What scores among a chunk's own rows take more or less than those with rows before it is in the intercept then. Errors count relative to the layer's time per token: attention of a short chunk is slow for its scores, and the
/// pieces that costs are asked for are long.
fn slope(by_length: &BTreeMap<usize, Vec<Sample>>, time: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let (mut xy, mut xx) = (0.0, 0.0);
    for group in by_length.values() {
        let rows = group.iter().map(|s| Some(((s.tokens as f64 / s.layer_s.max(1e-12)).powi(2), s.scores, time(s)?)));
        let rows = rows.collect::<Option<Vec<_>>>()?;
        let total: f64 = rows.iter().map(|(weight, ..)| weight).sum();
        let x0 = rows.iter().map(|(weight, x, _)| weight * x).sum::<f64>() / total;
        let y0 = rows.iter().map(|(weight, _, y)| weight * y).sum::<f64>() / total;
        for (weight, x, y) in rows {
            xy += weight * (x - x0) * (y - y0);
            xx += weight * (x - x0).powi(2);
        }
    }
    (xx > 0.0).then(|| (xy / xx).max(0.0))
}

/// By how much products and attention have to be multiplied, so that whole prefills take as long as they did: least squares of the relative errors over
/// `[seconds of products, seconds of attention, seconds measured]`. Both by the same where the prefills do not tell them apart; `None` of no times.
pub fn factors(prefills: &[[f64; 3]]) -> Option<(f64, f64)> {
    let (mut pp, mut pa, mut aa, mut p1, mut a1, mut n) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for [products, attention, measured] in prefills.iter().filter(|all| all.iter().all(|s| s.is_finite() && *s >= 0.0))
    {
        if *measured > 0.0 && products + attention > 0.0 {
            let (p, a) = (products / measured, attention / measured);
            (pp, pa, aa, p1, a1, n) = (pp + p * p, pa + p * a, aa + a * a, p1 + p, a1 + a, n + 1.0);
        }
    }
    let determinant = pp * aa - pa * pa;
    let apart = ((p1 * aa - a1 * pa) / determinant, (a1 * pp - p1 * pa) / determinant);
    let together = (p1 + a1) / (pp + 2.0 * pa + aa);
    // Prefills of one length, or of noise, say nothing of the two by themselves.
    let told = determinant > 1e-6 * pp * aa && apart.0 > 0.1 * together && apart.1 > 0.1 * together;
    (n > 0.0).then_some(if told { apart } else { (together, together) })
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runahead::cost::mean_scores;

    fn samples(noise: f64) -> Vec<Sample> {
        let lengths = [16usize, 64, 256, 512, 1024];
        let all = lengths.into_iter().flat_map(|n| [0usize, 512, 2048].map(|p| (p, n)));
        all.enumerate()
            .map(|(i, (prefix, tokens))| {
                let (p, n) = (prefix as f64, tokens as f64);
                let wobble = 1.0 + noise * [0.3, -1.0, 0.9, -0.2, 0.0][i % 5];
                let qkv_s = 1e-4 + n * 1e-6;
                let layer_s = (qkv_s + 2e-4 + n * 3e-6 + 2e-9 * n * (p + (n + 1.0) / 2.0)) * wobble;
                let scores = mean_scores(&[], p, n);
                Sample { prefix, tokens, scores, qkv_s, layer_s, attention_s: None, tail_s: Some(1e-3) }
            })
            .collect()
    }

    fn fit(samples: Vec<Sample>) -> Result<AdapterCost> {
        let lane = Lane::default();
        Fit { name: "a".to_owned(), samples, decode_s: None, down: lane, up: lane, queue: None }.costs()
    }

    #[test]
    fn a_fit_finds_what_the_samples_were_made_of() {
        let exact = fit(samples(0.0)).unwrap();
        assert!((exact.score_s / 2e-9 - 1.0).abs() < 1e-6 && exact.fit_error < 1e-6, "{exact:?}");
        assert!((exact.rest.at(512.0) / (2e-4 + 512.0 * 3e-6) - 1.0).abs() < 1e-6);
        assert!((exact.layer_s(512.0, mean_scores(&[], 4096.0, 512.0)) / 6.805e-3 - 1.0).abs() < 1e-3);
        let noisy = fit(samples(0.05)).unwrap();
        assert!((noisy.score_s / 2e-9 - 1.0).abs() < 0.2, "{}", noisy.score_s);
        assert!((0.005..0.05).contains(&noisy.fit_error), "{}", noisy.fit_error);
    }

    #[test]
    fn attention_that_was_timed_counts_and_what_its_own_rows_add_is_no_score_of_others() {
        // Scores among a chunk's own rows take half as much again; the layers' times are noisy, the clock's are not.
        let own_s = |n: f64| 1e-9 * n * (n + 1.0) / 2.0;
        let timed = |s: &Sample| {
            let own_s = own_s(s.tokens as f64);
            Sample { attention_s: Some(2e-9 * s.scores + own_s), layer_s: s.layer_s + own_s, ..*s }
        };
        let exact = fit(samples(0.0).iter().map(timed).collect()).unwrap();
        assert!((exact.score_s / 2e-9 - 1.0).abs() < 1e-6 && exact.fit_error < 1e-6, "{exact:?}");
        let want = 2e-4 + 512.0 * 3e-6 + own_s(512.0);
        assert!((exact.rest.at(512.0) / want - 1.0).abs() < 1e-3, "{}", exact.rest.at(512.0));
        let mut noisy: Vec<Sample> = samples(0.05).iter().map(timed).collect();
        let by_clock = fit(noisy.clone()).unwrap().score_s;
        assert!((by_clock / 2e-9 - 1.0).abs() < 1e-6, "{by_clock}");
        // One chunk without leaves the slope of the layers.
        noisy[0].attention_s = None;
        let by_layers = fit(noisy).unwrap().score_s;
        assert!((by_layers / 2e-9 - 1.0).abs() > 1e-3, "{by_layers}");
    }

    #[test]
    fn factors_make_whole_prefills_take_as_long_as_they_did() {
        let prefills = |products: f64, attention: f64| {
            [1.0, 2.0, 4.0, 8.0].map(|n: f64| [n, n * n / 10.0, products * n + attention * n * n / 10.0])
        };
        let (p, a) = factors(&prefills(0.2, 0.5)).unwrap();
        assert!((p - 0.2).abs() < 1e-9 && (a - 0.5).abs() < 1e-9, "{p} {a}");
        // One length, or times that only a negative rate would explain.
        let (p, a) = factors(&prefills(0.2, 0.5)[..1]).unwrap();
        assert!(p == a && (p * 1.1 - 0.25).abs() < 1e-9, "{p} {a}");
        let (p, a) = factors(&prefills(0.2, -0.05)).unwrap();
        assert!(p == a && p > 0.0, "{p} {a}");
        assert_eq!(factors(&[]), None);
        assert_eq!(factors(&[[1.0, 1.0, 0.0], [f64::NAN, 1.0, 1.0], [0.0, 0.0, 1.0]]), None);
    }

    #[test]
    fn samples_that_say_too_little_are_refused() {
        assert!(fit(Vec::new()).is_err());
        let one_prefix = samples(0.0).into_iter().filter(|s| s.prefix == 0).collect();
        assert!(fit(one_prefix).is_err());
        let mut negative = samples(0.0);
        negative[3].layer_s = -1.0;
        assert!(fit(negative).is_err());
    }
}
