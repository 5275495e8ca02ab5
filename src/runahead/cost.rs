//! What a layer costs on each adapter, and what moving its rows costs: times as functions of token counts.
//!
//! Per adapter: `qkv(n)` and `rest(n)`, the products of the two halves of a layer, monotone and piecewise linear over timed lengths (a short
//! product is less efficient); attention, proportional to the number of scores; and its two ways to and from host memory. Pure: timed chunks
//! come in as [`Sample`]s, nothing is measured here.

use serde::{Deserialize, Serialize};

use crate::dims::round_up;
use crate::error::{Error, Result};
use crate::runahead::noise::Noise;

mod estimate;
mod fit;
mod shape;

pub use estimate::typical;
pub use fit::{Fit, Sample, factors};
pub use shape::{Rates, Shape};

/// Calibrations fit what they have timed within 3 to 6 % on GPUs; an estimate by kind of adapter says 25 % of itself.
const MEASURED_FIT: f64 = 0.15;

/// Seconds over a number of tokens, piecewise linear and never falling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(f64, f64)>", into = "Vec<(f64, f64)>")]
pub struct Curve {
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// Through these points (tokens, seconds), ascending in tokens; a point below its predecessor is lifted to it, since more tokens never take
    /// less time but a measurement may say so.
    ///
    /// # Errors
    /// [`Error::Config`] without points, where tokens do not ascend, or where a time is negative or no number.
    pub fn new(points: impl IntoIterator<Item = (f64, f64)>) -> Result<Self> {
        let mut points: Vec<(f64, f64)> = points.into_iter().collect();
        let finite = points.iter().all(|&(n, s)| n.is_finite() && s.is_finite() && n >= 0.0 && s >= 0.0);
        if points.is_empty() || !finite || points.windows(2).any(|w| w[1].0 <= w[0].0) {
            return Err(Error::Config(format!("a cost curve through {points:?}")));
        }
        for i in 1..points.len() {
            points[i].1 = points[i].1.max(points[i - 1].1);
        }
        Ok(Self { points })
    }

    /// The same with every time multiplied.
    ///
    /// # Errors
    /// As [`Curve::new`].
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        Self::new(self.points.iter().map(|&(tokens, seconds)| (tokens, seconds * factor)))
    }

    /// Seconds for `tokens`. None cost nothing; fewer than were timed cost as much as the fewest timed (a tile is computed whole); more go on
    /// at the slope of the upper half, and one point alone is taken as a rate.
    pub fn at(&self, tokens: f64) -> f64 {
        let points = &self.points;
        let first = points[0];
        if tokens <= 0.0 {
            return 0.0;
        }
        if tokens <= first.0 {
            return first.1;
        }
        if points.len() == 1 {
            return first.1 * tokens / first.0.max(1.0);
        }
        let right = points.partition_point(|p| p.0 < tokens);
        let last = points.len() - 1;
        // Between two neighbours the slope is that of one step or none.
        let left = if right > last { points[..last].partition_point(|p| p.0 <= points[last].0 / 2.0) } else { right };
        let (a, b) = (points[left.max(1) - 1], points[right.min(last)]);
        a.1 + (b.1 - a.1) * (tokens - a.0) / (b.0 - a.0)
    }
}

impl TryFrom<Vec<(f64, f64)>> for Curve {
    type Error = Error;

    fn try_from(points: Vec<(f64, f64)>) -> Result<Self> {
        Self::new(points)
    }
}

impl From<Curve> for Vec<(f64, f64)> {
    fn from(curve: Curve) -> Self {
        curve.points
    }
}

/// One direction between an adapter and host memory. The default is free of cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lane {
    /// Bytes per second; `None`: transfers take no time beyond the latency.
    pub bandwidth: Option<f64>,
    /// Seconds that every transfer takes beside its bytes.
    pub latency_s: f64,
    /// Its weather.
    pub noise: Option<Noise>,
}

impl Lane {
    /// Seconds for `bytes` without noise.
    pub fn seconds(&self, bytes: f64) -> f64 {
        self.latency_s + self.bandwidth.map_or(0.0, |b| bytes / b)
    }

    /// Why these numbers make no sense, if they do not.
    pub fn fault(&self) -> Option<String> {
        if let Some(b) = self.bandwidth.filter(|b| !(b.is_finite() && *b > 0.0)) {
            return Some(format!("a bandwidth of {b} bytes per second"));
        }
        if !(self.latency_s.is_finite() && self.latency_s >= 0.0) {
            return Some(format!("a latency of {} s", self.latency_s));
        }
        self.noise.and_then(|n| n.fault())
    }
}

/// One adapter's costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterCost {
    /// Its name.
    pub name: String,
    /// First half of a layer: norm, QKV product, rotation.
    pub qkv: Curve,
    /// Second half without attention: output product and MLP.
    pub rest: Curve,
    /// Attention: seconds per score, all heads of a layer together.
    pub score_s: f64,
    /// Last norm and output head of one row.
    pub head_s: f64,
    /// Seconds for one token of decode, where known.
    pub decode_s: Option<f64>,
    /// From the device to host memory.
    pub down: Lane,
    /// From host memory to the device.
    pub up: Lane,
    /// Where copies run on the device's one queue: the time that they keep it from computing. `None`: beside the work.
    pub queue: Option<Lane>,
    /// Root mean square of the relative errors of the fit; 0 for given rates.
    pub fit_error: f64,
    /// Rows of the tiles of its products, of which one that is not full takes as long as a full one.
    #[serde(default = "one_row")]
    pub tile_rows: usize,
    /// How its tiles were chosen when this was timed ([`Kernels::busy_workgroups`](crate::kernels::Kernels::busy_workgroups)), where that was found
    /// by measurement.
    #[serde(default)]
    pub busy_workgroups: Option<usize>,
}

impl AdapterCost {
    /// Seconds of a layer for `n` tokens with so many scores, everything at hand.
    pub fn layer_s(&self, n: f64, scores: f64) -> f64 {
        self.qkv.at(n) + self.rest.at(n) + self.score_s * scores
    }

    /// Rows that products of `n` rows take as long as: whole tiles, where there are several.
    pub fn whole_tiles(&self, n: usize) -> usize {
        if n > self.tile_rows { round_up(n, self.tile_rows.max(1)) } else { n }
    }

    /// The same adapter with every time of its work multiplied; its ways to and from host memory stay as they are.
    ///
    /// # Errors
    /// [`Error::Config`] for times beyond all numbers.
    pub fn slower(&self, factor: f64) -> Result<Self> {
        let decode_s = self.decode_s.map(|s| s * factor);
        Ok(Self { decode_s, ..self.scaled(factor, factor)? })
    }

    /// The same adapter with the times of its products and of its attention multiplied.
    ///
    /// # Errors
    /// As [`slower`](Self::slower).
    pub fn scaled(&self, products: f64, attention: f64) -> Result<Self> {
        Ok(Self {
            qkv: self.qkv.scaled(products)?,
            rest: self.rest.scaled(products)?,
            score_s: self.score_s * attention,
            head_s: self.head_s * products,
            ..self.clone()
        })
    }

    fn fault(&self) -> Option<String> {
        let times = [("score", self.score_s), ("head", self.head_s), ("decode step", self.decode_s.unwrap_or(0.0))];
        if let Some((what, s)) = times.into_iter().find(|(_, s)| !(s.is_finite() && *s >= 0.0)) {
            return Some(format!("{s} s for a {what}"));
        }
        if !(1..=MAX_TILE_ROWS).contains(&self.tile_rows) {
            return Some(format!("tiles of {} rows", self.tile_rows));
        }
        self.down.fault().or_else(|| self.up.fault()).or_else(|| self.queue.and_then(|q| q.fault()))
    }
}

/// Far more than any kernel's.
const MAX_TILE_ROWS: usize = 1 << 16;

const fn one_row() -> usize {
    1
}

/// The costs of a set of adapters for one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostModel {
    /// Per adapter, in the order of the chain.
    pub adapters: Vec<AdapterCost>,
    /// Bytes of one token's K and V rows in one layer.
    pub kv_bytes: f64,
    /// Per layer of the model: the keys that a row sees at most. Empty: all keys in all layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Option<usize>>,
    /// Bytes per second that host memory carries for all adapters together; `None`: as many as they bring.
    pub hub: Option<f64>,
}

impl CostModel {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Config`] names the adapter and the number.
    pub fn validate(&self) -> Result<()> {
        if self.adapters.is_empty() || !(self.kv_bytes.is_finite() && self.kv_bytes >= 0.0) {
            let n = self.adapters.len();
            return Err(Error::Config(format!("costs of {n} adapters, {} bytes of K and V a token", self.kv_bytes)));
        }
        if let Some(hub) = self.hub.filter(|b| !(b.is_finite() && *b > 0.0)) {
            return Err(Error::Config(format!("host memory with a bandwidth of {hub} bytes per second")));
        }
        match self.adapters.iter().find_map(|a| a.fault().map(|fault| (&a.name, fault))) {
            Some((name, fault)) => Err(Error::Config(format!("adapter {name}: {fault}"))),
            None => Ok(()),
        }
    }

    /// Seconds of a layer on an adapter for `n` tokens behind `prefix` others, everything at hand; the mean over the model's layers.
    pub fn layer_s(&self, adapter: usize, prefix: f64, n: f64) -> f64 {
        self.adapters[adapter].layer_s(n, mean_scores(&self.windows, prefix, n))
    }

    /// The costs of the last `n` adapters: those that take part where a prompt has few pieces.
    pub fn last(&self, n: usize) -> Self {
        let all = self.adapters.len();
        self.pick(&(all - n.min(all)..all).collect::<Vec<_>>())
    }

    /// Whether these are measured costs: they fit what was timed, which estimates do not claim.
    pub fn is_measured(&self) -> bool {
        self.adapters.iter().all(|adapter| adapter.fit_error <= MEASURED_FIT)
    }

    /// Rows of the tiles of the last `n` adapters' products.
    pub fn tiles(&self, n: usize) -> Vec<usize> {
        self.last(n).adapters.iter().map(|adapter| adapter.tile_rows).collect()
    }

    /// The costs of these adapters alone, in this order.
    pub fn pick(&self, order: &[usize]) -> Self {
        Self { adapters: order.iter().map(|&i| self.adapters[i].clone()).collect(), ..self.clone() }
    }
}

/// Scores of `n` tokens behind `prefix` others in a layer, the mean over layers with these windows.
pub fn mean_scores(windows: &[Option<usize>], prefix: f64, n: f64) -> f64 {
    let all = n * (prefix + (n + 1.0) / 2.0);
    let scores = |window: &Option<usize>| {
        let Some(window) = window.map(|w| w as f64) else { return all };
        let growing = (window - prefix).clamp(0.0, n);
        growing * (prefix + (growing + 1.0) / 2.0) + (n - growing) * window
    };
    if windows.is_empty() { all } else { windows.iter().map(scores).sum::<f64>() / windows.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_through_its_points_and_never_falls() {
        let curve = Curve::new([(16.0, 1.0), (32.0, 1.5), (64.0, 1.25), (128.0, 3.5)]).unwrap();
        assert_eq!(
            [0.0, 1.0, 16.0, 24.0, 32.0, 64.0, 128.0].map(|n| curve.at(n)),
            [0.0, 1.0, 1.0, 1.25, 1.5, 1.5, 3.5]
        );
        assert_eq!(curve.at(192.0), 5.5);
        // Steps: what comes after the last one goes on as the upper half went, not as the last step or the flat before it.
        let stairs = Curve::new((1..=8).map(|n| (128.0 * f64::from(n), f64::from((n + 1) / 2)))).unwrap();
        assert_eq!([896.0, 1024.0, 2048.0].map(|n| stairs.at(n)), [4.0, 4.0, 8.0]);
        let mut last = 0.0;
        for n in 0..400 {
            assert!(curve.at(f64::from(n)) >= last);
            last = curve.at(f64::from(n));
        }
        assert_eq!(Curve::new([(16.0, 1.0)]).unwrap().at(32.0), 2.0);
        for wrong in [vec![], vec![(1.0, -1.0)], vec![(2.0, 1.0), (2.0, 1.0)], vec![(1.0, f64::NAN)]] {
            assert!(Curve::new(wrong).is_err());
        }
    }
}
