//! Gradients of the host's own: the rows of G.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hone_core::mfac::{GradientStore, Storage};

use crate::arguments::{check_len, give, given, optional_path, slice};
use crate::error::{guard, hone_code, hone_error};
use crate::options::{self, Extensible};
use crate::process::Process;
use crate::prune::choose;

/// The format in which gradients are kept.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_storage {
    /// 4 bytes a number, exact.
    F32 = 0,
    /// 2 bytes a number, relative rounding 2^-11; each gradient is scaled by a power of two.
    F16 = 1,
    /// 2 bytes a number, relative rounding 2^-8.
    Bf16 = 2,
}

/// How to keep gradients. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_gradients_options {
    /// sizeof(hone_gradients_options)
    pub size: usize,
    /// A folder for a nameless file that holds the gradients instead of memory; NULL means memory.
    pub folder: *const c_char,
    /// A `hone_storage`.
    pub storage: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_gradients_options {}

/// m gradients of d weights, one per sample: what a Fisher is made of. For the process they are
/// made in.
pub struct hone_gradients(Process, Mutex<State>);

pub(crate) struct State {
    /// Shared with the Fishers made of it, which keep it from changing.
    store: Arc<GradientStore>,
    filled: usize,
}

/// Makes room for `count` gradients of `dimension` weights: `count`·`dimension`·4 bytes, or 2.
/// `options` may be NULL.
///
/// Errors: INVALID_ARGUMENT for a count or dimension of 0, MEMORY or IO when there is no room.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_gradients_new(
    count: usize,
    dimension: usize,
    options: *const hone_gradients_options,
    out: Option<&mut MaybeUninit<*mut hone_gradients>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let out = given(out, "out")?;
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        options::check_reserved(o.reserved)?;
        // SAFETY: the header asks for a string or NULL.
        let folder = unsafe { optional_path(o.folder, "folder") }?;
        if count == 0 || dimension == 0 {
            let message = format!("{count} gradients of {dimension} weights have no Fisher");
            return Err(hone_error::argument(message));
        }
        let store = GradientStore::new(count, dimension, storage(o.storage)?, folder.as_deref())?;
        give(
            out,
            hone_gradients(
                Process::here(),
                Mutex::new(State { store: Arc::new(store), filled: 0 }),
            ),
        );
        Ok(())
    })
}

pub(crate) fn storage(number: u32) -> Result<Storage, hone_error> {
    choose(number, "hone_storage", &[Storage::F32, Storage::F16, Storage::Bf16])
}

/// Copies the next gradient: `len` numbers, the dimension.
///
/// Errors: CONFLICT when all gradients are there or a Fisher has been made of them, NUMERICS for
/// numbers that are not finite, UNAVAILABLE in a forked child of the process they were made in;
/// nothing has changed then.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_gradients_push(
    gradients: Option<&hone_gradients>,
    gradient: *const f32,
    len: usize,
) -> Option<Box<hone_error>> {
    guard(|| {
        let gradients = given(gradients, "gradients")?;
        // SAFETY: the header asks for `len` numbers.
        let gradient = unsafe { slice(gradient, len, "gradient") }?;
        let mut state = gradients.lock()?;
        check_len(len, state.store.dimension(), "gradient")?;
        let next = state.filled;
        let conflict = |message: String| hone_error::new(hone_code::Conflict, message);
        if next == state.store.count() {
            return Err(conflict(format!("all {next} gradients are there")));
        }
        let store = Arc::get_mut(&mut state.store);
        let store = store.ok_or_else(|| conflict("a Fisher uses these gradients".into()))?;
        store.set_row(next, gradient)?;
        state.filled = next + 1;
        Ok(())
    })
}

/// The number of gradients that have been pushed; 0 for NULL, and in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn hone_gradients_count(gradients: Option<&hone_gradients>) -> usize {
    gradients.and_then(|g| g.lock().ok()).map_or(0, |state| state.filled)
}

/// Frees gradients. NULL is fine; a Fisher made of them keeps them.
#[unsafe(no_mangle)]
pub extern "C" fn hone_gradients_free(gradients: Option<Box<hone_gradients>>) {
    drop(gradients);
}

impl hone_gradients {
    fn lock(&self) -> Result<MutexGuard<'_, State>, hone_error> {
        self.0.check("gradients")?;
        // A row that is not counted yet may be half written, and nothing else.
        Ok(self.1.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The gradients, once all of them are there.
    pub(crate) fn complete(&self) -> Result<Arc<GradientStore>, hone_error> {
        let state = self.lock()?;
        if state.filled < state.store.count() {
            let message =
                format!("{} of {} gradients are there", state.filled, state.store.count());
            return Err(hone_error::new(hone_code::Conflict, message));
        }
        Ok(state.store.clone())
    }
}
