//! `hone prune`: arguments into options, files in and out.

use hone::cancel::Cancel;
use hone::error::{Error, ErrorKind, Result};
use hone::prune::{Damping, Job, Method, Options, Pattern, Scope, Selection, Update};

use crate::arguments::Prune;
use crate::terminal::Bars;

pub fn run(a: &Prune, cancel: &Cancel) -> Result<()> {
    let job = Job {
        model: a.model.clone(),
        calibration: a.calibration.clone(),
        evaluation: a.evaluation.clone(),
        output: a.output.clone(),
        reading: a.reading.options()?,
        options: options(a)?,
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
        stages: a.stages as usize,
        gradients: a.gradients as usize,
        fisher_batch: a.fisher_batch as usize,
        fisher: a.fisher,
        outputs: a.outputs.clone(),
        skip: a.skip.clone(),
        seed: a.seed,
        threads: a.running.threads(),
        device: a.running.device,
        memory_limit_bytes: size(&a.memory_limit)?,
    })
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
