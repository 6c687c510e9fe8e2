//! Blocks over threads: any number of threads, one result.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Workers;
use crate::error::Result;

/// `work(scratch, i)` for i in 0..count on some threads, results in the order of i.
///
/// Each thread owns one scratch. Indices are handed out in increasing order, so the first failing
/// index is always visited and the error is the same for any number of threads. `visits` is what
/// was done before and what will be done in all, for the progress.
pub(super) fn map<S: Default, T: Send>(
    count: usize,
    workers: Workers<'_>,
    visits: (usize, usize),
    work: impl Fn(&mut S, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (next, done, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        let mut scratch = S::default();
        let mut results = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            let result = workers.cancel.check().and_then(|()| work(&mut scratch, i));
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            results.push((i, result));
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            (workers.progress)(visits.0 + done, visits.1);
        }
        results
    };
    let threads = workers.threads.clamp(1, count.max(1));
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
    use crate::cancel::Cancel;
    use crate::error::{ErrorKind, bail};

    #[test]
    fn results_come_in_order_and_the_first_error_wins() {
        let cancel = Cancel::new();
        for threads in [0, 1, 3, 8] {
            let workers = Workers::new(threads, &cancel);
            let squares = map(100, workers, (0, 100), |_: &mut (), i| Ok(i * i)).unwrap();
            assert!(squares.iter().enumerate().all(|(i, s)| *s == i * i));
            let fail = |_: &mut (), i: usize| -> Result<()> {
                if i % 10 == 7 {
                    bail!(Numerics, "block {i}");
                }
                Ok(())
            };
            assert_eq!(map(100, workers, (0, 100), fail).unwrap_err().to_string(), "block 7");
            assert!(map(0, workers, (0, 0), |_: &mut (), i| Ok(i)).unwrap().is_empty());
        }
    }

    #[test]
    fn progress_counts_up_and_cancelling_stops() {
        let (cancel, highest) = (Cancel::new(), AtomicUsize::new(0));
        let progress = |done: usize, total: usize| {
            assert_eq!(total, 2000);
            highest.fetch_max(done, Ordering::Relaxed);
            if done == 1010 {
                cancel.cancel();
            }
        };
        let workers = Workers { threads: 2, cancel: &cancel, progress: &progress };
        let error = map(1000, workers, (1000, 2000), |_: &mut (), i| Ok(i)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(highest.load(Ordering::Relaxed) >= 1010);
    }
}
