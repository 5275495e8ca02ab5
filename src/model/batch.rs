//! Operations of a model on their way to a device: recorded until there is enough for one submission, then handed on.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::Kernels;
use crate::model::Pace;
use crate::model::pace::{Work, cut};

/// Where recordings go that are full.
pub trait Queue<K: Kernels> {
    /// Hands a recording to the device; may wait until there is room.
    ///
    /// # Errors
    /// A cancel, or the device's.
    fn submit(&mut self, rec: K::Recording, work: Work) -> Result<()>;
}

/// A recording in the making. Whoever made it submits the last part, see [`Batch::finish`].
pub struct Batch<'a, K: Kernels> {
    kernels: &'a K,
    pace: &'a Pace,
    queue: &'a mut dyn Queue<K>,
    rec: K::Recording,
    work: Work,
}

impl<'a, K: Kernels> Batch<'a, K> {
    /// An empty one.
    pub fn new(kernels: &'a K, pace: &'a Pace, queue: &'a mut dyn Queue<K>) -> Self {
        Self { kernels, pace, queue, rec: kernels.begin(), work: Work::default() }
    }

    /// The next part of an operation over `left`, which shrinks by it; `None` once nothing is left. Begins another submission where this one is
    /// full. What the part costs counts once it is recorded, see [`Batch::add`].
    ///
    /// # Errors
    /// See [`Queue::submit`].
    pub fn next(
        &mut self,
        left: &mut Range<usize>,
        steps: &[usize],
        work: impl Fn(Range<usize>) -> Work,
    ) -> Result<Option<Range<usize>>> {
        if left.start >= left.end {
            return Ok(None);
        }
        loop {
            let (rates, limit_s) = (self.pace.rates(), self.pace.limit_s());
            let end = cut(left.clone(), steps, rates.seconds(self.work), limit_s, |range| rates.seconds(work(range)));
            if end > left.start {
                let part = left.start..end;
                left.start = end;
                return Ok(Some(part));
            }
            self.flush()?;
        }
    }

    /// The recording, for an operation of this much work.
    pub fn add(&mut self, work: Work) -> &mut K::Recording {
        self.work = self.work + work;
        &mut self.rec
    }

    /// As [`Batch::add`] for an operation that cannot be cut, in another submission where this one has no room for it.
    ///
    /// # Errors
    /// See [`Queue::submit`].
    pub fn add_whole(&mut self, work: Work) -> Result<&mut K::Recording> {
        self.next(&mut (0..1), &[1], |_| work)?;
        Ok(self.add(work))
    }

    /// What is recorded and not submitted yet.
    pub fn finish(self) -> (K::Recording, Work) {
        (self.rec, self.work)
    }

    fn flush(&mut self) -> Result<()> {
        let rec = std::mem::replace(&mut self.rec, self.kernels.begin());
        self.queue.submit(rec, std::mem::take(&mut self.work))
    }
}
