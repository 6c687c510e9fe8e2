//! `hone mam train`: rows in, a model out, with reports on the way.

use std::path::Path;

use hone::atomic_file::{AtomicFile, folder_of};
use hone::calibration::read_arrays;
use hone::cancel::Cancel;
use hone::error::{Context, Result};
use hone::mam::contract::Contract;
use hone::mam::train::{
    Curve, Energy, EnergyFigures, EnergyGraph, EnergyOptions, Figures, Method, Objective,
    Regression, TrainOptions, TrainReport, train, train_by_energy,
};
use hone::mam::{Network, Rows, Size, read_training_rows};

use super::arguments::Train;
use super::usage;

/// Every so many rows one is held out, unless rows to hold out are given.
const HELD_OUT_EVERY: usize = 10;

/// Attention heads unless told otherwise.
const USUAL_HEADS: usize = 4;

pub fn run(a: &Train, cancel: &Cancel) -> Result<()> {
    if !folder_of(&a.output).is_dir() {
        return Err(usage(format!("--output: there is no folder for {}", a.output.display())));
    }
    let Some(data) = &a.data else { return by_energy(a, cancel) };
    let all = read_training_rows(data, a.reading.threshold, a.reading.limit)?;
    let contract = contract(a, data, &all)?;
    let (rows, held_out) = match &a.held_out {
        Some(path) => (all, read_training_rows(path, a.reading.threshold, a.reading.limit)?),
        None => all.split(HELD_OUT_EVERY)?,
    };
    let options = options(a)?;
    eprintln!(
        "{} rows of {} sites to learn from, {} held out",
        rows.len(),
        contract.length,
        held_out.len()
    );
    let checkpoint = a.checkpoint.as_deref();
    let mut report = Reporter::default();
    let trained =
        train(&rows, &held_out, &contract, &options, checkpoint, &mut |r| report.see(r), cancel)?;
    let metadata = trained.contract.metadata();
    let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    trained.graph.save(&a.output, &metadata)?;
    report.finish(a)?;
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

fn by_energy(a: &Train, cancel: &Cancel) -> Result<()> {
    let text = a.energy.as_deref().unwrap_or_default();
    let energy = match text.strip_prefix("ising:") {
        Some(_) if !a.values.is_empty() => {
            return Err(usage("--values: the sites of an Ising model have 2 values"));
        }
        Some(rest) => Energy::Ising(rest.parse().context(|| "--energy")?),
        None => Energy::Graph(Box::new(EnergyGraph::load(Path::new(text), &a.values, cancel)?)),
    };
    let mut contract = energy.contract();
    if !a.shape.is_empty() {
        contract.shape = Some(a.shape.clone());
        if a.shape.iter().product::<usize>() != contract.length {
            return Err(usage(format!("--shape does not have {} sites", contract.length)));
        }
    }
    contract.notes.insert("energy".into(), text.into());
    let objective = match a.objective.as_str() {
        "reinforce" => Objective::Reinforce,
        _ => Objective::Balance,
    };
    let learning = EnergyOptions { objective, steps: a.steps };
    let (options, checkpoint) = (options(a)?, a.checkpoint.as_deref());
    let mut report = Reporter::default();
    let trained = train_by_energy(
        &energy,
        &contract,
        &learning,
        &options,
        checkpoint,
        &mut |r| report.see(r),
        cancel,
    )?;
    let metadata = trained.contract.metadata();
    let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    trained.graph.save(&a.output, &metadata)?;
    report.finish(a)?;
    println!("{}: {}", a.output.display(), figures_text(&trained.figures));
    Ok(())
}

/// Prints reports, and keeps them for the curve.
#[derive(Default)]
struct Reporter(Curve);

impl Reporter {
    fn see(&mut self, r: &TrainReport) {
        self.0.add(r);
        let (stage, found) = match r.figures {
            Figures::Bits(bits) => ("conditionals", format!("held out {bits:.4} bits per site")),
            Figures::ThetaError(rms) => {
                ("marginals", format!("held out {rms:.4} nats rms of theta - phi"))
            }
            Figures::Energy(figures) => ("energy", figures_text(&figures)),
        };
        eprintln!(
            "{stage:12} {:>6} of {}   loss {:.4}   {found}   {:.0} s",
            r.step, r.steps, r.loss, r.seconds
        );
    }

    fn finish(&self, a: &Train) -> Result<()> {
        let Some(path) = &a.curve else { return Ok(()) };
        let mut file = AtomicFile::create(path)?;
        file.append(self.0.to_svg().as_bytes())?;
        file.commit()
    }
}

fn figures_text(f: &EnergyFigures) -> String {
    let exact = f.exact.map_or(String::new(), |z| format!(" (exact {z:.4})"));
    let gap = f.gap.map_or(String::new(), |gap| format!(", KL {gap:.4}"));
    format!(
        "log Z {:.4}{exact}, by draws {:.4}; log q - log f {:.4} +- {:.4}{gap}; {:.4} bits per \
         site; {:.0} of {} draws effective",
        f.log_z, f.estimate, f.free_energy, f.error, f.bits, f.effective, f.draws
    )
}

fn network(a: &Train) -> Result<Network> {
    let network = match a.network.as_str() {
        "transformer" => Network::Transformer { heads: a.heads.unwrap_or(USUAL_HEADS) },
        "conv" => {
            let of_torus = a.energy.as_ref().is_some_and(|e| e.starts_with("ising:"));
            let torus = a.padding.as_ref().map_or(of_torus, |padding| padding == "torus");
            Network::Conv { torus }
        }
        _ => Network::Mlp,
    };
    if a.heads.is_some() && a.network != "transformer" {
        return Err(usage("--heads: only --network transformer has any"));
    }
    if a.padding.is_some() && a.network != "conv" {
        return Err(usage("--padding: only --network conv has any"));
    }
    Ok(network)
}

fn options(a: &Train) -> Result<TrainOptions> {
    let network = network(a)?;
    let usual = network.usual_size();
    let method = match a.optimizer.as_str() {
        "mfac" => Method::Mfac { window: a.window as usize, damping: a.damping },
        _ => Method::Adam,
    };
    let usual_rate = method.usual_learning_rate(a.energy.is_some());
    let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
    Ok(TrainOptions {
        network,
        size: Size {
            hidden: a.hidden.unwrap_or(usual.hidden),
            layers: a.layers.unwrap_or(usual.layers),
        },
        conditional_steps: a.conditional_steps,
        marginal_steps: a.marginal_steps,
        batch: a.batch,
        method,
        learning_rate: a.learning_rate.unwrap_or(usual_rate),
        weight_decay: a.weight_decay.unwrap_or(if a.energy.is_some() { 0.0 } else { 0.01 }),
        clip_norm: a.clip_norm,
        average: a.average,
        regression: match a.regression.as_str() {
            "one-step" => Regression::OneStep,
            _ => Regression::Trajectory,
        },
        noise: a.noise,
        seed: a.seed,
        threads: a.threads.map_or_else(all, usize::from),
        report_every: a.report_every,
    })
}

/// What the data and the options say of the model.
fn contract(a: &Train, data: &Path, rows: &Rows) -> Result<Contract> {
    let mut contract = Contract::of_rows(rows, &a.values, &a.shape)?;
    if a.shape.is_empty() {
        contract.shape = stored_shape(data).filter(|s| s.len() > 1);
    }
    if let Some(name) = data.file_name() {
        contract.notes.insert("dataset".into(), name.to_string_lossy().into_owned());
    }
    Ok(contract)
}

/// The axes behind the first of the array, if the data are one.
fn stored_shape(data: &Path) -> Option<Vec<usize>> {
    let is_csv = data.extension().is_some_and(|e| e == "csv");
    let array = (!is_csv).then(|| read_arrays(data, &["x"], Some(1)).ok()).flatten()?;
    array.into_iter().next().flatten().map(|t| t.shape()[1..].to_vec())
}
