//! Blocks over threads: any number of threads, one result.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Scratch, Watch};
use crate::error::{Result, error};

/// `work(scratch, i)` for i in 0..count on `threads` threads, results in the order of i.
///
/// Each thread owns one scratch. Indices are handed out in increasing order, so the first failing
/// index is always visited and the error is the same for any number of threads. `visits` is what
/// was done before and what will be done in all, for the progress of `watch`.
pub(super) fn map<T: Send>(
    count: usize,
    threads: usize,
    visits: (usize, usize),
    watch: &dyn Watch,
    work: impl Fn(&mut Scratch, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (next, done, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        let mut scratch = Scratch::default();
        let mut results = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            let result = if watch.cancelled() {
                Err(error!(Cancelled, "pruning was cancelled"))
            } else {
                work(&mut scratch, i)
            };
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            results.push((i, result));
            watch.progress(visits.0 + done.fetch_add(1, Ordering::Relaxed) + 1, visits.1);
        }
        results
    };
    let threads = threads.clamp(1, count.max(1));
    let mut results: Vec<(usize, Result<T>)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut results = run();
        for other in others {
            match other.join() {
                Ok(more) => results.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorKind, bail};

    #[test]
    fn results_come_in_order_and_the_first_error_wins() {
        for threads in [0, 1, 3, 8] {
            let squares = map(100, threads, (0, 100), &(), |_, i| Ok(i * i)).unwrap();
            assert!(squares.iter().enumerate().all(|(i, s)| *s == i * i));
            let fail = |_: &mut Scratch, i: usize| -> Result<()> {
                if i % 10 == 7 {
                    bail!(Numerics, "block {i}");
                }
                Ok(())
            };
            assert_eq!(map(100, threads, (0, 100), &(), fail).unwrap_err().to_string(), "block 7");
        }
        assert!(map(0, 4, (0, 0), &(), |_, i| Ok(i)).unwrap().is_empty());
    }

    #[test]
    fn cancelling_stops() {
        struct After(AtomicUsize);
        impl Watch for After {
            fn cancelled(&self) -> bool {
                self.0.fetch_add(1, Ordering::Relaxed) >= 5
            }
        }
        let error = map(1000, 2, (0, 1000), &After(AtomicUsize::new(0)), |_, i| Ok(i)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
