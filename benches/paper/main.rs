//! The table of the KV-Runahead paper on the GPUs of this machine: shapes, prompt lengths, ways to prefill, links and networks on 1, 2, 4 and 8 adapters.
//!
//! `cargo bench --bench paper -- [OPTIONS]`, or the built program with `--bench` and `--runahead PATH`. Drives `runahead bench`, one run for each unit, and
//! writes what it gave as JSON at once. A call ends after `--minutes`; the next one goes on where it stopped. What does not fit into memory, and links that
//! the binary refuses, are skipped with a word. Then tables and plots are made of all results in the folder.
//!
//! Without `--bench` it checks itself: the same on two logical adapters of the CPU with a tiny shape.

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;

mod check;
#[path = "../../src/cli/picture/panels.rs"]
mod panels;
mod report;
mod run;
mod units;

use units::{Choice, Network};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// What to measure.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// Measure; cargo bench sets it
    #[arg(long, hide = true)]
    bench: bool,
    /// The binary
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_runahead"))]
    runahead: PathBuf,
    /// Adapters, of which the first 1, 2, … are taken; every discrete GPU unless said here
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    devices: Vec<String>,
    /// Numbers of adapters
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,4,8")]
    counts: Vec<usize>,
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "llama-2-7b,falcon-7b")]
    shapes: Vec<String>,
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    weights: String,
    #[arg(
        short = 'p',
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1024,2048,4096,8192,12288,16384,65536"
    )]
    prompts: Vec<usize>,
    /// Longer prompts are measured last, each in a run of its own
    #[arg(long, value_name = "TOKENS", default_value_t = 16_384)]
    long: usize,
    /// Host links, as `runahead bench --link` knows them; `default` is the binary's own choice
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "default")]
    links: Vec<String>,
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',', default_value = "own,slow,noisy")]
    networks: Vec<Network>,
    /// Repetitions of each case, after one to warm up
    #[arg(short, value_name = "N", default_value_t = 2)]
    repetitions: u32,
    /// No unit is begun after this, and one that is under way is given up and measured another time
    #[arg(long, value_name = "MINUTES", default_value_t = 9.0)]
    minutes: f64,
    /// The folder of the results, for one machine each
    #[arg(long, value_name = "FOLDER", default_value = "benches/results")]
    out: PathBuf,
    /// Measure nothing: make tables and plots of what is there
    #[arg(long)]
    report: bool,
    /// Further options of `runahead bench`, behind --
    #[arg(last = true)]
    more: Vec<String>,
}

impl Args {
    fn choice(&self) -> Choice {
        let link = |name: &String| (name != "default").then(|| name.clone());
        Choice {
            shapes: self.shapes.clone(),
            counts: self.counts.clone(),
            links: self.links.iter().map(link).collect(),
            networks: self.networks.clone(),
            prompts: self.prompts.clone(),
            long: self.long,
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !args.bench {
        return check::run();
    }
    if !args.report {
        run::all(&args)?;
    }
    report::write(&args.out)
}
