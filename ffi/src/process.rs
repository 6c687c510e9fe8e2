//! The process that an object was made in. After a fork a lock may be held by a thread that the
//! child lacks, so the child gets an error before it waits.

use crate::error::{hone_code, hone_error};

/// A process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(u32);

impl Process {
    /// This one.
    pub fn here() -> Process {
        Process(std::process::id())
    }

    /// Whether this is another one.
    pub fn is_gone(self) -> bool {
        std::process::id() != self.0
    }

    /// An error in another one.
    pub fn check(self, what: &str) -> Result<(), hone_error> {
        if self.is_gone() {
            let message = format!("this is a forked child: make an {what} of its own here");
            return Err(hone_error::new(hone_code::Unavailable, message));
        }
        Ok(())
    }
}
