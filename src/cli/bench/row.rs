//! One line of the results. Names of the keys are a contract: other programs read them.

use runahead::dtype::KvDtype;
use runahead::engine::{AdapterReport, HandOff, Mode, PrefillReport};
use runahead::runahead::simulate::{AdapterForecast, Forecast};
use serde::Serialize;

use super::cases::Case;
use super::measure::Measured;
use crate::cli::output::{self, rounded};
use crate::cli::share::{HandedOn, Share};

/// What is the same for all cases of a loaded model.
pub struct About {
    pub model: String,
    pub params: u64,
    pub weights_bytes: u64,
    pub kv: KvDtype,
    pub load_ms: f64,
    pub repetitions: u32,
}

/// The adapters that took part, in the order of the chain.
pub struct Used {
    pub devices: Vec<String>,
    pub backend: String,
    /// Who computed the products of each.
    pub gemm: Vec<String>,
}

/// One case. Keys that do not apply to it are absent from its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    model: String,
    /// Number of parameters.
    params: u64,
    weights_bytes: u64,
    kv: &'static str,
    backend: String,
    /// Who computes the products of prefill, of each adapter: `wgsl`, `cublaslt` or `native`.
    gemm: Vec<String>,
    devices: Vec<String>,
    /// From the first adapter's opening to the last weight's upload.
    load_ms: f64,
    repetitions: u32,
    /// As llama-bench names it: `pp512`, `tg128`, `pp512 @ d4096`.
    test: String,
    /// A mode of prefill, or `decode`.
    mode: &'static str,
    depth: usize,
    #[serde(flatten)]
    prefill: Option<Prefill>,
    /// Tokens decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#gen: Option<usize>,
    tokens_per_s: f64,
    tokens_per_s_sd: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Prefill {
    /// Tokens of the prompt.
    prompt: usize,
    ttft_ms: f64,
    ttft_ms_sd: f64,
    /// Over the best single adapter of the same run; of chains only.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    /// Share of the adapters' time, from the call to the first token, during which they had no work.
    idle_share: f64,
    /// The most layers that an adapter was ahead of one behind it, in the median run.
    run_ahead_layers: usize,
    /// Over all adapters.
    published_bytes: u64,
    /// Over all adapters.
    fetched_bytes: u64,
    /// `even`, `given`, `searched` or `predicted`; `auto` where `--prefill auto` chose mode and cut.
    split: &'static str,
    partition: Vec<usize>,
    /// Times are means.
    adapters: Vec<Share>,
    predicted: Predicted,
}

/// What `plan` says of this very prefill, under the names of what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Predicted {
    ttft_ms: f64,
    adapters: Vec<PredictedAdapter>,
    /// Where the costs come from.
    costs: String,
}

#[derive(Clone, Debug, Serialize)]
struct PredictedAdapter {
    busy_ms: f64,
    wait_ms: f64,
}

impl Predicted {
    /// `costs` says where the costs come from.
    pub fn new(forecast: &Forecast, costs: String) -> Self {
        let ms = |seconds: f64| rounded(seconds * 1e3);
        let adapter = |a: &AdapterForecast| PredictedAdapter { busy_ms: ms(a.busy_s), wait_ms: ms(a.wait_s) };
        Self { ttft_ms: ms(forecast.ttft_s), adapters: forecast.adapters.iter().map(adapter).collect(), costs }
    }
}

/// All keys in the order of a row, for forms that need every one in each line.
pub const KEYS: [&str; 27] = [
    "model",
    "params",
    "weights_bytes",
    "kv",
    "backend",
    "gemm",
    "devices",
    "load_ms",
    "repetitions",
    "test",
    "mode",
    "depth",
    "prompt",
    "ttft_ms",
    "ttft_ms_sd",
    "speedup",
    "idle_share",
    "run_ahead_layers",
    "published_bytes",
    "fetched_bytes",
    "split",
    "partition",
    "adapters",
    "predicted",
    "gen",
    "tokens_per_s",
    "tokens_per_s_sd",
];

impl Row {
    /// `best_single_ms` is the time that all but one adapter alone is compared with.
    pub fn new(
        about: &About,
        case: &Case,
        measured: Measured,
        used: Used,
        best_single_ms: Option<f64>,
        predicted: Option<Predicted>,
    ) -> Self {
        let (test, depth, generated) = match *case {
            Case::Prefill { prompt, depth, .. } => (format!("pp{prompt}"), depth, None),
            Case::Decode { tokens, depth } => (format!("tg{tokens}"), depth, Some(tokens)),
        };
        let (mode, prefill, (rate, rate_sd)) = match (measured, case, predicted) {
            (Measured::Prefill(reports), Case::Prefill { way, prompt, .. }, Some(predicted)) => {
                let prompt = *prompt;
                let compared = way.auto || way.mode != Mode::Single;
                let name = reports.first().map_or("single", |r| r.mode);
                let best_single_ms = best_single_ms.filter(|_| compared);
                let prefill = Prefill::new(prompt, way.split(), &reports, best_single_ms, predicted);
                // The rate of the mean time, and the same relative deviation: the two pairs of keys agree.
                let rate = prompt as f64 / (prefill.ttft_ms / 1e3);
                let deviation = rate * prefill.ttft_ms_sd / prefill.ttft_ms;
                (name, Some(prefill), (rate, deviation))
            }
            (Measured::Prefill(_), ..) => ("decode", None, (0.0, 0.0)),
            (Measured::Decode(rates), ..) => ("decode", None, (mean(&rates), deviation(&rates))),
        };
        Self {
            model: about.model.clone(),
            params: about.params,
            weights_bytes: about.weights_bytes,
            kv: match about.kv {
                KvDtype::F16 => "f16",
                KvDtype::F32 => "f32",
            },
            backend: used.backend,
            gemm: used.gemm,
            devices: used.devices,
            load_ms: rounded(about.load_ms),
            repetitions: about.repetitions,
            test: if depth > 0 { format!("{test} @ d{depth}") } else { test },
            mode,
            depth,
            prefill,
            r#gen: generated,
            tokens_per_s: rounded(rate),
            tokens_per_s_sd: rounded(rate_sd),
        }
    }

    /// Whether this is one adapter's time to the first token in such a case.
    pub fn is_single(&self, prompt: usize, depth: usize) -> bool {
        let of_case = |p: &Prefill| p.prompt == prompt && p.split != "auto";
        self.mode == "single" && self.depth == depth && self.prefill.as_ref().is_some_and(of_case)
    }

    /// Mean time to the first token.
    pub fn ttft_ms(&self) -> Option<f64> {
        self.prefill.as_ref().map(|p| p.ttft_ms)
    }

    /// Way to prefill, prompt length and speed-up, where this is a chain behind `depth` tokens.
    pub fn chain_speedup(&self, depth: usize) -> Option<(String, usize, f64)> {
        let prefill = self.prefill.as_ref().filter(|_| self.depth == depth)?;
        Some((self.way(), prefill.prompt, prefill.speedup?))
    }

    /// Way to prefill, prompt length and time to the first token.
    pub fn ttft(&self) -> Option<(String, usize, f64)> {
        self.prefill.as_ref().map(|p| (self.way(), p.prompt, p.ttft_ms))
    }

    /// What tells this row's line in a plot from others.
    fn way(&self) -> String {
        let split = self.prefill.as_ref().map_or("", |p| p.split);
        let depth = if self.depth > 0 { format!(" behind {} tokens", self.depth) } else { String::new() };
        match self.mode {
            // What it chooses may change with the length.
            _ if split == "auto" => format!("auto{depth}"),
            "single" => format!("single, {}{depth}", self.devices.join(", ")),
            mode => format!("{mode}, {split}{depth}"),
        }
    }

    /// Cells of the table for people, in the order of [`super::table::COLUMNS`].
    pub fn cells(&self) -> [String; 13] {
        let of = |cell: &dyn Fn(&Prefill) -> String| self.prefill.as_ref().map_or_else(String::new, cell);
        let lengths = |lengths: &[usize]| lengths.iter().map(usize::to_string).collect::<Vec<_>>().join("+");
        [
            self.model.clone(),
            scaled(self.weights_bytes as f64, &[(f64::from(1 << 30), "GiB"), (f64::from(1 << 20), "MiB")]),
            scaled(self.params as f64, &[(1e9, "B"), (1e6, "M")]),
            if self.gemm.iter().any(|g| g == "cublaslt") {
                format!("{}+cublaslt", self.backend)
            } else {
                self.backend.clone()
            },
            self.devices.join(", "),
            match self.prefill.as_ref().map_or("even", |p| p.split) {
                "even" => self.mode.to_owned(),
                "auto" => format!("auto: {}", self.mode),
                split => format!("{}, {split}", self.mode),
            },
            of(&|p| if p.partition.len() > 1 { lengths(&p.partition) } else { String::new() }),
            self.test.clone(),
            format!("{:.2} ± {:.2}", self.tokens_per_s, self.tokens_per_s_sd),
            of(&|p| format!("{:.1} ± {:.1}", p.ttft_ms, p.ttft_ms_sd)),
            of(&|p| format!("{:.1}", p.predicted.ttft_ms)),
            of(&|p| p.speedup.map_or_else(String::new, |x| format!("{x:.2}x, {:.0} % idle", p.idle_share * 100.0))),
            of(&|p| {
                let rate = p.gb_per_s().map_or_else(String::new, |rate| format!(", {rate:.1} GB/s"));
                format!("{} / {}{rate}", output::bytes(p.published_bytes), output::bytes(p.fetched_bytes))
            }),
        ]
    }
}

impl Prefill {
    /// Rate of the hand-offs, one after the other.
    fn gb_per_s(&self) -> Option<f64> {
        let all = || self.adapters.iter().flat_map(|a| &a.handed_on).filter(|h| h.gb_per_s > 0.0);
        let (bytes, time): (f64, f64) =
            all().fold((0.0, 0.0), |(bytes, time), h| (bytes + h.bytes as f64, time + h.bytes as f64 / h.gb_per_s));
        (time > 0.0).then(|| bytes / time)
    }

    fn new(
        prompt: usize,
        split: &'static str,
        reports: &[PrefillReport],
        best_single_ms: Option<f64>,
        predicted: Predicted,
    ) -> Self {
        let times: Vec<f64> = reports.iter().map(|r| r.ttft_ms).collect();
        let ttft_ms = mean(&times);
        let average = |value: &dyn Fn(&PrefillReport) -> f64| mean(&reports.iter().map(value).collect::<Vec<_>>());
        let adapters: Vec<Share> = reports.first().map_or_else(Vec::new, |first| {
            let share = |(i, a): (usize, &AdapterReport)| Share {
                busy_ms: rounded(average(&|r| r.adapters.get(i).map_or(0.0, |a| a.busy_ms))),
                wait_ms: rounded(average(&|r| r.adapters.get(i).map_or(0.0, |a| a.wait_ms))),
                handed_on: handed_on(reports, i),
                ..a.into()
            };
            first.adapters.iter().enumerate().map(share).collect()
        });
        let busy_ms: f64 = adapters.iter().map(|a| a.busy_ms).sum();
        let idle = 1.0 - busy_ms / (adapters.len().max(1) as f64 * ttft_ms);
        Self {
            prompt,
            ttft_ms: rounded(ttft_ms),
            ttft_ms_sd: rounded(deviation(&times)),
            speedup: best_single_ms.map(|best| rounded(best / ttft_ms)),
            idle_share: rounded(idle.max(0.0)),
            run_ahead_layers: median(reports.iter().map(|r| r.run_ahead_layers).collect()),
            split,
            published_bytes: adapters.iter().map(|a| a.published_bytes).sum(),
            fetched_bytes: adapters.iter().map(|a| a.fetched_bytes).sum(),
            partition: reports.first().map_or_else(Vec::new, |r| r.partition.clone()),
            adapters,
            predicted,
        }
    }
}

/// What an adapter handed on, at the mean of the rates.
fn handed_on(reports: &[PrefillReport], adapter: usize) -> Vec<HandedOn> {
    let of = |report: &PrefillReport| report.adapters.get(adapter).map_or(&[][..], |a| &a.handed_on).to_vec();
    let all = reports.iter().flat_map(of).collect::<Vec<_>>();
    let first = reports.first().map_or_else(Vec::new, of);
    let averaged = first.into_iter().map(|h| {
        let rates = all.iter().filter(|other| other.to == h.to).map(|other| other.gb_per_s).collect::<Vec<_>>();
        HandedOn::from(&HandOff { gb_per_s: mean(&rates), ..h })
    });
    averaged.collect()
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The upper one of two.
fn median(mut values: Vec<usize>) -> usize {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// In the first unit that the value reaches, else in the last.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let unit = units.iter().find(|(unit, _)| value >= *unit).or(units.last());
    unit.map_or_else(String::new, |(unit, name)| format!("{:.2} {name}", value / unit))
}

/// Standard deviation of a sample; 0 for a single value.
fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_a_sample() {
        assert_eq!((mean(&[]), deviation(&[]), deviation(&[3.0])), (0.0, 0.0, 0.0));
        assert_eq!((median(vec![]), median(vec![5, 1, 2])), (0, 2));
        assert_eq!((mean(&[1.0, 2.0, 6.0]), deviation(&[1.0, 2.0, 6.0])), (3.0, 7.0f64.sqrt()));
    }
}
