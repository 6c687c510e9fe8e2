//! Finding and loading ONNX Runtime's shared library, once per process.
//!
//! In order: the file named by [`use_library`], or the interface of a host by [`use_api`]; the file
//! named by `HONE_ORT_DYLIB`, else by `ORT_DYLIB_PATH`; a copy the process has mapped already;
//! beside the file this code is linked into, in `../lib`, and where `scripts/setup` puts it in a
//! source tree; the system's library path. A file that was named explicitly is the only candidate.
//! One process has one ONNX Runtime environment for ever, so the first success is final; after a
//! failure another file may be named.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ort::environment::{Environment, EnvironmentBuilder};
use ort::logging::LogLevel;

use crate::error::{Error, ErrorKind, Result, bail};
use crate::sys;

const SONAME: &str = "libonnxruntime.so.1";

static LOADED: OnceLock<Environment> = OnceLock::new();
/// Held while ONNX Runtime is chosen or loaded.
static CHOICE: Mutex<Choice> = Mutex::new(Choice::Search);

/// Where ONNX Runtime is to come from.
#[derive(PartialEq)]
enum Choice {
    Search,
    File(PathBuf),
    /// The host has it; the address of what it handed over.
    Host(usize),
}

/// Names the library to load. Naming the one that is loaded already is fine; an error
/// (`Conflict`) when ONNX Runtime came from elsewhere.
pub fn use_library(path: impl Into<PathBuf>) -> Result<()> {
    choose(Choice::File(path.into())).map(drop)
}

/// Takes the ONNX Runtime of the host: `api` is its function table of version
/// [`ort::sys::ORT_API_VERSION`], and `base` the address by which it is known. An error when ONNX
/// Runtime came from elsewhere.
pub fn use_api(base: usize, api: ort::sys::OrtApi) -> Result<()> {
    if choose(Choice::Host(base))? && !ort::set_api(api) {
        bail!(Conflict, "ONNX Runtime is in use already, so the host's cannot be taken");
    }
    Ok(())
}

/// Whether the choice is a new one; an error when ONNX Runtime has come from elsewhere.
fn choose(wanted: Choice) -> Result<bool> {
    let mut choice = locked();
    if *choice == wanted {
        return Ok(false);
    }
    if LOADED.get().is_some() || matches!(*choice, Choice::Host(_)) {
        bail!(Conflict, "a process has one ONNX Runtime, and it has come from elsewhere already");
    }
    *choice = wanted;
    Ok(true)
}

fn locked() -> MutexGuard<'static, Choice> {
    // The choice is replaced in one step, so a panic elsewhere leaves it whole.
    CHOICE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads ONNX Runtime unless that has been done; an error lists every place that was tried.
pub fn load() -> Result<&'static Environment> {
    if let Some(environment) = LOADED.get() {
        return Ok(environment);
    }
    let choice = locked();
    if LOADED.get().is_none() {
        let environment = match &*choice {
            Choice::Host(_) => start(ort::init()).map_err(|e| format!("the host's: {e}")),
            Choice::File(path) => find_and_load(vec![path.clone()]),
            Choice::Search => find_and_load(candidates()),
        };
        let environment = environment.map_err(|message| Error::new(ErrorKind::Runtime, message))?;
        if !matches!(*choice, Choice::Host(_)) {
            // The host's own messages are the host's business.
            environment.set_log_level(LogLevel::Warning);
        }
        let _ = LOADED.set(environment);
    }
    Ok(LOADED.get().expect("it was there or has just been set, under the lock"))
}

fn find_and_load(candidates: Vec<PathBuf>) -> Result<Environment, String> {
    // Libraries from 1.29 on report to their maker unless this is set before they are loaded;
    // what the API offers afterwards comes too late.
    sys::set_default_env("ORT_DISABLE_TELEMETRY", "1");
    let mut tried = String::new();
    for candidate in candidates {
        match ort::init_from(&candidate) {
            Ok(builder) => {
                let environment = start(builder)
                    .map_err(|e| format!("ONNX Runtime {}: {e}", candidate.display()))?;
                log::info!("ONNX Runtime: {}", candidate.display());
                return Ok(environment);
            }
            Err(e) => tried += &format!("\n  {}", reason(&candidate, &e)),
        }
    }
    Err(format!(
        "ONNX Runtime (version 1.22 or later) could not be loaded. Run scripts/setup, or name the \
         library by HONE_ORT_DYLIB. Tried:{tried}"
    ))
}

fn start(builder: EnvironmentBuilder) -> ort::Result<Environment> {
    builder.with_name("hone").with_telemetry(false).with_logger(Arc::new(forward)).build()
}

fn reason(candidate: &Path, e: &ort::LoadDynamicError) -> String {
    // The loader's Display leaves out what the system said.
    let said = match e {
        ort::LoadDynamicError::Dlopen { error, .. } => std::error::Error::source(error),
        _ => None,
    };
    let reason = said.map_or(String::new(), |s| format!(" ({s})"));
    format!("{}: {e}{reason}", candidate.display())
}

/// The files to try, best first.
fn candidates() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = variable("HONE_ORT_DYLIB").or_else(|| variable("ORT_DYLIB_PATH")) {
        return vec![path];
    }
    let mut list: Vec<PathBuf> =
        sys::mapped_library(c"libonnxruntime.so.1", c"OrtGetApiBase").into_iter().collect();
    let own = sys::own_library().and_then(|p| p.canonicalize().ok());
    if let Some(folder) = own.as_deref().and_then(|p| p.parent()) {
        list.push(folder.join(SONAME));
        list.push(folder.join("../lib").join(SONAME));
        let tree = folder.ancestors().skip(1).take(3);
        list.extend(tree.map(|t| t.join("third_party/onnxruntime").join(SONAME)));
    }
    list.retain(|p| p.exists());
    list.push(SONAME.into());
    list.push("libonnxruntime.so".into());
    list
}

/// ONNX Runtime's messages go to hone's log, never to the host's terminal.
fn forward(level: LogLevel, category: &str, _id: &str, _location: &str, message: &str) {
    let level = match level {
        LogLevel::Verbose => log::Level::Trace,
        LogLevel::Info => log::Level::Debug,
        LogLevel::Warning => log::Level::Debug,
        // What fails is returned as an error; the log only adds where in the library.
        LogLevel::Error | LogLevel::Fatal => log::Level::Debug,
    };
    log::log!(target: "onnxruntime", level, "{category}: {message}");
}
