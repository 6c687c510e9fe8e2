//! Samples: what a model is fed, for calibration and for evaluation.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;

use hone_core::calibration::{ReadOptions, Samples};

use crate::arguments::{give, given, optional_text, path, slice};
use crate::error::{guard, hone_error};
use crate::model::hone_model;
use crate::options::{self, Extensible};
use crate::tensor::{copy, hone_named_tensor, hone_tensor, named};

/// How samples become what the model expects: x becomes (x·scale − mean)/std. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_samples_options {
    /// sizeof(hone_samples_options)
    pub size: usize,
    /// `scale_count` factors, one or one per channel; NULL means 1/255 for images, otherwise 1.
    /// Integers for a float input need one.
    pub scale: *const f64,
    /// How many.
    pub scale_count: usize,
    /// What is subtracted then: `mean_count` numbers, one or one per channel; NULL means 0.
    pub mean: *const f64,
    /// How many.
    pub mean_count: usize,
    /// What is divided by then: `std_count` numbers, one or one per channel; NULL means 1.
    pub std: *const f64,
    /// How many.
    pub std_count: usize,
    /// Files: the array of the archive that holds the labels; NULL means "labels", else "targets".
    pub labels: *const c_char,
    /// Files: read at most so many samples; 0 means all.
    pub limit: usize,
    /// Files: what the samples may take in memory, in bytes; 0 means 8 GiB.
    pub memory_limit: u64,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_samples_options {}

/// Samples that fit the inputs of a model, checked completely, and possibly their labels.
pub struct hone_samples(pub(crate) Arc<Samples>);

/// Reads samples for `model` from `path`: an .npz archive with arrays named as the inputs (and
/// `labels` or `targets`), an .npy array for a model with one input, or a folder of PNG and JPEG
/// images with one sub-folder per class. `options` may be NULL.
///
/// Errors: IO, INVALID_DATA (the message names file, array and row), MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_samples_load(
    model: Option<&hone_model>,
    path: *const c_char,
    options: *const hone_samples_options,
    out: Option<&mut MaybeUninit<*mut hone_samples>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (model, out) = (given(model, "model")?, given(out, "out")?);
        // SAFETY: the header asks for a string or NULL.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let options = unsafe { read_options(options) }?;
        let samples = Samples::read(&path, &model.graph()?.inputs, &options)?;
        give(out, hone_samples(Arc::new(samples)));
        Ok(())
    })
}

/// Copies samples for `model` from arrays of the caller: `count` tensors, one for each input by its
/// name, whose first axes count the samples. `labels` may be NULL: integers [N] or [N, T] are class
/// indices, floats [N, ...] are targets. `options` may be NULL.
///
/// Errors: INVALID_ARGUMENT for names that are not the model's, INVALID_DATA for shapes, types and
/// values that do not fit.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_samples_from_tensors(
    model: Option<&hone_model>,
    inputs: *const hone_named_tensor,
    count: usize,
    labels: Option<&hone_tensor>,
    options: *const hone_samples_options,
    out: Option<&mut MaybeUninit<*mut hone_samples>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (model, out) = (given(model, "model")?, given(out, "out")?);
        // SAFETY: the header asks for `count` tensors.
        let inputs = unsafe { slice(inputs, count, "inputs") }?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let options = unsafe { read_options(options) }?;
        // SAFETY: the header says what a tensor is.
        let arrays = inputs.iter().map(|t| unsafe { named(t) }).collect::<Result<_, _>>()?;
        // SAFETY: the header says what a tensor is.
        let labels = labels.map(|t| unsafe { copy(t, "labels") }).transpose()?;
        let samples = Samples::fit(arrays, labels, &model.graph()?.inputs, &options)?;
        give(out, hone_samples(Arc::new(samples)));
        Ok(())
    })
}

/// # Safety
///
/// As [`options::read`], and the pointers in the struct must be what the header says.
unsafe fn read_options(given: *const hone_samples_options) -> Result<ReadOptions, hone_error> {
    // SAFETY: as the caller vouches.
    let o = unsafe { options::read(given, "options") }?;
    let numbers = |pointer: *const f64, count: usize, what: &str| {
        if pointer.is_null() {
            return Ok(None);
        }
        // SAFETY: the header asks for `count` numbers.
        unsafe { slice(pointer, count, what) }.map(|numbers| Some(numbers.to_vec()))
    };
    // SAFETY: the header asks for a string or NULL.
    let labels = unsafe { optional_text(o.labels, "labels") }?;
    Ok(ReadOptions {
        scale: numbers(o.scale, o.scale_count, "scale")?,
        mean: numbers(o.mean, o.mean_count, "mean")?,
        std: numbers(o.std, o.std_count, "std")?,
        labels: labels.map(String::from),
        limit: Some(o.limit).filter(|&n| n > 0),
        memory_limit: Some(o.memory_limit).filter(|&n| n > 0),
        ..ReadOptions::default()
    })
}

/// The number of samples; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hone_samples_count(samples: Option<&hone_samples>) -> usize {
    samples.map_or(0, |s| s.0.rows())
}

/// Frees samples. NULL is fine; jobs that use them keep what they need.
#[unsafe(no_mangle)]
pub extern "C" fn hone_samples_free(samples: Option<Box<hone_samples>>) {
    drop(samples);
}
