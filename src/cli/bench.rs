//! `runahead bench`: how fast a model, or one of its sizes with random weights, is on the adapters of this machine.
//!
//! Parameters and columns are llama-bench's where it has them, beside the time to the first token. Each case runs once to warm up and then
//! `-r` times. `single` is measured on every adapter that is named, so that a chain is compared with the best of them, in the same run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use runahead::cancel::Cancel;
use runahead::dims::Piece;
use runahead::engine::{DeviceId, DeviceInfo, Engine, EngineBuilder, Mode, devices};
use runahead::runahead::partition::Split;
use runahead::runahead::table::predict;

use super::failure::Failure;
use super::new_file::NewFile;
use super::open::{self, Opening};
use super::output;
use super::picture::{self, Series};
use super::planning::{Cut, Prefill, Setup};
use super::progress::Bars;

mod args;
mod cases;
mod kernels;
mod measure;
mod row;
mod table;

pub use args::BenchArgs;
use cases::{Case, Group, Known};
use measure::Measured;
use row::{About, Predicted, Row};
use table::Table;

/// Runs the command.
pub fn run(args: &BenchArgs, cancel: &Cancel) -> Result<(), Failure> {
    if let Some(filter) = &args.kernels {
        return kernels::run(args, filter, cancel);
    }
    let named = open::named_or_default(&args.devices);
    let experiment = args.experiment.experiment(named.len())?;
    let files = args.model.files()?;
    let setup = Setup::new(args.model.outline_of(&files)?, &named, args.engine.kv.kv.into(), args.engine.gemm.gemm)?
        .under(&experiment)?;
    let auto = |prompt: Piece| {
        let plan = setup.plan(Prefill::Auto, None, prompt, prompt.end)?;
        setup.tell_left_out(&plan);
        Ok(plan)
    };
    let groups = cases::groups(args, &named, &Known { auto: &auto, table: setup.has_table() })?;
    let context = cases::context(&groups, files.config().max_context)?;
    output::note(&format!("predicted: by {}", setup.origin.text()));
    let plot = NewFile::begin_if(args.plot.as_ref())?;
    let mut bench = Bench {
        args,
        cancel,
        context,
        n_layers: files.config().n_layers,
        devices: devices(),
        setup,
        bars: Arc::new(Bars::new()),
        table: Table::new(args.output, &args.model.name(), groups.iter().any(Group::is_chain)),
        rows: Vec::new(),
        searched: BTreeMap::new(),
        alone: BTreeMap::new(),
    };
    let mut files = Some(files);
    for group in &groups {
        let files = files.take().map_or_else(|| args.model.files(), Ok)?;
        bench.group(files, group)?;
    }
    bench.table.end()?;
    bench.tell_break_even();
    plot.map_or(Ok(()), |file| file.text(&bench.plot()?))
}

struct Bench<'a> {
    args: &'a BenchArgs,
    cancel: &'a Cancel,
    context: usize,
    n_layers: usize,
    devices: Vec<DeviceInfo>,
    /// What is known of the adapters.
    setup: Setup,
    bars: Arc<Bars>,
    table: Table,
    rows: Vec<Row>,
    /// Cuts that were searched in this run: by mode and depth, each length with its pieces.
    searched: BTreeMap<(&'static str, usize), BTreeMap<usize, Vec<usize>>>,
    /// What adapters took alone, by their number in `--devices`: positions and seconds.
    alone: BTreeMap<usize, Vec<(Piece, f64)>>,
}

impl Bench<'_> {
    /// Loads the model on the group's adapters and measures its cases there.
    fn group(&mut self, files: EngineBuilder, group: &Group) -> Result<(), Failure> {
        self.cancel.check()?;
        let (params, weights_bytes) = (files.n_parameters(), files.weights_bytes());
        let kv = self.args.engine.kv.kv.into();
        let opening = Opening {
            responsive: self.args.engine.responsive,
            devices: &group.devices,
            context: self.context,
            kv,
            link: self.args.engine.link,
            gemm: self.args.engine.gemm.gemm,
            experiment: group.experiment.clone(),
            busy_workgroups: self.setup.busy_workgroups(&group.order),
            cancel: self.cancel,
            bars: &self.bars,
        };
        let started = Instant::now();
        let engine = open::engine(files, &opening)?;
        let about = About {
            model: self.args.model.name(),
            params,
            weights_bytes,
            kv,
            load_ms: started.elapsed().as_secs_f64() * 1e3,
            repetitions: self.args.repetitions,
        };
        let names = engine.adapters().map(str::to_owned).collect::<Vec<_>>();
        let products = engine.products().map(str::to_owned).collect::<Vec<_>>();
        for (i, case) in group.cases.iter().enumerate() {
            let split = self.split(&engine, case);
            let run = |split| measure::case(&engine, case, &split, self.args, i == 0, self.cancel);
            let measured = split.and_then(run);
            self.bars.clear();
            let measured = measured?;
            if let Some(note) = measured.note() {
                output::note(&format!("note: {note}"));
            }
            let skipped = names.len().saturating_sub(measured.n_adapters());
            let used = self.used((&names[skipped..], &products[skipped..]), &group.devices[skipped..]);
            let predicted = self.predicted(case, &measured, &group.order[skipped..])?;
            let row = Row::new(&about, case, measured, used, self.best_single(case), predicted);
            if let (Case::Prefill { way, prompt, depth }, &[alone], Some(ms)) =
                (case, &group.order[skipped..], row.ttft_ms())
                && way.mode == Mode::Single
            {
                let prefills = self.alone.entry(alone).or_default();
                prefills.push((Piece::new(*depth, depth + prompt), ms / 1e3));
                self.setup.learn(alone, prefills)?;
            }
            self.table.row(&row)?;
            self.rows.push(row);
        }
        Ok(())
    }

    /// How a case's prompt is cut.
    fn split(&mut self, engine: &Engine, case: &Case) -> Result<Split, Failure> {
        let Case::Prefill { way, prompt, depth } = case else { return Ok(Split::Even) };
        let (mode, depth, at) = (way.mode, *depth, Piece::new(*depth, depth + prompt));
        let n = engine.adapters().count();
        match &way.cut {
            Cut::Fixed(split) => Ok(split.clone()),
            Cut::Searched => {
                let guess = self.setup.lengths(mode, &Cut::Searched, n, at)?;
                let costs = self.setup.chain_costs()?;
                let found = measure::searched(engine, mode, (*prompt, depth), (guess, &costs), self.cancel)?;
                self.searched.entry((mode.name(), depth)).or_default().insert(*prompt, found.clone());
                Ok(Split::Given(found))
            }
            Cut::Predicted => {
                // A length that was searched itself would predict nothing.
                let of_mode = self.searched.get(&(mode.name(), depth)).into_iter().flatten();
                let pieces = mode.n_pieces(n);
                let others = of_mode.filter(|(length, lengths)| *length != prompt && lengths.len() == pieces);
                let others: Vec<&[usize]> = others.map(|(_, lengths)| &lengths[..]).collect();
                match predict(&others, &self.setup.chain_costs()?, depth, *prompt) {
                    Some(lengths) => Ok(Split::Given(lengths)),
                    None => Ok(Split::Given(self.setup.lengths(mode, &Cut::Predicted, n, at)?)),
                }
            }
        }
    }

    /// What was to be expected of a prefill by these adapters, by their number in `--devices`.
    fn predicted(&self, case: &Case, measured: &Measured, order: &[usize]) -> Result<Option<Predicted>, Failure> {
        let Case::Prefill { way, depth, .. } = case else { return Ok(None) };
        let schedule = way.mode.schedule(*depth, measured.partition(), self.n_layers);
        let schedule = schedule.windowed(&self.setup.costs.windows);
        let forecast = self.setup.forecast(&schedule, order)?;
        Ok(Some(Predicted::new(&forecast, self.setup.origin.text())))
    }

    /// Names and back ends of the adapters that took part.
    fn used(&self, (names, products): (&[String], &[String]), ids: &[DeviceId]) -> row::Used {
        let mut backends = Vec::new();
        for id in ids {
            let backend = self.devices.iter().find(|d| d.id == *id).map_or("-", |d| &d.backend);
            if !backends.contains(&backend) {
                backends.push(backend);
            }
        }
        row::Used { devices: names.to_vec(), backend: backends.join(","), gemm: products.to_vec() }
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
        picture::ttft(&self.args.model.name(), &series)
    }
}
