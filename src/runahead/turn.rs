//! Turns on a device that is several adapters of a chain, where an experiment slows one of them: only one works at a time.
//!
//! A slowed adapter's pause stands for a slower device, so that two, each half as fast, share one device as if each had its own. Would both work at
//! the same time, each would be timed with the other's work, and pause for that, too: on an H200 as two such adapters the same prefill took 485 to
//! 823 ms.

use std::sync::Arc;

use crate::cancel::Wait;
use crate::error::{Error, Result};
use crate::runahead::experiment::Experiment;

/// The right to work on a device; one has it at a time.
#[derive(Debug)]
pub struct Turn {
    free: (flume::Sender<()>, flume::Receiver<()>),
}

/// Whose turn it is. Dropped, it is another's.
#[derive(Debug)]
pub struct Held<'a>(&'a Turn);

impl Turn {
    /// For adapters that are these devices: those of one device share a turn where one of them is slowed, nobody else has any.
    pub fn of<D: PartialEq>(devices: &[D], experiment: &Experiment) -> Vec<Option<Arc<Self>>> {
        let mut turns: Vec<Option<Arc<Self>>> = Vec::with_capacity(devices.len());
        for (i, device) in devices.iter().enumerate() {
            let first = devices.iter().position(|d| d == device).unwrap_or(i);
            let slowed = (0..devices.len()).any(|j| devices[j] == *device && experiment.slowdown(j) > 1.0);
            turns.push(if first < i { turns[first].clone() } else { slowed.then(|| Arc::new(Self::new())) });
        }
        turns
    }

    fn new() -> Self {
        let free = flume::bounded(1);
        // There is room for the one that there is.
        let _ = free.0.try_send(());
        Self { free }
    }

    /// Takes it, where nobody has it.
    pub fn try_take(&self) -> Option<Held<'_>> {
        self.free.1.try_recv().ok().map(|()| Held(self))
    }

    /// Waits until nobody has it, however long the others work: their own waits have limits.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn take(&self, wait: &Wait) -> Result<Held<'_>> {
        wait.recv_patiently(&self.free.1)?.ok_or(Error::Cancelled)?;
        Ok(Held(self))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let _ = self.0.free.0.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cancel::Cancel;

    #[test]
    fn adapters_of_a_device_share_a_turn_where_one_is_slowed() {
        let slow = |slowdown: &[f64]| Experiment { slowdown: slowdown.to_vec(), ..Experiment::default() };
        let turns = |devices: &str, factors: &[f64]| {
            let turns = Turn::of(devices.as_bytes(), &slow(factors));
            let place = |t: &Arc<Turn>| turns.iter().flatten().position(|u| Arc::ptr_eq(t, u)).unwrap();
            turns.iter().map(|t| t.as_ref().map(place)).collect::<Vec<_>>()
        };
        assert_eq!(turns("aabb", &[]), [None; 4]);
        assert_eq!(turns("abab", &[1.0, 1.0, 2.0]), [Some(0), None, Some(0), None]);
        assert_eq!(turns("aab", &[2.0, 2.0, 2.0]), [Some(0), Some(0), Some(2)]);
    }

    #[test]
    fn one_has_it_at_a_time_and_a_cancel_ends_the_wait() {
        let (turn, cancel) = (Turn::new(), Cancel::new());
        let (wait, inside) = (Wait::new(&cancel), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let held = turn.take(&wait).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(held);
                    }
                });
            }
        });
        let _held = turn.take(&wait).unwrap();
        cancel.cancel();
        assert!(matches!(turn.take(&wait), Err(Error::Cancelled)));
    }
}
