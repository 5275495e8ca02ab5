//! `runahead bench`: how fast a model, or one of its sizes with random weights, is on the adapters of this machine.
//!
//! Parameters and columns are llama-bench's where it has them, beside the time to the first token. Each case runs once to warm up and then
//! `-r` times. `single` is measured on every adapter that is named, so that a chain is compared with the best of them, in the same run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use runahead::cancel::Cancel;
use runahead::engine::{DeviceId, DeviceInfo, Engine, EngineBuilder, Experiment, devices};
use runahead::runahead::partition::Split;
use runahead::runahead::search::search_simulated;

use super::failure::Failure;
use super::new_file::NewFile;
use super::open::{self, Opening};
use super::output;
use super::picture::{self, Series};
use super::planning::{Cut, Outline, Setup};
use super::progress::Bars;

mod args;
mod cases;
mod kernels;
mod measure;
mod row;
mod table;

pub use args::{BenchArgs, Shape, weight_types};
use cases::{Case, Group};
use measure::Measured;
use row::{About, Row};
use table::Table;

/// Runs the command.
pub fn run(args: &BenchArgs, cancel: &Cancel) -> Result<(), Failure> {
    if let Some(filter) = &args.kernels {
        return kernels::run(args, filter, cancel);
    }
    let named = open::named_or_default(&args.devices);
    let groups = cases::groups(args, &named)?;
    let files = files(args)?;
    let context = cases::context(&groups, files.config().max_context)?;
    let setup = match args.cut() {
        Cut::Fixed(_) => None,
        _ => Some(Setup::new(Outline::of(&files), &named, args.kv.kv.into())?),
    };
    let plot = NewFile::begin_if(args.plot.as_ref())?;
    let mut bench = Bench {
        args,
        cancel,
        context,
        devices: devices(),
        setup,
        bars: Arc::new(Bars::new()),
        table: Table::new(args.output, &args.model_name(), groups.iter().any(Group::is_chain)),
        rows: Vec::new(),
    };
    let mut files = Some(files);
    for group in &groups {
        let files = files.take().map_or_else(|| self::files(args), Ok)?;
        bench.group(files, group)?;
    }
    bench.table.end()?;
    bench.tell_break_even();
    plot.map_or(Ok(()), |file| file.text(&bench.plot()?))
}

fn files(args: &BenchArgs) -> Result<EngineBuilder, Failure> {
    match &args.synthetic {
        // Any seed is as good; one that never changes makes runs comparable.
        Some(shape) => Ok(Engine::synthetic(shape.config()?, args.dtype(), 0)?),
        None if args.weights.is_some() => {
            Err(Failure::Usage("--weights is the format of random weights: it needs --synthetic".to_owned()))
        }
        None => open::files(&args.model),
    }
}

struct Bench<'a> {
    args: &'a BenchArgs,
    cancel: &'a Cancel,
    context: usize,
    devices: Vec<DeviceInfo>,
    /// What is known of the adapters, where cuts come from that.
    setup: Option<Setup>,
    bars: Arc<Bars>,
    table: Table,
    rows: Vec<Row>,
}

impl Bench<'_> {
    /// Loads the model on the group's adapters and measures its cases there.
    fn group(&mut self, files: EngineBuilder, group: &Group) -> Result<(), Failure> {
        self.cancel.check()?;
        let (params, weights_bytes) = (files.n_parameters(), files.weights_bytes());
        let kv = self.args.kv.kv.into();
        let opening = Opening {
            responsive: self.args.pace.responsive,
            devices: &group.devices,
            context: self.context,
            kv,
            experiment: group.experiment.clone(),
            cancel: self.cancel,
            bars: &self.bars,
        };
        let started = Instant::now();
        let engine = open::engine(files, &opening)?;
        let about = About {
            model: self.args.model_name(),
            params,
            weights_bytes,
            kv,
            load_ms: started.elapsed().as_secs_f64() * 1e3,
            repetitions: self.args.repetitions,
            cut: self.args.cut().name(),
        };
        let names = engine.adapters().map(str::to_owned).collect::<Vec<_>>();
        for case in &group.cases {
            let split = self.split(&engine, case, &group.experiment);
            let measured = split.and_then(|split| measure::case(&engine, case, &split, self.args, self.cancel));
            self.bars.clear();
            let measured = measured?;
            if let Some(note) = measured.note() {
                output::note(&format!("note: {note}"));
            }
            let used = self.used(case, &measured, &names, &group.devices);
            let row = Row::new(&about, case, measured, used, self.best_single(case));
            self.table.row(&row)?;
            self.rows.push(row);
        }
        Ok(())
    }

    /// How a case's prompt is cut.
    fn split(&self, engine: &Engine, case: &Case, experiment: &Experiment) -> Result<Split, Failure> {
        let Case::Prefill { mode, even: false, prompt, depth } = *case else { return Ok(Split::Even) };
        if let Cut::Fixed(split) = self.args.cut() {
            return Ok(split);
        }
        let Some(setup) = &self.setup else { return Ok(Split::Even) };
        match self.args.cut() {
            Cut::Predicted => {
                Ok(Split::Given(setup.lengths(mode, &Cut::Predicted, engine.adapters().count(), prompt)?))
            }
            _ => {
                let costs = experiment.costs(&setup.costs)?;
                let guess = search_simulated(mode, &costs, depth, prompt, engine.config().n_layers)?.lengths;
                measure::searched(engine, mode, (prompt, depth), guess, self.cancel)
            }
        }
    }

    /// Names and back ends of the adapters that took part.
    fn used(&self, case: &Case, measured: &Measured, names: &[String], ids: &[DeviceId]) -> row::Used {
        let n = measured.n_adapters(case);
        let skip = names.len().saturating_sub(n);
        let mut backends = Vec::new();
        for id in &ids[skip..] {
            let backend = self.devices.iter().find(|d| d.id == *id).map_or("-", |d| &d.backend);
            if !backends.contains(&backend) {
                backends.push(backend);
            }
        }
        row::Used { devices: names[skip..].to_vec(), backend: backends.join(",") }
    }

    /// The shortest time to the first token of one adapter alone in the same case.
    fn best_single(&self, case: &Case) -> Option<f64> {
        let Case::Prefill { prompt, depth, .. } = *case else { return None };
        self.rows.iter().filter(|row| row.is_single(prompt, depth)).filter_map(Row::ttft_ms).min_by(f64::total_cmp)
    }

    /// For each way to prefill on a chain, the prompt length from which on it was never behind the best single adapter.
    fn tell_break_even(&self) {
        for depth in &self.args.depth {
            let mut ways: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
            for (way, prompt, speedup) in self.rows.iter().filter_map(|row| row.chain_speedup(*depth)) {
                ways.entry(way).or_default().push((prompt, speedup));
            }
            for (way, mut prompts) in ways {
                prompts.sort_by_key(|&(prompt, _)| std::cmp::Reverse(prompt));
                output::note(&match prompts.iter().take_while(|&&(_, speedup)| speedup >= 1.0).last() {
                    Some((prompt, _)) => format!(
                        "break-even of {way}: of the prompts measured, it is ahead of the best single adapter from {prompt} tokens on"
                    ),
                    None => format!(
                        "break-even of {way}: it is behind the best single adapter at the longest prompt measured"
                    ),
                });
            }
        }
    }

    /// Times to the first token over prompt lengths.
    fn plot(&self) -> Result<String, Failure> {
        let mut series: Vec<Series> = Vec::new();
        for (name, prompt, ttft_ms) in self.rows.iter().filter_map(Row::ttft) {
            let at = series.iter().position(|s| s.name == name).unwrap_or_else(|| {
                series.push(Series { name, points: Vec::new() });
                series.len() - 1
            });
            series[at].points.push((prompt as f64, ttft_ms));
        }
        series.iter_mut().for_each(|s| s.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
        picture::ttft(&self.args.model_name(), &series)
    }
}
