//! Work shared among threads that take items as they become free: nothing that spins.

use std::sync::Mutex;

use crate::sys::Crew;

/// Calls `work` once for each item on up to `scratch.len()` threads, each with its own scratch.
///
/// Items are handed out as threads become free, so results must not depend on which thread or in
/// which order: each item owns what it writes.
pub fn for_each<T: Send, S: Send>(
    scratch: &mut [S],
    items: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(&mut S, T) + Sync,
) {
    for_each_by(&Crew::default(), scratch, items, work);
}

/// The same with threads that are kept: later calls start none and allocate nothing.
pub fn for_each_by<T: Send, S: Send>(
    crew: &Crew,
    scratch: &mut [S],
    items: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(&mut S, T) + Sync,
) {
    for_each_beside(crew, scratch, || (), items, work);
}

/// The same, and `beside` once: on the first thread that comes, before its items.
pub fn for_each_beside<T: Send, S: Send>(
    crew: &Crew,
    scratch: &mut [S],
    beside: impl FnOnce() + Send,
    items: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(&mut S, T) + Sync,
) {
    let threads = scratch.len().min(items.len());
    assert!(threads > 0 || items.len() == 0, "there is scratch for at least one thread");
    if threads <= 1 {
        beside();
        items.for_each(|item| work(&mut scratch[0], item));
        return;
    }
    let (beside, queue) = (Mutex::new(Some(beside)), Mutex::new(items));
    let unused = Mutex::new(scratch[..threads].iter_mut());
    crew.run(threads - 1, &|| {
        let scratch = unused.lock().expect("taking one does not panic").next();
        let scratch = scratch.expect("there is one for each thread");
        let beside = beside.lock().expect("taking it does not panic").take();
        if let Some(beside) = beside {
            beside();
        }
        let next = || queue.lock().expect("taking an item does not panic").next();
        while let Some(item) = next() {
            work(scratch, item);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5, 40] {
            let mut done = [0; 33];
            let (mut scratch, mut beside) = (vec![0usize; threads], 0);
            let crew = Crew::default();
            for_each_beside(
                &crew,
                &mut scratch,
                || beside += 1,
                done.iter_mut(),
                |count, item| {
                    *item += 1;
                    *count += 1;
                },
            );
            assert!(done.iter().all(|&n| n == 1) && beside == 1);
            assert_eq!(scratch.iter().sum::<usize>(), 33);
        }
        for_each(&mut [0; 0], [0; 0].iter(), |_, _| panic!("there is no item"));
    }
}
