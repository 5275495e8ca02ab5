//! The choice that nobody has to make: which adapters take part, in which order, and how the prompt is cut.
//!
//! The adapter that decodes fastest is the last one. Of the others every subset in every order is tried on the simulator (for many adapters, the slowest is dropped
//! time and again). A chain is taken only where it is expected to be faster than the best adapter alone by more than the costs are uncertain. Pure.

use crate::error::{Error, Result};
use crate::runahead::cost::CostModel;
use crate::runahead::partition::n_granules;
use crate::runahead::schedule::{Mode, Schedule};
use crate::runahead::search::search_simulated;
use crate::runahead::simulate::{Forecast, simulate};
use crate::runahead::table::Table;

/// Up to this many adapters every order is tried: 326 chains of 5 and fewer.
const ALL_ORDERS: usize = 5;
/// What a chain has to gain at least, as a part of the time: less would drown in the noise of a measurement.
const LEAST_GAIN: f64 = 0.02;
/// What it has to gain at most, however badly the costs fit: more than two equal adapters can.
const MOST_DOUBT: f64 = 0.5;

/// What is to be prefilled, and on what.
pub struct Task<'a> {
    /// Costs of all adapters, each alone, in the order in which they were named.
    pub costs: &'a CostModel,
    /// Costs of a chain of these, by number: adapters that share a device cost more than alone.
    pub costs_of: &'a dyn Fn(&[usize]) -> Result<CostModel>,
    /// Searched partitions of all adapters in that order.
    pub table: Option<&'a Table>,
    /// Tokens before the prompt.
    pub past: usize,
    /// Tokens of the prompt.
    pub len: usize,
    /// Blocks of the model.
    pub n_layers: usize,
    /// Why an adapter cannot take part, last in the chain or not: too little memory, or a device that another one stands for.
    pub refuses: &'a dyn Fn(usize, bool) -> Option<String>,
}

impl Task<'_> {
    fn single(&self, past: usize, len: usize) -> Schedule {
        Schedule::single(past, len, self.n_layers).windowed(&self.costs.windows)
    }

    fn chain(&self, past: usize, lengths: &[usize]) -> Schedule {
        Schedule::runahead(past, lengths, self.n_layers).windowed(&self.costs.windows)
    }
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// `Single` or `Runahead`.
    pub mode: Mode,
    /// The adapters that take part, in the order of the chain, by their number in [`Task::costs`].
    pub order: Vec<usize>,
    /// Tokens of each.
    pub lengths: Vec<usize>,
    /// What is expected of them.
    pub forecast: Forecast,
    /// Seconds that the best adapter alone is expected to take.
    pub single_s: f64,
    /// The others, and why.
    pub left_out: Vec<(usize, String)>,
}

/// Chooses.
///
/// # Errors
/// [`Error::EmptyPrompt`], [`Error::Partition`] where no adapter can make the first token, those of the simulator.
pub fn choose(task: &Task<'_>) -> Result<Choice> {
    if task.len == 0 {
        return Err(Error::EmptyPrompt);
    }
    task.costs.validate()?;
    let n = task.costs.adapters.len();
    let refusal: Vec<Option<String>> = (0..n).map(|i| (task.refuses)(i, false)).collect();
    let (mut best, single) = singles(task)?;
    let single_s = best.forecast.ttft_s;
    let mut verdict = None;
    if let Some(chain) = best_chain(task, &refusal)? {
        let doubt = chain.order.iter().map(|&i| task.costs.adapters[i].fit_error).fold(LEAST_GAIN, f64::max);
        let (of_chains, of_singles) = corrections(task)?;
        let (chain_s, alone_s) = (chain.forecast.ttft_s * of_chains, single_s * of_singles);
        if chain_s < alone_s * (1.0 - doubt.min(MOST_DOUBT)) {
            best = chain;
        } else {
            verdict =
                Some(format!("a chain is expected to take {} ms, {single} alone {} ms", ms(chain_s), ms(alone_s)));
        }
    }
    let reason = |i: usize| -> Result<String> {
        let granules = n_granules(task.past, task.len);
        let few =
            || (granules <= best.order.len()).then(|| format!("{} tokens are {granules} granules only", task.len));
        match refusal[i].clone().or_else(few).or_else(|| verdict.clone()) {
            Some(reason) => Ok(reason),
            None => {
                let order: Vec<usize> = [i].into_iter().chain(best.order.iter().copied()).collect();
                let (with, without) = (chain(task, &order)?.forecast.ttft_s, best.forecast.ttft_s);
                Ok(format!("the first token is expected after {} ms with it, {} ms without", ms(with), ms(without)))
            }
        }
    };
    let left_out = (0..n).filter(|i| !best.order.contains(i)).map(|i| Ok((i, reason(i)?))).collect::<Result<_>>()?;
    Ok(Choice { single_s, left_out, ..best })
}

/// The best adapter alone, and its name.
fn singles<'a>(task: &Task<'a>) -> Result<(Choice, &'a str)> {
    let mut best: Option<Choice> = None;
    for i in 0..task.costs.adapters.len() {
        if (task.refuses)(i, true).is_some() {
            continue;
        }
        let forecast = simulate(&task.single(task.past, task.len), &task.costs.pick(&[i]))?;
        if best.as_ref().is_none_or(|b| forecast.ttft_s < b.forecast.ttft_s) {
            best = Some(choice(Mode::Single, vec![i], vec![task.len], forecast));
        }
    }
    let best = best.ok_or_else(|| {
        let reasons = (0..task.costs.adapters.len()).filter_map(|i| (task.refuses)(i, true)).collect::<Vec<_>>();
        Error::Partition(format!("no adapter can make the first token: {}", reasons.join("; ")))
    })?;
    let name = &task.costs.adapters[best.order[0]].name;
    Ok((best, name))
}

fn choice(mode: Mode, order: Vec<usize>, lengths: Vec<usize>, forecast: Forecast) -> Choice {
    Choice { mode, order, lengths, forecast, single_s: 0.0, left_out: Vec::new() }
}

/// The fastest chain that the simulator knows of two adapters and more.
fn best_chain(task: &Task<'_>, refusal: &[Option<String>]) -> Result<Option<Choice>> {
    let granules = n_granules(task.past, task.len);
    let usable = (0..refusal.len()).filter(|&i| refusal[i].is_none());
    let mut usable: Vec<usize> = usable.collect();
    let Some(last) = fastest_decoder(task, &usable) else { return Ok(None) };
    usable.retain(|&i| i != last);
    // The fastest first: where not all orders are tried, this is the one.
    let alone = |i: usize| task.costs.layer_s(i, task.past as f64, task.len as f64);
    usable.sort_by(|&a, &b| alone(a).total_cmp(&alone(b)));
    let fronts = if usable.len() <= ALL_ORDERS {
        orders(&usable)
    } else {
        (1..=usable.len()).map(|k| usable[..k].to_vec()).collect()
    };
    let mut best: Option<Choice> = None;
    for front in fronts.into_iter().filter(|f| !f.is_empty() && f.len() < granules) {
        let order: Vec<usize> = front.into_iter().chain([last]).collect();
        let chain = chain(task, &order)?;
        if best.as_ref().is_none_or(|b| chain.forecast.ttft_s < b.forecast.ttft_s) {
            best = Some(chain);
        }
    }
    Ok(best)
}

/// A chain in this order, cut by the table where it is the table's own, else on the simulator.
fn chain(task: &Task<'_>, order: &[usize]) -> Result<Choice> {
    let costs = (task.costs_of)(order)?;
    let in_table = |t: &&Table| task.past == 0 && order.iter().copied().eq(0..t.costs.adapters.len());
    let predicted = task.table.filter(in_table).and_then(|t| t.predict(task.past, task.len));
    let lengths = match predicted {
        Some(lengths) => lengths,
        None => search_simulated(Mode::Runahead, &costs, task.past, task.len, task.n_layers)?.lengths,
    };
    let forecast = simulate(&task.chain(task.past, &lengths), &costs)?;
    Ok(choice(Mode::Runahead, order.to_vec(), lengths, forecast))
}

/// How many times as long as simulated chains and single adapters took where they were measured, at the nearest length that was. Costs are timed on each
/// adapter alone; adapters that share cores, memory or a bus are slower together, in whatever order.
fn corrections(task: &Task<'_>) -> Result<(f64, f64)> {
    let none = Ok((1.0, 1.0));
    let Some(table) = task.table.filter(|t| t.costs.adapters.len() > 1) else { return none };
    let (Some(first), Some(last)) = (table.points.first(), table.points.last()) else { return none };
    let len = task.len.clamp(first.context, last.context);
    let (Some((chain_ms, single_ms)), Some(lengths)) = (table.measured_ms(len), table.predict(0, len)) else {
        return none;
    };
    let all: Vec<usize> = (0..table.costs.adapters.len()).collect();
    // With what the costs say of a shared device: only what is beyond that was not known.
    let chain = simulate(&task.chain(0, &lengths), &(task.costs_of)(&all)?)?.ttft_s;
    let mut single = f64::INFINITY;
    for i in all {
        let alone = simulate(&task.single(0, len), &table.costs.pick(&[i]))?;
        single = single.min(alone.ttft_s);
    }
    let ratio = |ms: f64, s: f64| if s > 0.0 { ms / 1e3 / s } else { 1.0 };
    Ok((ratio(chain_ms, chain), ratio(single_ms, single)))
}

/// The adapter that can be last and decodes fastest; where that is not known, the one that prefills fastest.
fn fastest_decoder(task: &Task<'_>, among: &[usize]) -> Option<usize> {
    let known = among.iter().all(|&i| task.costs.adapters[i].decode_s.is_some());
    let time = |i: usize| {
        let a = &task.costs.adapters[i];
        a.decode_s.filter(|_| known).unwrap_or_else(|| task.costs.layer_s(i, task.past as f64, task.len as f64))
    };
    // Of equals the last one, so that the order in which adapters are named counts.
    let able = among.iter().copied().filter(|&i| (task.refuses)(i, true).is_none());
    able.min_by(|&a, &b| time(a).total_cmp(&time(b)).then(b.cmp(&a)))
}

/// Every ordered selection of `items`.
fn orders(items: &[usize]) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = vec![Vec::new()];
    let mut at = 0;
    while let Some(base) = all.get(at).cloned() {
        let more = items.iter().filter(|i| !base.contains(i));
        all.extend(more.map(|&i| base.iter().copied().chain([i]).collect()));
        at += 1;
    }
    all
}

fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 10.0 { format!("{ms:.2}") } else { format!("{ms:.0}") }
}
