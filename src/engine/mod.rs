//! Work that outlives the call that asked for it: jobs, a bounded queue, and threads that do them.
//!
//! An [`Engine`] belongs to a host that goes on with its own business: a job is submitted, watched
//! (by waiting, by a descriptor, or by an [`Observer`]), cancelled, and asked for its [`Outcome`].
//! Its threads receive none of the host's signals, a panic ends the job and not the process, and in
//! a forked child, where the threads are missing, every request is an error instead of a wait.

mod job;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::cancel::Cancel;
use crate::error::{Result, bail, error};
use crate::onnx::Model;
use crate::prune::Progress;
pub use crate::sys::SignalsBlocked;
use job::Work;
pub use job::{Failure, Job, Observer, Snapshot, State};

/// What a job leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// The report, a JSON document.
    pub report: String,
    /// The model that was made, if the job makes one.
    pub model: Option<Arc<Model>>,
}

/// Jobs waiting for a thread: a host that submits more has lost count of them.
const LONGEST_QUEUE: usize = 1024;

/// A home for jobs. Dropping it does not end them: see [`Engine::close`].
pub struct Engine(Arc<Shared>);

struct Shared {
    id: u64,
    /// The process that has the threads.
    process: u32,
    threads: usize,
    jobs: AtomicU64,
    state: Mutex<EngineState>,
    /// Wakes threads: there is work, or the end.
    changed: Condvar,
}

#[derive(Default)]
struct EngineState {
    closed: bool,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    queue: VecDeque<(Job, Work)>,
    running: Vec<Job>,
}

impl Engine {
    /// An engine that does up to `parallel` jobs at once, at least one; the rest wait in line.
    pub fn open(parallel: usize) -> Engine {
        static ENGINES: AtomicU64 = AtomicU64::new(1);
        Engine(Arc::new(Shared {
            id: ENGINES.fetch_add(1, Ordering::Relaxed),
            process: std::process::id(),
            threads: parallel.max(1),
            jobs: AtomicU64::new(1),
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Puts a job in line. `observer`, which is made once the job is sure to be taken, is dropped
    /// after its last event, before those who wait for the job go on.
    ///
    /// Errors: `Unavailable` when the engine is closed, in a forked child, or when too many jobs
    /// wait; `Io` when the system has no descriptor or thread left.
    pub fn submit(
        &self,
        observer: impl FnOnce() -> Option<Box<dyn Observer>>,
        work: impl FnOnce(&dyn Progress, &Cancel) -> Result<Outcome> + Send + 'static,
    ) -> Result<Job> {
        let (mut state, job) = self.room_for_one()?;
        job.watch(observer());
        state.queue.push_back((job.clone(), Box::new(work)));
        drop(state);
        self.0.changed.notify_one();
        Ok(job)
    }

    /// A new job and the lock under which it may enter the queue, with a thread to take it.
    fn room_for_one(&self) -> Result<(MutexGuard<'_, EngineState>, Job)> {
        self.check_process()?;
        let job = Job::new(self.0.id, self.0.process, self.0.jobs.fetch_add(1, Ordering::Relaxed))?;
        let mut state = self.0.lock();
        if state.closed {
            bail!(Unavailable, "the engine is closed");
        }
        if state.queue.len() >= LONGEST_QUEUE {
            bail!(
                Unavailable,
                "{LONGEST_QUEUE} jobs are waiting already; wait for some of them first"
            );
        }
        if state.idle <= state.queue.len() && state.threads.len() < self.0.threads {
            let _blocked = SignalsBlocked::new();
            let shared = self.0.clone();
            let thread = std::thread::Builder::new().name("hone-job".into());
            let thread = thread
                .spawn(move || shared.work())
                .map_err(|e| error!(Io, "no thread can be started: {e}").with_source(e))?;
            state.idle += 1;
            state.threads.push(thread);
        }
        Ok((state, job))
    }

    /// Asks `job` to stop. One that waits in line ends at once, on this thread. In a forked child
    /// it does nothing.
    pub fn cancel(&self, job: &Job) {
        if self.check_process().is_err() {
            return;
        }
        job.raise_cancel();
        let queued = {
            let mut state = self.0.lock();
            let at = state.queue.iter().position(|(queued, _)| queued == job);
            at.and_then(|at| state.queue.remove(at))
        };
        if let Some((job, _)) = queued {
            job.finish(Err(error!(Cancelled, "stopped on request, before it began")));
        }
    }

    /// Cancels all jobs and waits until their threads are gone; afterwards no observer is called.
    ///
    /// From within an observer of one of its own jobs it does not wait, as that would be for ever.
    /// In a forked child it does nothing.
    pub fn close(&self) {
        if self.check_process().is_err() {
            return;
        }
        let (queued, running, threads) = {
            let mut state = self.0.lock();
            state.closed = true;
            let queued = std::mem::take(&mut state.queue);
            (queued, state.running.clone(), std::mem::take(&mut state.threads))
        };
        for job in &running {
            job.raise_cancel();
        }
        for (job, _) in queued {
            job.raise_cancel();
            job.finish(Err(error!(Cancelled, "the engine was closed before the job began")));
        }
        self.0.changed.notify_all();
        if job::calling_of_engine() == Some(self.0.id) {
            return;
        }
        for thread in threads {
            // A thread catches the panics of its jobs, so it ends well.
            let _ = thread.join();
        }
    }

    /// An error in a forked child: the threads stayed with the parent.
    pub fn check_process(&self) -> Result<()> {
        job::check_process(self.0.process)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, EngineState> {
        // No code of others runs under this lock, so the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread.
    fn work(&self) {
        loop {
            let (job, work) = {
                let mut state = self.lock();
                loop {
                    if let Some(next) = state.queue.pop_front() {
                        state.idle -= 1;
                        state.running.push(next.0.clone());
                        break next;
                    }
                    if state.closed {
                        return;
                    }
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            job.run(work);
            let mut state = self.lock();
            state.running.retain(|other| *other != job);
            state.idle += 1;
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({}, {} threads)", self.0.id, self.0.threads)
    }
}

#[cfg(test)]
mod tests;
