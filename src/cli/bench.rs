//! `runahead bench`: how fast a model, or one of its sizes with random weights, is on the adapters of this machine.
//!
//! Parameters and columns are llama-bench's where it has them, beside the time to the first token. Each case runs once to warm up and then
//! `-r` times. `single` is measured on every adapter that is named, so that a chain is compared with the best of them, in the same run.

use std::sync::Arc;
use std::time::Instant;

use runahead::cancel::Cancel;
use runahead::engine::{DeviceId, DeviceInfo, Engine, EngineBuilder, devices};

use super::failure::Failure;
use super::open::{self, Opening};
use super::output;
use super::progress::Bars;

mod args;
mod cases;
mod measure;
mod row;
mod table;

pub use args::BenchArgs;
use cases::{Case, Group};
use measure::Measured;
use row::{About, Row};
use table::Table;

/// Runs the command.
pub fn run(args: &BenchArgs, cancel: &Cancel) -> Result<(), Failure> {
    let named = open::named_or_default(&args.devices);
    let groups = cases::groups(args, &named)?;
    let files = files(args)?;
    let context = cases::context(&groups, files.config().max_context)?;
    let mut bench = Bench {
        args,
        cancel,
        context,
        devices: devices(),
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
    Ok(())
}

fn files(args: &BenchArgs) -> Result<EngineBuilder, Failure> {
    match &args.synthetic {
        // Any seed is as good; one that never changes makes runs comparable.
        Some(shape) => Ok(Engine::synthetic(shape.config()?, args.weights.into(), 0)?),
        None => open::files(&args.model),
    }
}

struct Bench<'a> {
    args: &'a BenchArgs,
    cancel: &'a Cancel,
    context: usize,
    devices: Vec<DeviceInfo>,
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
        let opening =
            Opening { devices: &group.devices, context: self.context, kv, cancel: self.cancel, bars: &self.bars };
        let started = Instant::now();
        let engine = open::engine(files, &opening)?;
        let about = About {
            model: self.args.model_name(),
            params,
            weights_bytes,
            kv,
            load_ms: started.elapsed().as_secs_f64() * 1e3,
            repetitions: self.args.repetitions,
        };
        let names = engine.adapters().map(str::to_owned).collect::<Vec<_>>();
        for case in &group.cases {
            let measured = measure::case(&engine, case, self.args, self.cancel);
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

    /// The prompt length from which on the chain was never behind the best single adapter.
    fn tell_break_even(&self) {
        for depth in &self.args.depth {
            let mut chain: Vec<_> = self.rows.iter().filter_map(|row| row.chain_speedup(*depth)).collect();
            chain.sort_by_key(|&(prompt, _)| std::cmp::Reverse(prompt));
            let ahead = chain.iter().take_while(|&&(_, speedup)| speedup >= 1.0).last();
            let behind = if *depth > 0 { format!(" behind {depth} tokens") } else { String::new() };
            match (chain.is_empty(), ahead) {
                (true, _) => {}
                (false, Some((prompt, _))) => output::note(&format!(
                    "break-even{behind}: of the prompts measured, the chain is ahead of the best single adapter from {prompt} tokens on"
                )),
                (false, None) => output::note(&format!(
                    "break-even{behind}: the chain is behind the best single adapter at the longest prompt measured"
                )),
            }
        }
    }
}
