//! The command line: parses, dispatches, and turns every outcome into one exit code.
//!
//! Exit codes: 0 done (a closed pipe on stdout included), 1 run-time error, 2 usage, 130 interrupted. Errors are one line on stderr, but for wrong arguments. Results go to
//! stdout, everything else to stderr; progress bars appear only where stderr is a terminal.

mod args;
mod bench;
mod calibrate;
mod chat;
mod commands;
mod devices;
mod doctor;
mod environment;
mod experiment;
mod failure;
mod generate;
mod input;
mod interrupt;
mod logits;
mod new_file;
mod open;
mod output;
mod perplexity;
mod picture;
mod plan;
mod planning;
mod progress;
mod pull;
mod sampling;
mod share;
mod source;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use runahead::error::Error;

use commands::{Args, Command};
use failure::Failure;
use interrupt::Interrupt;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let command = environment::with_defaults(Args::command(), |name| std::env::var(name).ok());
    let args = match command.try_get_matches().and_then(|m| Args::from_arg_matches(&m)) {
        Ok(args) => args,
        Err(error) => {
            // Help and version are "errors" of clap's that go to stdout and succeed. A failed print is a closed pipe: nothing is left to say.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Failure::USAGE } else { 0 });
        }
    };
    let interrupt = match interrupt::install() {
        Ok(interrupt) => interrupt,
        Err(failure) => return end(&failure),
    };
    match run(args, &interrupt) {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        // Whatever an interrupted run stumbled over, the reason is the interrupt.
        Err(_) if interrupt.cancel.is_cancelled() => end(&Failure::Library(Error::Cancelled)),
        Err(failure) => end(&failure),
    }
}

fn run(args: Args, interrupt: &Interrupt) -> Result<(), Failure> {
    let cancel = &interrupt.cancel;
    match args.command {
        Command::Devices(args) => devices::run(&args),
        Command::Pull(args) => pull::run(&args, cancel),
        Command::Generate(args) => generate::run(&args, interrupt),
        Command::Doctor => doctor::run(cancel),
        Command::Completions(args) => completions(args.shell),
        Command::Chat(args) => chat::run(&args, interrupt),
        Command::Logits(args) => logits::run(&args, cancel),
        Command::Perplexity(args) => perplexity::run(&args, cancel),
        Command::Verify(args) => verify::run(&args, cancel),
        Command::Bench(args) => bench::run(&args, cancel),
        Command::Calibrate(args) => calibrate::run(&args, cancel),
        Command::Plan(args) => plan::run(&args),
    }
}

/// The script that tells a shell our commands and arguments.
fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "runahead", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

fn end(failure: &Failure) -> ExitCode {
    output::note(&format!("error: {failure}"));
    ExitCode::from(failure.exit_code())
}
