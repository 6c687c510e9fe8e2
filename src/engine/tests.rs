//! Jobs as a host meets them: order, ends, observers, and what must not hang.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::ErrorKind;

const SOON: Option<Duration> = Some(Duration::from_secs(30));

fn outcome(report: &str) -> Result<Outcome> {
    Ok(Outcome { report: report.into(), model: None })
}

/// Sends each event's state and progress, and `None` when dropped.
struct Witness(Sender<Seen>);

impl Observer for Witness {
    fn event(&mut self, s: &Snapshot) {
        self.0.send(Some((s.state, s.done))).unwrap();
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.send(None).unwrap();
    }
}

/// What a witness sends.
type Seen = Option<(State, u64)>;

fn witness() -> (Option<Box<dyn Observer>>, Receiver<Seen>) {
    let (sender, receiver) = channel();
    (Some(Box::new(Witness(sender))), receiver)
}

fn submit(
    engine: &Engine,
    observer: Option<Box<dyn Observer>>,
    work: impl FnOnce(&dyn Progress, &Cancel) -> Result<Outcome> + Send + 'static,
) -> Job {
    engine.submit(|| observer, work).unwrap()
}

/// Work that lasts until it is cancelled.
fn endless(_: &dyn Progress, cancel: &Cancel) -> Result<Outcome> {
    loop {
        cancel.check()?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn events_come_in_order_and_the_observer_ends_before_the_waiters_wake() {
    let engine = Engine::open(1);
    let (observer, events) = witness();
    let job = submit(&engine, observer, |progress, _| {
        progress.begin("counting", 2);
        progress.advance(2);
        progress.advance(1);
        outcome("{}")
    });
    assert_eq!(job.wait(SOON).unwrap(), State::Completed);
    let events: Vec<_> = events.try_iter().collect();
    let running = |done| Some((State::Running, done));
    let last = Some((State::Completed, 2));
    assert_eq!(events, [running(0), running(0), running(2), last, None]);
    assert_eq!(job.result().unwrap().as_ref().unwrap().report, "{}");
    assert_eq!(&*job.snapshot().phase, "counting");
    engine.close();
}

#[test]
fn errors_and_panics_end_the_job_only() {
    let engine = Engine::open(1);
    let wrong = submit(&engine, None, |_, _| bail!(Data, "row 3"));
    let bug = submit(&engine, None, |_, _| panic!("index 7"));
    let fine = submit(&engine, None, |_, _| outcome("1"));
    assert_eq!(wrong.wait(SOON).unwrap(), State::Failed);
    assert_eq!(bug.wait(SOON).unwrap(), State::Failed);
    assert_eq!(fine.wait(SOON).unwrap(), State::Completed);
    let failure = |job: &Job| job.result().unwrap().as_ref().unwrap_err().clone();
    assert_eq!(
        (failure(&wrong).kind, failure(&wrong).message.as_str()),
        (ErrorKind::Data, "row 3")
    );
    assert_eq!(failure(&bug).kind, ErrorKind::Internal);
    assert!(failure(&bug).message.contains("index 7"));
    engine.close();
}

#[test]
fn a_job_in_line_ends_at_once_when_cancelled() {
    let engine = Engine::open(1);
    let first = submit(&engine, None, endless);
    let (observer, events) = witness();
    let second = submit(&engine, observer, |_, _| outcome("never"));
    assert_eq!(second.wait(Some(Duration::from_millis(20))).unwrap(), State::Queued);
    assert!(second.result().is_err(), "it has not ended");
    engine.cancel(&second);
    assert_eq!(second.wait(Some(Duration::ZERO)).unwrap(), State::Cancelled);
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [Some((State::Cancelled, 0)), None]);
    assert_eq!(first.wait(Some(Duration::ZERO)).unwrap(), State::Running);
    engine.cancel(&first);
    assert_eq!(first.wait(SOON).unwrap(), State::Cancelled);
    engine.cancel(&first);
    engine.close();
}

#[test]
fn closing_cancels_all_and_refuses_more() {
    let engine = Engine::open(2);
    let jobs: Vec<Job> = (0..5).map(|_| submit(&engine, None, endless)).collect();
    engine.close();
    assert!(jobs.iter().all(|j| j.snapshot().state == State::Cancelled), "{jobs:?}");
    let error = engine.submit(|| panic!("made for a job that is refused"), endless).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    engine.close();
}

/// Does what it is told within its first event.
struct Reentrant<F: FnMut() + Send>(F);

impl<F: FnMut() + Send> Observer for Reentrant<F> {
    fn event(&mut self, _: &Snapshot) {
        (self.0)();
    }
}

#[test]
fn an_observer_may_close_the_engine_and_not_wait_for_itself() {
    let engine = Arc::new(Engine::open(1));
    let (give, take) = channel::<Job>();
    let (said, heard) = channel();
    let inside = engine.clone();
    let mut first = true;
    let observer = Reentrant(move || {
        if std::mem::take(&mut first) {
            let own = take.recv().unwrap();
            said.send(own.wait(None).unwrap_err().kind()).unwrap();
            assert_eq!(own.wait(Some(Duration::ZERO)).unwrap(), State::Running);
            inside.close();
        }
    });
    let job = submit(&engine, Some(Box::new(observer)), endless);
    give.send(job.clone()).unwrap();
    assert_eq!(heard.recv_timeout(Duration::from_secs(30)).unwrap(), ErrorKind::Conflict);
    assert_eq!(job.wait(SOON).unwrap(), State::Cancelled);
}

#[test]
fn the_queue_is_bounded() {
    let engine = Engine::open(1);
    let first = submit(&engine, None, endless);
    while first.snapshot().state == State::Queued {
        std::thread::yield_now();
    }
    // Descriptors are scarcer than places in the queue, so the test goes by what is refused first.
    let mut jobs = Vec::new();
    let refused = loop {
        match engine.submit(|| None, endless) {
            Ok(job) => jobs.push(job),
            Err(e) => break e,
        }
        assert!(jobs.len() <= LONGEST_QUEUE);
    };
    assert!(matches!(refused.kind(), ErrorKind::Unavailable | ErrorKind::Io), "{refused}");
    engine.close();
}
