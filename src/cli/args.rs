//! The arguments as they are typed. What they mean together is checked where they are used.

use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::{Parser, Subcommand, ValueEnum};
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Gemm, Link, saved_tokens};
use runahead::runahead::partition::Split;

use super::bench::BenchArgs;
use super::calibrate::CalibrateArgs;
use super::experiment::ExperimentArgs;
use super::failure::Failure;
use super::plan::PlanArgs;
use super::planning;
use super::sampling::SamplingArgs;

/// Short time to first token: one prompt's prefill chained over several GPUs of any vendor, and the CPU.
#[derive(Debug, Parser)]
#[command(name = "runahead", version, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the adapters of this machine
    Devices(DevicesArgs),
    /// Try every adapter, and say what is missing on this machine
    Doctor,
    /// Fetch a model into the cache and print its path
    Pull(PullArgs),
    /// Answer a prompt
    Generate(GenerateArgs),
    /// Hold a conversation
    Chat(ChatArgs),
    /// Write the logits of every position of a prompt
    Logits(LogitsArgs),
    /// Measure how well a model foretells a text
    Perplexity(PerplexityArgs),
    /// Compare a chain of adapters with one adapter
    Verify(VerifyArgs),
    /// Measure the time to the first token and the rate of decoding
    Bench(BenchArgs),
    /// Measure adapters, and search the best cuts of prompts over them
    Calibrate(CalibrateArgs),
    /// Predict a prefill before anything runs
    Plan(PlanArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
pub struct DevicesArgs {
    /// A JSON array instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// `smollm2`, or ORG/REPO of the Hugging Face hub; ORG/REPO:FILE where it holds several GGUF files
    #[arg(value_name = "MODEL", default_value = "smollm2")]
    pub model: String,
}

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Take the text as it is, not through the model's chat template
    #[arg(long)]
    pub raw: bool,
    /// Tokens to generate at most
    #[arg(short, value_name = "N", default_value_t = 128)]
    pub n: usize,
    #[command(flatten)]
    pub session: SessionArgs,
    /// auto (whatever is expected to be fastest), single (the last adapter alone), runahead (a chain over all), relay, tsp, tsp-causal or zigzag
    #[arg(long, value_name = "MODE", value_parser = planning::Prefill::parse, default_value = "auto")]
    pub prefill: planning::Prefill,
    /// Tokens of each adapter: even, searched (on the costs), predicted (from the table of `calibrate`), or N0,N1,… in multiples of 16
    #[arg(long, value_name = "SPLIT", value_parser = planning::Cut::parse)]
    pub split: Option<planning::Cut>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Tell the log-probabilities of the N likeliest tokens at each place, in the JSON
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    pub logprobs: usize,
    /// One JSON object instead of the text
    #[arg(long)]
    pub json: bool,
    /// Write what happened when in the prefill, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Draw the same as an SVG
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
    #[command(flatten)]
    pub experiment: ExperimentArgs,
}

/// Arguments of `chat`.
#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Instructions that stand before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short, value_name = "N", default_value_t = 512)]
    pub n: usize,
    #[command(flatten)]
    pub session: SessionArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Arguments of `logits`.
#[derive(Debug, clap::Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub tokens: TokensArgs,
    /// Adapters of the chain, as in `generate`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<DeviceId>,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// A safetensors file, to hold `logits` [tokens, vocabulary] in f32
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Arguments of `perplexity`.
#[derive(Debug, clap::Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens of a window; those of its second half count
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = window)]
    pub window: usize,
    /// Adapters of the chain, as in `generate`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<DeviceId>,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// JSON instead of a line
    #[arg(long)]
    pub json: bool,
}

/// Two tokens at least: one that counts, and one before it.
fn window(text: &str) -> Result<usize, String> {
    let n: usize = text.parse().map_err(|e| format!("{e}"))?;
    if n < 2 { Err("2 tokens at least".to_owned()) } else { Ok(n) }
}

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt, taken as it is; a built-in text unless said here
    #[arg(short, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Adapters of the chain; compared with the first one alone. One GPU alone is compared with the CPU
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    pub devices: Vec<DeviceId>,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Which model.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// A GGUF file, or a folder in Hugging Face layout; what `pull smollm2` fetched unless said here
    #[arg(short, value_name = "PATH")]
    pub model: Option<PathBuf>,
}

/// What prompts and answers run on, and where they are kept.
#[derive(Debug, clap::Args)]
pub struct SessionArgs {
    /// Adapters in the order of the chain: indices of `devices`, or cpu; one named twice is opened twice.
    /// Every real GPU unless said here, else the CPU
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<DeviceId>,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Tokens that prompts and answers may take together; unless said here what they need in `generate`, 4096 in `chat`
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Go on with the session in this file, if it is there: what a prompt shares with it is not prefilled again; saved behind each answer
    #[arg(id = "session", long = "session", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

impl SessionArgs {
    /// The file, where it is there to go on with, and the number of its tokens.
    pub fn saved(&self) -> Result<(Option<&Path>, usize), Failure> {
        let path = self.file.as_deref().filter(|path| path.exists());
        Ok((path, path.map(saved_tokens).transpose()?.map_or(0, |tokens| tokens.len())))
    }
}

/// Which prompt.
#[derive(Debug, clap::Args)]
#[group(id = "prompt_source", required = true, multiple = false)]
pub struct PromptArgs {
    /// The prompt
    #[arg(short, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file that holds the prompt; - is stdin
    #[arg(short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Token ids: 1,2,3
    #[arg(long, value_name = "IDS")]
    pub tokens: Option<String>,
    /// A file of token ids, a JSON array or separated by commas or white space; - is stdin
    #[arg(long, value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,
}

/// Which token ids.
#[derive(Debug, clap::Args)]
#[group(id = "tokens_source", required = true, multiple = false)]
pub struct TokensArgs {
    /// Token ids: 1,2,3
    #[arg(long, value_name = "IDS")]
    pub tokens: Option<String>,
    /// A file of token ids, a JSON array or separated by commas or white space; - is stdin
    #[arg(long, value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,
}

/// How the prompt is cut.
#[derive(Debug, clap::Args)]
pub struct SplitArgs {
    /// Tokens of each adapter: even, or N0,N1,… in multiples of 16 (the last one takes the rest of a granule)
    #[arg(long, value_name = "SPLIT", value_parser = parse_split, default_value = "even")]
    pub split: Split,
}

/// What the cache holds.
#[derive(Debug, clap::Args)]
pub struct KvArgs {
    /// Element type of the K/V cache
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    pub kv: Kv,
}

/// How a model's adapters work, in every command that opens an engine.
#[derive(Debug, clap::Args)]
pub struct EngineArgs {
    #[command(flatten)]
    pub kv: KvArgs,
    /// How K/V rows pass between an adapter of a chain and host memory: copy (through its queue), dma (by itself, where its driver can),
    /// cuda (from device to device, between NVIDIA's, in a build with the feature cuda), or auto (cuda where it is there, else dma for adapters
    /// with a queue for copies beside the one that computes)
    #[arg(long, value_name = "LINK", value_parser = parse_link, default_value = "auto")]
    pub link: Link,
    #[command(flatten)]
    pub gemm: GemmArgs,
    /// Give GPUs work for 8 ms at a time instead of 30: their screens stay smooth, a long prompt takes a little longer
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub responsive: bool,
}

/// See [`KvDtype`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    F16,
    F32,
}

impl From<Kv> for KvDtype {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F16 => KvDtype::F16,
            Kv::F32 => KvDtype::F32,
        }
    }
}

/// Who computes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct GemmArgs {
    /// Who computes the products and attention of a prefill: wgsl, cublaslt (NVIDIA's, in a build with the feature cuda), or auto (cublaslt where
    /// it is there)
    #[arg(long, value_name = "WHO", value_parser = parse_gemm, default_value = "auto")]
    pub gemm: Gemm,
}

fn parse_gemm(name: &str) -> Result<Gemm, String> {
    name.parse().map_err(|error: runahead::Error| error.to_string())
}

fn parse_link(name: &str) -> Result<Link, String> {
    let names = Link::ALL.map(Link::name).join(", ");
    name.parse().map_err(|_| format!("no link is called `{name}`; there are {names}"))
}

/// Reads `even`, or lengths.
pub fn parse_split(text: &str) -> Result<Split, String> {
    if text == "even" {
        return Ok(Split::Even);
    }
    let length = |part: &str| part.trim().parse().map_err(|_| format!("`{part}` is no number of tokens"));
    text.split(',').map(length).collect::<Result<_, _>>().map(Split::Given)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_split_is_even_or_lengths() {
        assert_eq!(parse_split("even"), Ok(Split::Even));
        assert_eq!(parse_split("64, 32,4"), Ok(Split::Given(vec![64, 32, 4])));
        for text in ["", "odd", "64,", "64,-1", "64;32", "1e2"] {
            assert!(parse_split(text).is_err(), "{text}");
        }
    }
}
