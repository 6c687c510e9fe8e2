//! Threads that help callers with their work, kept from call to call.
//!
//! To start a thread takes memory and some 50 µs; to wake one takes neither. A caller always works
//! as well, and waits only for helpers that are in the midst of its work, so that callers that come
//! at the same time share the helpers and none waits for another's work.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::SignalsBlocked;

/// Up to so many helpers, started when they are first needed and ended when this is dropped.
pub struct Crew {
    shared: Arc<Shared>,
    most: usize,
    helpers: Mutex<Vec<JoinHandle<()>>>,
    /// A forked child has none of the threads.
    process: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a call, or the end.
    called: Condvar,
    /// The last helper left a call, or one is up.
    left: Condvar,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    made: u64,
    /// Helpers that are up.
    up: usize,
    ended: bool,
}

/// What a caller wants help with.
struct Call {
    number: u64,
    work: Work,
    /// Helpers that may still join.
    wanted: usize,
    /// Helpers at work.
    inside: usize,
    panic: Option<Box<dyn Any + Send>>,
}

/// What all threads of a call do.
type Task<'a> = dyn Fn() + Sync + 'a;

/// The caller's closure, without its lifetime.
#[derive(Clone, Copy)]
struct Work(*const Task<'static>);

// SAFETY: it points to something that all threads may use at once, for as long as `Crew::run`
// keeps it alive.
unsafe impl Send for Work {}

impl Crew {
    /// A crew of up to `most` helpers, none of which is started yet.
    pub fn new(most: usize) -> Crew {
        let helpers = Mutex::default();
        Crew { shared: Arc::default(), most, helpers, process: std::process::id() }
    }

    /// Calls `work` on this thread and on up to `helpers` others, and returns when all of those
    /// that came have returned; a helper that is busy elsewhere does not come. A panic of any of
    /// them goes on here.
    ///
    /// It allocates nothing once as many callers at the same time have had as many helpers.
    pub fn run(&self, helpers: usize, work: &Task<'_>) {
        let helpers = helpers.min(self.most);
        if helpers == 0 {
            return work();
        }
        self.start(helpers);
        // SAFETY: only the lifetime changes. The pointer is used by helpers inside the call alone,
        // and `Leave` removes the call, when none is inside any more, before `work` can end, even
        // if it panics here.
        let erased =
            Work(unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(work) });
        let mut state = self.shared.lock();
        let number = state.made;
        state.made += 1;
        state.calls.push(Call { number, work: erased, wanted: helpers, inside: 0, panic: None });
        drop(state);
        (0..helpers).for_each(|_| self.shared.called.notify_one());
        let leave = Leave { shared: &self.shared, number, panic: None };
        work();
        leave.finish();
    }

    /// So many helpers, if the system has as many threads; what is done does not depend on it. They
    /// are up when this returns, so that what a thread allocates as it starts is done with.
    fn start(&self, wanted: usize) {
        let mut helpers = self.helpers.lock().expect("no holder panics");
        while helpers.len() < wanted {
            let shared = self.shared.clone();
            let _blocked = SignalsBlocked::new();
            let thread = std::thread::Builder::new().name("hone-helper".into());
            match thread.spawn(move || shared.help()) {
                Ok(helper) => {
                    helpers.push(helper);
                    let mut state = self.shared.lock();
                    while state.up < helpers.len() {
                        state = self.shared.left.wait(state).expect("no holder panics");
                    }
                }
                Err(e) => {
                    log::debug!("a helper cannot be started: {e}");
                    return;
                }
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// A helper's life.
    fn help(&self) {
        let mut state = self.lock();
        state.up += 1;
        self.left.notify_all();
        while !state.ended {
            let Some(call) = state.calls.iter_mut().find(|c| c.wanted > 0) else {
                state = self.called.wait(state).expect("no holder panics");
                continue;
            };
            call.wanted -= 1;
            call.inside += 1;
            let (number, work) = (call.number, call.work);
            drop(state);
            // SAFETY: the call is in the list with a helper inside, so that its caller waits in
            // `Leave`, and the closure is alive.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe { (*work.0)() }));
            state = self.lock();
            let call = state.call(number);
            call.inside -= 1;
            if let Err(panic) = done {
                call.panic.get_or_insert(panic);
            }
            if call.inside == 0 && call.wanted == 0 {
                self.left.notify_all();
            }
        }
    }
}

impl State {
    fn call(&mut self, number: u64) -> &mut Call {
        self.calls.iter_mut().find(|c| c.number == number).expect("its caller removes it")
    }
}

/// Takes a call off the list as soon as nobody is at work for it.
struct Leave<'a> {
    shared: &'a Shared,
    number: u64,
    panic: Option<Box<dyn Any + Send>>,
}

impl Leave<'_> {
    fn finish(mut self) {
        self.leave();
        let panic = self.panic.take();
        std::mem::forget(self);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn leave(&mut self) {
        let mut state = self.shared.lock();
        state.call(self.number).wanted = 0;
        while state.call(self.number).inside > 0 {
            state = self.shared.left.wait(state).expect("no holder panics");
        }
        let place = state.calls.iter().position(|c| c.number == self.number);
        let call = state.calls.remove(place.expect("it is there until here"));
        self.panic = call.panic;
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let helpers = std::mem::take(self.helpers.get_mut().expect("no holder panics"));
        if std::process::id() != self.process {
            // They, and perhaps the lock, stayed with the parent.
            std::mem::forget(helpers);
            return;
        }
        self.shared.lock().ended = true;
        self.shared.called.notify_all();
        helpers.into_iter().for_each(|helper| drop(helper.join()));
    }
}

impl Default for Crew {
    /// As many helpers as are asked for.
    fn default() -> Crew {
        Crew::new(usize::MAX)
    }
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("most", &self.most).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Sums 0..n by items taken one by one.
    fn sum(crew: &Crew, helpers: usize, n: usize) -> usize {
        let (next, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
        crew.run(helpers, &|| {
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= n {
                    return;
                }
                total.fetch_add(item, Ordering::Relaxed);
            }
        });
        total.into_inner()
    }

    #[test]
    fn all_items_are_done_by_whoever_comes() {
        let crew = Crew::new(3);
        std::thread::scope(|scope| {
            for helpers in [0, 1, 2, 9] {
                let crew = &crew;
                scope.spawn(move || {
                    for n in 0..300 {
                        assert_eq!(sum(crew, helpers, n), n * n.saturating_sub(1) / 2);
                    }
                });
            }
        });
        assert!(crew.helpers.lock().unwrap().len() <= 3);
    }

    #[test]
    fn helpers_are_there_and_take_part() {
        let crew = Crew::new(2);
        let barrier = std::sync::Barrier::new(3);
        // Nobody passes unless three threads are here.
        crew.run(2, &|| {
            barrier.wait();
        });
    }

    #[test]
    fn a_panic_comes_back_to_its_caller_and_the_crew_goes_on() {
        let crew = Crew::new(1);
        let caller = std::thread::current().id();
        for of_helper in [true, false] {
            let barrier = std::sync::Barrier::new(2);
            let work = || {
                barrier.wait();
                if (std::thread::current().id() != caller) == of_helper {
                    panic!("as planned");
                }
            };
            let done = catch_unwind(AssertUnwindSafe(|| crew.run(1, &work)));
            assert_eq!(done.unwrap_err().downcast_ref(), Some(&"as planned"));
        }
        assert_eq!(sum(&crew, 1, 100), 4950);
    }
}
