//! `hone finetune`: arguments into options, files in and out.

use hone::cancel::Cancel;
use hone::error::{Error, ErrorKind, Result};
use hone::mfac::Storage;
use hone::mfac::optimizer::{Decay, Schedule, Settings};
use hone::train::{
    Distillation, Job, Kind, Length, Loss, Metric, Plan, Trained, TuneOptions, WindowDamping,
};

use crate::arguments::Finetune;
use crate::terminal::Bars;

pub fn run(a: &Finetune, cancel: &Cancel) -> Result<()> {
    let job = Job {
        model: a.model.clone(),
        data: a.data.clone(),
        output: a.output.clone(),
        teacher: a.distill.clone(),
        evaluation: a.evaluation.clone(),
        reading: a.reading.options()?,
        plan: Plan {
            length: a.steps.map_or(Length::Epochs(a.epochs), Length::Steps),
            evaluate_every: a.evaluate_every.unwrap_or(0),
            checkpoint: a.checkpoint.clone(),
            checkpoint_every: a.checkpoint_every,
            options: options(a)?,
        },
    };
    let bars = Bars::new();
    let report = job.run(&bars, cancel);
    bars.finish();
    let report = report?;
    if let Some(path) = &a.report {
        report.write(path)?;
    }
    println!("{report}");
    Ok(())
}

fn options(a: &Finetune) -> Result<TuneOptions> {
    let metric = match (a.damping_metric.as_deref(), a.damping_absolute) {
        (Some("identity"), _) | (None, Some(_)) => Metric::Identity,
        _ => Metric::Diagonal,
    };
    let kind = match a.optimizer.as_str() {
        "adam" => Kind::Adam,
        "sgd" => Kind::Sgd,
        _ => Kind::Mfac {
            window: a.window as usize,
            damping: match a.damping_absolute {
                Some(lambda) => WindowDamping::Absolute(lambda),
                None => WindowDamping::Relative(a.damping.unwrap_or(metric.usual_damping())),
            },
            metric,
            storage: match a.window_storage.as_str() {
                "f16" => Storage::F16,
                "bf16" => Storage::Bf16,
                _ => Storage::F32,
            },
        },
    };
    if !(a.epochs > 0.0 && a.epochs.is_finite()) {
        return Err(usage(format!("--epochs {} is not a positive number", a.epochs)));
    }
    if matches!(kind, Kind::Mfac { damping: WindowDamping::Absolute(_), .. })
        && a.learning_rate.is_none()
    {
        return Err(usage(
            "--damping-absolute takes steps of F⁻¹g, whose scale is that of the gradients: give \
             --learning-rate, too",
        ));
    }
    let distillation = a
        .distill
        .is_some()
        .then_some(Distillation { temperature: a.temperature, weight: a.distill_weight });
    Ok(TuneOptions {
        kind,
        momentum: a.momentum,
        settings: Settings {
            learning_rate: a.learning_rate.unwrap_or_else(|| kind.usual_learning_rate()),
            schedule: schedule(&a.schedule)?,
            warmup_steps: a.warmup,
            weight_decay: a.weight_decay,
            decay: if a.decay == "coupled" { Decay::Coupled } else { Decay::Decoupled },
        },
        batch: a.batch as usize,
        steps: 0,
        clip_norm: a.clip,
        average: a.average,
        loss: loss(&a.loss),
        distillation,
        output: a.output_name.clone(),
        trained: match a.train.as_slice() {
            [] => Trained::All,
            [one] if one == "all" => Trained::All,
            [one] if one == "weights" => Trained::Weights,
            names => Trained::Named(names.to_vec()),
        },
        keep_zeros: !a.free_zeros,
        seed: a.seed,
        threads: a.threads(),
    })
}

/// cross-entropy, mse or auto.
pub fn loss(text: &str) -> Option<Loss> {
    match text {
        "cross-entropy" => Some(Loss::CrossEntropy),
        "mse" => Some(Loss::SquaredError),
        _ => None,
    }
}

/// constant, linear, cosine or stairs:EVERY:FACTOR; the steps of a fall come with the run.
fn schedule(text: &str) -> Result<Schedule> {
    let stairs = |text: &str| {
        let (every, factor) = text.strip_prefix("stairs:")?.split_once(':')?;
        let (every, factor) = (every.parse().ok()?, factor.parse().ok()?);
        (every > 0 && factor > 0.0 && factor <= 1.0).then_some(Schedule::Stairs { every, factor })
    };
    match text {
        "constant" => Ok(Schedule::Constant),
        "linear" => Ok(Schedule::Linear { steps: 0 }),
        "cosine" => Ok(Schedule::Cosine { steps: 0 }),
        text => stairs(text).ok_or_else(|| {
            usage(format!(
                "--schedule {text:?}: use constant, linear, cosine or stairs:EVERY:FACTOR, such as \
                 stairs:500:0.1"
            ))
        }),
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}
