//! M-FAC as an optimizer on the host's own gradients, and SGD and Adam beside it.

use std::ffi::c_char;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use hone_core::atomic_file::AtomicFile;
use hone_core::mfac::optimizer::{Decay, Method, Schedule, Settings};
use hone_core::mfac::{Optimizer, Sliding, Storage};
use hone_core::train::Metric;

use crate::arguments::{
    check_apart, check_len, give, given, optional_path, or, path, slice, slice_mut, threads_or_all,
};
use crate::error::{guard, guard_or, hone_code, hone_error};
use crate::gradients::storage;
use crate::options::{self, Extensible};
use crate::process::Process;
use crate::prune::choose;

/// The direction an optimizer takes. η is the learning rate, β the momentum, g the gradient.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_optimizer_method {
    /// v ← βv + (1 − β)·F⁻¹g, w ← w − ηv, F⁻¹ of a sliding window of the latest gradients.
    Mfac = 0,
    /// v ← βv + g, w ← w − ηv.
    Sgd = 1,
    /// Adam with bias correction.
    Adam = 2,
}

/// How the weight decay enters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_decay {
    /// Coupled for a `hone_optimizer`, decoupled for a fine-tuning job.
    Auto = 0,
    /// Added to the gradient: g + decay·w.
    Coupled = 1,
    /// Taken off the weights beside the step: w − η·decay·w.
    Decoupled = 2,
}

/// The learning rate over the steps after the warm-up, as a factor of its peak.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_schedule {
    /// Constant for a `hone_optimizer`, cosine for a fine-tuning job.
    Auto = 0,
    /// Always 1.
    Constant = 1,
    /// From 1 down to 0 along a line over `schedule_steps`, or over the job.
    Linear = 2,
    /// From 1 down to 0 along half a cosine over `schedule_steps`, or over the job.
    Cosine = 3,
    /// Multiplied by `schedule_factor` after each `schedule_steps`.
    Stairs = 4,
}

/// What the damping λ of M-FAC is a multiple of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_metric {
    /// The identity for a `hone_optimizer` and with an absolute damping; the diagonal for a
    /// fine-tuning job otherwise.
    Auto = 0,
    /// The identity, as published.
    Identity = 1,
    /// P = √v̂, the root of the second moment of each weight's gradient, as in Adam: what the
    /// window has not seen moves as with Adam.
    Diagonal = 2,
}

/// How to optimize. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_optimizer_options {
    /// sizeof(hone_optimizer_options)
    pub size: usize,
    /// η at its peak; 0 means 0.001. See `hone_optimizer_set_learning_rate` for a rate of 0.
    pub learning_rate: f64,
    /// β, or β₁ of Adam: at least 0 and below 1; 0 means 0, and 0.9 for Adam.
    pub momentum: f64,
    /// β₂ of Adam and of the metric HONE_METRIC_DIAGONAL; 0 means 0.999.
    pub beta2: f64,
    /// ε of Adam; 0 means 1e-8.
    pub epsilon: f64,
    /// λ of M-FAC, in units of a squared gradient; 0 means 1e-5, as published.
    pub damping: f64,
    /// λ as a fraction of the window's mean Fisher diagonal, which it then follows; the direction
    /// is λF⁻¹g, so that η means what it means for SGD. 0 means the fixed λ above.
    pub damping_relative: f64,
    /// The weight decay; 0 means none.
    pub weight_decay: f64,
    /// See `hone_schedule`.
    pub schedule_factor: f64,
    /// See `hone_schedule`.
    pub schedule_steps: u64,
    /// Steps over which η first rises to its peak.
    pub warmup_steps: u64,
    /// As many bytes as there are weights, 0 where a weight stays 0; copied. NULL means no mask.
    pub mask: *const u8,
    /// A folder for a nameless file that holds the window instead of memory; NULL means memory.
    pub folder: *const c_char,
    /// A `hone_optimizer_method`.
    pub method: u32,
    /// Gradients in the window of M-FAC (m); 0 means 1024. They take m·dimension·4 bytes.
    pub window: u32,
    /// A `hone_storage`: the format of the window.
    pub storage: u32,
    /// A `hone_decay`.
    pub decay: u32,
    /// A `hone_schedule`.
    pub schedule: u32,
    /// Threads; 0 means one per core. Results do not depend on it.
    pub threads: u32,
    /// A `hone_metric`: what λ of M-FAC is a multiple of.
    pub metric: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_optimizer_options {}

/// An optimizer with its state, for the process it is made in. Steps of several threads take
/// turns.
pub struct hone_optimizer {
    process: Process,
    plan: Plan,
    dimension: usize,
    optimizer: Mutex<Optimizer>,
}

/// Everything needed to make the optimizer anew.
struct Plan {
    settings: Settings,
    method: PlannedMethod,
    mask: Vec<bool>,
    threads: usize,
}

enum PlannedMethod {
    Mfac {
        window: usize,
        damping: f64,
        relative: Option<f64>,
        diagonal: Option<f64>,
        storage: Storage,
        folder: Option<PathBuf>,
        momentum: f64,
    },
    Sgd {
        momentum: f64,
    },
    Adam {
        first: f64,
        second: f64,
        epsilon: f64,
    },
}

impl Plan {
    fn start(&self, dimension: usize) -> Result<Optimizer, hone_error> {
        let method = match &self.method {
            PlannedMethod::Mfac {
                window,
                damping,
                relative,
                diagonal,
                storage,
                folder,
                momentum,
            } => {
                let folder = folder.as_deref();
                Method::Mfac {
                    window: Sliding::new(*window, dimension, *damping, *storage, folder)?,
                    momentum: *momentum,
                    relative_damping: *relative,
                    diagonal: *diagonal,
                }
            }
            &PlannedMethod::Sgd { momentum } => Method::Sgd { momentum },
            &PlannedMethod::Adam { first, second, epsilon } => {
                Method::Adam { first, second, epsilon }
            }
        };
        Ok(Optimizer::new(method, self.settings, dimension, self.mask.clone())?)
    }
}

/// Makes an optimizer of `dimension` weights. `options` may be NULL.
///
/// Errors: INVALID_ARGUMENT for a setting out of its range, MEMORY or IO when there is no room.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_optimizer_new(
    dimension: usize,
    options: *const hone_optimizer_options,
    out: Option<&mut MaybeUninit<*mut hone_optimizer>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let out = given(out, "out")?;
        if dimension == 0 {
            return Err(hone_error::argument("an optimizer of 0 weights has nothing to do"));
        }
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        // SAFETY: the header says what the pointers in the struct are.
        let plan = unsafe { plan(&o, dimension) }?;
        let optimizer = Mutex::new(plan.start(dimension)?);
        give(out, hone_optimizer { process: Process::here(), plan, dimension, optimizer });
        Ok(())
    })
}

/// # Safety
///
/// The pointers in the struct must be what the header says.
unsafe fn plan(o: &hone_optimizer_options, dimension: usize) -> Result<Plan, hone_error> {
    // SAFETY: the header asks for a string or NULL.
    let folder = unsafe { optional_path(o.folder, "folder") }?;
    let steps = o.schedule_steps;
    let falling = [Schedule::Linear { steps }, Schedule::Cosine { steps }];
    let schedule = schedule(o.schedule, Schedule::Constant, falling, steps, o.schedule_factor)?;
    if schedule != Schedule::Constant && steps == 0 {
        return Err(hone_error::argument("the schedule needs `schedule_steps`"));
    }
    options::check_reserved(o.reserved)?;
    let metric = metric(o.metric, Metric::Identity)?;
    if o.metric != 0 && o.method != 0 {
        return Err(hone_error::argument("`metric` is of M-FAC only"));
    }
    let method = match o.method {
        0 => PlannedMethod::Mfac {
            window: or(o.window, 1024) as usize,
            damping: or(o.damping, 1e-5),
            relative: Some(o.damping_relative).filter(|&r| r != 0.0),
            diagonal: (metric == Metric::Diagonal).then(|| or(o.beta2, 0.999)),
            storage: storage(o.storage)?,
            folder,
            momentum: o.momentum,
        },
        1 => PlannedMethod::Sgd { momentum: o.momentum },
        2 => PlannedMethod::Adam {
            first: or(o.momentum, 0.9),
            second: or(o.beta2, 0.999),
            epsilon: or(o.epsilon, 1e-8),
        },
        other => {
            return Err(hone_error::argument(format!("{other} is no hone_optimizer_method")));
        }
    };
    let mask = if o.mask.is_null() {
        Vec::new()
    } else {
        // SAFETY: the header asks for as many bytes as there are weights.
        unsafe { slice(o.mask, dimension, "mask") }?.iter().map(|&kept| kept != 0).collect()
    };
    let settings = Settings {
        learning_rate: or(o.learning_rate, 1e-3),
        schedule,
        warmup_steps: o.warmup_steps,
        weight_decay: o.weight_decay,
        decay: decay(o.decay, Decay::Coupled)?,
    };
    Ok(Plan { settings, method, mask, threads: threads_or_all(o.threads) })
}

/// The meaning of a `hone_schedule`: `usual` for none, the falling ones as given.
pub(crate) fn schedule(
    number: u32,
    usual: Schedule,
    falling: [Schedule; 2],
    every: u64,
    factor: f64,
) -> Result<Schedule, hone_error> {
    let [linear, cosine] = falling;
    let stairs = Schedule::Stairs { every, factor };
    let all = [usual, Schedule::Constant, linear, cosine, stairs];
    let schedule = choose(number, "hone_schedule", &all)?;
    if schedule == stairs && every == 0 {
        return Err(hone_error::argument("the stairs need `schedule_steps`"));
    }
    if schedule == stairs && !(factor > 0.0 && factor.is_finite()) {
        return Err(hone_error::argument("the stairs need a positive `schedule_factor`"));
    }
    Ok(schedule)
}

/// The meaning of a `hone_metric`.
pub(crate) fn metric(number: u32, usual: Metric) -> Result<Metric, hone_error> {
    choose(number, "hone_metric", &[usual, Metric::Identity, Metric::Diagonal])
}

/// The meaning of a `hone_decay`.
pub(crate) fn decay(number: u32, usual: Decay) -> Result<Decay, hone_error> {
    choose(number, "hone_decay", &[usual, Decay::Coupled, Decay::Decoupled])
}

/// One step of `weights` (`len` numbers, the dimension) along `gradient` (as many), in place. Once
/// the window is full it allocates nothing, but for the steps at which `damping_relative` is
/// measured anew. Further threads wait from step to step; they are worth it from some 10,000
/// weights on.
///
/// Errors: NUMERICS for a gradient that is not finite; UNAVAILABLE, as from all functions of an
/// optimizer, in a forked child of the process it was made in. Nothing has changed then.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_optimizer_step(
    optimizer: Option<&hone_optimizer>,
    weights: *mut f32,
    gradient: *const f32,
    len: usize,
) -> Option<Box<hone_error>> {
    guard(|| {
        let optimizer = given(optimizer, "optimizer")?;
        check_len(len, optimizer.dimension, "weights")?;
        check_apart(weights, len, gradient, len, "`weights` and `gradient`")?;
        // SAFETY: the header asks for `len` numbers.
        let weights = unsafe { slice_mut(weights, len, "weights") }?;
        // SAFETY: the header asks for `len` numbers; they do not overlap the weights.
        let gradient = unsafe { slice(gradient, len, "gradient") }?;
        let threads = optimizer.plan.threads;
        Ok(optimizer.lock()?.step(weights, gradient, threads)?)
    })
}

/// The number of steps taken; 0 for NULL, and in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn hone_optimizer_steps(optimizer: Option<&hone_optimizer>) -> u64 {
    guard_or(0, || optimizer.and_then(|o| o.lock().ok()).map_or(0, |o| o.steps()))
}

/// Replaces the peak of the learning rate, from which the schedule goes on; for hosts with a
/// schedule of their own. It is not part of the saved state.
#[unsafe(no_mangle)]
#[must_use]
pub extern "C" fn hone_optimizer_set_learning_rate(
    optimizer: Option<&hone_optimizer>,
    learning_rate: f64,
) -> Option<Box<hone_error>> {
    guard(|| Ok(given(optimizer, "optimizer")?.lock()?.set_learning_rate(learning_rate)?))
}

/// Writes the state (not the options) to `path`: the file appears whole or not at all.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_optimizer_save(
    optimizer: Option<&hone_optimizer>,
    path: *const c_char,
) -> Option<Box<hone_error>> {
    guard(|| {
        let optimizer = given(optimizer, "optimizer")?;
        // SAFETY: the header asks for a string or NULL.
        let path = unsafe { self::path(path, "path") }?;
        let mut file = Writer(AtomicFile::create(&path)?);
        let failed =
            |e: io::Error| hone_error::new(hone_code::Io, format!("{}: {e}", path.display()));
        optimizer.lock()?.save(&mut file).map_err(failed)?;
        Ok(file.0.commit()?)
    })
}

/// Takes over the state at `path`, saved by an optimizer of the same method, dimension and window;
/// the next step has the bits it would have had there.
///
/// Errors: IO when the file cannot be read, is cut short or of another optimizer; nothing has
/// changed then.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_optimizer_restore(
    optimizer: Option<&hone_optimizer>,
    path: *const c_char,
) -> Option<Box<hone_error>> {
    guard(|| {
        let optimizer = given(optimizer, "optimizer")?;
        // SAFETY: the header asks for a string or NULL.
        let path = unsafe { self::path(path, "path") }?;
        let failed = |e: io::Error| {
            hone_error::new(hone_code::Io, format!("{}: cannot be read: {e}", path.display()))
        };
        let mut file = BufReader::new(File::open(&path).map_err(failed)?);
        let mut fresh = optimizer.plan.start(optimizer.dimension)?;
        let named = |e: hone_core::Error| hone_error::from(e.context(path.display().to_string()));
        fresh.restore(&mut file).map_err(named)?;
        if file.read(&mut [0]).map_err(failed)? != 0 {
            let message = format!("{}: goes on after the state ends", path.display());
            return Err(hone_error::new(hone_code::Io, message));
        }
        let mut held = optimizer.lock()?;
        *held = fresh;
        Ok(())
    })
}

/// Frees an optimizer. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn hone_optimizer_free(optimizer: Option<Box<hone_optimizer>>) {
    drop(optimizer);
}

impl hone_optimizer {
    fn lock(&self) -> Result<MutexGuard<'_, Optimizer>, hone_error> {
        self.process.check("optimizer")?;
        self.optimizer.lock().map_err(|_| {
            let message = "a bug in hone broke off a step, so the state is not whole";
            hone_error::new(hone_code::Internal, message)
        })
    }
}

/// Bytes to a file that appears whole or not at all.
struct Writer(AtomicFile);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
