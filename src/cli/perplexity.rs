//! `runahead perplexity`: how well a model foretells a text, as one number with its uncertainty.
//!
//! The text is cut into windows, each computed from nothing; tokens in a window's second half count, so that each has half a window before it. The
//! perplexity is `exp` of the mean of `-ln p(token)`, in f64. Formats, adapters and tiers that change nothing but rounding leave it where it is.

use std::path::PathBuf;

use runahead::cancel::Cancel;
use runahead::engine::{Options, Session};
use runahead::error::Error;
use runahead::tokenizer::Tokenizer;
use serde::Serialize;

use super::args::{ChainArgs, ModelArgs};
use super::failure::Failure;
use super::{input, open, output};

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    perplexity: f64,
    /// Standard error of `perplexity`.
    error: f64,
    /// Tokens that count.
    tokens: usize,
    windows: usize,
    window: usize,
    adapters: Vec<String>,
}

/// Arguments of `perplexity`.
#[derive(Debug, clap::Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens of a window, with the model's beginning of a text in front of each; those of its second half count
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = window)]
    pub window: usize,
    #[command(flatten)]
    pub chain: ChainArgs,
    /// JSON instead of a line
    #[arg(long)]
    pub json: bool,
}

/// Two tokens at least: one that counts, and one before it.
fn window(text: &str) -> Result<usize, String> {
    let n: usize = text.parse().map_err(|e| format!("{e}"))?;
    if n < 2 { Err("2 tokens at least".to_owned()) } else { Ok(n) }
}

/// Runs the command.
pub fn run(args: &PerplexityArgs, cancel: &Cancel) -> Result<(), Failure> {
    let files = open::files(&args.model)?;
    let text = input::read_text(&args.file, cancel)?;
    let ids = files.prompt_tokens(&text, true)?;
    let window = open::context_for(&files, args.window, 0)?;
    if ids.len() < window {
        return Err(Failure::Usage(format!(
            "the text has {} tokens, a window {window}: --window can be less",
            ids.len()
        )));
    }
    let devices = open::named_or_default(&args.chain.devices);
    let (engine, bars) = open::plainly(files, &devices, &args.chain.engine, window, cancel)?;
    let mut session = engine.session()?;
    let options = Options { split: args.chain.split.split.clone(), ..Options::default() };
    let bos = engine.tokenizer().and_then(Tokenizer::bos);
    let windows = windows(&ids, window, bos);
    let mut losses = Vec::new();
    for ids in &windows {
        losses.extend(self::losses(&mut session, ids, &options)?);
        bars.clear();
    }
    let report = Report {
        windows: windows.len(),
        window,
        adapters: engine.adapters().map(str::to_owned).collect(),
        ..summary(&losses)
    };
    if args.json {
        return output::json_pretty(&report);
    }
    let Report { perplexity, error, tokens, windows, .. } = report;
    output::line(&format!("perplexity {perplexity:.4} ± {error:.4} ({tokens} tokens in {windows} windows of {window})"))
}

/// The text in windows, as far as it fills them. Where it begins with `bos`, each does.
fn windows(ids: &[u32], window: usize, bos: Option<u32>) -> Vec<Vec<u32>> {
    match bos.filter(|&bos| ids.first() == Some(&bos)) {
        None => ids.chunks_exact(window).map(<[u32]>::to_vec).collect(),
        Some(bos) => ids[1..].chunks_exact(window - 1).map(|rest| [&[bos], rest].concat()).collect(),
    }
}

/// `-ln p` of each token in the second half of a window.
fn losses(session: &mut Session, ids: &[u32], options: &Options) -> Result<Vec<f64>, Error> {
    session.clear();
    let logits = session.logits(ids, options)?;
    let rows = logits.chunks_exact(logits.len() / ids.len());
    let next = rows.zip(&ids[1..]).skip(ids.len() / 2 - 1);
    Ok(next.map(|(row, &id)| loss(row, id as usize)).collect())
}

/// `ln(sum(exp(x))) - x[id]`.
fn loss(row: &[f32], id: usize) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - most).exp()).sum();
    sum.ln() - f64::from(row[id] - most)
}

fn summary(losses: &[f64]) -> Report {
    let n = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let perplexity = mean.exp();
    // To first order, an error of the mean is multiplied by the perplexity.
    let error = perplexity * (variance / n).sqrt();
    Report { perplexity, error, tokens: losses.len(), windows: 0, window: 0, adapters: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_begins_as_the_text_does() {
        let ids = [7, 1, 2, 3, 4, 5, 6];
        assert_eq!(windows(&ids, 3, None), [[7, 1, 2], [3, 4, 5]]);
        assert_eq!(windows(&ids, 3, Some(9)), [[7, 1, 2], [3, 4, 5]]);
        assert_eq!(windows(&ids, 3, Some(7)), [[7, 1, 2], [7, 3, 4], [7, 5, 6]]);
    }

    #[test]
    fn equal_logits_have_the_vocabulary_as_perplexity() {
        let losses = [loss(&[3.0; 50], 7), loss(&[-200.0; 50], 0)];
        let report = summary(&losses);
        assert!((report.perplexity - 50.0).abs() < 1e-9 && report.error < 1e-9, "{report:?}");
    }

    #[test]
    fn a_token_that_is_sure_costs_nothing_and_an_impossible_one_a_lot() {
        let mut row = [0.0; 8];
        row[3] = 100.0;
        assert!(loss(&row, 3) < 1e-30);
        assert!((loss(&row, 0) - 100.0).abs() < 1e-9);
        let report = summary(&[1.0, 3.0]);
        assert!((report.perplexity - 2f64.exp()).abs() < 1e-12);
        assert!((report.error - report.perplexity).abs() < 1e-12, "{report:?}");
    }
}
