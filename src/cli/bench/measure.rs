//! Runs one case: once to warm up, then as often as asked.

use std::time::{Duration, Instant};

use runahead::cancel::Cancel;
use runahead::engine::{Engine, Mode, Options, PrefillReport, Session};
use runahead::runahead::cost::CostModel;
use runahead::runahead::partition::Split;
use runahead::runahead::search::{Problem, search};

use super::BenchArgs;
use super::cases::Case;
use crate::cli::failure::Failure;

/// The first case of freshly loaded adapters is repeated for so long before it counts: the clock of a GPU that did nothing rises while it works. On an
/// H200 prompts of Falcon-7B's sizes took twice as long as they should have after half a second of it.
const WARM_UP: Duration = Duration::from_secs(2);

/// What the runs of a case gave, one entry each.
pub enum Measured {
    Prefill(Vec<PrefillReport>),
    /// Tokens per second.
    Decode(Vec<f64>),
}

impl Measured {
    /// What the reader must know.
    pub fn note(&self) -> Option<&str> {
        match self {
            Measured::Prefill(reports) => reports.first()?.note.as_deref(),
            Measured::Decode(_) => None,
        }
    }

    /// How many adapters took part, the last ones of the engine's.
    pub fn n_adapters(&self) -> usize {
        match self {
            Measured::Prefill(reports) => reports.first().map_or(1, |r| r.adapters.len()),
            Measured::Decode(_) => 1,
        }
    }

    /// Tokens of each piece of a prefill.
    pub fn partition(&self) -> &[usize] {
        match self {
            Measured::Prefill(reports) => reports.first().map_or(&[], |r| &r.partition),
            Measured::Decode(_) => &[],
        }
    }
}

/// Measures a case in a session of its own; `fresh` says that nothing ran on these adapters before.
///
/// # Errors
/// The engine's, a cancel.
pub fn case(
    engine: &Engine,
    case: &Case,
    split: &Split,
    args: &BenchArgs,
    fresh: bool,
    cancel: &Cancel,
) -> Result<Measured, Failure> {
    let mut session = engine.session()?;
    let mut run = |i: u32| {
        cancel.check()?;
        session.clear();
        match *case {
            Case::Prefill { ref way, prompt, depth } => {
                prefill(&mut session, engine, way.mode, split, prompt, depth, u64::from(i))
                    .map(Run::Prefill)
                    .map_err(Failure::from)
            }
            Case::Decode { tokens, depth } => {
                decode(&mut session, engine, tokens, depth, u64::from(i)).map(Run::Decode)
            }
        }
    };
    let started = Instant::now();
    run(0)?;
    while fresh && started.elapsed() < WARM_UP {
        run(0)?;
    }
    let (mut reports, mut rates) = (Vec::new(), Vec::new());
    for i in 1..=args.repetitions {
        match run(i)? {
            Run::Prefill(report) => reports.push(report),
            Run::Decode(rate) => rates.push(rate),
        }
    }
    Ok(if reports.is_empty() { Measured::Decode(rates) } else { Measured::Prefill(reports) })
}

/// The cut that a search on measured prefills finds, beginning with `guess`.
///
/// # Errors
/// The engine's, a cancel.
pub fn searched(
    engine: &Engine,
    mode: Mode,
    (prompt, depth): (usize, usize),
    (guess, costs): (Vec<usize>, &CostModel),
    cancel: &Cancel,
) -> Result<Vec<usize>, Failure> {
    let mut session = engine.session()?;
    let n_pieces = mode.n_pieces(engine.adapters().count());
    let problem = Problem::measured(depth, prompt, n_pieces, guess, costs);
    let mut ttft = |lengths: &[usize]| {
        session.clear();
        let split = Split::Given(lengths.to_vec());
        Ok(prefill(&mut session, engine, mode, &split, prompt, depth, 0)?.ttft_ms / 1e3)
    };
    // The first run compiles shaders and fills caches.
    ttft(&Split::Even.lengths(depth, prompt, n_pieces)?)?;
    let found = search(&problem, cancel, &mut ttft, &mut |_| {})?;
    cancel.check()?;
    Ok(found.lengths)
}

enum Run {
    Prefill(PrefillReport),
    Decode(f64),
}

fn prefill(
    session: &mut Session,
    engine: &Engine,
    mode: Mode,
    split: &Split,
    prompt: usize,
    depth: usize,
    seed: u64,
) -> runahead::Result<PrefillReport> {
    if depth > 0 {
        let before = Options { max_tokens: 1, mode, ..Options::default() };
        session.generate(&engine.config().any_tokens(depth, !seed), &before)?;
    }
    let options = Options { max_tokens: 1, mode, split: split.clone(), ..Options::default() };
    let report = session.generate(&engine.config().any_tokens(prompt, seed), &options)?.report().clone();
    Ok(report)
}

/// Tokens per second behind `depth` tokens, or behind one where there are none: something has to come before the first.
fn decode(session: &mut Session, engine: &Engine, tokens: usize, depth: usize, seed: u64) -> Result<f64, Failure> {
    let options = Options { max_tokens: tokens + 1, mode: Mode::Single, stop_at_end: false, ..Options::default() };
    let ids = engine.config().any_tokens(depth.max(1), seed);
    let mut generation = session.generate(&ids, &options)?;
    // The first token is the prefill's.
    generation.next().transpose()?;
    let started = Instant::now();
    for i in 0..tokens {
        if generation.next().transpose()?.is_none() {
            return Err(Failure::Other(format!("the answer ended after {i} of {tokens} tokens")));
        }
    }
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}
