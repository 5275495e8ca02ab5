//! The arguments of `bench`.

use std::path::PathBuf;

use clap::ValueEnum;
use runahead::engine::DeviceId;
use runahead::runahead::partition::Split;

use crate::cli::args::EngineArgs;
use crate::cli::experiment::ExperimentArgs;
use crate::cli::planning::{Cut, Prefill};
use crate::cli::source::ModelOrShape;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelOrShape,
    /// Lengths of the prompts to prefill, in tokens
    #[arg(short, value_name = "LIST", value_delimiter = ',', value_parser = parse_prompt, default_value = "512")]
    pub prompts: Vec<usize>,
    /// No prefill: decode only
    #[arg(long, conflicts_with = "prompts")]
    pub no_prefill: bool,
    /// Tokens to decode; 0 for none
    #[arg(short, value_name = "LIST", value_delimiter = ',', default_value = "128")]
    pub n: Vec<usize>,
    /// Tokens that stand in the cache before
    #[arg(short, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Repetitions of each case, after one to warm up
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), default_value_t = 5)]
    pub repetitions: u32,
    /// Adapters in the order of the chain, as in `generate`; the last one decodes
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<DeviceId>,
    /// Ways to prefill, compared side by side: single (each adapter alone), runahead, relay, tsp, tsp-causal, zigzag,
    /// and auto (whatever is expected to be fastest). With several adapters single,runahead unless said here, else single.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = Prefill::parse)]
    pub prefill: Vec<Prefill>,
    /// The steps from one adapter to a balanced chain: each adapter alone; even pieces with a collective (tsp-causal);
    /// even pieces handed on (what the transport gives); the pieces of --split, searched unless said here, handed on
    /// (what balance gives)
    #[arg(long, conflicts_with_all = ["prefill", "no_prefill"])]
    pub matrix: bool,
    /// How chains are cut: even, searched (on measured prefills, in this run), predicted (from the cuts searched for the
    /// other lengths of this run, else from the table of `calibrate`), several of them, as even,searched, or N0,N1,… in
    /// multiples of 16. Of several relay takes the first, runahead each. Collectives have even pieces
    #[arg(long, value_name = "SPLIT", value_parser = CutList::parse)]
    pub split: Option<CutList>,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Draw the time to the first token over the prompt length, a line for each way to prefill
    #[arg(long, value_name = "FILE.svg", conflicts_with = "no_prefill")]
    pub plot: Option<PathBuf>,
    /// Measure single kernels of a GPU (the first of --devices), at the shapes of Llama-2-7B, beside what the device can do at
    /// most; FILTER is a part of an operation and its shape, as in "product F16"
    #[arg(long, value_name = "FILTER", num_args = 0..=1, default_missing_value = "")]
    pub kernels: Option<String>,
    /// Form of the results
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t = Output::Md)]
    pub output: Output,
    #[command(flatten)]
    pub experiment: ExperimentArgs,
}

impl BenchArgs {
    /// How chains are cut.
    pub fn cuts(&self) -> Vec<Cut> {
        let default = if self.matrix { Cut::Searched } else { Cut::Fixed(Split::Even) };
        self.split.as_ref().map_or_else(|| vec![default], |list| list.0.clone())
    }
}

/// See [`Cut::parse_list`]; to clap one value.
#[derive(Clone, Debug)]
pub struct CutList(Vec<Cut>);

impl CutList {
    fn parse(text: &str) -> Result<Self, String> {
        Cut::parse_list(text).map(Self)
    }
}

/// Forms of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table in Markdown
    Md,
    /// A line per case behind a line of names
    Csv,
    /// One array
    Json,
    /// An object per line
    Jsonl,
}

fn parse_prompt(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("a prompt has one token at least; --no-prefill leaves the prefill out".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("`{text}` is no number of tokens")),
    }
}
