//! Threads that the system may refuse.

use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::cancel::{Cancel, or_stop};
use crate::error::{Error, Result};

/// Starts `work` for an adapter, beside the caller. `what` it is called by debuggers, and in the error. `stop` is set unless the work is begun and
/// comes to its end, so that those who share it end, too.
///
/// # Errors
/// [`Error::Adapter`] where the system gives no thread.
pub(crate) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    (what, adapter): (&str, &str),
    stop: &'scope Cancel,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<T>>> {
    let thread = Builder::new().name(format!("{what} {adapter}"));
    or_stop(stop, || {
        let refused = |e| Error::Adapter { adapter: adapter.to_owned(), reason: format!("no {what} thread: {e}") };
        thread.spawn_scoped(scope, move || or_stop(stop, work)).map_err(refused)
    })
}

/// Does `work` on each of `items` on `n` threads, the caller's among them; on fewer, where the system gives no more.
pub(crate) fn for_each<T>(n: usize, items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_off = || {
        while let Some(item) = next() {
            work(item);
        }
    };
    std::thread::scope(|scope| {
        // One that is refused leaves its items to the others.
        let _ = (1..n).try_for_each(|_| Builder::new().spawn_scoped(scope, work_off).map(drop));
        work_off();
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_item_is_worked_on_once_by_any_number_of_threads() {
        for n in 0..5 {
            let sum = AtomicUsize::new(0);
            let add = |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            };
            for_each(n, 1..=100, add);
            assert_eq!(sum.into_inner(), 5050, "{n} threads");
        }
    }

    #[test]
    fn a_thread_bears_its_name_and_gives_what_it_made() {
        let stop = Cancel::new();
        let name = std::thread::scope(|scope| {
            let name = || Ok(std::thread::current().name().map(str::to_owned));
            start(scope, ("courier", "cpu #2"), &stop, name).unwrap().join().unwrap()
        });
        assert_eq!(name.unwrap().as_deref(), Some("courier cpu #2"));
        assert!(!stop.is_cancelled());
        let failed = std::thread::scope(|scope| {
            let fails = || Err::<(), _>(Error::EmptyPrompt);
            start(scope, ("worker 0", "cpu"), &stop, fails).unwrap().join().unwrap()
        });
        assert!(failed.is_err() && stop.is_cancelled());
    }
}
