//! The one error type of hone: what kind of thing went wrong, what exactly, and where.
//!
//! A message names the file, the tensor or the option at fault and says how to mend it; contexts
//! are added on the way up (`model.onnx: tensor "w": ...`). The kind decides the exit code of the
//! command line and the code of the C ABI.

use std::fmt;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option or argument that cannot be used.
    Usage,
    /// A file that cannot be read or written.
    Io,
    /// A model that is malformed or breaks the rules of ONNX.
    Model,
    /// A sound model that uses something hone has no rule for.
    Unsupported,
    /// Samples or labels that do not fit the model, or are not finite.
    Data,
    /// ONNX Runtime is missing, too old, or refused the model.
    Runtime,
    /// The requested device is not available.
    Device,
    /// The memory limit cannot be kept.
    Memory,
    /// A request that has no answer in floating point.
    Numerics,
    /// The caller asked to stop.
    Cancelled,
    /// What is asked does not go with the state of things, such as the outcome of a running job.
    Conflict,
    /// What is asked cannot be had any more, or not here: a closed engine, a forked child.
    Unavailable,
    /// A bug in hone: a panic that was caught where a job or the C ABI ends.
    Internal,
}

/// An error: a kind, a message, and the contexts it passed through (outermost first).
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    contexts: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything in hone that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), contexts: Vec::new(), source: None }
    }

    /// The same error with the lower-level error that caused it.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        self.source = Some(Box::new(source));
        self
    }

    /// The same error, seen from one step further out: `context: message`.
    pub fn context(mut self, context: impl Into<String>) -> Error {
        self.contexts.insert(0, context.into());
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in &self.contexts {
            write!(f, "{context}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

/// Adds a context to the error of a result.
pub trait Context<T> {
    /// `context` is only built when there is an error.
    fn context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| e.context(context()))
    }
}

/// Shorthand for returning an error: `bail!(Model, "tensor {name:?} has no shape")`.
macro_rules! bail {
    ($kind:ident, $($message:tt)+) => {
        return Err($crate::error::error!($kind, $($message)+))
    };
}

#[allow(unused_macros, reason = "used as modules land")]
/// Shorthand for making an error: `error!(Model, "tensor {name:?} has no shape")`.
macro_rules! error {
    ($kind:ident, $($message:tt)+) => {
        $crate::error::Error::new($crate::error::ErrorKind::$kind, format!($($message)+))
    };
}

#[allow(unused_imports, reason = "used as modules land")]
pub(crate) use {bail, error};
