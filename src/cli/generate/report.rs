//! What a generation did, as JSON and as a summary for people.

use std::time::Duration;

use runahead::engine::PrefillReport;
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::output;

/// One generation. Names of the keys are a contract: other programs read them.
#[derive(Serialize)]
pub struct Report {
    /// Number of tokens of the prompt.
    prompt_tokens: usize,
    /// Generated ids, without the token that ended the answer.
    tokens: Vec<u32>,
    /// The same as text; empty where the model has no tokenizer.
    text: String,
    ttft_ms: f64,
    prefill: Prefill,
    decode: Decode,
}

#[derive(Serialize)]
struct Prefill {
    mode: &'static str,
    partition: Vec<usize>,
    adapters: Vec<Adapter>,
}

#[derive(Serialize)]
struct Adapter {
    name: String,
    start: usize,
    end: usize,
    busy_ms: f64,
    wait_ms: f64,
    published_bytes: u64,
    fetched_bytes: u64,
}

#[derive(Serialize)]
struct Decode {
    /// Tokens after the first, which is the prefill's.
    tokens: usize,
    /// 0 where there are none.
    tokens_per_s: f64,
}

impl Report {
    /// `decoding` is the time from the first token to the last.
    pub fn new(
        prompt_tokens: usize,
        tokens: Vec<u32>,
        text: String,
        report: PrefillReport,
        decoding: Duration,
    ) -> Self {
        let decoded = tokens.len().saturating_sub(1);
        let adapter = |a: runahead::engine::AdapterReport| Adapter {
            name: a.name,
            start: a.start,
            end: a.end,
            busy_ms: rounded(a.busy_ms),
            wait_ms: rounded(a.wait_ms),
            published_bytes: a.published_bytes,
            fetched_bytes: a.fetched_bytes,
        };
        Self {
            prompt_tokens,
            tokens,
            text,
            ttft_ms: rounded(report.ttft_ms),
            prefill: Prefill {
                mode: report.mode,
                partition: report.partition,
                adapters: report.adapters.into_iter().map(adapter).collect(),
            },
            decode: Decode {
                tokens: decoded,
                tokens_per_s: if decoded == 0 { 0.0 } else { rounded(decoded as f64 / decoding.as_secs_f64()) },
            },
        }
    }

    /// Writes the summary to stderr.
    pub fn print_summary(&self) -> Result<(), Failure> {
        let prefill = &self.prefill;
        output::note("");
        for a in &prefill.adapters {
            let moved = |what: &str, n: u64| {
                if n > 0 { format!(", {what} {} of K/V", output::bytes(n)) } else { String::new() }
            };
            let handed = moved("handed on", a.published_bytes) + &moved("took", a.fetched_bytes);
            let (start, end, busy, wait) = (a.start, a.end, a.busy_ms, a.wait_ms);
            output::note(&format!("{}: tokens {start}..{end}, busy {busy:.0} ms, idle {wait:.0} ms{handed}", a.name));
        }
        let cut = prefill.partition.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
        let (n, ttft) = (self.prompt_tokens, self.ttft_ms);
        let rate = n as f64 / (ttft / 1e3);
        output::note(&format!(
            "prefill ({}): {cut} tokens, first token after {ttft:.0} ms ({rate:.0} token/s)",
            prefill.mode
        ));
        let Decode { tokens, tokens_per_s } = &self.decode;
        if *tokens > 0 {
            output::note(&format!("decode: {tokens} tokens, {tokens_per_s:.1} token/s"));
        }
        Ok(())
    }
}

/// Microseconds are as fine as the clocks deserve.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
