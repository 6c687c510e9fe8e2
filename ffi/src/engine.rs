//! An engine: where models run and jobs are done, in this process.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::Arc;

use hone_core::engine::{Engine, SignalsBlocked};
use hone_core::runtime::{self, Device};

use crate::arguments::{give, given, optional_path, optional_text, or, threads_or_all};
use crate::error::{guard, guard_or, hone_code, hone_error};
use crate::options::{self, Extensible};

/// Where models run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_device {
    /// The processor.
    Cpu = 0,
    /// The first CUDA device; an error where there is none.
    Cuda = 1,
    /// The first CUDA device where there is one, else the processor, with a warning in the log.
    Auto = 2,
}

/// How to open an engine. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_engine_options {
    /// sizeof(hone_engine_options)
    pub size: usize,
    /// What gradients and Fisher blocks of a job may take in memory, in bytes; 0 means 4 GiB.
    pub memory_limit: u64,
    /// The shared library of ONNX Runtime, 1.22 or later; NULL means HONE_ORT_DYLIB, then
    /// ORT_DYLIB_PATH, then one the process has loaded already, then beside this library, then the
    /// system's.
    pub onnxruntime: *const c_char,
    /// The host's own ONNX Runtime: what its OrtGetApiBase() returns. Wins over the path; NULL for
    /// none. A process has one ONNX Runtime: the first engine's.
    pub ort_api_base: *const c_void,
    /// Threads a job may use; 0 means one per core. Results do not depend on it.
    pub threads: u32,
    /// Jobs done at once; 0 means 1. The rest wait in line.
    pub jobs: u32,
    /// A `hone_device`.
    pub device: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_engine_options {}

/// Where models run and jobs are done.
pub struct hone_engine(pub(crate) Arc<Home>);

/// What an engine handle and everything made with it share.
pub(crate) struct Home {
    pub(crate) engine: Engine,
    pub(crate) threads: usize,
    pub(crate) device: Device,
    pub(crate) memory_limit: usize,
}

/// What jobs may take in memory unless the host says otherwise.
const MEMORY_LIMIT: u64 = 4 << 30;

/// Opens an engine, and loads ONNX Runtime unless the process has done so.
///
/// `target` says where: NULL or "embedded" for this process. `options` may be NULL.
///
/// Errors: UNSUPPORTED for another target; RUNTIME when ONNX Runtime cannot be loaded (the message
/// lists what was tried; another path may be tried then); CONFLICT when the process has loaded
/// another one before.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_engine_open(
    target: *const c_char,
    options: *const hone_engine_options,
    out: Option<&mut MaybeUninit<*mut hone_engine>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let out = given(out, "out")?;
        // SAFETY: the header asks for a string or NULL.
        match unsafe { optional_text(target, "target") }? {
            None | Some("embedded") => {}
            Some(other) => {
                let message = format!(
                    "target {other:?}: this build of hone has no daemon; use NULL or \"embedded\""
                );
                return Err(hone_error::new(hone_code::Unsupported, message));
            }
        }
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        options::check_reserved(o.reserved)?;
        let device = device(o.device)?;
        let memory_limit = usize::try_from(or(o.memory_limit, MEMORY_LIMIT)).unwrap_or(usize::MAX);
        // SAFETY: the header asks for a string or NULL.
        let library = unsafe { optional_path(o.onnxruntime, "onnxruntime") }?;
        // SAFETY: the header asks for what OrtGetApiBase() returned, or NULL.
        unsafe { load(library, o.ort_api_base.cast()) }?;
        let engine = Engine::open(or(o.jobs, 1) as usize);
        let threads = threads_or_all(o.threads);
        give(out, hone_engine(Arc::new(Home { engine, threads, device, memory_limit })));
        Ok(())
    })
}

/// Loads ONNX Runtime from where the host says.
///
/// # Safety
///
/// `base`, if not null, must be what `OrtGetApiBase` of a loaded library returned.
unsafe fn load(
    library: Option<PathBuf>,
    base: *const ort::sys::OrtApiBase,
) -> Result<(), hone_error> {
    let _blocked = SignalsBlocked::new();
    if !base.is_null() {
        // SAFETY: the caller vouches for the base; its table of functions is never freed.
        let api = unsafe { ((*base).GetApi)(ort::sys::ORT_API_VERSION) };
        if api.is_null() {
            let message = format!(
                "the host's ONNX Runtime is too old: it has no API version {}",
                ort::sys::ORT_API_VERSION
            );
            return Err(hone_error::new(hone_code::Runtime, message));
        }
        // SAFETY: not null, so it is a table of that version, which is never freed.
        runtime::use_api(base.addr(), unsafe { std::ptr::read(api) })?;
    } else if let Some(path) = library {
        runtime::use_library(path)?;
    }
    runtime::load()?;
    Ok(())
}

pub(crate) fn device(number: u32) -> Result<Device, hone_error> {
    match number {
        0 => Ok(Device::Cpu),
        1 => Ok(Device::Cuda),
        2 => Ok(Device::Auto),
        _ => Err(hone_error::argument(format!("{number} is no hone_device"))),
    }
}

/// Cancels the engine's jobs, waits until their threads are gone, and frees the engine. NULL is
/// fine.
///
/// After this no observer is called any more. From within an observer it does not wait. Models,
/// samples and jobs that remain may be used and freed, but start nothing new. In a forked child it
/// frees nothing.
#[unsafe(no_mangle)]
pub extern "C" fn hone_engine_free(engine: Option<Box<hone_engine>>) {
    guard_or((), || {
        let Some(engine) = engine else { return };
        if engine.0.engine.check_process().is_err() {
            // Its threads, and perhaps its locks, stayed with the parent.
            std::mem::forget(engine);
            return;
        }
        engine.0.engine.close();
    });
}
