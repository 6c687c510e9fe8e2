//! Errors as values: a code for programs, a message for people.

use std::any::Any;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use hone_core::engine::Failure;
use hone_core::{Error, ErrorKind};

/// What kind of thing went wrong. New codes may be added.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_code {
    /// Nothing.
    Ok = 0,
    /// An argument or option that cannot be used: NULL, out of range, not UTF-8, an unknown name.
    InvalidArgument = 1,
    /// A file that cannot be read or written.
    Io = 2,
    /// A model that is malformed or breaks the rules of ONNX.
    InvalidModel = 3,
    /// A sound model that uses something hone has no rule for, or an option this build lacks.
    Unsupported = 4,
    /// Samples, labels or gradients that do not fit, or are not finite.
    InvalidData = 5,
    /// ONNX Runtime is missing, too old, or refused the model.
    Runtime = 6,
    /// The requested device is not available.
    Device = 7,
    /// The memory limit cannot be kept, or memory is short.
    Memory = 8,
    /// A request that has no answer in floating point; the message says which damping has one.
    Numerics = 9,
    /// The caller asked to stop.
    Cancelled = 10,
    /// The call does not go with the state of things, such as the report of a running job.
    Conflict = 11,
    /// Not to be had any more, or not here: a closed engine, a forked child.
    Unavailable = 12,
    /// A bug in hone: a panic that was caught. Please report it.
    Internal = 13,
}

/// An error: a code and a message. NULL is success.
pub struct hone_error {
    code: hone_code,
    message: CString,
}

impl hone_error {
    pub(crate) fn new(code: hone_code, message: impl Into<String>) -> Self {
        let message = message.into().replace('\0', "\u{fffd}");
        Self { code, message: CString::new(message).expect("no NUL is left") }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(hone_code::InvalidArgument, message)
    }

    pub(crate) fn null(what: &str) -> Self {
        Self::argument(format!("`{what}` is NULL"))
    }
}

impl From<Error> for hone_error {
    fn from(e: Error) -> Self {
        Self::new(code_of(e.kind()), e.to_string())
    }
}

impl From<&Failure> for hone_error {
    fn from(failure: &Failure) -> Self {
        Self::new(code_of(failure.kind), failure.message.as_str())
    }
}

fn code_of(kind: ErrorKind) -> hone_code {
    match kind {
        ErrorKind::Usage => hone_code::InvalidArgument,
        ErrorKind::Io => hone_code::Io,
        ErrorKind::Model => hone_code::InvalidModel,
        ErrorKind::Unsupported => hone_code::Unsupported,
        ErrorKind::Data => hone_code::InvalidData,
        ErrorKind::Runtime => hone_code::Runtime,
        ErrorKind::Device => hone_code::Device,
        ErrorKind::Memory => hone_code::Memory,
        ErrorKind::Numerics => hone_code::Numerics,
        ErrorKind::Cancelled => hone_code::Cancelled,
        ErrorKind::Conflict => hone_code::Conflict,
        ErrorKind::Unavailable => hone_code::Unavailable,
        _ => hone_code::Internal,
    }
}

/// Runs the body of a fallible C function; a panic becomes an error.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), hone_error>) -> Option<Box<hone_error>> {
    keep_panics_quiet();
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Box::new(error)),
        Err(panic) => {
            let message = format!("a bug in hone, please report it: {}", text_of(&*panic));
            Some(Box::new(hone_error::new(hone_code::Internal, message)))
        }
    }
}

/// Runs the body of an infallible C function; a panic is logged.
pub(crate) fn guard_or<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    keep_panics_quiet();
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

/// Panics go to the log: the terminal is the host's. The hook is that of this library's own copy of
/// Rust, so a host written in Rust keeps its own.
fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| log::error!(target: "hone", "{panic}")));
    });
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    (panic.downcast_ref::<&str>().copied())
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

/// The error's code; HONE_CODE_OK for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hone_error_code(error: Option<&hone_error>) -> hone_code {
    error.map_or(hone_code::Ok, |e| e.code)
}

/// The error's message, which names what is wrong and how to mend it; "" for NULL. Borrowed from
/// `error`.
#[unsafe(no_mangle)]
pub extern "C" fn hone_error_message(error: Option<&hone_error>) -> *const c_char {
    const EMPTY: &CStr = c"";
    error.map_or(EMPTY, |e| &e.message).as_ptr()
}

/// Frees an error. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn hone_error_free(error: Option<Box<hone_error>>) {
    drop(error);
}
