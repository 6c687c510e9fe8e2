//! The log of the library, handed to the host or to nobody.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Arc, PoisonError, RwLock};

use log::{LevelFilter, Log, Metadata, Record};

use crate::callback::Context;
use crate::error::{guard, hone_error};

/// How much a log line matters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_log_level {
    /// Nothing is logged.
    Off = 0,
    /// A bug, or something the library could not return as an error.
    Error = 1,
    /// Something is odd, such as a fallback that was taken.
    Warn = 2,
    /// Something happened.
    Info = 3,
    /// Details, for those who look into a problem; messages of ONNX Runtime among them.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

/// Receives log lines.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_log_sink {
    /// Called for each line, on any thread and from several at once; NULL for none. `target` names
    /// the part of the library, `message` is one line of UTF-8; both are valid during the call
    /// only. Must not call into hone.
    pub call: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            level: hone_log_level,
            target: *const c_char,
            message: *const c_char,
        ),
    >,
    /// Called once, after the last `call`, when the sink has been replaced; NULL for nothing.
    pub drop: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Passed to both.
    pub context: *mut c_void,
}

struct Sink {
    call: unsafe extern "C" fn(*mut c_void, hone_log_level, *const c_char, *const c_char),
    context: Context,
}

struct Logger(RwLock<Option<Arc<Sink>>>);

static LOGGER: Logger = Logger(RwLock::new(None));

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // The lock is not held during the call, so that a slow sink holds up nobody else.
        let sink = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(sink) = sink else { return };
        let text = |s: String| CString::new(s.replace('\0', "\u{fffd}")).expect("no NUL is left");
        let (target, message) = (text(record.target().into()), text(record.args().to_string()));
        let level = match record.level() {
            log::Level::Error => hone_log_level::Error,
            log::Level::Warn => hone_log_level::Warn,
            log::Level::Info => hone_log_level::Info,
            log::Level::Debug => hone_log_level::Debug,
            log::Level::Trace => hone_log_level::Trace,
        };
        // SAFETY: the host gave the function with this context, which lives until its drop.
        unsafe { (sink.call)(sink.context.pointer, level, target.as_ptr(), message.as_ptr()) };
    }

    fn flush(&self) {}
}

/// Sends log lines up to `level`, a `hone_log_level`, to `sink`; to nobody if that is NULL, as at
/// the start.
///
/// Replaces the sink set before. A call to that one on another thread may still be under way when
/// this returns; its `drop` tells when its context is free.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_log_set(
    level: u32,
    sink: Option<&hone_log_sink>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let level = match level {
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2 => LevelFilter::Warn,
            3 => LevelFilter::Info,
            4 => LevelFilter::Debug,
            5 => LevelFilter::Trace,
            _ => return Err(hone_error::argument(format!("{level} is no hone_log_level"))),
        };
        let new = sink.and_then(|s| {
            let call = s.call?;
            Some(Arc::new(Sink { call, context: Context::new(s.context, s.drop) }))
        });
        if new.is_none()
            && let Some(unused) = sink
        {
            // Taken and let go of at once: the context is the caller's no more.
            drop(Context::new(unused.context, unused.drop));
        }
        // The logger of this library's own copy of `log`; a second call changes nothing.
        let _ = log::set_logger(&LOGGER);
        log::set_max_level(if new.is_some() { level } else { LevelFilter::Off });
        let old = {
            let mut sink = LOGGER.0.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *sink, new)
        };
        drop(old);
        Ok(())
    })
}
