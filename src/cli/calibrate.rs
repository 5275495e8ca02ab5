//! `runahead calibrate`: measures the named adapters with a model, and keeps the table that `generate` and `plan` then go by.
//!
//! Ctrl-C keeps what was found by then, once the costs of all adapters are known.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use runahead::cancel::Cancel;
use runahead::engine::{CalibrateOptions, CalibrateStep, DeviceId, Engine, EngineBuilder, Progress, devices};
use runahead::error::Error;
use runahead::runahead::cost::{AdapterCost, CostModel};
use runahead::runahead::search::Found;
use runahead::runahead::table::{Point, Table};
use serde::Serialize;

use super::args::EngineArgs;
use super::failure::Failure;
use super::open;
use super::output;
use super::planning::{fingerprint, tables_folder};
use super::progress::Bars;
use super::source::ModelOrShape;

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    pub model: ModelOrShape,
    /// Adapters in the order of the chain, as in `generate`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<DeviceId>,
    /// Prompt lengths for which the best cut is searched, in tokens; lengths between them are interpolated
    #[arg(short = 'p', value_name = "LIST", value_delimiter = ',', default_value = "512,1024,2048,4096")]
    pub contexts: Vec<usize>,
    /// Runs of each measurement; the median counts
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), default_value_t = 3)]
    pub repetitions: u32,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &CalibrateArgs, cancel: &Cancel) -> Result<(), Failure> {
    let files = args.model.files()?;
    let outline = args.model.outline_of(&files)?;
    let most = outline.config.max_context;
    let longest = args.contexts.iter().copied().max().unwrap_or(0);
    if longest > most {
        return Err(Error::ContextFull { needed: longest, context: most }.into());
    }
    let ids = open::named_or_default(&args.devices);
    let all = devices();
    let infos: Vec<_> = ids.iter().filter_map(|id| all.iter().find(|d| d.id == *id).cloned()).collect();
    let print = fingerprint(&outline, &infos, args.engine.kv.kv.into(), args.engine.gemm.gemm);

    let engine = load(files, &ids, longest, args, cancel)?;
    let bar = spinner();
    let folder = tables_folder()?;
    let options = CalibrateOptions { contexts: args.contexts.clone(), repetitions: args.repetitions as usize };
    // What an earlier calibration of the same found counts until there is something new, so that an interrupt never leaves less.
    let before = Table::find(&folder, &print).ok().flatten().map_or(Vec::new(), |table| table.points);
    let save = |costs: &CostModel, points: &[Point], finished: bool| -> Result<(Table, PathBuf), Failure> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let is_new = |old: &&Point| !finished && points.iter().all(|new| new.context != old.context);
        let points = points.iter().chain(before.iter().filter(is_new)).cloned().collect();
        let table = Table::new(now, print.clone(), costs.clone(), points)?;
        let path = table.save(&folder)?;
        Ok((table, path))
    };
    let mut saved = Ok(());
    let calibrated = engine.calibrate(&options, &mut |step| match step {
        // At once: whoever interrupts a driver that hangs keeps this much.
        CalibrateStep::Found { costs, points } => {
            if let Err(failure) = save(costs, points, false) {
                saved = Err(failure);
            }
        }
        step => {
            bar.set_message(text(&step));
            bar.tick();
        }
    });
    bar.finish_and_clear();
    let calibration = calibrated?;
    saved?;
    let (table, path) = save(&calibration.costs, &calibration.points, calibration.finished)?;
    report(&table, &path.display().to_string(), calibration.finished, args.json)?;
    // An interrupted command says so, though the best so far is kept.
    if calibration.finished { Ok(()) } else { Err(Error::Cancelled.into()) }
}

/// Loads the model. Bars show the load alone: there are hundreds of prefills behind it.
fn load(
    files: EngineBuilder,
    ids: &[DeviceId],
    context: usize,
    args: &CalibrateArgs,
    cancel: &Cancel,
) -> Result<Engine, Failure> {
    let bars = Arc::new(Bars::new());
    let shown = Arc::clone(&bars);
    let engine = files
        .responsive(args.engine.responsive)
        .devices(ids.iter().copied())
        .context(context)
        .kv(args.engine.kv.kv.into())
        .link(args.engine.link)
        .gemm(args.engine.gemm.gemm)
        .cancel(cancel.clone())
        .on_progress(move |progress| {
            if let Progress::Load { .. } = progress {
                shown.show(progress);
            }
        })
        .open();
    bars.clear();
    Ok(engine?)
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("calibrate {spinner} {elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    bar
}

fn text(step: &CalibrateStep<'_>) -> String {
    match step {
        CalibrateStep::Timed { adapter, prefix, tokens } => format!("{adapter}: {tokens} tokens behind {prefix}"),
        CalibrateStep::Tried { context, best: Found { lengths, seconds, n_tried, .. } } => {
            let cut = lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
            format!("{context} tokens: {n_tried} cuts tried, best {cut} with {:.1} ms", seconds * 1e3)
        }
        _ => String::new(),
    }
}

/// What was found. Names of the keys are a contract: other programs read them.
#[derive(Serialize)]
struct Report<'a> {
    table: &'a str,
    date: &'a str,
    finished: bool,
    adapters: Vec<Adapter<'a>>,
    points: &'a [Point],
}

#[derive(Serialize)]
struct Adapter<'a> {
    name: &'a str,
    fit_error: f64,
    decode_ms: Option<f64>,
    busy_workgroups: Option<usize>,
}

impl<'a> From<&'a AdapterCost> for Adapter<'a> {
    fn from(cost: &'a AdapterCost) -> Self {
        let AdapterCost { name, fit_error, decode_s, busy_workgroups, .. } = cost;
        let decode_ms = decode_s.map(|s| s * 1e3);
        Self { name, fit_error: *fit_error, decode_ms, busy_workgroups: *busy_workgroups }
    }
}

fn report(table: &Table, path: &str, finished: bool, json: bool) -> Result<(), Failure> {
    if json {
        let adapters = table.costs.adapters.iter().map(Adapter::from).collect();
        let (points, date) = (&table.points, &table.date);
        return output::json_pretty(&Report { table: path, date, finished, adapters, points });
    }
    for a in &table.costs.adapters {
        let decode = a.decode_s.map_or_else(String::new, |s| format!(", decode {:.1} token/s", 1.0 / s));
        let tiles = a.busy_workgroups.map_or_else(String::new, |n| format!(", tiles for {n} workgroups"));
        output::line(&format!("{}: costs fit within {:.1} %{decode}{tiles}", a.name, 100.0 * a.fit_error))?;
    }
    for p in &table.points {
        let cut = p.lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
        let single = p.single_ms.iter().copied().fold(f64::INFINITY, f64::min);
        output::line(&format!(
            "{} tokens: {cut} with {:.1} ms, even {:.1} ms, best adapter alone {single:.1} ms",
            p.context, p.ttft_ms, p.even_ms
        ))?;
    }
    output::line(&format!("table: {path}"))
}
