//! How many workgroups of a product keep an adapter busy, by trying: that decides from when on its products have larger tiles.

use super::{Bench, CHUNKS};
use crate::engine::Session;
use crate::error::Result;

/// Numbers of workgroups that are tried: GPUs of a few compute units to the largest.
const TRIED_WORKGROUPS: [usize; 5] = [16, 32, 64, 128, 256];
/// Runs of a chunk under each, the first of which compiles shaders.
const TILE_RUNS: usize = 4;
/// The least gain for which another number than the usual one is taken.
const TILE_GAIN: f64 = 0.01;

impl Bench<'_> {
    /// How many workgroups of a product keep the adapter busy: what is fastest for chunks that can be cut into few or many. It stays set; what
    /// was set before does where the trial fails.
    pub(super) fn tiles(&self, adapter: usize, session: &mut Session, longest: usize) -> Result<Option<usize>> {
        let adapter = &self.engine.shared.adapters[adapter];
        let Some(usual) = adapter.busy_workgroups() else { return Ok(None) };
        let best = fastest(usual, &TRIED_WORKGROUPS, |n| {
            adapter.set_busy_workgroups(n);
            let chunks = CHUNKS.into_iter().chain([512]).filter(|&c| c <= longest);
            chunks.map(|tokens| self.layer_s(session, tokens)).collect()
        });
        adapter.set_busy_workgroups(*best.as_ref().unwrap_or(&usual));
        best.map(Some)
    }

    /// The least seconds of a layer of a chunk, once its shaders are compiled.
    fn layer_s(&self, session: &mut Session, tokens: usize) -> Result<f64> {
        let mut least = f64::INFINITY;
        for i in 0..TILE_RUNS {
            session.clear();
            let sample = self.chunk(session, tokens, false)?;
            least = if i == 0 { least } else { least.min(sample.layer_s) };
        }
        Ok(least)
    }
}

/// Which of `usual` and `others` gives the shortest times, all kinds of work counting alike. `usual` where none is faster by more than noise.
fn fastest(usual: usize, others: &[usize], mut times: impl FnMut(usize) -> Result<Vec<f64>>) -> Result<usize> {
    let before = times(usual)?;
    let mut best = (usual, 1.0 - TILE_GAIN);
    for &n in others.iter().filter(|&&n| n != usual) {
        let ratios = times(n)?.into_iter().zip(&before).map(|(now, before)| now / before.max(1e-12));
        let mean = ratios.sum::<f64>() / before.len().max(1) as f64;
        best = if mean < best.1 { (n, mean) } else { best };
    }
    Ok(best.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_is_faster_by_more_than_noise_is_taken() {
        // Seconds of two kinds of work.
        let of = |table: &'static [(usize, [f64; 2])]| {
            fastest(128, &[16, 64, 128, 256], move |n| {
                let found = table.iter().find(|(m, _)| *m == n).map_or([1.0, 2.0], |(_, times)| *times);
                Ok(found.to_vec())
            })
        };
        assert_eq!(of(&[]).unwrap(), 128);
        assert_eq!(of(&[(64, [0.995, 1.995])]).unwrap(), 128);
        assert_eq!(of(&[(64, [0.9, 2.0]), (16, [0.8, 2.6])]).unwrap(), 64);
        assert_eq!(of(&[(64, [0.9, 2.0]), (256, [0.9, 1.9])]).unwrap(), 256);
        assert!(fastest(128, &[16], |_| Err(Error::Cancelled)).is_err());
    }
}
