//! `hone mam train`: rows in, a model out, with reports on the way.

use hone::atomic_file::folder_of;
use hone::calibration::read_arrays;
use hone::cancel::Cancel;
use hone::error::Result;
use hone::mam::contract::Contract;
use hone::mam::train::{Regression, TrainOptions, TrainReport, train};
use hone::mam::{Rows, Size, read_training_rows};

use super::arguments::Train;
use super::usage;

/// Every so many rows one is held out, unless rows to hold out are given.
const HELD_OUT_EVERY: usize = 10;

pub fn run(a: &Train, cancel: &Cancel) -> Result<()> {
    if !folder_of(&a.output).is_dir() {
        return Err(usage(format!("--output: there is no folder for {}", a.output.display())));
    }
    let all = read_training_rows(&a.data, a.reading.threshold, a.reading.limit)?;
    let contract = contract(a, &all)?;
    let (rows, held_out) = match &a.held_out {
        Some(path) => (all, read_training_rows(path, a.reading.threshold, a.reading.limit)?),
        None => all.split(HELD_OUT_EVERY)?,
    };
    let options = options(a);
    eprintln!(
        "{} rows of {} sites to learn from, {} held out",
        rows.len(),
        contract.length,
        held_out.len()
    );
    let checkpoint = a.checkpoint.as_deref();
    let trained = train(&rows, &held_out, &contract, &options, checkpoint, &mut report, cancel)?;
    let metadata = trained.contract.metadata();
    let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    trained.graph.save(&a.output, &metadata)?;
    println!(
        "{}: phi {:.4} bits per site on held-out rows (5 orders), theta - phi on their subsets \
         {:.3} nats rms (mean {:+.3})",
        a.output.display(),
        trained.bits,
        trained.theta_error.rms,
        trained.theta_error.mean
    );
    Ok(())
}

fn report(r: &TrainReport) {
    let (stage, what) = match r.stage {
        1 => ("conditionals", "bits per site"),
        _ => ("marginals", "nats rms of theta - phi"),
    };
    eprintln!(
        "{stage:12} {:>6} of {}   loss {:.4}   held out {:.4} {what}   {:.0} s",
        r.step, r.steps, r.loss, r.held_out, r.seconds
    );
}

fn options(a: &Train) -> TrainOptions {
    let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
    TrainOptions {
        size: Size { hidden: a.hidden, layers: a.layers },
        conditional_steps: a.conditional_steps,
        marginal_steps: a.marginal_steps,
        batch: a.batch,
        learning_rate: a.learning_rate,
        weight_decay: a.weight_decay,
        clip_norm: a.clip_norm,
        average: a.average,
        regression: match a.regression.as_str() {
            "one-step" => Regression::OneStep,
            _ => Regression::Trajectory,
        },
        seed: a.seed,
        threads: a.threads.map_or_else(all, usize::from),
        report_every: a.report_every,
    }
}

/// What the data and the options say of the model.
fn contract(a: &Train, rows: &Rows) -> Result<Contract> {
    let mut contract = Contract::of_rows(rows, &a.values, &a.shape)?;
    if a.shape.is_empty() {
        contract.shape = stored_shape(a).filter(|s| s.len() > 1);
    }
    if let Some(name) = a.data.file_name() {
        contract.notes.insert("dataset".into(), name.to_string_lossy().into_owned());
    }
    Ok(contract)
}

/// The axes behind the first of the array, if the data are one.
fn stored_shape(a: &Train) -> Option<Vec<usize>> {
    let is_csv = a.data.extension().is_some_and(|e| e == "csv");
    let array = (!is_csv).then(|| read_arrays(&a.data, &["x"], Some(1)).ok()).flatten()?;
    array.into_iter().next().flatten().map(|t| t.shape()[1..].to_vec())
}
