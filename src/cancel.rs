//! A request to stop, shared by the one who asks and the work that heeds it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Result, bail};

/// A flag that can be raised once, and whom to wake when it is.
#[derive(Clone)]
pub struct Cancel(Option<Arc<Inner>>);

#[derive(Default)]
struct Inner {
    raised: AtomicBool,
    next: AtomicU64,
    hooks: Mutex<Vec<(u64, Hook)>>,
}

type Hook = Box<dyn Fn() + Send>;

/// Removes its hook when dropped.
#[derive(Debug)]
pub(crate) struct Registration(Cancel, u64);

impl Default for Cancel {
    fn default() -> Cancel {
        Cancel(Some(Arc::default()))
    }
}

impl Cancel {
    /// A flag that is not raised.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// A flag that cannot be raised, for work that nobody stops; it takes no memory.
    pub const fn never() -> Cancel {
        Cancel(None)
    }

    /// Asks the work to stop. It does so at its next check, with an error of kind `Cancelled`.
    pub fn cancel(&self) {
        let Some(inner) = &self.0 else { return };
        inner.raised.store(true, Ordering::SeqCst);
        for (_, hook) in inner.hooks.lock().expect("no hook panics").iter() {
            hook();
        }
    }

    /// Whether the work has been asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.raised.load(Ordering::SeqCst))
    }

    /// An error of kind `Cancelled` once the work has been asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            bail!(Cancelled, "stopped on request");
        }
        Ok(())
    }

    /// Calls `hook` when the flag is raised, at once if it is already, until the registration is
    /// dropped.
    pub(crate) fn on_cancel(&self, hook: impl Fn() + Send + 'static) -> Registration {
        let Some(inner) = &self.0 else { return Registration(Cancel::never(), 0) };
        let id = inner.next.fetch_add(1, Ordering::SeqCst);
        let mut hooks = inner.hooks.lock().expect("no hook panics");
        if self.is_cancelled() {
            hook();
        }
        hooks.push((id, Box::new(hook)));
        Registration(self.clone(), id)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(inner) = &self.0.0 {
            inner.hooks.lock().expect("no hook panics").retain(|(id, _)| *id != self.1);
        }
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cancel({})", self.is_cancelled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_run_when_raised_and_not_after_their_registration_is_dropped() {
        let (cancel, calls) = (Cancel::new(), Arc::new(AtomicU64::new(0)));
        let counter = |n: u64| {
            let calls = calls.clone();
            move || {
                calls.fetch_add(n, Ordering::SeqCst);
            }
        };
        let kept = cancel.on_cancel(counter(1));
        drop(cancel.on_cancel(counter(100)));
        assert!(cancel.check().is_ok());
        cancel.cancel();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(cancel.check().unwrap_err().kind(), crate::ErrorKind::Cancelled);
        drop(kept);
        let _late = cancel.on_cancel(counter(10));
        assert_eq!(calls.load(Ordering::SeqCst), 11, "a late hook runs at once");
        let never = Cancel::never();
        let _none = never.on_cancel(counter(1000));
        never.cancel();
        assert!(never.check().is_ok() && calls.load(Ordering::SeqCst) == 11);
    }
}
