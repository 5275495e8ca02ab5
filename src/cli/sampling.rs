//! How tokens are chosen, as arguments of `generate` and `chat`.

use std::hash::{BuildHasher, RandomState};

use runahead::engine::Options;
use runahead::error::Error;
use runahead::sampler::Sampling;

use super::failure::Failure;

/// See [`Sampling`].
#[derive(Clone, Debug, clap::Args)]
pub struct SamplingArgs {
    /// How freely tokens are drawn; 0 takes the likeliest one each time
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Draw from the K likeliest tokens only; 0: from all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Draw from the likeliest tokens that have this probability together
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Draw only tokens with this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Divides positive logits of tokens seen among the last --penalty-window, multiplies negative ones; 1: none
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repeat_penalty: f32,
    /// Taken off a token's logit for each time that it was seen; 0: none
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Taken off a token's logit once it was seen; 0: none
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Tokens before, of prompt and answer, that the penalties look at
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub penalty_window: usize,
    /// The same seed gives the same text; a new one each time unless said here
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// Puts the settings into `options`, with `logprobs` tokens' log-probabilities.
    pub fn apply(&self, options: &mut Options, logprobs: usize) -> Result<(), Failure> {
        if self.stop.iter().any(String::is_empty) {
            return Err(Failure::Usage("--stop is empty: it would stop every answer".to_owned()));
        }
        options.stop = self.stop.clone();
        options.sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            penalty_window: self.penalty_window,
            // The standard library keys every hasher with numbers of the system's random source.
            seed: self.seed.unwrap_or_else(|| RandomState::new().hash_one("seed")),
            logprobs,
        };
        options.sampling.check().map_err(|e| match e {
            Error::Sampling(text) => Failure::Usage(text),
            other => other.into(),
        })
    }
}
