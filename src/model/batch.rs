//! Operations of a model on their way to a device: recorded until there is enough for one submission, then handed on.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::Kernels;
use crate::model::Pace;
use crate::model::pace::{Work, cut};

/// What is recorded, and not submitted yet.
pub struct Recorded<K: Kernels> {
    /// The work as a value.
    pub rec: K::Recording,
    /// How much it is.
    pub work: Work,
    /// When its parts run, where that is wanted.
    pub timing: Option<K::Timing>,
}

impl<K: Kernels> Recorded<K> {
    fn begin(kernels: &K, timed: bool) -> Self {
        let (rec, timing) = match timed.then(|| kernels.begin_timed()) {
            Some((rec, timing)) => (rec, Some(timing)),
            None => (kernels.begin(), None),
        };
        Self { rec, work: Work::default(), timing }
    }
}

/// Where recordings go that are full.
pub trait Queue<K: Kernels> {
    /// Hands a recording to the device; may wait until there is room.
    ///
    /// # Errors
    /// A cancel, or the device's.
    fn submit(&mut self, recorded: Recorded<K>) -> Result<()>;

    /// Whether the parts of recordings are to be timed.
    fn is_timed(&self) -> bool;
}

/// A recording in the making. Whoever made it submits the last part, see [`Batch::finish`].
pub struct Batch<'a, K: Kernels> {
    kernels: &'a K,
    pace: &'a Pace,
    queue: &'a mut dyn Queue<K>,
    recorded: Recorded<K>,
}

impl<'a, K: Kernels> Batch<'a, K> {
    /// An empty one.
    pub fn new(kernels: &'a K, pace: &'a Pace, queue: &'a mut dyn Queue<K>) -> Self {
        let recorded = Recorded::begin(kernels, queue.is_timed());
        Self { kernels, pace, queue, recorded }
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
            let end = cut(left.clone(), steps, rates.seconds(self.recorded.work), limit_s, |range| {
                rates.seconds(work(range))
            });
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
        self.recorded.work = self.recorded.work + work;
        &mut self.recorded.rec
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
    pub fn finish(self) -> Recorded<K> {
        self.recorded
    }

    fn flush(&mut self) -> Result<()> {
        let next = Recorded::begin(self.kernels, self.queue.is_timed());
        self.queue.submit(std::mem::replace(&mut self.recorded, next))
    }
}
