//! What one side of a comparison computes.

use runahead::engine::{Engine, Options};
use runahead::runahead::partition::Split;

use crate::cli::failure::Failure;
use crate::cli::progress::Bars;

/// What is asked of a side.
pub struct Turns<'a> {
    pub prompt: &'a [u32],
    /// Tokens of the second turn; the side's own greedy answer where there are none.
    pub continuation: Option<&'a [u32]>,
    pub split: Split,
    pub n_greedy: usize,
}

/// What a side computed.
pub struct Side {
    /// `[prompt + continuation, vocab]`.
    pub logits: Vec<f32>,
    /// K and V of each layer, each `[prompt + continuation, kv_heads, head_dim]`.
    pub layers: Vec<(Vec<f32>, Vec<f32>)>,
    /// The greedy answer to the prompt.
    pub greedy: Vec<u32>,
}

impl Side {
    /// Runs the turns on a session for the answer and one for logits, K and V.
    pub fn measure(engine: &Engine, turns: &Turns<'_>, bars: &Bars) -> Result<Self, Failure> {
        let side = Self::run(engine, turns);
        bars.clear();
        side
    }

    fn run(engine: &Engine, turns: &Turns<'_>) -> Result<Self, Failure> {
        let options = Options {
            max_tokens: turns.n_greedy,
            split: turns.split.clone(),
            stop_at_end: false,
            ..Options::default()
        };
        let mut session = engine.session()?;
        let answer = session.generate(turns.prompt, &options)?;
        let greedy = answer.map(|token| token.map(|t| t.id)).collect::<Result<Vec<_>, _>>()?;
        drop(session);

        let mut session = engine.session()?;
        let mut logits = session.logits(turns.prompt, &options)?;
        let continuation = turns.continuation.unwrap_or(but_last(&greedy));
        if !continuation.is_empty() {
            // A given split is the prompt's.
            let options = Options { split: Split::Even, ..options };
            logits.append(&mut session.logits(continuation, &options)?);
        }
        let layers = (0..engine.config().n_layers).map(|layer| session.kv(layer)).collect::<Result<_, _>>()?;
        Ok(Self { logits, layers, greedy })
    }

    /// The answer as tokens to go on with; its last one has no row of its own.
    pub fn continuation(&self) -> &[u32] {
        but_last(&self.greedy)
    }
}

fn but_last(ids: &[u32]) -> &[u32] {
    ids.split_last().map_or(&[], |(_, rest)| rest)
}
