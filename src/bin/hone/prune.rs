//! `hone prune`: arguments into options, files in and out.

use hone::cancel::Cancel;
use hone::error::{Error, ErrorKind, Result};
use hone::mfac::optimizer::{Decay, Schedule, Settings};
use hone::prune::{Damping, Gradual, Job, Method, Options, Pattern, Scope, Selection, Update};
use hone::train::{Distillation, Kind, Length, Trained, TuneOptions};

use crate::arguments::Prune;
use crate::finetune::loss;
use crate::terminal::Bars;

pub fn run(a: &Prune, cancel: &Cancel) -> Result<()> {
    let job = Job {
        model: a.model.clone(),
        calibration: a.calibration.clone(),
        evaluation: a.evaluation.clone(),
        output: a.output.clone(),
        reading: a.reading.options()?,
        options: options(a)?,
        gradual: gradual(a)?,
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

fn options(a: &Prune) -> Result<Options> {
    Ok(Options {
        sparsity: sparsity(a)?,
        method: if a.method == "magnitude" { Method::Magnitude } else { Method::MFac },
        pattern: a.pattern,
        scope: if a.scope == "layer" { Scope::Layer } else { Scope::Global },
        update: if a.update == "independent" { Update::Independent } else { Update::Joint },
        selection: selection(&a.selection)?,
        block: block(&a.block)?,
        damping: a.damping_absolute.map_or(Damping::Relative(a.damping), Damping::Absolute),
        stages: a.stages.unwrap_or(if is_gradual(a) { 2 } else { 8 }) as usize,
        gradients: a.gradients as usize,
        fisher_batch: a.fisher_batch as usize,
        fisher: a.fisher,
        match_statistics: match a.match_statistics.as_str() {
            "on" => true,
            "off" => false,
            // The baselines are as published.
            _ => a.method == "mfac" && a.update == "joint",
        },
        outputs: a.outputs.clone(),
        skip: a.skip.clone(),
        seed: a.seed,
        threads: a.running.threads(),
        device: a.running.device,
        memory_limit_bytes: size(&a.memory_limit)?,
    })
}

fn is_gradual(a: &Prune) -> bool {
    a.gradual.schedule == "gradual"
}

/// The steps of a gradual run; its options without it are errors.
fn gradual(a: &Prune) -> Result<Option<Gradual>> {
    let g = &a.gradual;
    if !is_gradual(a) {
        let given = [
            ("--steps", g.steps.is_some()),
            ("--ramp", g.ramp.is_some()),
            ("--tune-epochs", g.tune_epochs.is_some()),
            ("--tune-steps", g.tune_steps.is_some()),
            ("--final-epochs", g.final_epochs.is_some()),
            ("--final-steps", g.final_steps.is_some()),
            ("--batch", g.batch.is_some()),
            ("--optimizer", g.optimizer.is_some()),
            ("--learning-rate", g.learning_rate.is_some()),
            ("--loss", g.loss.is_some()),
            ("--distill-weight", g.distill_weight.is_some()),
            ("--checkpoint", g.checkpoint.is_some()),
        ];
        return match given.iter().find(|(_, given)| *given) {
            Some((name, _)) => {
                Err(usage(format!("{name} belongs to a gradual run: add --schedule gradual")))
            }
            None => Ok(None),
        };
    }
    if let [first, second, ..] = a.outputs.as_slice() {
        return Err(usage(format!(
            "a gradual run trains one output, but --outputs names {first:?} and {second:?}"
        )));
    }
    for (name, epochs) in [("--tune-epochs", g.tune_epochs), ("--final-epochs", g.final_epochs)] {
        if let Some(epochs) = epochs.filter(|e| !(*e > 0.0 && e.is_finite())) {
            return Err(usage(format!("{name} {epochs} is not a positive number")));
        }
    }
    let length = Length::given(g.tune_steps, g.tune_epochs);
    let length = length.unwrap_or(Length::Epochs(Gradual::EPOCHS));
    let final_length = Length::given(g.final_steps, g.final_epochs);
    let kind = match g.optimizer.as_deref() {
        Some("adam") => Kind::Adam,
        Some("sgd") => Kind::Sgd,
        _ => Kind::MFAC,
    };
    let tuning = TuneOptions {
        kind,
        momentum: 0.9,
        settings: Settings {
            learning_rate: g.learning_rate.unwrap_or_else(|| kind.usual_learning_rate()),
            schedule: Schedule::Cosine { steps: 0 },
            warmup_steps: 0,
            weight_decay: 0.0,
            decay: Decay::Decoupled,
        },
        batch: g.batch.unwrap_or(64) as usize,
        steps: 0,
        clip_norm: None,
        average: None,
        loss: g.loss.as_deref().and_then(loss),
        distillation: g.distill_weight.map(|weight| Distillation { weight, ..Gradual::HALF }),
        output: a.outputs.first().cloned(),
        trained: Trained::All,
        keep_zeros: true,
        seed: a.seed,
        threads: a.running.threads(),
    };
    Ok(Some(Gradual {
        steps: g.steps.unwrap_or(4) as usize,
        ramp: g.ramp.unwrap_or_default(),
        length,
        final_length: final_length.unwrap_or_else(|| length.times(Gradual::LAST)),
        tuning,
        checkpoint: g.checkpoint.clone(),
        checkpoint_every: g.checkpoint_every.unwrap_or(200),
    }))
}

/// An N:M pattern fixes the sparsity; otherwise it must be given.
fn sparsity(a: &Prune) -> Result<f64> {
    match (a.sparsity, a.pattern) {
        (Some(s), _) if !(0.0..1.0).contains(&s) => {
            Err(usage(format!("--sparsity {s} is not a fraction from 0 to below 1, such as 0.9")))
        }
        (Some(s), _) => Ok(s),
        (None, Pattern::NOfM { .. }) => Ok(a.pattern.sparsity_limit()),
        (None, Pattern::Unstructured) => Err(usage(
            "--sparsity is missing: say which fraction of the weights to remove, such as 0.9",
        )),
    }
}

fn selection(text: &str) -> Result<Selection> {
    let staged = |n: &str| n.parse().ok().filter(|&n| (1..=1000).contains(&n));
    match text.split_once(':') {
        None if text == "greedy" => Ok(Selection::Greedy),
        Some(("staged", n)) if staged(n).is_some() => {
            Ok(Selection::Staged { stages: staged(n).expect("checked by the guard") })
        }
        _ => Err(usage(format!("--selection {text:?}: use greedy or staged:N, such as staged:8"))),
    }
}

fn block(text: &str) -> Result<usize> {
    match text.parse() {
        _ if text == "layer" => Ok(usize::MAX),
        Ok(n) if n > 0 => Ok(n),
        _ => {
            Err(usage(format!("--block {text:?}: use a number of weights, such as 128, or layer")))
        }
    }
}

/// A size in bytes, such as 512MiB, 4GiB or 1000000.
fn size(text: &str) -> Result<usize> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("", 0)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|n| (n, *shift)))
        .expect("every text ends in nothing");
    let bytes = number.trim().parse::<f64>().ok().map(|n| n * (1u64 << shift) as f64);
    match bytes.filter(|b| (1.0..1e18).contains(b)) {
        Some(bytes) => Ok(bytes as usize),
        None => Err(usage(format!("--memory-limit {text:?}: use a size such as 512MiB or 4GiB"))),
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}
