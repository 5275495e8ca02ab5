//! The arguments of `plan`.

use std::path::PathBuf;

use runahead::engine::DeviceId;

use crate::cli::args::{GemmArgs, KvArgs};
use crate::cli::planning::{Cut, Prefill};
use crate::cli::source::ModelOrShape;

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelOrShape,
    /// Length of the prompt in tokens
    #[arg(short = 'p', value_name = "TOKENS")]
    pub n_prompt: Option<usize>,
    /// Adapters in the order of the chain, as in `generate`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<DeviceId>,
    /// auto, single, runahead, relay, tsp, tsp-causal or zigzag
    #[arg(long, value_name = "MODE", value_parser = Prefill::parse, default_value = "auto")]
    pub prefill: Prefill,
    /// Tokens of each adapter: even, searched, predicted, or N0,N1,… in multiples of 16
    #[arg(long, value_name = "SPLIT", value_parser = Cut::parse)]
    pub split: Option<Cut>,
    #[command(flatten)]
    pub kv: KvArgs,
    #[command(flatten)]
    pub gemm: GemmArgs,
    /// Models, adapters and links on paper instead: a TOML file, described in examples/study.toml
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "synthetic", "n_prompt", "devices", "split", "prefill"])]
    pub simulate: Option<PathBuf>,
    /// Draw the study's times to the first token over the prompt length, a plot for each model, network and number of adapters
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}
