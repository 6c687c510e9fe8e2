//! Models: immutable; pruning makes new ones.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

use hone_core::gradient::parameters::{self, Weight};
use hone_core::inspect::inspect;
use hone_core::onnx::{Graph, Model, import};
use hone_core::tensor::Tensor;

use crate::arguments::{check_len, give, given, optional_path, path, slice, slice_mut};
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
/// Errors: IO, INVALID_MODEL, UNSUPPORTED; the message names the file. UNAVAILABLE in a forked
/// child.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_model_load(
    engine: Option<&hone_engine>,
    path: *const c_char,
    out: Option<&mut MaybeUninit<*mut hone_model>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (engine, out) = (given(engine, "engine")?, given(out, "out")?);
        engine.0.engine.check_process()?;
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
///
/// Errors: INVALID_MODEL, UNSUPPORTED, IO for external data; UNAVAILABLE in a forked child.
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
        engine.0.engine.check_process()?;
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
/// data, a new data file appears beside it. Errors: IO.
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
///
/// Errors: INVALID_MODEL and UNSUPPORTED for a model that hone cannot bring into its working form.
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

/// The prunable weights as one vector to `out`: the tensors that `hone_model_inspect` lists as
/// "prunable", one after the other in that order, each as the model stores it. `len` is their
/// number, "prunable_weights" of the same document.
///
/// For hosts that take gradients themselves: with the same order in `hone_gradients`,
/// `hone_weights_prune` prunes such a vector, and `hone_model_with_weights` makes it a model.
/// Half-precision weights are widened. Rows of layers and N:M patterns are those of the tensors as
/// stored, so they need weights stored outputs first (Conv, Gemm with transB).
///
/// Errors: INVALID_ARGUMENT for another `len`; else as `hone_model_inspect`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_model_weights(
    model: Option<&hone_model>,
    out: *mut f32,
    len: usize,
) -> Option<Box<hone_error>> {
    guard(|| {
        let model = given(model, "model")?;
        let graph = model.graph()?;
        let (weights, count) = prunable(&graph);
        check_len(len, count, "out")?;
        // SAFETY: the header asks for room for `len` numbers.
        let mut out = unsafe { slice_mut(out, len, "out") }?;
        for weight in &weights {
            let values = graph.initializers[&weight.name].to_f32();
            let (own, rest) = out.split_at_mut(values.len());
            own.copy_from_slice(&values);
            out = rest;
        }
        Ok(())
    })
}

/// A model like `model` with other prunable weights: `len` numbers, ordered as those of
/// `hone_model_weights`; rounded where the model stores half precision.
///
/// Errors: INVALID_ARGUMENT for another `len`, INVALID_DATA for weights that are not finite.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_model_with_weights(
    model: Option<&hone_model>,
    weights: *const f32,
    len: usize,
    out: Option<&mut MaybeUninit<*mut hone_model>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (model, out) = (given(model, "model")?, given(out, "out")?);
        let graph = model.graph()?;
        let (places, count) = prunable(&graph);
        check_len(len, count, "weights")?;
        // SAFETY: the header asks for `len` numbers.
        let mut weights = unsafe { slice(weights, len, "weights") }?;
        if let Some(at) = weights.iter().position(|w| !w.is_finite()) {
            let message = format!("`weights`: number {at} is {}", weights[at]);
            return Err(hone_error::new(hone_code::InvalidData, message));
        }
        let source = Graph::from_model(&model.model)?;
        let mut made = Model::clone(&model.model);
        for place in &places {
            let (own, rest) = weights.split_at(place.shape.iter().product());
            let stored = source.initializers.get(&place.name);
            let element = stored.unwrap_or(&graph.initializers[&place.name]).element_type();
            let tensor = Tensor::f32(place.shape.as_slice(), own.to_vec());
            made.replace_tensor(&place.name, &tensor.to_floats(element)?)?;
            weights = rest;
        }
        give(out, hone_model::new(model.home.clone(), Arc::new(made)));
        Ok(())
    })
}

/// The tensors that can be pruned and the number of their weights.
fn prunable(graph: &Graph) -> (Vec<Weight>, usize) {
    let found = parameters::weights(graph).0;
    let count = found.iter().map(|w| w.shape.iter().product::<usize>()).sum();
    (found, count)
}

/// Frees a model. NULL is fine; jobs and samples that use it keep what they need.
#[unsafe(no_mangle)]
pub extern "C" fn hone_model_free(model: Option<Box<hone_model>>) {
    drop(model);
}
