//! A job: its state, who watches it, and how it ends.
//!
//! Events reach the observer one at a time and in order: an event is read off the job's state under
//! the lock that also calls the observer. That lock guards nothing else, so an observer may ask
//! about its job and cancel it.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::Outcome;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, bail, error};
use crate::prune::Progress;
use crate::sys;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting for a thread.
    Queued,
    /// Being worked on.
    Running,
    /// Done; it has an outcome.
    Completed,
    /// Stopped on request.
    Cancelled,
    /// Stopped by an error.
    Failed,
}

impl State {
    /// Whether the job will not change any more.
    pub fn is_final(self) -> bool {
        matches!(self, State::Completed | State::Cancelled | State::Failed)
    }
}

/// A job at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where it is in its life.
    pub state: State,
    /// What it is at, such as `gradients`; empty before the first phase.
    pub phase: Arc<str>,
    /// Units of the phase that are over.
    pub done: u64,
    /// Units of the phase.
    pub total: u64,
    /// Time since it began, until it ended.
    pub elapsed: Duration,
}

/// Hears of a job's progress, on the threads that work on it, one call at a time.
pub trait Observer: Send {
    /// The job has come this far. Must not block; waiting for the same job is an error.
    fn event(&mut self, snapshot: &Snapshot);
}

/// Why a job has no outcome.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What kind of thing went wrong; `Cancelled` for a job that was stopped.
    pub kind: ErrorKind,
    /// What exactly.
    pub message: String,
}

pub(super) type Work = Box<dyn FnOnce(&dyn Progress, &Cancel) -> Result<Outcome> + Send>;

/// A job, shared by those who watch it and the engine that does it.
#[derive(Clone)]
pub struct Job(Arc<Inner>);

struct Inner {
    id: u64,
    engine: u64,
    process: u32,
    cancel: Cancel,
    status: Mutex<Status>,
    ended: Condvar,
    readable: File,
    observer: Mutex<Option<Box<dyn Observer>>>,
    result: OnceLock<Result<Outcome, Failure>>,
}

struct Status {
    snapshot: Snapshot,
    began: Option<Instant>,
}

thread_local! {
    /// The engine and the job whose observer this thread is calling.
    static CALLING: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// The engine of the job whose observer is calling.
pub(super) fn calling_of_engine() -> Option<u64> {
    CALLING.get().map(|(engine, _)| engine)
}

/// An error in a process other than `process`.
pub(super) fn check_process(process: u32) -> Result<()> {
    if std::process::id() != process {
        bail!(
            Unavailable,
            "this is a forked child: the engine and its jobs stayed with the parent"
        );
    }
    Ok(())
}

impl Job {
    pub(super) fn new(engine: u64, process: u32, id: u64) -> Result<Job> {
        let readable =
            sys::event().map_err(|e| error!(Io, "no descriptor for a job: {e}").with_source(e))?;
        let phase = Arc::from("");
        let elapsed = Duration::ZERO;
        let snapshot = Snapshot { state: State::Queued, phase, done: 0, total: 0, elapsed };
        Ok(Job(Arc::new(Inner {
            id,
            engine,
            process,
            cancel: Cancel::new(),
            status: Mutex::new(Status { snapshot, began: None }),
            ended: Condvar::new(),
            readable,
            observer: Mutex::new(None),
            result: OnceLock::new(),
        })))
    }

    /// Its number, unique in its engine.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// A descriptor that is readable once the job has ended; it lives as long as the job.
    pub fn descriptor(&self) -> RawFd {
        self.0.readable.as_raw_fd()
    }

    /// How far it is.
    pub fn snapshot(&self) -> Snapshot {
        self.status().now()
    }

    /// Waits until the job has ended or `patience` is over (`None`: as long as it takes), and says
    /// where it is then.
    ///
    /// Errors: `Conflict` from the job's own observer, for which it would wait for ever;
    /// `Unavailable` in a forked child.
    pub fn wait(&self, patience: Option<Duration>) -> Result<State> {
        check_process(self.0.process)?;
        if patience != Some(Duration::ZERO) && CALLING.get() == Some((self.0.engine, self.0.id)) {
            bail!(
                Conflict,
                "an observer cannot wait for its own job, which waits for the observer"
            );
        }
        // A wait too long to be added up is one without end.
        let end = patience.and_then(|p| Instant::now().checked_add(p));
        let mut status = self.status();
        while !status.snapshot.state.is_final() {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            status = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let woken = self.0.ended.wait_timeout(status, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.0.ended.wait(status).unwrap_or_else(PoisonError::into_inner),
            };
        }
        Ok(status.snapshot.state)
    }

    /// What it left behind, or why nothing; an error of kind `Conflict` while it has not ended.
    pub fn result(&self) -> Result<&Result<Outcome, Failure>> {
        self.0
            .result
            .get()
            .ok_or_else(|| error!(Conflict, "the job has not ended yet; wait for it"))
    }

    pub(super) fn watch(&self, observer: Option<Box<dyn Observer>>) {
        *self.observer() = observer;
    }

    /// Asks the work to stop.
    pub(super) fn raise_cancel(&self) {
        self.0.cancel.cancel();
    }

    /// Does the work on this thread.
    pub(super) fn run(&self, work: Work) {
        self.change(|status| {
            status.snapshot.state = State::Running;
            status.began = Some(Instant::now());
        });
        let result = self.0.cancel.check().and_then(|()| {
            let work = || work(self, &self.0.cancel);
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                let text = (panic.downcast_ref::<&str>().copied())
                    .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                    .unwrap_or("without a message");
                Err(error!(Internal, "a bug in hone, please report it: {text}"))
            })
        });
        self.finish(result);
    }

    /// Ends the job: the last event, the observer's end, and only then those who wait.
    pub(super) fn finish(&self, result: Result<Outcome>) {
        let result = result.map_err(|e: Error| Failure { kind: e.kind(), message: e.to_string() });
        let state = match &result {
            Ok(_) => State::Completed,
            Err(failure) if failure.kind == ErrorKind::Cancelled => State::Cancelled,
            Err(_) => State::Failed,
        };
        let mut last = self.snapshot();
        last.state = state;
        let observer = {
            let mut observer = self.observer();
            self.call(&mut observer, &last);
            observer.take()
        };
        self.calling(|| drop(observer));
        assert!(self.0.result.set(result).is_ok(), "a job ends once");
        let mut status = self.status();
        status.snapshot = last;
        status.began = None;
        drop(status);
        // A counter of one; the write cannot fail, as nobody has written before.
        let _ = (&self.0.readable).write_all(&1u64.to_ne_bytes());
        self.0.ended.notify_all();
    }

    /// Changes the status and tells the observer.
    fn change(&self, change: impl FnOnce(&mut Status)) {
        let mut observer = self.observer();
        let now = {
            let mut status = self.status();
            change(&mut status);
            status.now()
        };
        self.call(&mut observer, &now);
    }

    fn call(&self, observer: &mut Option<Box<dyn Observer>>, snapshot: &Snapshot) {
        if let Some(observer) = observer {
            self.calling(|| observer.event(snapshot));
        }
    }

    /// Runs code of the host, which can then be told apart.
    fn calling(&self, code: impl FnOnce()) {
        let outer = CALLING.replace(Some((self.0.engine, self.0.id)));
        code();
        CALLING.set(outer);
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        // No code of others runs under this lock, so the status is whole.
        self.0.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observer(&self) -> MutexGuard<'_, Option<Box<dyn Observer>>> {
        self.0.observer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Job {
    fn begin(&self, phase: &str, total: u64) {
        self.change(|status| {
            (status.snapshot.phase, status.snapshot.done) = (Arc::from(phase), 0);
            status.snapshot.total = total;
        });
    }

    fn advance(&self, done: u64) {
        // Threads may report out of order, and what is no news is not worth a call.
        if done > self.status().snapshot.done {
            self.change(|status| status.snapshot.done = status.snapshot.done.max(done));
        }
    }

    fn say(&self, line: &str) {
        log::info!("job {}: {line}", self.0.id);
    }
}

impl Status {
    fn now(&self) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        if let Some(began) = self.began {
            snapshot.elapsed = began.elapsed();
        }
        snapshot
    }
}

impl PartialEq for Job {
    fn eq(&self, other: &Job) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({}, {:?})", self.0.id, self.snapshot().state)
    }
}
