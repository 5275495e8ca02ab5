//! Bars for load and prefill, one per adapter, on a terminal only.

use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use runahead::engine::Progress;

/// Bars that come with the first news of an adapter.
pub struct Bars {
    all: MultiProgress,
    bars: Mutex<Vec<Bar>>,
}

struct Bar {
    phase: Phase,
    adapter: String,
    bar: ProgressBar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Load,
    Prefill,
}

impl Phase {
    fn template(self) -> &'static str {
        match self {
            Phase::Load => "load    {msg} {wide_bar} {bytes}/{total_bytes}",
            Phase::Prefill => "prefill {msg} {wide_bar} {percent}%",
        }
    }
}

impl Bars {
    /// Bars on stderr.
    pub fn new() -> Self {
        Self { all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), bars: Mutex::default() }
    }

    /// Shows news from the engine.
    pub fn show(&self, progress: Progress) {
        if self.all.is_hidden() {
            return;
        }
        match progress {
            Progress::Load { adapter, done_bytes, total_bytes } => {
                self.set(Phase::Load, adapter, done_bytes, total_bytes);
            }
            Progress::Prefill { adapter, done, total } => self.set(Phase::Prefill, adapter, done, total),
            _ => {}
        }
    }

    /// Takes the bars off the screen; the next news bring new ones.
    pub fn clear(&self) {
        self.lock().drain(..).for_each(|bar| bar.bar.finish_and_clear());
    }

    fn set(&self, phase: Phase, adapter: String, done: u64, total: u64) {
        let mut bars = self.lock();
        // The first news of the prefill end the bars of the load.
        bars.retain(|bar| {
            let stays = bar.phase == phase;
            if !stays {
                bar.bar.finish_and_clear();
            }
            stays
        });
        match bars.iter().find(|bar| bar.adapter == adapter) {
            Some(bar) => bar.bar.set_position(done),
            None => {
                let bar = self.all.add(ProgressBar::new(total));
                if let Ok(style) = ProgressStyle::with_template(phase.template()) {
                    bar.set_style(style);
                }
                bar.set_message(adapter.clone());
                bar.set_position(done);
                bars.push(Bar { phase, adapter, bar });
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Bar>> {
        // Bars are whole after any panic.
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
