//! From a row of logits to a token id: pure functions of the logits, the tokens before and a seed.
//!
//! The order is penalties, top-k, top-p, min-p, temperature: what is cut off depends on the model's own probabilities, and the temperature
//! weighs what is left. (As llama.cpp does it, so that settings carry over.) Temperature 0 takes the largest logit.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::error::{Error, Result};

mod stop;

pub use stop::StopFilter;

/// How tokens are chosen. The default is greedy: the likeliest token each time.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Only the so many likeliest tokens; 0: all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability (Holtzman et al. 2020), above 0 and up to 1.
    pub top_p: f32,
    /// Only tokens with at least this share of the likeliest one's probability, 0 to 1.
    pub min_p: f32,
    /// Logits of tokens seen before are divided by it where positive and multiplied where negative (Keskar et al. 2019); 1: none.
    pub repeat_penalty: f32,
    /// Subtracted from a token's logit for each time it was seen; 0: none.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of every token that was seen; 0: none.
    pub presence_penalty: f32,
    /// The penalties look at so many tokens before, prompt and answer.
    pub penalty_window: usize,
    /// Same seed, same text (on the same adapters, with the same model and options).
    pub seed: u64,
    /// The so many likeliest tokens come with every token, with their log-probabilities; 0: none.
    pub logprobs: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            seed: 0,
            logprobs: 0,
        }
    }
}

impl Sampling {
    /// Says no to values without a meaning.
    ///
    /// # Errors
    /// [`Error::Sampling`] names the setting, the value and what it may be.
    pub fn check(&self) -> Result<()> {
        let rules: [(&str, f32, bool, &str); 6] = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            ("repeat penalty", self.repeat_penalty, self.repeat_penalty > 0.0, "above 0"),
            ("frequency penalty", self.frequency_penalty, true, "a number"),
            ("presence penalty", self.presence_penalty, true, "a number"),
        ];
        match rules.iter().find(|(_, value, holds, _)| !(*holds && value.is_finite())) {
            Some((name, value, _, rule)) => Err(Error::Sampling(format!("{name} {value} is not {rule}"))),
            None => Ok(()),
        }
    }

    /// Whether the device's own arg max gives all that is asked for.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && self.logprobs == 0 && !self.has_penalties()
    }

    fn has_penalties(&self) -> bool {
        self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// Log-probabilities in the model's own distribution: before penalties, cuts and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The likeliest tokens, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub id: u32,
    /// Where [`Sampling::logprobs`] asks for them.
    pub logprobs: Option<Logprobs>,
}

/// Chooses tokens one after another.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    ///
    /// # Errors
    /// See [`Sampling::check`].
    pub fn new(sampling: &Sampling) -> Result<Self> {
        sampling.check()?;
        Ok(Self { sampling: sampling.clone(), random: SplitMix(sampling.seed) })
    }

    /// Chooses from `logits` (one per id of the vocabulary) what follows `before`. Logits that are no numbers are never chosen.
    ///
    /// # Errors
    /// [`Error::Sampling`] where no logit is finite.
    pub fn choose(&mut self, logits: &[f32], before: &[u32]) -> Result<Choice> {
        let mut candidates: Vec<Candidate> = (0u32..)
            .zip(logits)
            .filter(|(_, logit)| logit.is_finite())
            .map(|(id, &logit)| Candidate { id, logit })
            .collect();
        let own = (self.sampling.logprobs > 0).then(|| OwnDistribution::new(&candidates, self.sampling.logprobs));
        self.penalise(&mut candidates, before);
        let id = if self.sampling.temperature == 0.0 {
            // The first of equals, as the devices' arg max has it.
            candidates.iter().min_by(|a, b| by_rank(a, b)).map(|c| c.id)
        } else {
            self.cut(&mut candidates);
            self.draw(&candidates)
        };
        let id = id.ok_or_else(|| Error::Sampling(format!("none of {} logits is a number", logits.len())))?;
        let logprobs = own.map(|own| own.of(logits[id as usize]));
        Ok(Choice { id, logprobs })
    }

    fn penalise(&self, candidates: &mut [Candidate], before: &[u32]) {
        let s = &self.sampling;
        if !s.has_penalties() {
            return;
        }
        let mut counts: HashMap<u32, f32> = HashMap::new();
        for &id in &before[before.len().saturating_sub(s.penalty_window)..] {
            *counts.entry(id).or_default() += 1.0;
        }
        for c in candidates {
            if let Some(count) = counts.get(&c.id) {
                c.logit = if c.logit > 0.0 { c.logit / s.repeat_penalty } else { c.logit * s.repeat_penalty };
                c.logit -= s.frequency_penalty * count + s.presence_penalty;
            }
        }
    }

    /// Leaves what top-k, top-p and min-p leave: at least the likeliest token.
    fn cut(&self, candidates: &mut Vec<Candidate>) {
        let s = &self.sampling;
        if s.top_k > 0 && s.top_k < candidates.len() {
            candidates.select_nth_unstable_by(s.top_k - 1, by_rank);
            candidates.truncate(s.top_k);
        }
        if s.top_p < 1.0 {
            nucleus(candidates, f64::from(s.top_p));
        }
        if s.min_p > 0.0 {
            let floor = greatest(candidates) + s.min_p.ln();
            candidates.retain(|c| c.logit >= floor);
        }
        // The order decides which token a random number means: one that no selection algorithm can change.
        candidates.sort_unstable_by_key(|c| c.id);
    }

    fn draw(&mut self, candidates: &[Candidate]) -> Option<u32> {
        let (max, temperature) = (f64::from(greatest(candidates)), f64::from(self.sampling.temperature));
        let weight = |c: &Candidate| ((f64::from(c.logit) - max) / temperature).exp();
        let total: f64 = candidates.iter().map(weight).sum();
        let mut left = self.random.fraction() * total;
        for c in candidates {
            let weight = weight(c);
            if weight > 0.0 && left < weight {
                return Some(c.id);
            }
            left -= weight;
        }
        // Rounding may leave a hair's breadth behind the last one.
        candidates.iter().rev().find(|c| weight(c) > 0.0).map(|c| c.id)
    }
}

/// The likeliest first; the lower id among equals.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

fn greatest(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max)
}

/// `exp(logit - max)` of all: the denominator of the softmax.
fn mass(candidates: &[Candidate], max: f64) -> f64 {
    candidates.iter().map(|c| (f64::from(c.logit) - max).exp()).sum()
}

/// Keeps the smallest set of the likeliest tokens whose probability reaches `top_p`. Sorting a vocabulary of 128k takes 10 ms, longer than many a
/// decode step, and most sets have a few hundred tokens: only the front is sorted, eight times as much of it where that was too little.
fn nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let max = f64::from(greatest(candidates));
    let enough = top_p * mass(candidates, max);
    let mut front = 256;
    loop {
        front = candidates.len().min(front);
        if front < candidates.len() {
            candidates.select_nth_unstable_by(front, by_rank);
        }
        candidates[..front].sort_unstable_by(by_rank);
        let mut sum = 0.0;
        let reached = candidates[..front].iter().position(|c| {
            sum += (f64::from(c.logit) - max).exp();
            sum >= enough
        });
        match reached {
            Some(last) => return candidates.truncate(last + 1),
            None if front == candidates.len() => return,
            None => front *= 8,
        }
    }
}

/// The model's distribution, as far as it is told.
struct OwnDistribution {
    log_sum: f64,
    top: Vec<Candidate>,
}

impl OwnDistribution {
    fn new(candidates: &[Candidate], n: usize) -> Self {
        let max = f64::from(greatest(candidates));
        let log_sum = max + mass(candidates, max).ln();
        let mut top = candidates.to_vec();
        if n < top.len() {
            top.select_nth_unstable_by(n, by_rank);
            top.truncate(n);
        }
        top.sort_unstable_by(by_rank);
        Self { log_sum, top }
    }

    fn of(&self, chosen: f32) -> Logprobs {
        let logprob = |logit: f32| (f64::from(logit) - self.log_sum) as f32;
        Logprobs { chosen: logprob(chosen), top: self.top.iter().map(|c| (c.id, logprob(c.logit))).collect() }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): a counter and a mix of it, so that a seed is the whole state and every platform draws the same.
#[derive(Clone, Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`, 53 bits.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
