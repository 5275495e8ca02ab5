//! What is measured: one run of `runahead bench` for each unit, and a file of its own for what it gave.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A network between the adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// As fast as the machine is.
    Own,
    /// 10 GB/s for each adapter, in each direction.
    Slow,
    /// The same, where a fifth of the transfers of the first adapter's link takes five times as long.
    Noisy,
}

impl Network {
    /// The name in files and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Network::Own => "own",
            Network::Slow => "slow",
            Network::Noisy => "noisy",
        }
    }

    /// What it is to the reader.
    pub const fn text(self) -> &'static str {
        match self {
            Network::Own => "the machine's own links",
            Network::Slow => "10 GB/s",
            Network::Noisy => "10 GB/s, one noisy link",
        }
    }

    /// Options of `runahead bench`.
    pub const fn options(self) -> &'static [&'static str] {
        match self {
            Network::Own => &[],
            Network::Slow => &["--link-bandwidth", "10GB/s"],
            Network::Noisy => &["--link-bandwidth", "10GB/s", "--link-noise", "7:0.2:5:0"],
        }
    }
}

/// One run of `runahead bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    pub shape: String,
    /// Number of adapters.
    pub n: usize,
    /// The host link; `None`: the binary's own choice.
    pub link: Option<String>,
    pub network: Network,
    /// Lengths of the prompts.
    pub prompts: Vec<usize>,
}

impl Unit {
    /// Where its result is kept.
    pub fn file(&self, folder: &Path) -> PathBuf {
        let Self { shape, n, link, network, prompts } = self;
        let link = link.as_deref().unwrap_or("default");
        let longest = prompts.iter().max().copied().unwrap_or(0);
        folder.join(format!("{shape}-{n}-{link}-{}-{longest}.json", network.name()))
    }

    /// The ways to prefill, and the cuts of the chain. One adapter alone is measured once, as a unit of one. A single length has no others to be predicted
    /// from, unless there is a table.
    pub fn ways(&self, table: bool) -> [&'static str; 4] {
        let cuts = if self.prompts.len() > 1 || table { "even,searched,predicted" } else { "even,searched" };
        let modes = "tsp,tsp-causal,zigzag,relay,runahead";
        if self.n == 1 { ["--prefill", "single", "--split", "even"] } else { ["--prefill", modes, "--split", cuts] }
    }
}

/// What a unit gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub unit: Unit,
    /// Names of the adapters.
    pub devices: Vec<String>,
    /// The rows of `runahead bench -o jsonl`.
    pub rows: Vec<serde_json::Value>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
}

/// What there is to choose from.
pub struct Choice {
    pub shapes: Vec<String>,
    pub counts: Vec<usize>,
    pub links: Vec<Option<String>>,
    pub networks: Vec<Network>,
    pub prompts: Vec<usize>,
    /// Prompts longer than this get units of their own, which come last: each takes minutes.
    pub long: usize,
}

impl Choice {
    /// All units, what matters most first.
    pub fn units(&self) -> Vec<Unit> {
        let short: Vec<usize> = self.prompts.iter().copied().filter(|&p| p <= self.long).collect();
        let long = self.prompts.iter().copied().filter(|&p| p > self.long).map(|p| vec![p]);
        let mut units = Vec::new();
        for prompts in [short].into_iter().chain(long).filter(|p| !p.is_empty()) {
            for &network in &self.networks {
                for link in &self.links {
                    for shape in &self.shapes {
                        for &n in &self.counts {
                            // One adapter alone has no link.
                            if n > 1 || (network == self.networks[0] && link == &self.links[0]) {
                                let (shape, link, prompts) = (shape.clone(), link.clone(), prompts.clone());
                                units.push(Unit { shape, n, link, network, prompts });
                            }
                        }
                    }
                }
            }
        }
        units
    }
}
