//! A noisy link: seeded, so that every mode meets the same weather, predicted and measured.

use serde::{Deserialize, Serialize};

/// Some transfers are slow, as when others use the network for a while.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// Another seed is another weather.
    pub seed: u64,
    /// The share of transfers that are slow, 0 to 1.
    pub probability: f64,
    /// How many times as long a slow transfer takes.
    pub slowdown: f64,
}

impl Noise {
    /// What a transfer's time is multiplied by: a pure function of the link (an adapter's number), the layer and the piece.
    pub fn factor(&self, link: usize, layer: usize, piece: usize) -> f64 {
        let key = [link, layer, piece].iter().fold(self.seed, |key, &part| mixed(key ^ mixed(part as u64)));
        // The upper 53 bits are a uniform number in 0..1.
        let uniform = (key >> 11) as f64 / (1u64 << 53) as f64;
        if uniform < self.probability { self.slowdown } else { 1.0 }
    }

    /// Why these numbers make no sense, if they do not.
    pub fn fault(&self) -> Option<String> {
        let Noise { probability, slowdown, .. } = *self;
        if !(0.0..=1.0).contains(&probability) {
            return Some(format!("noise with a probability of {probability}, which is not in 0..=1"));
        }
        (!(slowdown.is_finite() && slowdown >= 1.0)).then(|| format!("noise with a slowdown of {slowdown}, below 1"))
    }
}

/// Steele, Lea and Flood's SplitMix64 step: every bit of the input moves every bit of the output.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_transfers_are_slow_as_asked_for_and_the_same_ones_each_time() {
        let noise = Noise { seed: 7, probability: 0.25, slowdown: 3.0 };
        let factors = |n: Noise| -> Vec<f64> { (0..4000).map(|i| n.factor(i % 8, i / 8 % 32, i / 256)).collect() };
        let slow = factors(noise).iter().filter(|&&f| f == 3.0).count();
        assert!((900..1100).contains(&slow), "{slow}");
        assert_eq!(factors(noise), factors(noise));
        assert_ne!(factors(noise), factors(Noise { seed: 8, ..noise }));
        assert!(factors(Noise { probability: 0.0, ..noise }).iter().all(|&f| f == 1.0));
    }

    #[test]
    fn nonsense_is_named() {
        let good = Noise { seed: 0, probability: 1.0, slowdown: 1.0 };
        assert_eq!(good.fault(), None);
        for (probability, slowdown) in [(-0.1, 2.0), (1.1, 2.0), (f64::NAN, 2.0), (0.5, 0.5), (0.5, f64::INFINITY)] {
            assert!(Noise { probability, slowdown, ..good }.fault().is_some());
        }
    }
}
