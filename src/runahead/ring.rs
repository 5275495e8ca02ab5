//! When a layer's place in the cache is free for rows that do not come through the device's queue.
//!
//! An adapter's cache may hold fewer layers than the model has: layer `l` takes the place of layer `l - n_slots`. Rows that go through the queue,
//! in whichever direction, find the place free by the order of submissions. Rows that go beside it need what is said here: they are written
//! where the last submission that read the place has run, and are not written over before they have left.

use std::collections::VecDeque;
use std::convert::Infallible;

use crate::cancel::Wait;
use crate::error::Result;
use crate::kernels::Kernels;

/// Closed when rows have left.
pub type Gone = flume::Receiver<Infallible>;

/// Held by rows that are about to leave the cache; they have left, or never will, once it is dropped.
#[derive(Debug)]
pub struct Leaving {
    _hold: flume::Sender<Infallible>,
    gone: Gone,
}

impl Leaving {
    /// Rows that are there.
    pub fn new() -> Self {
        let (hold, gone) = flume::bounded(1);
        Self { _hold: hold, gone }
    }

    /// Tells when they are gone.
    pub fn watch(&self) -> Gone {
        self.gone.clone()
    }
}

impl Default for Leaving {
    fn default() -> Self {
        Self::new()
    }
}

/// The layers whose places were taken, and by what.
pub struct Ring<K: Kernels> {
    n_slots: usize,
    stages: VecDeque<Stage<K>>,
}

/// Stage `s` computes the attention of layer `s - 1` and makes rows of layer `s`.
struct Stage<K: Kernels> {
    stage: usize,
    end: K::Submitted,
    leaving: Vec<Gone>,
}

impl<K: Kernels> Ring<K> {
    /// Of a cache with this many layers.
    pub fn new(n_slots: usize) -> Self {
        Self { n_slots, stages: VecDeque::new() }
    }

    /// Notes a submission and rows of layer `stage` that leave after it.
    pub fn submitted(&mut self, stage: usize, end: &K::Submitted, leaving: Vec<Gone>) {
        self.stages.push_back(Stage { stage, end: end.clone(), leaving });
        // What is longer ago was waited for: a layer's own rows came after the wait for those that had its place.
        while self.stages.front().is_some_and(|s| s.stage + self.n_slots < stage) {
            self.stages.pop_front();
        }
    }

    /// Waits until the rows that had the place of `layer` have left; then rows may be computed there.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled). The wait is on other adapters, and so has no limit.
    pub fn wait_for_place(&mut self, layer: usize, wait: &Wait) -> Result<()> {
        for stage in self.stages.iter_mut().filter(|s| s.stage + self.n_slots <= layer) {
            for gone in stage.leaving.drain(..) {
                // Nothing is ever sent: this returns when the other end is dropped.
                wait.recv_patiently(&gone)?;
            }
        }
        Ok(())
    }

    /// Waits until the attention that last read the place of `layer` has run, after [`Ring::wait_for_place`]; then rows may be copied there.
    ///
    /// As a rule it has: the worker is a submission or two ahead of its device, and that attention three or more behind.
    ///
    /// # Errors
    /// A cancel, the device's, a time-out.
    pub fn wait_for_readers(&self, layer: usize, kernels: &K, wait: &Wait) -> Result<()> {
        let read = |s: &&Stage<K>| s.stage + self.n_slots <= layer + 1;
        self.stages.iter().filter(read).try_for_each(|stage| kernels.wait(&stage.end, wait))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cancel::Cancel;
    use crate::error::Error;
    use crate::kernels::cpu::Cpu;

    #[test]
    fn a_place_is_free_once_the_rows_of_the_layer_before_have_left() {
        let cpu = Cpu::new("cpu", 1).unwrap();
        let mut wait = Wait::new(&Cancel::new());
        let point = cpu.submit(cpu.begin(), &wait).unwrap();
        let mut ring = Ring::<Cpu>::new(3);
        let mut leaving = (0..5).map(|_| Leaving::new()).collect::<VecDeque<_>>();
        for layer in 0..3 {
            ring.wait_for_place(layer, &wait).unwrap();
            ring.submitted(layer, &point, leaving.range(layer..=layer).map(Leaving::watch).collect());
        }
        let cancel = wait.cancel.clone();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            cancel.cancel();
        });
        assert!(matches!(ring.wait_for_place(3, &wait), Err(Error::Cancelled)));
        canceller.join().unwrap();
        wait.cancel = Cancel::new();
        for layer in 3..5 {
            let first = leaving.pop_front();
            let dropper = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                drop(first);
            });
            ring.wait_for_place(layer, &wait).unwrap();
            ring.wait_for_readers(layer, &cpu, &wait).unwrap();
            ring.submitted(layer, &point, leaving.range(2..3).map(Leaving::watch).collect());
            dropper.join().unwrap();
        }
        assert!(ring.stages.len() <= 4);
        // A cache of every layer never waits.
        let mut all = Ring::<Cpu>::new(5);
        let held = Leaving::new();
        for layer in 0..5 {
            all.wait_for_place(layer, &wait).unwrap();
            all.submitted(layer, &point, vec![held.watch()]);
        }
    }
}
