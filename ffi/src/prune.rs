//! Pruning a model by second-order information, as a job.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use hone_core::engine::Outcome;
use hone_core::gradient::seed::Fisher;
use hone_core::mfac::optimizer::{Decay, Schedule, Settings};
use hone_core::onnx::Model;
use hone_core::prune::report::Files;
use hone_core::prune::{
    Damping, Gradual, Method, Options, Pattern, Ramp, Run, Scope, Selection, Update,
};
use hone_core::train::{Distillation, Kind, Length, Loss, Trained, TuneOptions};

use crate::arguments::{given, optional_path, optional_text, or, texts, threads_or_all};
use crate::engine::Home;
use crate::error::{guard, hone_error};
use crate::job::{hone_job, hone_observer, submit};
use crate::model::hone_model;
use crate::options::{self, Extensible};
use crate::samples::hone_samples;

/// How weights are chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_method {
    /// By second-order saliency (M-FAC); the others move to make up for them.
    Mfac = 0,
    /// By absolute value, as a baseline.
    Magnitude = 1,
}

/// How far one threshold reaches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_scope {
    /// All layers together: layers that matter less lose more.
    Global = 0,
    /// The same sparsity in each layer.
    Layer = 1,
}

/// How the surviving weights make up for the removed ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_update {
    /// The exact optimum for the removed set.
    Joint = 0,
    /// The sum of single-weight updates, as published.
    Independent = 1,
}

/// What is differentiated for the Fisher.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_seed {
    /// Random cotangents on the outputs, centred over the classes; needs no labels.
    Outputs = 0,
    /// Random cotangents as they come.
    Gaussian = 1,
    /// Cross-entropy with the labels of the samples.
    Labels = 2,
    /// Cross-entropy with labels drawn from the model.
    Sampled = 3,
    /// Half the mean squared distance to the targets of the samples.
    Mse = 4,
    /// The output itself is the loss.
    Scalar = 5,
}

/// A choice that may be left to hone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_choice {
    /// As hone sees fit.
    Auto = 0,
    /// Yes.
    On = 1,
    /// No.
    Off = 2,
}

/// Whether the model is trained while it is pruned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_prune_schedule {
    /// Not at all.
    OneShot = 0,
    /// In steps, with fine-tuning on the calibration samples after each: by their labels, by the
    /// outputs of the dense model, or by both.
    Gradual = 1,
}

/// How sparsity rises from step to step of a gradual run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_ramp {
    /// Geometric in the density.
    Geometric = 0,
    /// First fast, then slow.
    Cubic = 1,
}

/// As `block`: one Fisher block for each whole layer.
pub const HONE_BLOCK_LAYER: u32 = u32::MAX;

/// How to prune. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_prune_options {
    /// sizeof(hone_prune_options)
    pub size: usize,
    /// The fraction of prunable weights to remove, above 0 and below 1; 0 only with an N:M pattern,
    /// which then fixes it.
    pub sparsity: f64,
    /// λ as a fraction of the layer's mean Fisher diagonal; 0 means 0.01.
    pub damping: f64,
    /// λ itself, in units of a squared gradient; 0 means the fraction above.
    pub damping_absolute: f64,
    /// Which weights go together: "N:M" such as "2:4" (at most N of M consecutive inputs stay);
    /// NULL means "unstructured".
    pub pattern: *const c_char,
    /// Where the pruned model is written as soon as it is made; NULL means nowhere: see
    /// `hone_job_model`.
    pub output: *const c_char,
    /// `skip_count` names of tensors to leave alone; * stands for any characters.
    pub skip: *const *const c_char,
    /// How many.
    pub skip_count: usize,
    /// `outputs_count` names of outputs to differentiate; none means all float ones.
    pub outputs: *const *const c_char,
    /// How many.
    pub outputs_count: usize,
    /// Samples to compare the dense and the pruned model on; NULL for none.
    pub evaluation: *const hone_samples,
    /// Seeds the choice of samples and the random cotangents.
    pub seed: u64,
    /// What gradients and Fisher blocks may take in memory, in bytes; 0 means the engine's limit.
    pub memory_limit: u64,
    /// A `hone_method`.
    pub method: u32,
    /// A `hone_scope`.
    pub scope: u32,
    /// A `hone_update`.
    pub update: u32,
    /// A `hone_seed`: what is differentiated.
    pub fisher: u32,
    /// A `hone_choice`: whether layers get their old output statistics back after each stage.
    pub match_statistics: u32,
    /// How often the survivors of a block are scored anew; 0 means after each removed weight.
    pub selection_stages: u32,
    /// Weights per Fisher block; 0 means 128. HONE_BLOCK_LAYER means whole layers.
    pub block: u32,
    /// How often gradients are taken anew on the way to the sparsity, or in each step of a gradual
    /// run; 0 means 8, or 2 in each step.
    pub stages: u32,
    /// Gradients of each stage (m); 0 means 512.
    pub gradients: u32,
    /// Samples averaged into a gradient; 0 means 1.
    pub fisher_batch: u32,
    /// Threads; 0 means the engine's number. The result does not depend on it.
    pub threads: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Who hears of the progress.
    pub observer: hone_observer,
    /// Gradual: how often each sample is seen after each step but the last; 0 means 3.
    pub tune_epochs: f64,
    /// Gradual: training steps after each pruning step but the last; 0 means what the epochs come
    /// to.
    pub tune_steps: u64,
    /// Gradual: η at its peak, from which it falls to 0 along a cosine after each step; 0 means
    /// 0.004 for M-FAC and 0.001 for Adam and SGD.
    pub learning_rate: f64,
    /// Gradual: the share of the dense model's outputs in the loss, at most 1; 0 means a half, and
    /// all where the samples have no labels; a negative number none.
    pub distill_weight: f64,
    /// Gradual: keeps the state of the run here, also when it is cancelled, and goes on from it if
    /// it is there, to the same bits; removed at the end. NULL for none.
    pub checkpoint: *const c_char,
    /// Gradual: training steps between two checkpoints; 0 means 200.
    pub checkpoint_every: u64,
    /// A `hone_prune_schedule`. Fields that say "Gradual" must be 0 unless it is that.
    pub schedule: u32,
    /// Gradual: pruning steps, up to 1000; 0 means 4.
    pub steps: u32,
    /// Gradual: a `hone_ramp`.
    pub ramp: u32,
    /// Gradual: samples per training step; 0 means 64.
    pub batch: u32,
    /// Gradual: a `hone_optimizer_method`, with the settings that a fine-tuning job has by default.
    pub optimizer: u32,
    /// Gradual: a `hone_loss`.
    pub loss: u32,
    /// Gradual: how often each sample is seen after the last step; 0 means 8 times as often, or
    /// as many steps, as after another.
    pub final_epochs: f64,
    /// Gradual: training steps after the last pruning step; 0 means what the epochs come to.
    pub final_steps: u64,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_prune_options {}

/// Submits the pruning of `model` with gradients taken on `calibration`; the job makes a model and
/// a report (schema "hone.report/1"). The model and the samples may be freed at once.
///
/// Errors are of options only; what happens later is the job's: see `hone_job_result`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_prune(
    model: Option<&hone_model>,
    calibration: Option<&hone_samples>,
    options: *const hone_prune_options,
    out: Option<&mut MaybeUninit<*mut hone_job>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (model, out) = (given(model, "model")?, given(out, "out")?);
        let calibration = given(calibration, "calibration")?.0.clone();
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        // SAFETY: the header asks for live samples or NULL.
        let evaluation = unsafe { o.evaluation.as_ref() }.map(|e| e.0.clone());
        // SAFETY: the header asks for a string or NULL.
        let output = unsafe { optional_path(o.output, "output") }?;
        // SAFETY: the header says what the pointers in the struct are.
        let options = unsafe { plan(&o, &model.home) }?;
        // SAFETY: as above.
        let gradual = unsafe { gradual(&o, &options) }?;
        let graph = model.graph()?;
        let (source, files) = (
            model.model.clone(),
            Files {
                model: model.model.name().into(),
                calibration: Some("calibration samples".into()),
                evaluation: evaluation.as_ref().map(|_| "evaluation samples".into()),
                output: output
                    .as_ref()
                    .map_or_else(|| "memory".into(), |p| p.display().to_string()),
            },
        );
        submit(&model.home, o.observer, out, move |progress, cancel| {
            let run = Run {
                calibration: &calibration,
                evaluation: evaluation.as_deref(),
                options: &options,
                gradual: gradual.as_ref(),
                files,
            };
            let (source, graph) = (Model::clone(&source), graph.as_ref().clone());
            let (pruned, report) = run.run(source, graph, progress, cancel)?;
            if let Some(path) = output {
                pruned.save(path)?;
            }
            if let Some(gradual) = &gradual {
                gradual.end();
            }
            Ok(Outcome { report: report.to_json(), model: Some(pruned.into()) })
        })
    })
}

/// Options of the library from those of C.
///
/// # Safety
///
/// The pointers in the struct must be what the header says.
unsafe fn plan(o: &hone_prune_options, home: &Home) -> Result<Options, hone_error> {
    options::check_reserved(o.reserved)?;
    // SAFETY: the header asks for a string or NULL.
    let pattern = unsafe { optional_text(o.pattern, "pattern") }?;
    let pattern: Pattern = pattern.unwrap_or("unstructured").parse()?;
    let sparsity = match pattern {
        Pattern::NOfM { .. } => or(o.sparsity, pattern.sparsity_limit()),
        Pattern::Unstructured => o.sparsity,
    };
    if !(sparsity > 0.0 && sparsity < 1.0) {
        return Err(hone_error::argument(format!(
            "`sparsity` is {sparsity}; say which fraction of the weights to remove, such as 0.9"
        )));
    }
    pattern.check_sparsity(sparsity)?;
    let method = choose(o.method, "hone_method", &[Method::MFac, Method::Magnitude])?;
    let update = choose(o.update, "hone_update", &[Update::Joint, Update::Independent])?;
    let seeds = [
        Fisher::Outputs,
        Fisher::Gaussian,
        Fisher::Labels,
        Fisher::Sampled,
        Fisher::Mse,
        Fisher::Scalar,
    ];
    // The baselines are as published.
    let auto = method == Method::MFac && update == Update::Joint;
    Ok(Options {
        sparsity,
        method,
        pattern,
        scope: choose(o.scope, "hone_scope", &[Scope::Global, Scope::Layer])?,
        update,
        selection: match o.selection_stages {
            0 => Selection::Greedy,
            n => Selection::Staged { stages: n as usize },
        },
        block: match o.block {
            0 => 128,
            HONE_BLOCK_LAYER => usize::MAX,
            n => n as usize,
        },
        damping: damping(o.damping, o.damping_absolute)?,
        stages: or(o.stages, if o.schedule == 0 { 8 } else { 2 }) as usize,
        gradients: or(o.gradients, 512) as usize,
        fisher_batch: or(o.fisher_batch, 1) as usize,
        fisher: choose(o.fisher, "hone_seed", &seeds)?,
        match_statistics: choose(o.match_statistics, "hone_choice", &[auto, true, false])?,
        // SAFETY: the header asks for so many strings.
        outputs: unsafe { texts(o.outputs, o.outputs_count, "outputs") }?,
        // SAFETY: the header asks for so many strings.
        skip: unsafe { texts(o.skip, o.skip_count, "skip") }?,
        seed: o.seed,
        threads: if o.threads == 0 { home.threads } else { threads_or_all(o.threads) },
        device: home.device,
        memory_limit_bytes: match o.memory_limit {
            0 => home.memory_limit,
            n => usize::try_from(n).unwrap_or(usize::MAX),
        },
    })
}

/// The steps of a gradual run.
///
/// # Safety
///
/// The pointers in the struct must be what the header says.
unsafe fn gradual(
    o: &hone_prune_options,
    options: &Options,
) -> Result<Option<Gradual>, hone_error> {
    if !choose(o.schedule, "hone_prune_schedule", &[false, true])? {
        let set = [
            ("tune_epochs", o.tune_epochs != 0.0),
            ("tune_steps", o.tune_steps != 0),
            ("final_epochs", o.final_epochs != 0.0),
            ("final_steps", o.final_steps != 0),
            ("learning_rate", o.learning_rate != 0.0),
            ("distill_weight", o.distill_weight != 0.0),
            ("checkpoint", !o.checkpoint.is_null()),
            ("checkpoint_every", o.checkpoint_every != 0),
            ("steps", o.steps != 0),
            ("ramp", o.ramp != 0),
            ("batch", o.batch != 0),
            ("optimizer", o.optimizer != 0),
            ("loss", o.loss != 0),
        ];
        return match set.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(hone_error::argument(format!(
                "`{name}` belongs to a gradual run: set `schedule` to HONE_PRUNE_SCHEDULE_GRADUAL"
            ))),
            None => Ok(None),
        };
    }
    if options.outputs.len() > 1 {
        return Err(hone_error::argument("a gradual run trains one output; `outputs` names more"));
    }
    if o.steps > 1000 {
        return Err(hone_error::argument(format!("`steps` is {}, more than 1000", o.steps)));
    }
    let length = |name: &str, steps: u64, epochs: f64| {
        if !(epochs >= 0.0 && epochs.is_finite()) {
            return Err(hone_error::argument(format!("`{name}` is {epochs}, no positive number")));
        }
        let (steps, epochs) = (Some(steps).filter(|s| *s > 0), Some(epochs).filter(|e| *e > 0.0));
        Ok(Length::given(steps, epochs))
    };
    let others = length("tune_epochs", o.tune_steps, o.tune_epochs)?;
    let others = others.unwrap_or(Length::Epochs(Gradual::EPOCHS));
    let last = length("final_epochs", o.final_steps, o.final_epochs)?;
    let kinds = [Kind::MFAC, Kind::Sgd, Kind::Adam];
    let kind = choose(o.optimizer, "hone_optimizer_method", &kinds)?;
    let losses = [None, Some(Loss::CrossEntropy), Some(Loss::SquaredError)];
    let share = Some(o.distill_weight.max(0.0)).filter(|_| o.distill_weight != 0.0);
    let tuning = TuneOptions {
        kind,
        momentum: 0.9,
        settings: Settings {
            learning_rate: or(o.learning_rate, kind.usual_learning_rate()),
            schedule: Schedule::Cosine { steps: 0 },
            warmup_steps: 0,
            weight_decay: 0.0,
            decay: Decay::Decoupled,
        },
        batch: or(o.batch, 64) as usize,
        steps: 0,
        clip_norm: None,
        average: None,
        loss: choose(o.loss, "hone_loss", &losses)?,
        distillation: share.map(|weight| Distillation { weight, ..Gradual::HALF }),
        output: options.outputs.first().cloned(),
        trained: Trained::All,
        keep_zeros: true,
        seed: options.seed,
        threads: options.threads,
    };
    tuning.check()?;
    Ok(Some(Gradual {
        steps: or(o.steps, 4) as usize,
        ramp: choose(o.ramp, "hone_ramp", &[Ramp::Geometric, Ramp::Cubic])?,
        length: others,
        final_length: last.unwrap_or_else(|| others.times(Gradual::LAST)),
        tuning,
        // SAFETY: the header asks for a string or NULL.
        checkpoint: unsafe { optional_path(o.checkpoint, "checkpoint") }?,
        checkpoint_every: or(o.checkpoint_every, 200),
    }))
}

/// λ from a fraction (0 means 0.01) and an absolute value (0 means the fraction).
pub(crate) fn damping(relative: f64, absolute: f64) -> Result<Damping, hone_error> {
    let (damping, value) = match absolute {
        0.0 => {
            let fraction = or(relative, 0.01);
            (Damping::Relative(fraction), fraction)
        }
        lambda => (Damping::Absolute(lambda), lambda),
    };
    if !(value > 0.0 && value.is_finite()) {
        return Err(hone_error::argument(format!("the damping {value} is not a positive number")));
    }
    Ok(damping)
}

/// The meaning of an enum that came in as a number.
pub(crate) fn choose<T: Copy>(number: u32, name: &str, values: &[T]) -> Result<T, hone_error> {
    let value = values.get(number as usize).copied();
    value.ok_or_else(|| hone_error::argument(format!("{number} is no {name}")))
}
