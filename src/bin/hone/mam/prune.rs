//! `hone mam prune`: a model at several sparsities, and a table of what became of its answers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hone::atomic_file::{AtomicFile, check_output};
use hone::cancel::Cancel;
use hone::error::Result;
use hone::mam::Mam;
use hone::mam::prune::{
    Comparison, Loss, PruneOptions, PrunedHalf, Reference, SUBSETS, prune, set,
};
use hone::onnx::Model;
use hone::prune::{Damping, Method, Options, Scope};
use serde_json::{Value as Json, json};

use super::arguments::Prune;
use super::usage;
use crate::terminal::Bars;

/// The model at one sparsity.
struct Run {
    sparsity: f64,
    outputs: Vec<PathBuf>,
    halves: Vec<PrunedHalf>,
    comparison: Option<Comparison>,
}

pub fn run(a: &Prune, cancel: &Cancel) -> Result<()> {
    check(a)?;
    let dense = a.files.load(cancel)?;
    let models = a.files.model.iter().map(Model::load).collect::<Result<Vec<_>>>()?;
    let rows = a.reading.read(&a.data, &dense)?.rows;
    let bars = Bars::new();
    let reference = match &a.evaluation {
        Some(path) => {
            let rows = a.reading.read(path, &dense)?.rows;
            Some(Reference::new(&dense, &rows, SUBSETS, a.orders as usize, a.seed, cancel)?)
        }
        None => None,
    };
    let mut runs = Vec::new();
    for &sparsity in &a.sparsity {
        let options = PruneOptions { prune: options(a, sparsity), loss: loss(a) };
        let (mut pruned, halves) = prune(&models, &dense, &rows, &options, &bars, cancel)?;
        bars.finish();
        let comparison = match &reference {
            Some(reference) => {
                let mam = Mam::from_models(&pruned, a.files.options(), cancel)?;
                Some(reference.compare(&mam, cancel)?)
            }
            None => None,
        };
        if let Some([_, bits]) = comparison.as_ref().and_then(|c| c.phi_bits) {
            pruned.iter_mut().for_each(|model| set(model, "nll_bits", Some(bits)));
        }
        let outputs: Vec<PathBuf> = a.output.iter().map(|o| named(a, o, sparsity)).collect();
        pruned.iter().zip(&outputs).try_for_each(|(model, path)| model.save(path))?;
        runs.push(Run { sparsity, outputs, halves, comparison });
    }
    if let Some(path) = &a.report {
        let mut file = AtomicFile::create(path)?;
        file.append(format!("{:#}\n", report(a, &runs)).as_bytes())?;
        file.commit()?;
    }
    print!("{}", text(&runs));
    Ok(())
}

fn check(a: &Prune) -> Result<()> {
    if a.output.len() != a.files.model.len() {
        let (n, m) = (a.output.len(), a.files.model.len());
        return Err(usage(format!(
            "there are {m} files of the model and {n} --output; give one each"
        )));
    }
    if let Some(s) = a.sparsity.iter().find(|s| !(0.0..1.0).contains(*s)) {
        return Err(usage(format!(
            "--sparsity {s} is not a fraction from 0 to below 1, such as 0.9"
        )));
    }
    let sources: Vec<&Path> = a.files.model.iter().map(PathBuf::as_path).collect();
    for (i, output) in a.output.iter().enumerate() {
        for &sparsity in &a.sparsity {
            check_output(&named(a, output, sparsity), &sources)?;
        }
        if a.output[..i].contains(output) {
            return Err(usage("both --output are the same file"));
        }
    }
    Ok(())
}

/// The output of one of several sparsities has it in its name.
fn named(a: &Prune, output: &Path, sparsity: f64) -> PathBuf {
    if a.sparsity.len() == 1 {
        return output.to_path_buf();
    }
    let mut name = output.file_stem().map(OsString::from).unwrap_or_default();
    name.push(format!("-{sparsity}"));
    if let Some(extension) = output.extension() {
        name.push(".");
        name.push(extension);
    }
    output.with_file_name(name)
}

fn options(a: &Prune, sparsity: f64) -> Options {
    let mfac = a.method == "mfac";
    Options {
        sparsity,
        method: if mfac { Method::MFac } else { Method::Magnitude },
        scope: if a.scope == "layer" { Scope::Layer } else { Scope::Global },
        // The baseline is as it is known.
        match_statistics: mfac,
        block: a.block as usize,
        damping: Damping::Relative(a.damping),
        stages: a.stages as usize,
        gradients: a.gradients as usize,
        skip: a.skip.clone(),
        seed: a.seed,
        threads: a.files.running.threads(),
        device: a.files.running.device,
        ..Options::default()
    }
}

fn loss(a: &Prune) -> Loss {
    match a.fisher.as_str() {
        "sampled" => Loss::Sampled,
        "training" => Loss::Training,
        _ => Loss::Outputs,
    }
}

fn report(a: &Prune, runs: &[Run]) -> Json {
    let half = |h: &PrunedHalf| {
        json!({
            "output": h.output, "weights": h.weights, "zeros": h.zeros,
            "sparsity": h.zeros as f64 / h.weights.max(1) as f64,
            "predicted_loss": h.predicted_loss,
        })
    };
    let run = |r: &Run| {
        json!({
            "sparsity": r.sparsity,
            "outputs": r.outputs,
            "halves": r.halves.iter().map(half).collect::<Vec<_>>(),
            "comparison": r.comparison.as_ref().map(Comparison::to_json),
        })
    };
    let mfac = a.method == "mfac";
    json!({
        "schema": "hone.mam.prune/1",
        "hone_version": env!("CARGO_PKG_VERSION"),
        "model": a.files.model,
        "data": a.data,
        "evaluation": a.evaluation,
        "options": {
            "method": a.method,
            "scope": a.scope,
            "skip": a.skip,
            "fisher": mfac.then_some(&a.fisher),
            "stages": mfac.then_some(a.stages),
            "gradients": mfac.then_some(a.gradients),
            "block_size": mfac.then_some(a.block),
            "damping": mfac.then_some(a.damping),
            "orders": a.orders,
            "subsets_per_row": SUBSETS,
            "seed": a.seed,
        },
        "runs": runs.iter().map(run).collect::<Vec<_>>(),
    })
}

fn text(runs: &[Run]) -> String {
    let mut text = String::new();
    for r in runs {
        for half in &r.halves {
            text +=
                &format!("{}: {} of {} weights are zero\n", half.output, half.zeros, half.weights);
        }
        text += &r.outputs.iter().map(|o| format!("-> {}\n", o.display())).collect::<String>();
    }
    let Some(first) = runs.first().and_then(|r| r.comparison.as_ref()) else { return text };
    text += &format!(
        "\n{} held-out rows; rms in nats over {} subsets of all sizes\n",
        first.rows,
        first.theta_against_theta.as_ref().map_or(0, |r| r.count)
    );
    text += &format!(
        "{:>8} {:>16} {:>14} {:>12}   theta - dense theta by size\n",
        "sparsity", "phi bits per dim", "theta - dense", "theta - phi"
    );
    let number = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.4}"));
    let dense_off = first.theta_against_phi.as_ref().map(|[dense, _]| dense.rms);
    let dense_bits = first.phi_bits.map(|[dense, _]| dense);
    let line = |sparsity: String, bits, moved, off| {
        format!("{sparsity:>8} {:>16} {:>14} {:>12}", number(bits), number(moved), number(off))
    };
    text += &line(
        "dense".into(),
        dense_bits,
        first.theta_against_theta.as_ref().map(|_| 0.0),
        dense_off,
    );
    text.push('\n');
    for (r, c) in runs.iter().filter_map(|r| Some((r, r.comparison.as_ref()?))) {
        let moved = c.theta_against_theta.as_ref().map(|r| r.rms);
        let off = c.theta_against_phi.as_ref().map(|[_, pruned]| pruned.rms);
        text += &line(r.sparsity.to_string(), c.phi_bits.map(|[_, p]| p), moved, off);
        for s in &c.sizes {
            text += &format!("   {}-{}: {:.3}", s.least, s.most, s.against_theta);
        }
        text.push('\n');
    }
    text
}
