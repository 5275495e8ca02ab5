//! One line of the results. Names of the keys are a contract: other programs read them.

use runahead::dtype::KvDtype;
use runahead::engine::{Mode, PrefillReport};
use serde::Serialize;

use super::cases::Case;
use super::measure::Measured;

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
    devices: Vec<String>,
    /// From the first adapter's opening to the last weight's upload.
    load_ms: f64,
    repetitions: u32,
    /// As llama-bench names it: `pp512`, `tg128`, `pp512 @ d4096`.
    test: String,
    /// `single`, `runahead`, or `decode`.
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
    /// Over all adapters.
    published_bytes: u64,
    /// Over all adapters.
    fetched_bytes: u64,
    partition: Vec<usize>,
    adapters: Vec<Adapter>,
}

/// As in `generate`; times are means.
#[derive(Clone, Debug, Serialize)]
struct Adapter {
    name: String,
    start: usize,
    end: usize,
    busy_ms: f64,
    wait_ms: f64,
    published_bytes: u64,
    fetched_bytes: u64,
}

/// All keys in the order of a row, for forms that need every one in each line.
pub const KEYS: [&str; 23] = [
    "model",
    "params",
    "weights_bytes",
    "kv",
    "backend",
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
    "published_bytes",
    "fetched_bytes",
    "partition",
    "adapters",
    "gen",
    "tokens_per_s",
    "tokens_per_s_sd",
];

impl Row {
    /// `best_single_ms` is the time that a chain is compared with.
    pub fn new(about: &About, case: &Case, measured: Measured, used: Used, best_single_ms: Option<f64>) -> Self {
        let (test, depth, generated) = match *case {
            Case::Prefill { prompt, depth, .. } => (format!("pp{prompt}"), depth, None),
            Case::Decode { tokens, depth } => (format!("tg{tokens}"), depth, Some(tokens)),
        };
        let (mode, prefill, rates) = match (measured, case) {
            (Measured::Prefill(reports), &Case::Prefill { mode, prompt, .. }) => {
                let rates = reports.iter().map(|r| prompt as f64 / (r.ttft_ms / 1e3)).collect();
                let chain = mode != Mode::Single;
                let name = reports.first().map_or("single", |r| r.mode);
                (name, Some(Prefill::new(prompt, &reports, best_single_ms.filter(|_| chain))), rates)
            }
            (Measured::Prefill(_), Case::Decode { .. }) => ("decode", None, Vec::new()),
            (Measured::Decode(rates), _) => ("decode", None, rates),
        };
        // A prompt's rate is that of its mean time, so that the two agree.
        let rate = prefill.as_ref().map_or_else(|| mean(&rates), |p| p.prompt as f64 / (p.ttft_ms / 1e3));
        Self {
            model: about.model.clone(),
            params: about.params,
            weights_bytes: about.weights_bytes,
            kv: match about.kv {
                KvDtype::F16 => "f16",
                KvDtype::F32 => "f32",
            },
            backend: used.backend,
            devices: used.devices,
            load_ms: rounded(about.load_ms),
            repetitions: about.repetitions,
            test: if depth > 0 { format!("{test} @ d{depth}") } else { test },
            mode,
            depth,
            prefill,
            r#gen: generated,
            tokens_per_s: rounded(rate),
            tokens_per_s_sd: rounded(deviation(&rates)),
        }
    }

    /// Whether this is one adapter's time to the first token in such a case.
    pub fn is_single(&self, prompt: usize, depth: usize) -> bool {
        self.mode == "single" && self.depth == depth && self.prefill.as_ref().is_some_and(|p| p.prompt == prompt)
    }

    /// Mean time to the first token.
    pub fn ttft_ms(&self) -> Option<f64> {
        self.prefill.as_ref().map(|p| p.ttft_ms)
    }

    /// Prompt length and speed-up, where this is a chain behind `depth` tokens.
    pub fn chain_speedup(&self, depth: usize) -> Option<(usize, f64)> {
        let prefill = self.prefill.as_ref().filter(|_| self.depth == depth)?;
        Some((prefill.prompt, prefill.speedup?))
    }

    /// Cells of the table for people, in the order of [`super::table::COLUMNS`].
    pub fn cells(&self) -> [String; 11] {
        let of = |cell: &dyn Fn(&Prefill) -> String| self.prefill.as_ref().map_or_else(String::new, cell);
        let lengths = |lengths: &[usize]| lengths.iter().map(usize::to_string).collect::<Vec<_>>().join("+");
        [
            self.model.clone(),
            format!("{:.2} GiB", self.weights_bytes as f64 / f64::from(1 << 30)),
            format!("{:.2} B", self.params as f64 / 1e9),
            self.backend.clone(),
            self.devices.join(", "),
            self.mode.to_owned(),
            of(&|p| if p.partition.len() > 1 { lengths(&p.partition) } else { String::new() }),
            self.test.clone(),
            format!("{:.2} ± {:.2}", self.tokens_per_s, self.tokens_per_s_sd),
            of(&|p| format!("{:.1} ± {:.1}", p.ttft_ms, p.ttft_ms_sd)),
            of(&|p| p.speedup.map_or_else(String::new, |x| format!("{x:.2}x, {:.0} % idle", p.idle_share * 100.0))),
        ]
    }
}

impl Prefill {
    fn new(prompt: usize, reports: &[PrefillReport], best_single_ms: Option<f64>) -> Self {
        let times: Vec<f64> = reports.iter().map(|r| r.ttft_ms).collect();
        let ttft_ms = mean(&times);
        let average = |value: &dyn Fn(&PrefillReport) -> f64| mean(&reports.iter().map(value).collect::<Vec<_>>());
        let adapters: Vec<Adapter> = reports.first().map_or_else(Vec::new, |first| {
            let adapter = |(i, a): (usize, &runahead::engine::AdapterReport)| Adapter {
                name: a.name.clone(),
                start: a.start,
                end: a.end,
                busy_ms: rounded(average(&|r| r.adapters.get(i).map_or(0.0, |a| a.busy_ms))),
                wait_ms: rounded(average(&|r| r.adapters.get(i).map_or(0.0, |a| a.wait_ms))),
                published_bytes: a.published_bytes,
                fetched_bytes: a.fetched_bytes,
            };
            first.adapters.iter().enumerate().map(adapter).collect()
        });
        let busy_ms: f64 = adapters.iter().map(|a| a.busy_ms).sum();
        let idle = 1.0 - busy_ms / (adapters.len().max(1) as f64 * ttft_ms);
        Self {
            prompt,
            ttft_ms: rounded(ttft_ms),
            ttft_ms_sd: rounded(deviation(&times)),
            speedup: best_single_ms.map(|best| rounded(best / ttft_ms)),
            idle_share: rounded(idle.max(0.0)),
            published_bytes: adapters.iter().map(|a| a.published_bytes).sum(),
            fetched_bytes: adapters.iter().map(|a| a.fetched_bytes).sum(),
            partition: reports.first().map_or_else(Vec::new, |r| r.partition.clone()),
            adapters,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Standard deviation of a sample; 0 for a single value.
fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

/// Microseconds are as fine as the clocks deserve.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_a_sample() {
        assert_eq!((mean(&[]), deviation(&[]), deviation(&[3.0])), (0.0, 0.0, 0.0));
        assert_eq!((mean(&[1.0, 2.0, 6.0]), deviation(&[1.0, 2.0, 6.0])), (3.0, 7.0f64.sqrt()));
    }
}
