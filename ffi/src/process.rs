//! The process that an object was made in. After a fork a lock may be held by a thread that the
//! child lacks, so the child gets an error before it waits.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{hone_code, hone_error};

/// A process, by the number of forks between it and the one that loaded the library: to ask the
/// system would take longer than all else that a call does beside its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(u32);

static FORKS: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

impl Process {
    /// This one.
    pub fn here() -> Process {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: the handler does nothing but count, and the library is never unloaded.
            unsafe { libc::pthread_atfork(None, None, Some(forked)) };
        });
        Process(FORKS.load(Ordering::Relaxed))
    }

    /// An error in another one.
    pub fn check(self, what: &str) -> Result<(), hone_error> {
        if FORKS.load(Ordering::Relaxed) != self.0 {
            let message = format!("this is a forked child: the {what} stayed with the parent");
            return Err(hone_error::new(hone_code::Unavailable, message));
        }
        Ok(())
    }
}
