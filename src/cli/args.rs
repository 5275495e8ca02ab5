//! Arguments that several commands share, as they are typed. What they mean together is checked where they are used.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use runahead::dtype::KvDtype;
use runahead::engine::{DeviceId, Gemm, Link, saved_tokens};
use runahead::runahead::partition::Split;

use super::failure::Failure;
use super::new_file::NewFile;

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
    /// The file, where it is there to go on with, and its tokens. One that could not be written is refused before any work.
    pub fn saved(&self) -> Result<(Option<&Path>, Vec<u32>), Failure> {
        NewFile::begin_if(self.file.as_ref())?;
        let path = self.file.as_deref().filter(|path| path.exists());
        Ok((path, path.map(saved_tokens).transpose()?.unwrap_or_default()))
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

/// A chain that takes whole prompts, and how it works.
#[derive(Debug, clap::Args)]
pub struct ChainArgs {
    /// Adapters of the chain, as in `generate`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<DeviceId>,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
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
    /// with a queue for copies beside the one that computes). Weights are fetched by the adapter itself unless this is copy
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
    use super::*;

    #[test]
    fn a_split_is_even_or_lengths() {
        assert_eq!(parse_split("even"), Ok(Split::Even));
        assert_eq!(parse_split("64, 32,4"), Ok(Split::Given(vec![64, 32, 4])));
        for text in ["", "odd", "64,", "64,-1", "64;32", "1e2"] {
            assert!(parse_split(text).is_err(), "{text}");
        }
    }
}
