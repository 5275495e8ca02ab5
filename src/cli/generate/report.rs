//! What a generation did, as JSON and as a summary for people.

use std::time::Duration;

use runahead::engine::{PrefillReport, Session};
use runahead::sampler::{Logprobs, Sampling};
use runahead::tokenizer::Tokenizer;
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::output::{self, rounded};
use crate::cli::share::Share;

/// One generation. Names of the keys are a contract: other programs read them.
#[derive(Serialize)]
pub struct Report {
    /// Number of tokens of the prompt.
    prompt_tokens: usize,
    /// With `--session`: how many of them stood in its cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_tokens: Option<usize>,
    /// Generated ids, without the token that ended the answer.
    tokens: Vec<u32>,
    /// The same as text; empty where the model has no tokenizer.
    text: String,
    /// Where tokens were drawn: what `--seed` takes to draw them again.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// With `--logprobs`: one for each of `tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenLogprobs>>,
    ttft_ms: f64,
    prefill: Prefill,
    decode: Decode,
}

/// Natural logarithms of probabilities in the model's own distribution.
#[derive(Serialize)]
struct TokenLogprobs {
    id: u32,
    logprob: f32,
    /// The likeliest tokens, the likeliest first.
    top: Vec<Likely>,
}

#[derive(Serialize)]
struct Likely {
    id: u32,
    /// Empty for control tokens; bytes that are no UTF-8 by themselves are shown as U+FFFD.
    text: String,
    logprob: f32,
}

impl TokenLogprobs {
    fn new(id: u32, logprobs: Logprobs, tokenizer: Option<&Tokenizer>) -> Self {
        let text = |id| {
            let bytes = tokenizer.and_then(|t| t.token_bytes(id).ok());
            bytes.map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
        };
        let top = logprobs.top.into_iter().map(|(id, logprob)| Likely { id, text: text(id), logprob }).collect();
        Self { id, logprob: logprobs.chosen, top }
    }
}

#[derive(Serialize)]
struct Prefill {
    mode: &'static str,
    partition: Vec<usize>,
    adapters: Vec<Share>,
}

#[derive(Serialize)]
struct Decode {
    /// Tokens after the first, which is the prefill's.
    tokens: usize,
    /// 0 where there are none.
    tokens_per_s: f64,
}

/// An answer as it went.
pub struct Answer {
    pub session: Session,
    pub prompt_tokens: usize,
    pub ids: Vec<u32>,
    pub logprobs: Vec<Logprobs>,
    pub text: String,
    pub prefill: PrefillReport,
    /// From the first token to the last.
    pub decoding: Duration,
    /// What ended it early.
    pub failure: Option<Failure>,
}

impl Report {
    pub fn new(answer: Answer, of_session: bool, sampling: &Sampling) -> Self {
        let Answer { session, prompt_tokens, ids, logprobs, text, prefill, decoding, .. } = answer;
        let decoded = ids.len().saturating_sub(1);
        let prefilled = prefill.partition.iter().sum::<usize>();
        let tokenizer = session.engine().tokenizer();
        let logprobs = ids.iter().zip(logprobs).map(|(&id, l)| TokenLogprobs::new(id, l, tokenizer)).collect();
        Self {
            prompt_tokens,
            cached_tokens: of_session.then(|| prompt_tokens.saturating_sub(prefilled)),
            tokens: ids,
            text,
            seed: (sampling.temperature > 0.0).then_some(sampling.seed),
            logprobs: (sampling.logprobs > 0).then_some(logprobs),
            ttft_ms: rounded(prefill.ttft_ms),
            prefill: Prefill {
                mode: prefill.mode,
                partition: prefill.partition,
                adapters: prefill.adapters.iter().map(Share::from).collect(),
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
            let digits = |rate: f64| if rate < 1.0 { 3 } else { 1 };
            let rates = a
                .handed_on
                .iter()
                .map(|h| format!(" at {:.*} GB/s to {}", digits(h.gb_per_s), h.gb_per_s, prefill.adapters[h.to].name));
            let handed = handed + &rates.collect::<String>();
            output::note(&format!("{}: tokens {start}..{end}, busy {busy:.0} ms, idle {wait:.0} ms{handed}", a.name));
        }
        let cut = prefill.partition.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
        let (n, ttft) = (prefill.partition.iter().sum::<usize>(), self.ttft_ms);
        let rate = n as f64 / (ttft / 1e3);
        output::note(&format!(
            "prefill ({}): {cut} tokens, first token after {ttft:.0} ms ({rate:.0} token/s)",
            prefill.mode
        ));
        if let Some(cached) = self.cached_tokens {
            output::note(&format!("session: {cached} of {} tokens were in its cache", self.prompt_tokens));
        }
        let Decode { tokens, tokens_per_s } = &self.decode;
        if *tokens > 0 {
            output::note(&format!("decode: {tokens} tokens, {tokens_per_s:.1} token/s"));
        }
        Ok(())
    }
}
