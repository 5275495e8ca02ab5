//! The whole command line: every command by its name. Its arguments stand in the command's own module.

use clap::{Parser, Subcommand};

use super::bench::BenchArgs;
use super::calibrate::CalibrateArgs;
use super::chat::ChatArgs;
use super::devices::DevicesArgs;
use super::generate::GenerateArgs;
use super::logits::LogitsArgs;
use super::perplexity::PerplexityArgs;
use super::plan::PlanArgs;
use super::pull::PullArgs;
use super::verify::VerifyArgs;

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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Args::command().debug_assert();
    }
}
