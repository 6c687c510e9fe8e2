//! Where the work is, for whoever watches it.

/// Receives the progress of a run, possibly from several threads.
pub trait Progress: Sync {
    /// A phase begins that consists of `total` units.
    fn begin(&self, phase: &str, total: u64);
    /// `done` units of the phase are over.
    fn advance(&self, done: u64);
    /// Figures worth a line of their own.
    fn say(&self, _line: &str) {}
}

impl Progress for () {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
}
