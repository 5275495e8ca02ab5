//! The command `runahead`: arguments in, text or JSON out. All the work is the library's.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
