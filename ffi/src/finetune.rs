//! Fine-tuning a model, such as a pruned one, as a job.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use hone_core::calibration::Samples;
use hone_core::engine::Outcome;
use hone_core::mfac::optimizer::{Decay, Schedule, Settings};
use hone_core::onnx::Model;
use hone_core::train::report::Files;
use hone_core::train::{
    Distillation, Kind, Length, Loss, Metric, Plan, Run, Trained, TuneOptions, WindowDamping,
};

use crate::arguments::{given, optional_path, optional_text, or, texts, threads_or_all};
use crate::engine::Home;
use crate::error::{guard, hone_error};
use crate::gradients::storage;
use crate::job::{hone_job, hone_observer, submit};
use crate::model::hone_model;
use crate::optimizer::{decay, metric, schedule};
use crate::options::{self, Extensible};
use crate::prune::choose;
use crate::samples::hone_samples;

/// What is minimised.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_loss {
    /// Cross-entropy where the samples have class labels, the squared error where they have
    /// targets.
    Auto = 0,
    /// Cross-entropy with class labels.
    CrossEntropy = 1,
    /// Half the mean squared distance to targets.
    Mse = 2,
}

/// Which tensors are trained.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_trained {
    /// Weights, biases, scales of norms and embeddings.
    All = 0,
    /// The prunable weights.
    Weights = 1,
}

/// How to fine-tune. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_finetune_options {
    /// sizeof(hone_finetune_options)
    pub size: usize,
    /// How often each sample is seen; 0 means 5.
    pub epochs: f64,
    /// The number of steps; 0 means what the epochs come to.
    pub steps: u64,
    /// η at its peak; 0 means 0.004 for M-FAC (1 in the metric of the identity) and 0.001 for Adam
    /// and SGD. M-FAC with `damping_absolute`, whose steps are on the scale of the gradients, needs
    /// one.
    pub learning_rate: f64,
    /// β, or β₁ of Adam, below 1; 0 means 0.9, a negative number none.
    pub momentum: f64,
    /// λ of M-FAC as a multiple of the window's mean Fisher diagonal; the direction is λF⁻¹g, so
    /// that η means what it means for SGD, or for Adam: see `metric`. 0 means 100 in the metric of
    /// the diagonal, 1 in that of the identity.
    pub damping: f64,
    /// λ of M-FAC itself, in units of a squared gradient, and the direction F⁻¹g; 0 means the
    /// multiple above.
    pub damping_absolute: f64,
    /// The weight decay; 0 means none.
    pub weight_decay: f64,
    /// See `hone_schedule`.
    pub schedule_factor: f64,
    /// Steps between two stairs; the other schedules fall over the whole run.
    pub schedule_steps: u64,
    /// Steps over which η first rises to its peak.
    pub warmup_steps: u64,
    /// Gradients longer than this are scaled down to it; 0 means none are.
    pub clip: f64,
    /// The result is an average of the weights that decays by this factor per step, such as 0.999;
    /// 0 means the latest weights.
    pub average: f64,
    /// A model to learn from as well, such as the dense one; NULL for none. Of the same inputs.
    pub distill: *const hone_model,
    /// Its share in the loss, at most 1; 0 means 0.5. With 1 the samples need no labels.
    pub distill_weight: f64,
    /// What the logits of both are divided by before they are compared; 0 means 2.
    pub temperature: f64,
    /// The output to train; NULL means the only float one.
    pub output_name: *const c_char,
    /// `train_count` names of tensors to train; * stands for any characters. None means those of
    /// `trained`.
    pub train: *const *const c_char,
    /// How many.
    pub train_count: usize,
    /// Samples to judge the model on while it learns and at the end; NULL for none.
    pub evaluation: *const hone_samples,
    /// Steps between two evaluations, each a line of the log and an entry of the report; 0 means a
    /// tenth of the run.
    pub evaluate_every: u64,
    /// Keeps the state of the run here, also when it is cancelled, and goes on from it if it is
    /// there, to the same bits; removed at the end. NULL for none.
    pub checkpoint: *const c_char,
    /// Steps between two checkpoints; 0 means 200.
    pub checkpoint_every: u64,
    /// Where the model is written as soon as it is made; NULL means nowhere: see `hone_job_model`.
    pub output: *const c_char,
    /// Seeds the order of the samples.
    pub seed: u64,
    /// Samples per step; 0 means 64.
    pub batch: u32,
    /// A `hone_optimizer_method`.
    pub optimizer: u32,
    /// Gradients in the window of M-FAC (m); 0 means 128.
    pub window: u32,
    /// A `hone_storage`: the format of the window.
    pub window_storage: u32,
    /// A `hone_decay`.
    pub decay: u32,
    /// A `hone_schedule`.
    pub schedule: u32,
    /// A `hone_loss`.
    pub loss: u32,
    /// A `hone_trained`.
    pub trained: u32,
    /// Not 0 to let zeros of prunable weights move, too.
    pub free_zeros: u32,
    /// Threads; 0 means the engine's number. The result does not depend on it.
    pub threads: u32,
    /// Who hears of the progress.
    pub observer: hone_observer,
    /// A `hone_metric`: what λ of M-FAC is a multiple of.
    pub metric: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_finetune_options {}

/// Submits the training of `model` on `samples`; zeros of prunable weights stay zero and statistics
/// of norms are frozen. The job makes a model, which differs in the trained tensors alone, and a
/// report (schema "hone.finetune/1"). The models and the samples may be freed at once. It runs on
/// the processor, whatever the engine's device. `options` may be NULL.
///
/// Errors are of options only; what happens later is the job's: see `hone_job_result`. A checkpoint
/// of another run is an error of the job, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_finetune(
    model: Option<&hone_model>,
    samples: Option<&hone_samples>,
    options: *const hone_finetune_options,
    out: Option<&mut MaybeUninit<*mut hone_job>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (model, out) = (given(model, "model")?, given(out, "out")?);
        let samples = given(samples, "samples")?.0.clone();
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        // SAFETY: the header asks for live samples or NULL.
        let evaluation = unsafe { o.evaluation.as_ref() }.map(|e| e.0.clone());
        // SAFETY: the header asks for a live model or NULL.
        let teacher = unsafe { o.distill.as_ref() };
        // SAFETY: the header asks for a string or NULL.
        let output = unsafe { optional_path(o.output, "output") }?;
        // SAFETY: the header says what the pointers in the struct are.
        let plan = unsafe { plan(&o, &model.home) }?;
        let (graph, source) = (model.graph()?, model.model.clone());
        let files = Files {
            model: source.name().into(),
            data: "samples".into(),
            teacher: teacher.map(|t| t.model.name().into()),
            evaluation: evaluation.as_ref().map(|_| "evaluation samples".into()),
            output: output.as_ref().map_or_else(|| "memory".into(), |p| p.display().to_string()),
        };
        let teacher = teacher.map(hone_model::graph).transpose()?;
        submit(&model.home, o.observer, out, move |progress, cancel| {
            let run = Run {
                samples: &samples,
                teacher: teacher.map(|t| t.as_ref().clone()),
                evaluation: evaluation.as_deref().map(|e: &Samples| e),
                plan: &plan,
                files,
            };
            let (source, graph) = (Model::clone(&source), graph.as_ref().clone());
            let (tuned, report) = run.run(source, graph, progress, cancel)?;
            if let Some(path) = output {
                tuned.save(path)?;
            }
            plan.end();
            Ok(Outcome { report: report.to_json(), model: Some(tuned.into()) })
        })
    })
}

/// What the options of C ask for.
///
/// # Safety
///
/// The pointers in the struct must be what the header says.
unsafe fn plan(o: &hone_finetune_options, home: &Home) -> Result<Plan, hone_error> {
    options::check_reserved(o.reserved)?;
    let usual = if o.damping_absolute == 0.0 { Metric::Diagonal } else { Metric::Identity };
    let metric = metric(o.metric, usual)?;
    if o.metric != 0 && o.optimizer != 0 {
        return Err(hone_error::argument("`metric` is of M-FAC only"));
    }
    let kind = match o.optimizer {
        0 => Kind::Mfac {
            window: or(o.window, 128) as usize,
            damping: match o.damping_absolute {
                0.0 => WindowDamping::Relative(or(o.damping, metric.usual_damping())),
                _ if o.learning_rate == 0.0 => {
                    let message = "`damping_absolute` takes steps of F⁻¹g, whose scale is that of \
                                   the gradients: set `learning_rate`, too";
                    return Err(hone_error::argument(message));
                }
                lambda => WindowDamping::Absolute(lambda),
            },
            metric,
            storage: storage(o.window_storage)?,
        },
        1 => Kind::Sgd,
        2 => Kind::Adam,
        other => return Err(hone_error::argument(format!("{other} is no hone_optimizer_method"))),
    };
    let epochs = or(o.epochs, 5.0);
    if !(epochs > 0.0 && epochs.is_finite()) {
        return Err(hone_error::argument(format!("`epochs` is {epochs}, no positive number")));
    }
    if o.distill.is_null() && (o.distill_weight != 0.0 || o.temperature != 0.0) {
        let message = "`distill_weight` and `temperature` need a model to learn from, `distill`";
        return Err(hone_error::argument(message));
    }
    let distillation =
        Distillation { weight: or(o.distill_weight, 0.5), temperature: or(o.temperature, 2.0) };
    // SAFETY: the header asks for so many strings.
    let names = unsafe { texts(o.train, o.train_count, "train") }?;
    let trained = choose(o.trained, "hone_trained", &[false, true])?;
    // SAFETY: the header asks for a string or NULL.
    let output = unsafe { optional_text(o.output_name, "output_name") }?;
    let losses = [None, Some(Loss::CrossEntropy), Some(Loss::SquaredError)];
    let falling = [Schedule::Linear { steps: 0 }, Schedule::Cosine { steps: 0 }];
    let options = TuneOptions {
        kind,
        momentum: if o.momentum < 0.0 { 0.0 } else { or(o.momentum, 0.9) },
        settings: Settings {
            learning_rate: or(o.learning_rate, kind.usual_learning_rate()),
            schedule: schedule(
                o.schedule,
                falling[1],
                falling,
                o.schedule_steps,
                o.schedule_factor,
            )?,
            warmup_steps: o.warmup_steps,
            weight_decay: o.weight_decay,
            decay: decay(o.decay, Decay::Decoupled)?,
        },
        batch: or(o.batch, 64) as usize,
        steps: 0,
        clip_norm: Some(o.clip).filter(|&c| c != 0.0),
        average: Some(o.average).filter(|&a| a != 0.0),
        loss: choose(o.loss, "hone_loss", &losses)?,
        distillation: (!o.distill.is_null()).then_some(distillation),
        output: output.map(String::from),
        trained: match names.is_empty() {
            false => Trained::Named(names),
            true if trained => Trained::Weights,
            true => Trained::All,
        },
        keep_zeros: o.free_zeros == 0,
        seed: o.seed,
        threads: if o.threads == 0 { home.threads } else { threads_or_all(o.threads) },
    };
    Ok(Plan {
        length: if o.steps > 0 { Length::Steps(o.steps) } else { Length::Epochs(epochs) },
        evaluate_every: o.evaluate_every,
        // SAFETY: the header asks for a string or NULL.
        checkpoint: unsafe { optional_path(o.checkpoint, "checkpoint") }?,
        checkpoint_every: or(o.checkpoint_every, 200),
        options,
    })
}
