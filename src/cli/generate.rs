//! `runahead generate`: answers a prompt.
//!
//! The text goes to stdout as it comes, and a summary to stderr; with `--json`, one object goes to stdout at the end. A model without a tokenizer
//! answers in token ids.

use std::sync::Arc;
use std::time::{Duration, Instant};

use runahead::cancel::Cancel;
use runahead::engine::{DeviceId, Engine, EngineBuilder, Mode, Options, PrefillReport};
use runahead::error::Error;
use runahead::runahead::partition::Split;

use super::args::GenerateArgs;
use super::failure::Failure;
use super::input::Prompt;
use super::open::{self, Opening};
use super::output;
use super::progress::Bars;

mod report;

use report::Report;

/// Runs the command.
pub fn run(args: &GenerateArgs, cancel: &Cancel) -> Result<(), Failure> {
    check(args)?;
    let prompt = Prompt::read(&args.prompt, cancel)?;
    let files = open::files(&args.model)?;
    let tokens = prompt.tokens(&files, args.raw)?;
    cancel.check()?;
    let plan = Plan::new(args, &files, tokens.len())?;

    let bars = Arc::new(Bars::new());
    let opening = Opening { devices: &plan.devices, context: plan.context, kv: args.kv.kv.into(), cancel, bars: &bars };
    let engine = open::engine(files, &opening)?;
    let report = answer(&engine, &tokens, &plan, args.json, &bars)?;
    if args.json { output::json_pretty(&report) } else { report.print_summary() }
}

/// What the arguments come to, once the prompt is counted.
struct Plan {
    devices: Vec<DeviceId>,
    context: usize,
    options: Options,
}

fn check(args: &GenerateArgs) -> Result<(), Failure> {
    if args.temperature != 0.0 {
        let text = format!("--temperature {}: only 0 (the likeliest token each time) exists yet", args.temperature);
        return Err(Failure::Usage(text));
    }
    let mode = Mode::from(args.prefill);
    if mode == Mode::Single && args.split.split != Split::Even {
        return Err(Failure::Usage("--prefill single runs on one adapter: --split has nothing to cut".to_owned()));
    }
    Ok(())
}

impl Plan {
    fn new(args: &GenerateArgs, files: &EngineBuilder, n_prompt: usize) -> Result<Self, Failure> {
        let mode = Mode::from(args.prefill);
        let mut devices = open::named_or_default(&args.devices);
        if mode == Mode::Single {
            // The others would only hold weights.
            devices.drain(..devices.len().saturating_sub(1));
        }
        // Before anything is loaded.
        args.split.split.lengths(0, n_prompt, devices.len())?;

        // The last token needs no row: nothing comes after it.
        let behind = args.n.saturating_sub(1);
        let context = match args.context {
            None => open::context_for(files, n_prompt, behind)?,
            Some(context) if n_prompt > context => {
                return Err(Error::ContextFull { needed: n_prompt, context }.into());
            }
            Some(context) => context,
        };
        let max_tokens = args.n.min(context.saturating_sub(n_prompt).saturating_add(1));
        if max_tokens < args.n {
            output::note(&format!(
                "note: behind {n_prompt} tokens a context of {context} holds {max_tokens} more at most"
            ));
        }
        let options = Options { max_tokens, mode, split: args.split.split.clone(), ..Options::default() };
        Ok(Self { devices, context, options })
    }
}

fn answer(engine: &Engine, tokens: &[u32], plan: &Plan, quiet: bool, bars: &Bars) -> Result<Report, Failure> {
    let mut session = engine.session()?;
    let prefilled = session.generate(tokens, &plan.options);
    bars.clear();
    let mut generation = prefilled?;
    let prefill = generation.report().clone();
    tell(&prefill);

    let mut out = Out { speaks: engine.tokenizer().is_some(), quiet, text: String::new(), n: 0 };
    let mut ids = Vec::new();
    let began = Instant::now();
    let mut last = Duration::ZERO;
    for token in generation.by_ref() {
        let token = match token {
            Ok(token) => token,
            Err(error) => {
                out.end()?;
                return Err(error.into());
            }
        };
        last = began.elapsed();
        ids.push(token.id);
        out.token(token.id, &token.text)?;
    }
    out.add(&generation.finish())?;
    out.end()?;
    Ok(Report::new(tokens.len(), ids, out.text, prefill, last))
}

/// What the user must know before the answer.
fn tell(prefill: &PrefillReport) {
    if let Some(note) = &prefill.note {
        output::note(&format!("note: {note}"));
    }
}

/// The answer on its way to stdout.
struct Out {
    /// Whether tokens have a text; else their ids are shown.
    speaks: bool,
    quiet: bool,
    text: String,
    n: usize,
}

impl Out {
    fn token(&mut self, id: u32, text: &str) -> Result<(), Failure> {
        let first = self.n == 0;
        self.n += 1;
        match self.speaks {
            true => self.add(text),
            false if self.quiet => Ok(()),
            false => output::print(&if first { id.to_string() } else { format!(" {id}") }),
        }
    }

    fn add(&mut self, text: &str) -> Result<(), Failure> {
        self.text.push_str(text);
        if self.quiet || text.is_empty() { Ok(()) } else { output::print(text) }
    }

    /// The shell's prompt starts on a line of its own.
    fn end(&self) -> Result<(), Failure> {
        if self.quiet || self.text.ends_with('\n') { Ok(()) } else { output::print("\n") }
    }
}
