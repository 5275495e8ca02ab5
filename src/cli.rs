//! The command line: parses, dispatches, and turns every outcome into one exit code.
//!
//! Exit codes: 0 done (a closed pipe on stdout included), 1 run-time error, 2 usage, 130 interrupted. Errors are one line on stderr. Results go to
//! stdout, everything else to stderr; progress bars appear only where stderr is a terminal.

mod args;
mod bench;
mod devices;
mod failure;
mod generate;
mod input;
mod interrupt;
mod logits;
mod open;
mod output;
mod progress;
mod pull;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use runahead::cancel::Cancel;
use runahead::error::Error;

use args::{Args, Command};
use failure::Failure;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are "errors" of clap's that go to stdout and succeed. A failed print is a closed pipe: nothing is left to say.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Failure::USAGE } else { 0 });
        }
    };
    let cancel = match interrupt::install() {
        Ok(cancel) => cancel,
        Err(failure) => return end(&failure),
    };
    match run(args, &cancel) {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        // Whatever an interrupted run stumbled over, the reason is the interrupt.
        Err(_) if cancel.is_cancelled() => end(&Failure::Library(Error::Cancelled)),
        Err(failure) => end(&failure),
    }
}

fn run(args: Args, cancel: &Cancel) -> Result<(), Failure> {
    match args.command {
        Command::Devices(args) => devices::run(&args),
        Command::Pull(args) => pull::run(&args, cancel),
        Command::Generate(args) => generate::run(&args, cancel),
        Command::Logits(args) => logits::run(&args, cancel),
        Command::Verify(args) => verify::run(&args, cancel),
        Command::Bench(args) => bench::run(&args, cancel),
    }
}

fn end(failure: &Failure) -> ExitCode {
    output::note(&format!("error: {failure}"));
    ExitCode::from(failure.exit_code())
}
