//! The file of a study: models, adapters and networks on paper. `examples/study.toml` describes every key.

use std::path::Path;

use runahead::dtype::KvDtype;
use runahead::error::Error;
use runahead::runahead::cost::{CostModel, Lane, Rates, Shape};
use runahead::runahead::noise::Noise;
use runahead::runahead::schedule::{Mask, Mode};
use serde::Deserialize;

use crate::cli::failure::Failure;

/// More adapters than this are a slip of the pen.
const MOST_ADAPTERS: usize = 64;
/// Longer contexts, too.
const MOST_TOKENS: usize = 1 << 24;

/// A study as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    pub contexts: Vec<usize>,
    #[serde(default = "default_modes")]
    modes: Vec<String>,
    #[serde(default = "default_splits")]
    pub splits: Vec<StudySplit>,
    #[serde(default)]
    attention: Attention,
    #[serde(default)]
    kv: Kv,
    n_adapters: Option<Vec<usize>>,
    pub models: Vec<PaperModel>,
    adapters: Vec<PaperAdapter>,
    #[serde(default = "free_network")]
    pub networks: Vec<Network>,
}

/// How chains are cut.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum StudySplit {
    Even,
    Searched,
    Predicted,
}

impl StudySplit {
    pub const fn name(self) -> &'static str {
        match self {
            StudySplit::Even => "even",
            StudySplit::Searched => "searched",
            StudySplit::Predicted => "predicted",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Attention {
    #[default]
    Causal,
    Blocks,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kv {
    #[default]
    F16,
    F32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperModel {
    pub name: String,
    sizes: Option<Shape>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PaperAdapter {
    name: String,
    #[serde(default = "one")]
    count: usize,
    product_tflops: f64,
    attention_tflops: Option<f64>,
    #[serde(default)]
    half_speed_tokens: f64,
    memory_gb: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub name: String,
    bandwidth_gbs: Option<f64>,
    #[serde(default)]
    latency_us: f64,
    hub_gbs: Option<f64>,
    noise: Option<Weather>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weather {
    seed: u64,
    probability: f64,
    slowdown: f64,
    link: Option<usize>,
}

fn one() -> usize {
    1
}

fn default_modes() -> Vec<String> {
    Mode::ALL.map(|mode| mode.name().to_owned()).to_vec()
}

fn default_splits() -> Vec<StudySplit> {
    vec![StudySplit::Even, StudySplit::Searched]
}

fn free_network() -> Vec<Network> {
    vec![Network { name: "free".to_owned(), bandwidth_gbs: None, latency_us: 0.0, hub_gbs: None, noise: None }]
}

impl Study {
    /// Reads a study and checks every number in it.
    ///
    /// # Errors
    /// What is wrong, with the line where the file is no TOML.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::io(path, e))?;
        Self::parse(&text).map_err(|reason| Error::bad_file(path, reason).into())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let study: Self = toml::from_str(text).map_err(|e| e.to_string().trim().replace('\n', " "))?;
        study.check().map(|()| study)
    }

    fn check(&self) -> Result<(), String> {
        let lists = [
            ("contexts", self.contexts.is_empty()),
            ("modes", self.modes.is_empty()),
            ("splits", self.splits.is_empty()),
            ("models", self.models.is_empty()),
            ("networks", self.networks.is_empty()),
        ];
        if let Some((name, _)) = lists.into_iter().find(|(_, empty)| *empty) {
            return Err(format!("`{name}` is empty"));
        }
        if let Some(c) = self.contexts.iter().find(|c| !(1..=MOST_TOKENS).contains(c)) {
            return Err(format!("a context of {c} tokens, which is not in 1..={MOST_TOKENS}"));
        }
        let total = self.adapters.iter().map(|a| a.count.min(MOST_ADAPTERS + 1)).sum::<usize>();
        if !(1..=MOST_ADAPTERS).contains(&total) {
            return Err(format!("{total} adapters, which is not in 1..={MOST_ADAPTERS}"));
        }
        if let Some(n) = self.sizes().into_iter().find(|n| !(1..=total).contains(n)) {
            return Err(format!("`n_adapters` has {n}, but {total} adapters are listed"));
        }
        if let Some(a) = self.adapters.iter().find(|a| !(a.half_speed_tokens.is_finite() && a.half_speed_tokens >= 0.0))
        {
            return Err(format!("adapter {}: half_speed_tokens {}", a.name, a.half_speed_tokens));
        }
        self.modes().map_err(|e| e.to_string())?;
        for network in &self.networks {
            if let Some(link) = network.noise.and_then(|n| n.link).filter(|&link| link >= total) {
                return Err(format!("network {}: noise on link {link} of {total}", network.name));
            }
            for model in &self.models {
                let costs = self.shape(model).and_then(|shape| self.costs(&shape, network, total));
                costs.map_err(|e| format!("network {}: {e}", network.name))?;
            }
        }
        Ok(())
    }

    /// The modes, those first that others are compared with.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown name.
    pub fn modes(&self) -> runahead::Result<Vec<Mode>> {
        let mut modes = self.modes.iter().map(|name| name.parse::<Mode>()).collect::<runahead::Result<Vec<_>>>()?;
        let order = [Mode::Single, Mode::Tsp, Mode::TspCausal, Mode::Zigzag, Mode::Relay, Mode::Runahead];
        modes.sort_by_key(|&mode| order.iter().position(|&m| m == mode));
        modes.dedup();
        Ok(modes)
    }

    /// Numbers of adapters to compare.
    pub fn sizes(&self) -> Vec<usize> {
        self.n_adapters.clone().unwrap_or_else(|| vec![self.adapters.iter().map(|a| a.count).sum()])
    }

    /// A model's sizes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a name that nobody knows, [`Error::Config`] for sizes that make no sense.
    pub fn shape(&self, model: &PaperModel) -> runahead::Result<Shape> {
        let shape = model.sizes.clone().map_or_else(|| Shape::named(&model.name), Ok)?;
        shape.validate().map(|()| shape)
    }

    /// Costs of the first `n` adapters on a network.
    ///
    /// # Errors
    /// [`Error::Config`] for a number that makes no sense, zero bandwidth among them.
    pub fn costs(&self, shape: &Shape, network: &Network, n: usize) -> runahead::Result<CostModel> {
        let of = |(i, a): (usize, &PaperAdapter)| {
            let noise = network.noise.filter(|n| n.link.is_none_or(|link| link == i));
            let noise = noise.map(|Weather { seed, probability, slowdown, .. }| Noise { seed, probability, slowdown });
            let bandwidth = network.bandwidth_gbs.map(|g| g * 1e9);
            let lane = Lane { bandwidth, latency_s: network.latency_us * 1e-6, noise };
            let rates = Rates {
                name: format!("{} {i}", a.name),
                product_flops: a.product_tflops * 1e12,
                attention_flops: a.attention_tflops.unwrap_or(a.product_tflops) * 1e12,
                half_speed_tokens: a.half_speed_tokens,
                decode_s: None,
                down: lane,
                up: lane,
            };
            rates.costs(shape)
        };
        let adapters = self.each().take(n).enumerate().map(of).collect::<runahead::Result<Vec<_>>>()?;
        let costs = CostModel {
            adapters,
            kv_bytes: shape.kv_bytes(self.kv().scalar().bytes()),
            windows: shape.windows(),
            hub: network.hub_gbs.map(|g| g * 1e9),
        };
        costs.validate().map(|()| costs)
    }

    /// Memory of the adapters in bytes, where it is said.
    pub fn memory(&self) -> Vec<Option<f64>> {
        self.each().map(|a| a.memory_gb.map(|g| g * 1e9)).collect()
    }

    fn each(&self) -> impl Iterator<Item = &PaperAdapter> {
        self.adapters.iter().flat_map(|a| std::iter::repeat_n(a, a.count))
    }

    /// What attention of a mode computes; `None`: what the mode itself says.
    pub fn mask(&self, mode: Mode) -> Option<Mask> {
        (matches!(self.attention, Attention::Blocks) && mode.is_chain()).then_some(Mask::BlockThenMask)
    }

    /// Element type of keys and values.
    pub fn kv(&self) -> KvDtype {
        match self.kv {
            Kv::F16 => KvDtype::F16,
            Kv::F32 => KvDtype::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "contexts = [1024]\n[[models]]\nname = 'llama-7b'\n[[adapters]]\nname = 'a'\ncount = 2\nproduct_tflops = 100\n\
                        [[networks]]\nname = 'n'\nbandwidth_gbs = 10\n";

    #[test]
    fn faults_are_named() {
        Study::parse(GOOD).unwrap();
        let changes = [
            ("[1024]", "[]", "contexts"),
            ("[1024]", "[0]", "0 tokens"),
            ("llama-7b", "llama-8000b", "llama-8000b"),
            ("count = 2", "count = 1000", "adapters"),
            ("product_tflops = 100", "product_tflops = 0", "products at 0"),
            ("product_tflops = 100", "", "product_tflops"),
            ("bandwidth_gbs = 10", "bandwidth_gbs = 0", "bandwidth of 0"),
            ("bandwidth_gbs = 10", "bandwidth_gbs = -1", "bandwidth of -"),
            ("bandwidth_gbs = 10", "latency_us = nan", "latency"),
            ("bandwidth_gbs = 10", "bandwith = 10", "bandwith"),
            ("bandwidth_gbs = 10", "noise = { seed = 1, probability = 2, slowdown = 2 }", "probability of 2"),
            ("bandwidth_gbs = 10", "noise = { seed = 1, probability = 1, slowdown = 2, link = 2 }", "link 2 of 2"),
            ("contexts", "modes = ['ring']\ncontexts", "ring"),
            ("contexts", "n_adapters = [3]\ncontexts", "n_adapters"),
            ("name = 'llama-7b'", "name = 'x'\nsizes = { layers = 1 }", "hidden"),
        ];
        for (from, to, word) in changes {
            let error = Study::parse(&GOOD.replacen(from, to, 1)).expect_err(word);
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
