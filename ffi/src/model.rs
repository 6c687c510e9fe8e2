//! Models: immutable; pruning makes new ones.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

use hone_core::inspect::inspect;
use hone_core::onnx::{Graph, Model, import};

use crate::arguments::{give, given, optional_path, path, slice};
use crate::engine::{Home, hone_engine};
use crate::error::{guard, hone_code, hone_error};
use crate::report::hone_report;

/// An ONNX model.
pub struct hone_model {
    pub(crate) home: Arc<Home>,
    pub(crate) model: Arc<Model>,
    graph: OnceLock<Arc<Graph>>,
    bytes: OnceLock<Vec<u8>>,
}

impl hone_model {
    pub(crate) fn new(home: Arc<Home>, model: Arc<Model>) -> Self {
        Self { home, model, graph: OnceLock::new(), bytes: OnceLock::new() }
    }

    /// The working graph, made when it is first asked for.
    pub(crate) fn graph(&self) -> Result<Arc<Graph>, hone_error> {
        if let Some(graph) = self.graph.get() {
            return Ok(graph.clone());
        }
        let graph = Arc::new(import(&self.model)?);
        Ok(self.graph.get_or_init(|| graph).clone())
    }
}

/// Reads the model at `path`; its external data, if any, from files in the same folder.
///
/// Errors: IO, INVALID_MODEL, UNSUPPORTED; the message names the file.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_model_load(
    engine: Option<&hone_engine>,
    path: *const c_char,
    out: Option<&mut MaybeUninit<*mut hone_model>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (engine, out) = (given(engine, "engine")?, given(out, "out")?);
        // SAFETY: the header asks for a string or NULL.
        let path = unsafe { self::path(path, "path") }?;
        let model = Arc::new(Model::load(path)?);
        give(out, hone_model::new(engine.0.clone(), model));
        Ok(())
    })
}

/// Decodes the model in the `len` bytes at `data`, which are not needed afterwards.
///
/// `folder` is where its external data is looked for; NULL when it has none.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_model_from_bytes(
    engine: Option<&hone_engine>,
    data: *const c_void,
    len: usize,
    folder: *const c_char,
    out: Option<&mut MaybeUninit<*mut hone_model>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (engine, out) = (given(engine, "engine")?, given(out, "out")?);
        if data.is_null() {
            return Err(hone_error::null("data"));
        }
        // SAFETY: the header asks for `len` bytes.
        let bytes = unsafe { slice(data.cast::<u8>(), len, "data") }?;
        // SAFETY: the header asks for a string or NULL.
        let folder = unsafe { optional_path(folder, "folder") }?;
        let model = Arc::new(Model::from_bytes(bytes, folder.as_deref())?);
        give(out, hone_model::new(engine.0.clone(), model));
        Ok(())
    })
}

/// Writes the model to `path`: the file appears whole or not at all. Where its source had external
/// data, a new data file appears beside it.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_model_save(
    model: Option<&hone_model>,
    path: *const c_char,
) -> Option<Box<hone_error>> {
    guard(|| {
        let model = given(model, "model")?;
        // SAFETY: the header asks for a string or NULL.
        let path = unsafe { self::path(path, "path") }?;
        Ok(model.model.save(path)?)
    })
}

/// The model as the bytes of an ONNX file, borrowed from `model`.
///
/// Errors: UNSUPPORTED for a model that one file does not hold; save that to a path.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_model_bytes(
    model: Option<&hone_model>,
    data: Option<&mut MaybeUninit<*const c_void>>,
    len: Option<&mut MaybeUninit<usize>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let model = given(model, "model")?;
        let (data, len) = (given(data, "data")?, given(len, "len")?);
        if model.model.has_external_data() {
            let message = format!(
                "{}: its tensors are in more than one file; use hone_model_save",
                model.model.name()
            );
            return Err(hone_error::new(hone_code::Unsupported, message));
        }
        if model.bytes.get().is_none() {
            let bytes = model.model.to_bytes()?;
            let _ = model.bytes.set(bytes);
        }
        let bytes = model.bytes.get().expect("it was set just now, or by another thread");
        data.write(bytes.as_ptr().cast());
        len.write(bytes.len());
        Ok(())
    })
}

/// What the model consists of and what hone can do with it: inputs and outputs, tensors that can be
/// pruned, those that cannot and why, operators and whether gradients pass through them. Schema
/// "hone.inspect/1".
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_model_inspect(
    model: Option<&hone_model>,
    out: Option<&mut MaybeUninit<*mut hone_report>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (model, out) = (given(model, "model")?, given(out, "out")?);
        let report = inspect(&model.model)?;
        give(out, hone_report::new(&format!("{report:#}"))?);
        Ok(())
    })
}

/// Frees a model. NULL is fine; jobs and samples that use it keep what they need.
#[unsafe(no_mangle)]
pub extern "C" fn hone_model_free(model: Option<Box<hone_model>>) {
    drop(model);
}
