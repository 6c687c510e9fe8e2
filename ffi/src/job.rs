//! Jobs: work that outlives the call that asked for it.

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hone_core::cancel::Cancel;
use hone_core::engine::{Job, Observer, Outcome, Snapshot, State};
use hone_core::prune::Progress;

use crate::arguments::{give, given};
use crate::callback::Context;
use crate::engine::Home;
use crate::error::{guard, guard_or, hone_code, hone_error};
use crate::model::hone_model;
use crate::options::{self, Extensible};
use crate::report::hone_report;

/// Where a job is in its life.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_job_state {
    /// Waiting for a thread.
    Queued = 0,
    /// Being worked on.
    Running = 1,
    /// Done; its report is ready.
    Completed = 2,
    /// Stopped on request.
    Cancelled = 3,
    /// Stopped by an error.
    Failed = 4,
}

/// How far a job is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_progress {
    /// sizeof(hone_progress): set by who owns the struct
    pub size: usize,
    /// What the job is at, such as "gradients"; "" before the first phase. For an observer it is
    /// valid during the call, from `hone_job_progress` as long as the job's handle.
    pub phase: *const c_char,
    /// Units of the phase that are over.
    pub done: u64,
    /// Units of the phase.
    pub total: u64,
    /// Seconds since the job began, until it ended.
    pub elapsed: f64,
    /// A `hone_job_state`.
    pub state: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_progress {}

/// Hears of a job's progress.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_observer {
    /// Called for each event, on threads of the engine (on the caller's when a job is cancelled
    /// that waits in line), one call at a time per job; NULL for none. The last event says that the
    /// job has ended. Must not block; may use every function but a waiting `hone_job_wait` for the
    /// same job. C++: must not throw.
    pub call: Option<unsafe extern "C" fn(context: *mut c_void, progress: *const hone_progress)>,
    /// Called once, after the last `call` and before those who wait for the job go on; NULL for
    /// nothing. Not called when the job could not be submitted.
    pub drop: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Passed to both; must live until `drop`.
    pub context: *mut c_void,
}

/// A job. Its handle may be freed at any time; the job itself goes on.
pub struct hone_job {
    home: Arc<Home>,
    job: Job,
    /// Names of phases that `hone_job_progress` has handed out.
    phases: Mutex<Vec<CString>>,
}

/// Submits work and gives the caller its job.
pub(crate) fn submit(
    home: &Arc<Home>,
    observer: hone_observer,
    out: &mut MaybeUninit<*mut hone_job>,
    work: impl FnOnce(&dyn Progress, &Cancel) -> hone_core::Result<Outcome> + Send + 'static,
) -> Result<(), hone_error> {
    let watched = observer.call.is_some() || observer.drop.is_some();
    let observer = move || {
        let context = Context::new(observer.context, observer.drop);
        watched.then(|| Box::new(Watcher { call: observer.call, context }) as Box<dyn Observer>)
    };
    // With neither function there is nothing to call, so an unwatched context has no `drop` to run.
    let job = home.engine.submit(observer, work)?;
    give(out, hone_job { home: home.clone(), job, phases: Mutex::default() });
    Ok(())
}

struct Watcher {
    call: Option<unsafe extern "C" fn(context: *mut c_void, progress: *const hone_progress)>,
    context: Context,
}

impl Observer for Watcher {
    fn event(&mut self, snapshot: &Snapshot) {
        let Some(call) = self.call else { return };
        let phase = phase_name(snapshot);
        let progress = progress(snapshot, phase.as_ptr());
        // SAFETY: the host gave the function with this context, which lives until its drop.
        unsafe { call(self.context.pointer, &progress) };
    }
}

fn phase_name(snapshot: &Snapshot) -> CString {
    CString::new(snapshot.phase.replace('\0', "\u{fffd}")).expect("no NUL is left")
}

fn progress(s: &Snapshot, phase: *const c_char) -> hone_progress {
    hone_progress {
        size: size_of::<hone_progress>(),
        phase,
        done: s.done,
        total: s.total,
        elapsed: s.elapsed.as_secs_f64(),
        state: state_of(s.state) as u32,
        reserved: 0,
    }
}

fn state_of(state: State) -> hone_job_state {
    match state {
        State::Queued => hone_job_state::Queued,
        State::Running => hone_job_state::Running,
        State::Completed => hone_job_state::Completed,
        State::Cancelled => hone_job_state::Cancelled,
        State::Failed => hone_job_state::Failed,
    }
}

/// The job's number, unique in its engine; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hone_job_id(job: Option<&hone_job>) -> u64 {
    job.map_or(0, |j| j.job.id())
}

/// Waits until the job has ended or `timeout_ms` milliseconds have passed; a negative number waits
/// as long as it takes, 0 only looks. `out` (which may be NULL) says where the job is then; that
/// time is up, or that the job has failed, is no error of this call.
///
/// Errors: CONFLICT from the job's own observer, UNAVAILABLE in a forked child.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn hone_job_wait(
    job: Option<&hone_job>,
    timeout_ms: i64,
    out: Option<&mut MaybeUninit<hone_job_state>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let job = given(job, "job")?;
        let patience = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        let state = job.job.wait(patience)?;
        if let Some(out) = out {
            out.write(state_of(state));
        }
        Ok(())
    })
}

/// How far the job is. Set `out->size` first. Errors: UNAVAILABLE in a forked child.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_job_progress(
    job: Option<&hone_job>,
    out: *mut hone_progress,
) -> Option<Box<hone_error>> {
    guard(|| {
        let job = given(job, "job")?;
        job.home.engine.check_process()?;
        let snapshot = job.job.snapshot();
        let name = phase_name(&snapshot);
        let phase = {
            let mut phases = job.phases.lock().unwrap_or_else(PoisonError::into_inner);
            let at = phases.iter().position(|p| *p == name).unwrap_or_else(|| {
                phases.push(name);
                phases.len() - 1
            });
            // The text stays where it is when the list grows.
            phases[at].as_ptr()
        };
        // SAFETY: the header asks for a struct of its size or NULL.
        unsafe { options::write(out, progress(&snapshot, phase), "out") }
    })
}

/// A descriptor that is readable once the job has ended, for poll, epoll or an event loop; -1 for
/// NULL. Do not read from it or close it; it is open until the handle is freed and the job has
/// ended.
#[unsafe(no_mangle)]
pub extern "C" fn hone_job_fd(job: Option<&hone_job>) -> c_int {
    job.map_or(-1, |j| j.job.descriptor())
}

/// Asks the job to stop, without waiting: it ends soon, one that waits in line at once. NULL is
/// fine.
#[unsafe(no_mangle)]
pub extern "C" fn hone_job_cancel(job: Option<&hone_job>) {
    guard_or((), || {
        if let Some(job) = job {
            job.home.engine.cancel(&job.job);
        }
    });
}

/// NULL once the job is completed, its error if it failed, CANCELLED if it was stopped; CONFLICT
/// while it has not ended.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn hone_job_result(job: Option<&hone_job>) -> Option<Box<hone_error>> {
    guard(|| outcome(job).map(drop))
}

/// The report of a completed job; otherwise the error that `hone_job_result` returns.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn hone_job_report(
    job: Option<&hone_job>,
    out: Option<&mut MaybeUninit<*mut hone_report>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let out = given(out, "out")?;
        give(out, hone_report::new(&outcome(job)?.report)?);
        Ok(())
    })
}

/// The model that a completed job made; otherwise the error that `hone_job_result` returns, and
/// CONFLICT for a job that makes none.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn hone_job_model(
    job: Option<&hone_job>,
    out: Option<&mut MaybeUninit<*mut hone_model>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let out = given(out, "out")?;
        let Some(model) = &outcome(job)?.model else {
            return Err(hone_error::new(hone_code::Conflict, "the job makes no model"));
        };
        give(out, hone_model::new(given(job, "job")?.home.clone(), model.clone()));
        Ok(())
    })
}

fn outcome(job: Option<&hone_job>) -> Result<&Outcome, hone_error> {
    Ok(given(job, "job")?.job.result()?.as_ref()?)
}

/// Lets go of the job's handle; the job itself goes on. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn hone_job_free(job: Option<Box<hone_job>>) {
    drop(job);
}
