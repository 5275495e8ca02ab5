//! `runahead plan`: what a prefill is expected to take, before anything runs.
//!
//! For a model and the adapters of this machine, or with `--simulate` for models and adapters on paper. Nothing is loaded; the costs come from
//! the table that `runahead calibrate` made, else they are estimates by kind of adapter, and the output says which.

use runahead::dims::Piece;
use runahead::error::Error;
use serde::Serialize;

use super::failure::Failure;
use super::open;
use super::output;
use super::planning::{Origin, Plan, Setup};

mod args;
mod study;
mod study_file;

pub use args::PlanArgs;

/// Runs the command.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    match &args.simulate {
        Some(path) => study::run(path, args.plot.as_ref(), args.json),
        None if args.plot.is_some() => {
            Err(Failure::Usage("--plot draws a study on paper: it needs --simulate".to_owned()))
        }
        None => of_this_machine(args),
    }
}

fn of_this_machine(args: &PlanArgs) -> Result<(), Failure> {
    let Some(n_prompt) = args.n_prompt else {
        return Err(Failure::Usage("-p TOKENS is missing: the length of the prompt".to_owned()));
    };
    if n_prompt == 0 {
        return Err(Error::EmptyPrompt.into());
    }
    let outline = args.model.outline()?;
    let most = outline.config.max_context;
    if n_prompt > most {
        return Err(Error::ContextFull { needed: n_prompt, context: most }.into());
    }
    let setup = Setup::new(outline, &open::named_or_default(&args.devices), args.kv.kv.into(), args.gemm.gemm)?;
    let plan = setup.plan(args.prefill, args.split.as_ref(), Piece::new(0, n_prompt), n_prompt)?;
    let report = Report::new(&setup, &plan, n_prompt);
    if args.json { output::json_pretty(&report) } else { report.print() }
}

/// A plan. The first four keys are a contract: other programs read them, and `bench` has them beside what it measured.
#[derive(Serialize)]
struct Report {
    mode: &'static str,
    partition: Vec<usize>,
    ttft_ms: f64,
    adapters: Vec<Adapter>,
    left_out: Vec<LeftOut>,
    /// Where the costs come from.
    costs: String,
    /// Root mean square of the relative errors of the costs' fit, the worst adapter's; none of an estimate, which nothing was held to.
    fit_error: Option<f64>,
}

#[derive(Serialize)]
struct Adapter {
    name: String,
    start: usize,
    end: usize,
    busy_ms: f64,
    wait_ms: f64,
    memory_bytes: u64,
}

#[derive(Serialize)]
struct LeftOut {
    name: String,
    reason: String,
}

impl Report {
    fn new(setup: &Setup, plan: &Plan, n_prompt: usize) -> Self {
        let schedule = plan.mode.schedule(0, &plan.lengths, 1);
        let name = |i: usize| setup.costs.adapters[i].name.clone();
        let adapter = |(place, &i): (usize, &usize)| {
            let pieces = || schedule.share[place].iter().map(|&p| schedule.pieces[p]);
            let forecast = &plan.forecast.adapters[place];
            Adapter {
                name: name(i),
                start: pieces().map(|p| p.start).min().unwrap_or(0),
                end: pieces().map(|p| p.end).max().unwrap_or(0),
                busy_ms: ms(forecast.busy_s),
                wait_ms: ms(forecast.wait_s),
                memory_bytes: setup.memory_bytes(plan, place, n_prompt),
            }
        };
        Self {
            mode: plan.mode.name(),
            partition: plan.lengths.clone(),
            ttft_ms: ms(plan.forecast.ttft_s),
            adapters: plan.order.iter().enumerate().map(adapter).collect(),
            left_out: plan.left_out.iter().map(|(i, r)| LeftOut { name: name(*i), reason: r.clone() }).collect(),
            costs: setup.origin.text(),
            fit_error: matches!(setup.origin, Origin::Table(_))
                .then(|| plan.order.iter().map(|&i| setup.costs.adapters[i].fit_error).fold(0.0, f64::max)),
        }
    }

    fn print(&self) -> Result<(), Failure> {
        let cut = self.partition.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
        output::line(&format!("{}: {cut} tokens, first token expected after {:.1} ms", self.mode, self.ttft_ms))?;
        for a in &self.adapters {
            let memory = output::bytes(a.memory_bytes);
            output::line(&format!(
                "{}: tokens {}..{}, busy {:.1} ms, waiting {:.1} ms, {memory} of memory",
                a.name, a.start, a.end, a.busy_ms, a.wait_ms
            ))?;
        }
        for left in &self.left_out {
            output::line(&format!("{} takes no part: {}", left.name, left.reason))?;
        }
        let within = self.fit_error.map_or(String::new(), |error| format!(", within {:.0} %", 100.0 * error));
        output::line(&format!("costs: {}{within}", self.costs))
    }
}

/// Milliseconds, to the microsecond.
fn ms(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}
