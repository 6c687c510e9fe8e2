//! Finding and loading ONNX Runtime's shared library, once per process.
//!
//! In order: the file named by [`use_library`]; the file named by `HONE_ORT_DYLIB`, else by
//! `ORT_DYLIB_PATH`; a copy the process has mapped already; beside the file this code is linked
//! into, in `../lib`, and where `scripts/setup` puts it in a source tree; the system's library
//! path. A file that was named explicitly is the only candidate. One process has one ONNX Runtime
//! environment for ever, so the first success (or the first failure) is final.

use std::env;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::error::{Error, ErrorKind, Result, bail};
use crate::sys;

const SONAME: &str = "libonnxruntime.so.1";

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();
static LOADED: OnceLock<Result<Environment, String>> = OnceLock::new();

/// Names the library to load; an error when ONNX Runtime is loaded already or another was named.
pub fn use_library(path: impl Into<PathBuf>) -> Result<()> {
    let path = path.into();
    if LOADED.get().is_some() || *CHOSEN.get_or_init(|| path.clone()) != path {
        bail!(Runtime, "ONNX Runtime is loaded once per process, and that has happened already");
    }
    Ok(())
}

/// Loads ONNX Runtime unless that has been done; an error lists every place that was tried.
pub fn load() -> Result<&'static Environment> {
    let loaded = LOADED.get_or_init(find_and_load);
    loaded.as_ref().map_err(|message| Error::new(ErrorKind::Runtime, message))
}

fn find_and_load() -> Result<Environment, String> {
    // Libraries from 1.29 on report to their maker unless this is set before they are loaded;
    // what the API offers afterwards comes too late.
    sys::set_default_env("ORT_DISABLE_TELEMETRY", "1");
    let mut tried = String::new();
    for candidate in candidates() {
        match ort::init_from(&candidate) {
            Ok(builder) => {
                let environment = builder
                    .with_name("hone")
                    .with_telemetry(false)
                    .with_logger(Arc::new(forward))
                    .build()
                    .map_err(|e| format!("ONNX Runtime {}: {e}", candidate.display()))?;
                environment.set_log_level(LogLevel::Warning);
                log::info!("ONNX Runtime: {}", candidate.display());
                return Ok(environment);
            }
            Err(e) => {
                // The loader's Display leaves out what the system said.
                let said = match &e {
                    ort::LoadDynamicError::Dlopen { error, .. } => std::error::Error::source(error),
                    _ => None,
                };
                let reason = said.map_or(String::new(), |s| format!(" ({s})"));
                tried += &format!("\n  {}: {e}{reason}", candidate.display());
            }
        }
    }
    Err(format!(
        "ONNX Runtime (version 1.22 or later) could not be loaded. Run scripts/setup, or name the \
         library by HONE_ORT_DYLIB. Tried:{tried}"
    ))
}

/// The files to try, best first.
fn candidates() -> Vec<PathBuf> {
    let named = CHOSEN.get().cloned();
    let variable = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let explicit =
        named.or_else(|| variable("HONE_ORT_DYLIB")).or_else(|| variable("ORT_DYLIB_PATH"));
    if let Some(path) = explicit {
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
