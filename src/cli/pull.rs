//! `runahead pull`: fetches a model into the cache and prints its path, the only line on stdout.
//!
//! Downloads are resumed where they were cut, in the same run and in the next; a file appears under its name only once it is whole and its hash, where one
//! is known, is right. One process pulls at a time. Nothing is ever removed from the cache but unfinished downloads.

pub mod cache;
mod download;
mod http;
mod hub;
mod smollm2;

use runahead::cancel::Cancel;

use super::failure::Failure;
use super::output;

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// `smollm2`, or ORG/REPO of the Hugging Face hub; ORG/REPO:FILE where it holds several GGUF files
    #[arg(value_name = "MODEL", default_value = "smollm2")]
    pub model: String,
}

/// Runs the command.
pub fn run(args: &PullArgs, cancel: &Cancel) -> Result<(), Failure> {
    let source = Source::parse(&args.model)?;
    let cache = cache::Cache::find()?;
    let path = match &source {
        Source::SmolLm2 => smollm2::pull(&cache, cancel)?,
        Source::Hub(repo) => hub::pull(&cache, repo, cancel)?,
    };
    output::line(&path.to_string_lossy())
}

/// Where SmolLM2 is once it was pulled.
pub fn smollm2_path() -> Result<std::path::PathBuf, Failure> {
    Ok(smollm2::path(&cache::Cache::find()?))
}

/// What to fetch.
enum Source {
    SmolLm2,
    Hub(hub::Repo),
}

impl Source {
    fn parse(name: &str) -> Result<Self, Failure> {
        if name == "smollm2" { Ok(Self::SmolLm2) } else { hub::Repo::parse(name).map(Self::Hub) }
    }
}
