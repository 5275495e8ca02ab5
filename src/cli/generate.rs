//! `runahead generate`: answers a prompt.
//!
//! The text goes to stdout as it comes, and a summary to stderr; with `--json`, one object goes to stdout at the end. A model without a tokenizer
//! answers in token ids.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runahead::dims::Piece;
use runahead::engine::{DeviceId, EngineBuilder, Experiment, Mode, Options, PrefillReport, Session};
use runahead::error::Error;
use runahead::runahead::partition::Split;
use runahead::runahead::trace;

use super::args::{ModelArgs, PromptArgs, SessionArgs};
use super::experiment::ExperimentArgs;
use super::failure::Failure;
use super::input::Prompt;
use super::interrupt::Interrupt;
use super::new_file::NewFile;
use super::open::{self, Opening};
use super::output;
use super::picture;
use super::planning::{Cut, Outline, Prefill, Setup};
use super::progress::Bars;
use super::sampling::SamplingArgs;

mod report;

use report::{Answer, Report};

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
    #[arg(long, value_name = "MODE", value_parser = Prefill::parse, default_value = "auto")]
    pub prefill: Prefill,
    /// Tokens of each adapter: even, searched (on the costs), predicted (from the table of `calibrate`), or N0,N1,… in multiples of 16
    #[arg(long, value_name = "SPLIT", value_parser = Cut::parse)]
    pub split: Option<Cut>,
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

/// Runs the command.
pub fn run(args: &GenerateArgs, interrupt: &Interrupt) -> Result<(), Failure> {
    let cancel = &interrupt.cancel;
    let options = options(args)?;
    let prompt = Prompt::read(&args.prompt, cancel)?;
    let files = open::files(&args.model)?;
    let tokens = prompt.tokens(&files, args.raw)?;
    cancel.check()?;
    let (saved, known) = args.session.saved()?;
    let plan = Plan::new(args, options, &files, &tokens, &known)?;

    // Before the work: a folder that cannot be written would waste it.
    let pictures = Pictures::begin(args)?;

    let bars = Arc::new(Bars::new());
    let opening = Opening {
        responsive: args.session.engine.responsive,
        devices: &plan.devices,
        context: plan.context,
        kv: args.session.engine.kv.kv.into(),
        link: args.session.engine.link,
        gemm: args.session.engine.gemm.gemm,
        experiment: plan.experiment.clone(),
        busy_workgroups: plan.busy_workgroups.clone(),
        cancel,
        bars: &bars,
    };
    let engine = open::engine(files, &opening)?;
    let mut session = match &saved {
        Some(path) => engine.load_session(path)?,
        None => engine.session()?,
    };
    // An answer that is stopped leaves the session's file what there is of it.
    let stop = cancel.child();
    let _until_saved = args.session.file.as_ref().map(|_| interrupt.during(&stop));
    session.end_with(Some(&stop));
    let answer = answer(session, &tokens, &plan, pictures, args.json, &bars)?;
    if let Some(path) =
        args.session.file.as_ref().filter(|_| answer.failure.as_ref().is_none_or(Failure::leaves_session))
    {
        answer.session.save(path)?;
    }
    if let Some(failure) = answer.failure {
        return Err(failure);
    }
    let report = Report::new(answer, args.session.file.is_some(), &plan.options.sampling);
    if args.json { output::json_pretty(&report) } else { report.print_summary() }
}

/// What the arguments come to, once the prompt is counted.
struct Plan {
    devices: Vec<DeviceId>,
    context: usize,
    experiment: Experiment,
    busy_workgroups: Vec<Option<usize>>,
    options: Options,
    /// Tokens that the cut was planned for; `None` where it was given.
    planned: Option<usize>,
}

/// Files that show the prefill.
struct Pictures {
    trace: Option<NewFile>,
    timeline: Option<NewFile>,
}

impl Pictures {
    fn begin(args: &GenerateArgs) -> Result<Self, Failure> {
        let (trace, timeline) = (args.trace.as_ref(), args.timeline.as_ref());
        Ok(Self { trace: NewFile::begin_if(trace)?, timeline: NewFile::begin_if(timeline)? })
    }

    fn finish(self, report: &PrefillReport) -> Result<(), Failure> {
        if let Some(file) = self.trace {
            let logs: Vec<_> = report.adapters.iter().map(|a| (a.name.as_str(), &a.log)).collect();
            file.text(&trace::chrome(&logs).to_string())?;
        }
        match self.timeline {
            Some(file) => file.text(&picture::timeline(report)?),
            None => Ok(()),
        }
    }
}

/// What can be said before anything is read.
fn options(args: &GenerateArgs) -> Result<Options, Failure> {
    let mut options = Options::default();
    args.sampling.apply(&mut options, args.logprobs)?;
    Ok(options)
}

impl Plan {
    fn new(
        args: &GenerateArgs,
        options: Options,
        files: &EngineBuilder,
        prompt: &[u32],
        known: &[u32],
    ) -> Result<Self, Failure> {
        let n_prompt = prompt.len();
        // The last token needs no row: nothing comes after it.
        let behind = args.n.saturating_sub(1);
        let context = match args.session.context {
            None => open::context_for(files, n_prompt, behind)?.max(known.len().min(files.config().max_context)),
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
        // Before anything is loaded: who computes what. Lengths that were given are those of what a saved prefix leaves.
        let of_rest = match &args.split {
            Some(Cut::Fixed(split @ Split::Given(_))) if !known.is_empty() => Some(split.clone()),
            _ => None,
        };
        // What a saved conversation shares with the prompt need not be computed, but for its last token, which has no row.
        let shared = known.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let past = shared.min(known.len().saturating_sub(1)).min(n_prompt.saturating_sub(1));
        let cut = if of_rest.is_some() { Some(&Cut::Fixed(Split::Even)) } else { args.split.as_ref() };
        let devices = open::named_or_default(&args.session.devices);
        let experiment = args.experiment.experiment(devices.len())?;
        let setup =
            Setup::new(Outline::of(files), &devices, args.session.engine.kv.kv.into(), args.session.engine.gemm.gemm)?
                .under(&experiment)?;
        let plan = setup.plan(args.prefill, cut, Piece::new(past, n_prompt), context)?;
        // Who asks for one adapter knows that the others have nothing to do.
        if args.prefill != Prefill::As(Mode::Single) {
            setup.tell_left_out(&plan);
        }
        // A prompt of fewer granules than a mode has pieces is cut by the session.
        let n_pieces = if plan.order.len() == 1 { 1 } else { plan.mode.n_pieces(plan.order.len()) };
        let has_all = plan.mode != Mode::Single && plan.lengths.len() == n_pieces;
        let planned = if has_all { Split::Given(plan.lengths.clone()) } else { Split::Even };
        let planned_for = of_rest.is_none().then_some(n_prompt - past);
        let split = of_rest.unwrap_or(planned);
        let timed = args.trace.is_some() || args.timeline.is_some();
        let options = Options { max_tokens, mode: plan.mode, split, timed, ..options };
        let experiment = experiment.pick(&plan.order);
        let busy_workgroups = setup.busy_workgroups(&plan.order);
        Ok(Self { devices: setup.devices(&plan), context, experiment, busy_workgroups, options, planned: planned_for })
    }
}

fn answer(
    mut session: Session,
    tokens: &[u32],
    plan: &Plan,
    pictures: Pictures,
    quiet: bool,
    bars: &Bars,
) -> Result<Answer, Failure> {
    let engine = session.engine().clone();
    let n_kept = session.keep_prefix(tokens);
    let mut options = plan.options.clone();
    // A model with windows may have let go of what is shared.
    if plan.planned.is_some_and(|n| n != tokens.len() - session.n_cached()) {
        options.split = Split::Even;
    }
    let prefilled = session.generate(&tokens[n_kept..], &options);
    bars.clear();
    let mut generation = prefilled?;
    let prefill = generation.report().clone();
    tell(&prefill);
    pictures.finish(&prefill)?;

    let mut out = Out { speaks: engine.tokenizer().is_some(), quiet, text: String::new(), n: 0 };
    let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
    let began = Instant::now();
    let mut decoding = Duration::ZERO;
    let mut told = Ok(());
    for token in generation.by_ref() {
        told = token.map_err(Failure::from).and_then(|token| {
            decoding = began.elapsed();
            ids.push(token.id);
            logprobs.extend(token.logprobs);
            out.token(token.id, &token.text)
        });
        if told.is_err() {
            break;
        }
    }
    let rest = generation.finish();
    let told = told.and_then(|()| out.add(&rest));
    let failure = told.and(out.end()).err();
    Ok(Answer { session, prompt_tokens: tokens.len(), ids, logprobs, text: out.text, prefill, decoding, failure })
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
