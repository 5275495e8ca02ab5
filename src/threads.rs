//! Threads that the system may refuse.

use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::error::{Error, Result};

/// Starts `work` for an adapter, beside the caller. `what` it is called by debuggers, and in the error.
///
/// # Errors
/// [`Error::Adapter`] where the system gives no thread.
pub(crate) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    what: &str,
    adapter: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new()
        .name(format!("{what} {adapter}"))
        .spawn_scoped(scope, work)
        .map_err(|e| Error::Adapter { adapter: adapter.to_owned(), reason: format!("no {what} thread: {e}") })
}

/// Does `work` on each of `items` on `n` threads, the caller's among them; on fewer, where the system gives no more.
pub(crate) fn share<T>(n: usize, items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
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
            share(n, 1..=100, add);
            assert_eq!(sum.into_inner(), 5050, "{n} threads");
        }
    }

    #[test]
    fn a_thread_bears_its_name_and_gives_what_it_made() {
        let name = std::thread::scope(|scope| {
            let name = || std::thread::current().name().map(str::to_owned);
            start(scope, "courier", "cpu #2", name).unwrap().join().unwrap()
        });
        assert_eq!(name.as_deref(), Some("courier cpu #2"));
    }
}
