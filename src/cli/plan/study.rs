//! A study on paper: every combination of model, network, adapters, context and mode through the simulator.

use std::path::{Path, PathBuf};

use runahead::cancel::Cancel;
use runahead::error::Error;
use runahead::model::{CacheSize, Slots};
use runahead::runahead::cost::{CostModel, Shape};
use runahead::runahead::partition::{Split, n_granules, weighted};
use runahead::runahead::schedule::{Mode, Schedule};
use runahead::runahead::search::{Problem, balanced, search};
use runahead::runahead::simulate::{Forecast, simulate};
use runahead::runahead::table::predict;
use serde::Serialize;

use super::ms;
use super::study_file::{Network, PaperModel, Study, StudySplit};
use crate::cli::failure::Failure;
use crate::cli::new_file::NewFile;
use crate::cli::output;
use crate::cli::picture::{self, Panel, Series};

/// One line of the result. Names of the keys are a contract: other programs read them.
#[derive(Serialize)]
struct Line {
    model: String,
    network: String,
    n_adapters: usize,
    context: usize,
    mode: &'static str,
    split: &'static str,
    partition: Vec<usize>,
    ttft_ms: f64,
    /// Time of the best adapter alone over this one.
    speedup: f64,
    /// Time of TSP over this one, where TSP is among the modes.
    over_tsp: Option<f64>,
    /// The part of the time in which adapters wait, mean of all.
    idle: f64,
    published_bytes: f64,
    fetched_bytes: f64,
    adapters: Vec<Adapter>,
}

#[derive(Serialize)]
struct Adapter {
    name: String,
    start: usize,
    end: usize,
    busy_ms: f64,
    wait_ms: f64,
    memory_bytes: f64,
    /// Whether that fits the adapter's memory, where it is said.
    fits: bool,
}

/// Runs the study in a file, prints its lines and draws them.
pub fn run(path: &Path, plot: Option<&PathBuf>, json: bool) -> Result<(), Failure> {
    let study = Study::read(path)?;
    let plot = NewFile::begin_if(plot)?;
    let mut lines = Vec::new();
    for model in &study.models {
        for network in &study.networks {
            for n in study.sizes() {
                Case::new(&study, model, network, n)?.lines(&mut lines)?;
            }
        }
    }
    if let Some(file) = plot {
        let axes = ("tokens of the prompt", "time to first token, ms");
        file.text(&picture::plots(axes, study.sizes().len(), &panels(&lines))?)?;
    }
    if json { output::json_pretty(&lines) } else { output::print(&table(&lines)) }
}

/// A plot for each model, network and number of adapters, with a line for each way to prefill.
fn panels(lines: &[Line]) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for l in lines {
        let title = format!("{}, {} adapters, {}", l.model, l.n_adapters, l.network);
        let name = if l.mode == "single" { l.mode.to_owned() } else { format!("{}, {}", l.mode, l.split) };
        let point = (l.context as f64, l.ttft_ms);
        if panels.last().is_none_or(|panel| panel.title != title) {
            panels.push(Panel { title, series: Vec::new(), calculated: Vec::new() });
        }
        let Some(panel) = panels.last_mut() else { continue };
        match panel.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => panel.series.push(Series { name, points: vec![point] }),
        }
    }
    panels.iter_mut().flat_map(|p| &mut p.series).for_each(|s| s.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    panels
}

/// A model on a number of adapters on a network.
struct Case<'a> {
    study: &'a Study,
    model: &'a PaperModel,
    network: &'a Network,
    shape: Shape,
    costs: CostModel,
    /// The same without noise, on which cuts are searched: nobody knows the weather before.
    calm: CostModel,
}

impl<'a> Case<'a> {
    fn new(study: &'a Study, model: &'a PaperModel, network: &'a Network, n: usize) -> Result<Self, Failure> {
        let shape = study.shape(model)?;
        let costs = study.costs(&shape, network, n)?;
        let mut calm = costs.clone();
        for a in &mut calm.adapters {
            (a.down.noise, a.up.noise) = (None, None);
        }
        Ok(Self { study, model, network, shape, costs, calm })
    }

    fn lines(&self, lines: &mut Vec<Line>) -> Result<(), Failure> {
        let contexts = &self.study.contexts;
        let modes = self.study.modes()?;
        let single = contexts.iter().map(|&c| self.best_single(c)).collect::<Result<Vec<_>, Error>>()?;
        let mut tsp: Vec<Option<f64>> = vec![None; contexts.len()];
        for mode in modes {
            if mode == Mode::Single {
                for (&context, forecast) in contexts.iter().zip(&single) {
                    let schedule = Schedule::single(0, context, self.shape.layers).windowed(&self.costs.windows);
                    lines.push(self.line(mode, "-", &schedule, forecast.1.clone(), forecast.0, None)?);
                }
                continue;
            }
            // Pieces of searched cuts, which predictions are made from.
            let searched = contexts.iter().map(|&c| self.search(mode, c)).collect::<Result<Vec<_>, Error>>()?;
            for (i, &context) in contexts.iter().enumerate() {
                for &split in &self.study.splits {
                    let (name, lengths) = match split {
                        _ if !mode.is_chain() => ("even", self.even(mode, context)?),
                        StudySplit::Even => (split.name(), self.even(mode, context)?),
                        StudySplit::Searched => (split.name(), searched[i].clone()),
                        StudySplit::Predicted => match predicted(&searched, &self.calm, i, context) {
                            Some(lengths) => (split.name(), lengths),
                            None => continue,
                        },
                    };
                    let schedule = self.schedule(mode, &lengths);
                    let forecast = simulate(&schedule, &self.costs_for(&self.costs, &schedule))?;
                    if mode == Mode::Tsp {
                        tsp[i] = Some(forecast.ttft_s);
                    }
                    lines.push(self.line(mode, name, &schedule, forecast, single[i].0, tsp[i])?);
                    if !mode.is_chain() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn schedule(&self, mode: Mode, lengths: &[usize]) -> Schedule {
        let schedule = mode.schedule(0, lengths, self.shape.layers).windowed(&self.costs.windows);
        match self.study.mask(mode) {
            Some(mask) => Schedule { mask, ..schedule },
            None => schedule,
        }
    }

    /// A prompt with few granules runs on the last adapters.
    fn costs_for(&self, costs: &CostModel, schedule: &Schedule) -> CostModel {
        let n = costs.adapters.len();
        costs.pick(&(n - schedule.n_adapters()..n).collect::<Vec<_>>())
    }

    fn even(&self, mode: Mode, context: usize) -> Result<Vec<usize>, Error> {
        Split::Even.lengths(0, context, mode.n_pieces(self.costs.adapters.len()))
    }

    fn search(&self, mode: Mode, context: usize) -> Result<Vec<usize>, Error> {
        let n_pieces = self.calm.adapters.len();
        if !mode.is_chain() || n_granules(0, context) < n_pieces {
            return self.even(mode, context);
        }
        let guesses = vec![weighted(0, context, &balanced(&self.calm, 0, context))];
        let problem = Problem::exact(0, context, n_pieces, guesses);
        let mut objective = |lengths: &[usize]| Ok(simulate(&self.schedule(mode, lengths), &self.calm)?.ttft_s);
        Ok(search(&problem, &Cancel::new(), &mut objective, &mut |_| {})?.lengths)
    }

    /// Seconds and forecast of the best adapter alone.
    fn best_single(&self, context: usize) -> Result<(f64, Forecast), Error> {
        let schedule = Schedule::single(0, context, self.shape.layers).windowed(&self.costs.windows);
        let all = (0..self.costs.adapters.len()).map(|i| simulate(&schedule, &self.costs.pick(&[i])));
        let all = all.collect::<Result<Vec<_>, Error>>()?;
        let best = all.into_iter().min_by(|a, b| a.ttft_s.total_cmp(&b.ttft_s));
        best.map(|f| (f.ttft_s, f)).ok_or_else(|| Error::Partition("there are no adapters".to_owned()))
    }

    fn line(
        &self,
        mode: Mode,
        split: &'static str,
        schedule: &Schedule,
        forecast: Forecast,
        single_s: f64,
        tsp_s: Option<f64>,
    ) -> Result<Line, Failure> {
        let ttft = forecast.ttft_s;
        let n = forecast.adapters.len() as f64;
        let sum = |of: fn(&runahead::runahead::simulate::AdapterForecast) -> f64| {
            forecast.adapters.iter().map(of).sum::<f64>()
        };
        let skipped = self.costs.adapters.len() - schedule.n_adapters();
        let memory = self.study.memory();
        let adapter = |(i, a): (usize, &runahead::runahead::simulate::AdapterForecast)| {
            let pieces = || schedule.share[i].iter().map(|&p| schedule.pieces[p]);
            let bytes = self.memory_bytes(schedule, i);
            Adapter {
                name: self.costs.adapters[skipped + i].name.clone(),
                start: pieces().map(|p| p.start).min().unwrap_or(0),
                end: pieces().map(|p| p.end).max().unwrap_or(0),
                busy_ms: ms(a.busy_s),
                wait_ms: ms(a.wait_s),
                memory_bytes: bytes,
                fits: memory[skipped + i].is_none_or(|most| bytes <= most),
            }
        };
        Ok(Line {
            model: self.model.name.clone(),
            network: self.network.name.clone(),
            n_adapters: self.costs.adapters.len(),
            context: schedule.n_tokens(),
            mode: mode.name(),
            split,
            partition: schedule.pieces.iter().map(|p| p.len()).collect(),
            ttft_ms: ms(ttft),
            speedup: single_s / ttft,
            over_tsp: tsp_s.map(|tsp| tsp / ttft),
            idle: 1.0 - sum(|a| a.busy_s) / (n * ttft),
            published_bytes: sum(|a| a.published_bytes),
            fetched_bytes: sum(|a| a.fetched_bytes),
            adapters: forecast.adapters.iter().enumerate().map(adapter).collect(),
        })
    }

    /// Weights in f16 and the cache: all layers on the last adapter, a ring of three on the others.
    fn memory_bytes(&self, schedule: &Schedule, i: usize) -> f64 {
        let slots = if i + 1 == schedule.n_adapters() { Slots::All } else { Slots::Ring };
        let size = CacheSize { tokens: schedule.n_tokens(), slots, beside: schedule.span(i) };
        let rows: usize = size.rows(self.shape.layers, &self.costs.windows, 1).into_iter().sum();
        2.0 * self.shape.n_weights() + rows as f64 * self.costs.kv_bytes
    }
}

/// A cut from the searched cuts of the other contexts.
fn predicted(searched: &[Vec<usize>], costs: &CostModel, i: usize, context: usize) -> Option<Vec<usize>> {
    let n = searched[i].len();
    let others = searched.iter().enumerate().filter(|(j, lengths)| *j != i && lengths.len() == n);
    let mut others: Vec<&[usize]> = others.map(|(_, lengths)| &lengths[..]).collect();
    others.sort_by_key(|lengths| lengths.iter().sum::<usize>());
    predict(&others, costs, 0, context)
}

fn table(lines: &[Line]) -> String {
    let mut text = String::from(
        "| model | network | adapters | context | mode | split | TTFT ms | speed-up | TSP / this | idle | fetched | partition |\n\
         |---|---|---:|---:|---|---|---:|---:|---:|---:|---:|---|\n",
    );
    for l in lines {
        let over_tsp = l.over_tsp.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
        let shares: Vec<String> = l.partition.iter().map(|&n| format!("{:.3}", n as f64 / l.context as f64)).collect();
        let fetched = output::bytes(l.fetched_bytes as u64);
        let memory = if l.adapters.iter().all(|a| a.fits) { "" } else { " (too little memory)" };
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {:.1} | {:.2} | {over_tsp} | {:.0} % | {fetched} | {}{memory} |\n",
            l.model,
            l.network,
            l.n_adapters,
            l.context,
            l.mode,
            l.split,
            l.ttft_ms,
            l.speedup,
            100.0 * l.idle,
            shares.join(" "),
        ));
    }
    text
}
