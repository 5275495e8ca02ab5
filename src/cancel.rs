//! Cancellation and time limits, handed down to everything that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// A flag that ends work early. Clones share the flag; a [`child`](Cancel::child) is set with its parent but not the other way round.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    flag: AtomicBool,
    parent: Option<Cancel>,
}

impl Cancel {
    /// A flag of its own, not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag that counts as set when this one is set.
    pub fn child(&self) -> Self {
        Self(Arc::new(Inner { flag: AtomicBool::new(false), parent: Some(self.clone()) }))
    }

    /// Asks the work to end.
    pub fn cancel(&self) {
        self.0.flag.store(true, Ordering::Release);
    }

    /// Whether the work should end.
    pub fn is_cancelled(&self) -> bool {
        self.0.flag.load(Ordering::Acquire) || self.0.parent.as_ref().is_some_and(Cancel::is_cancelled)
    }

    /// `Err(Error::Cancelled)` once set.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// How long a wait may last: until the limit, and not past a cancel.
#[derive(Clone, Debug)]
pub struct Wait {
    /// Seen at least every [`Wait::SLICE`].
    pub cancel: Cancel,
    /// The longest that one wait may last without news.
    pub limit: Duration,
}

impl Wait {
    /// Cancels are looked for this often while blocked (the promise to users is 100 ms).
    pub const SLICE: Duration = Duration::from_millis(20);

    /// Waits of up to two minutes without news: longer than the slowest layer that was seen (llvmpipe), short enough to report a hung driver.
    pub fn new(cancel: &Cancel) -> Self {
        Self { cancel: cancel.clone(), limit: Duration::from_secs(120) }
    }

    /// Receives from a channel under this limit; a disconnected sender gives `None`.
    pub fn recv<T>(&self, from: &flume::Receiver<T>, what: &str) -> Result<Option<T>> {
        self.until(what, |slice| match from.recv_timeout(slice) {
            Ok(value) => Ok(Some(Some(value))),
            Err(flume::RecvTimeoutError::Disconnected) => Ok(Some(None)),
            Err(flume::RecvTimeoutError::Timeout) => Ok(None),
        })
    }

    /// The same without a limit: for waits on what others compute, whose own waits have it.
    pub fn patient(&self) -> Self {
        Self { limit: Duration::MAX, ..self.clone() }
    }

    /// Receives from a channel however long it takes. A disconnected sender gives `None`.
    pub fn recv_patiently<T>(&self, from: &flume::Receiver<T>) -> Result<Option<T>> {
        self.patient().recv(from, "another adapter")
    }

    /// Sends into a bounded channel under this limit; `false` where the receiver is gone.
    pub fn send<T>(&self, to: &flume::Sender<T>, value: T, what: &str) -> Result<bool> {
        let mut value = Some(value);
        self.until(what, |slice| match value.take() {
            None => Ok(Some(true)),
            Some(v) => match to.send_timeout(v, slice) {
                Ok(()) => Ok(Some(true)),
                Err(flume::SendTimeoutError::Disconnected(_)) => Ok(Some(false)),
                Err(flume::SendTimeoutError::Timeout(v)) => {
                    value = Some(v);
                    Ok(None)
                }
            },
        })
    }

    /// Lets `time` pass.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            self.cancel.check()?;
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Self::SLICE));
        }
    }

    /// Calls `attempt` with short slices of time until it gives a value, the cancel is set or the limit has passed.
    pub fn until<T>(&self, what: &str, mut attempt: impl FnMut(Duration) -> Result<Option<T>>) -> Result<T> {
        let start = Instant::now();
        loop {
            self.cancel.check()?;
            if let Some(value) = attempt(Self::SLICE)? {
                return Ok(value);
            }
            if start.elapsed() > self.limit {
                return Err(Error::Timeout { what: what.to_owned(), limit: self.limit });
            }
        }
    }
}

/// Sets `stop` unless the work comes to its end: an error or a panic of one thread ends all that share the cancel.
pub(crate) fn or_stop<T>(stop: &Cancel, work: impl FnOnce() -> Result<T>) -> Result<T> {
    struct Unless<'a>(Option<&'a Cancel>);
    impl Drop for Unless<'_> {
        fn drop(&mut self) {
            if let Some(stop) = self.0 {
                stop.cancel();
            }
        }
    }
    let mut guard = Unless(Some(stop));
    let done = work()?;
    guard.0 = None;
    Ok(done)
}

/// What threads that [stop](or_stop) each other made.
///
/// # Errors
/// The first that is not the echo of another's.
pub(crate) fn all_or_cause<T>(ends: impl IntoIterator<Item = Result<T>>) -> Result<Vec<T>> {
    let (mut all, mut echo) = (Vec::new(), None);
    for end in ends {
        match end {
            Ok(made) => all.push(made),
            Err(Error::Cancelled) => echo = Some(Error::Cancelled),
            Err(cause) => return Err(cause),
        }
    }
    echo.map_or(Ok(all), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_follows_its_parent_only() {
        let parent = Cancel::new();
        let (a, b) = (parent.child(), parent.child());
        a.cancel();
        assert!(a.is_cancelled() && !b.is_cancelled() && !parent.is_cancelled());
        parent.cancel();
        assert!(matches!(b.check(), Err(Error::Cancelled)));
    }

    #[test]
    fn the_cause_is_told_and_not_its_echo() {
        let cause = |stop: &Cancel| or_stop(stop, || Err::<i32, _>(Error::WorkerDied { adapter: "b".to_owned() }));
        let stop = Cancel::new();
        assert!(or_stop(&stop, || Ok(1)).is_ok() && !stop.is_cancelled());
        let ends = [Ok(1), Err(Error::Cancelled), cause(&stop), Ok(2)];
        assert!(matches!(all_or_cause(ends), Err(Error::WorkerDied { .. })) && stop.is_cancelled());
        assert!(matches!(all_or_cause([Ok(1), Err(Error::Cancelled)]), Err(Error::Cancelled)));
        assert_eq!(all_or_cause([Ok(1), Ok(2)]).unwrap(), [1, 2]);
        let stop = Cancel::new();
        let panics = std::thread::scope(|scope| scope.spawn(|| or_stop::<()>(&stop, || panic!())).join());
        assert!(panics.is_err() && stop.is_cancelled());
    }

    #[test]
    fn waits_end_by_limit_cancel_or_value() {
        let (tx, rx) = flume::bounded::<u8>(1);
        let mut wait = Wait::new(&Cancel::new());
        wait.limit = Duration::from_millis(30);
        assert!(matches!(wait.recv(&rx, "x"), Err(Error::Timeout { .. })));
        assert!(wait.send(&tx, 1, "x").unwrap());
        assert!(matches!(wait.send(&tx, 2, "x"), Err(Error::Timeout { .. })));
        assert_eq!(wait.recv(&rx, "x").unwrap(), Some(1));
        drop(tx);
        assert_eq!(wait.recv(&rx, "x").unwrap(), None);
        let start = Instant::now();
        wait.sleep(Duration::from_millis(50)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(50));
        wait.cancel.cancel();
        assert!(matches!(wait.recv(&rx, "x"), Err(Error::Cancelled)));
        assert!(matches!(wait.sleep(Duration::MAX), Err(Error::Cancelled)));
    }
}
