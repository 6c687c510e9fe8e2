//! What a pruning run did, as JSON for programs and as a table for people.
//!
//! The JSON is a contract: fields keep their names and meaning, new ones may be added, and
//! `schema` changes when that cannot be kept. Units are last in names; fractions are 0 to 1.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::atomic_file::AtomicFile;
use crate::error::{Result, error};

/// The version of the JSON schema.
pub const SCHEMA: &str = "hone.report/1";

/// A pruning run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The version of hone that wrote it.
    pub hone_version: &'static str,
    /// The model that was pruned.
    pub model: PathBuf,
    /// The pruned model.
    pub output: PathBuf,
    /// The calibration samples and how many were read.
    pub calibration: Source,
    /// The evaluation samples, if there were any.
    pub evaluation: Option<Source>,
    /// The options in force, defaults included.
    pub options: Settings,
    /// Weights of the pruned tensors.
    pub prunable_weights: usize,
    /// Zeros among them afterwards.
    pub zeros: usize,
    /// `zeros` / `prunable_weights`.
    pub sparsity: f64,
    /// The pruned tensors, in the order of the graph.
    pub layers: Vec<LayerReport>,
    /// Float tensors that were left alone.
    pub skipped: Vec<SkippedReport>,
    /// Predicted against measured.
    pub loss: Loss,
    /// Dense against pruned on the evaluation samples; on the calibration samples without them.
    pub quality: Quality,
    /// Files.
    pub size: Size,
    /// One run in ONNX Runtime on this machine.
    pub latency: Latency,
    /// Where the time went.
    pub time: Time,
    /// The largest resident set of the process, in bytes.
    pub peak_memory_bytes: u64,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A set of samples.
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    /// Where it was read from.
    pub path: PathBuf,
    /// How many samples were read.
    pub rows: usize,
}

/// Options, as the command line writes them.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// `mfac` or `magnitude`.
    pub method: &'static str,
    /// The sparsity asked for.
    pub sparsity: f64,
    /// `unstructured` or N:M.
    pub pattern: String,
    /// `global` or `layer`.
    pub scope: &'static str,
    /// `joint` or `independent`.
    pub update: &'static str,
    /// `greedy` or `staged:N`.
    pub selection: String,
    /// Most weights per Fisher block; `null` for whole layers.
    pub block: Option<usize>,
    /// λ as a fraction of the layer's mean Fisher diagonal; `null` when absolute.
    pub damping_relative: Option<f64>,
    /// λ; `null` when relative.
    pub damping_absolute: Option<f64>,
    /// Stages with gradients of their own.
    pub stages: usize,
    /// Gradients per stage.
    pub gradients: usize,
    /// What was differentiated.
    pub fisher: String,
    /// Samples averaged into a gradient.
    pub fisher_batch: usize,
    /// Random seed.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// The device asked for.
    pub device: String,
    /// The memory limit, in bytes.
    pub memory_limit_bytes: usize,
}

/// One pruned tensor.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// The name of the tensor.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its weights.
    pub weights: usize,
    /// Zeros afterwards.
    pub zeros: usize,
    /// `zeros` / `weights`.
    pub sparsity: f64,
    /// λ of the last stage; `null` for magnitude.
    pub damping: Option<f64>,
    /// ½ δᵀFδ of the last stage; `null` for magnitude.
    pub predicted_loss: Option<f64>,
}

/// A tensor that was left alone.
#[derive(Clone, Debug, Serialize)]
pub struct SkippedReport {
    /// The name of the tensor.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Why.
    pub reason: String,
}

/// The loss that pruning costs.
#[derive(Clone, Debug, Serialize)]
pub struct Loss {
    /// What the numbers are of.
    pub meaning: String,
    /// ½ δᵀFδ of each stage, blocks added up as if they were independent; empty for magnitude.
    pub predicted_by_stage: Vec<f64>,
    /// Their sum.
    pub predicted: f64,
    /// The same quantity measured on the outputs of dense and pruned model.
    pub measured: f64,
}

/// Dense against pruned.
#[derive(Clone, Debug, Serialize)]
pub struct Quality {
    /// Which samples: `evaluation` or `calibration`.
    pub samples: &'static str,
    /// The output compared.
    pub output: String,
    /// Fraction of right predictions of the dense model, where there are labels.
    pub dense_accuracy: Option<f64>,
    /// Fraction of right predictions of the pruned model.
    pub pruned_accuracy: Option<f64>,
    /// ‖pruned − dense‖ / ‖dense‖ over all outputs.
    pub relative_difference: f64,
    /// The largest difference of one output.
    pub largest_difference: f64,
    /// Mean KL divergence of the class distributions, in nats, where there are classes.
    pub kl_nats: Option<f64>,
}

/// Sizes of the files, in bytes, as they are and compressed with zstd.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// The dense model with its external data.
    pub dense_bytes: u64,
    /// The pruned model with its external data.
    pub pruned_bytes: u64,
    /// The dense model compressed.
    pub dense_zstd_bytes: u64,
    /// The pruned model compressed.
    pub pruned_zstd_bytes: u64,
}

/// Median time of a run, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Samples per run.
    pub batch: usize,
    /// Threads of the run.
    pub threads: usize,
    /// The dense model.
    pub dense_ms: f64,
    /// The pruned model.
    pub pruned_ms: f64,
}

/// Seconds per part of the work.
#[derive(Clone, Debug, Serialize)]
pub struct Time {
    /// Forward and backward passes and weight gradients.
    pub gradients_s: f64,
    /// Summing the Fisher blocks.
    pub fisher_s: f64,
    /// Choosing weights and moving the others.
    pub pruning_s: f64,
    /// Reading, preparing, evaluating, writing.
    pub other_s: f64,
    /// All of it.
    pub total_s: f64,
    /// What ONNX Runtime needs for the forward passes of as many samples alone (measured on the
    /// calibration samples and scaled).
    pub forward_s: f64,
    /// `gradients_s` / `forward_s`.
    pub gradients_per_forward: f64,
    /// (`fisher_s` + `pruning_s`) / `forward_s`.
    pub mfac_per_forward: f64,
    /// `total_s` / `forward_s`.
    pub total_per_forward: f64,
}

impl Report {
    /// Writes the JSON, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| error!(Io, "{}: the report cannot be written: {e}", path.display()))?;
        text.push('\n');
        let mut file = AtomicFile::create(path)?;
        file.append(text.as_bytes())?;
        file.commit()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).max(5);
        writeln!(f, "{:width$}  {:>10}  {:>10}  {:>8}  {:>10}", "layer", "weights", "zeros", "sparsity", "loss")?;
        for l in &self.layers {
            let loss = l.predicted_loss.map_or("-".into(), |v| format!("{v:.3e}"));
            let (weights, zeros, sparsity) = (l.weights, l.zeros, 100.0 * l.sparsity);
            writeln!(f, "{:width$}  {weights:>10}  {zeros:>10}  {sparsity:>7.2}%  {loss:>10}", l.name)?;
        }
        let (weights, zeros, sparsity) = (self.prunable_weights, self.zeros, 100.0 * self.sparsity);
        writeln!(f, "{:width$}  {weights:>10}  {zeros:>10}  {sparsity:>7.2}%", "all")?;
        if !self.skipped.is_empty() {
            writeln!(f, "\nleft alone:")?;
            for s in &self.skipped {
                writeln!(f, "  {} {:?}: {}", s.name, s.shape, s.reason)?;
            }
        }
        writeln!(f)?;
        self.fmt_quality(f)?;
        self.fmt_cost(f)?;
        self.notes.iter().try_for_each(|note| write!(f, "\nnote: {note}"))
    }
}

impl Report {
    fn fmt_quality(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let q = &self.quality;
        if let (Some(dense), Some(pruned)) = (q.dense_accuracy, q.pruned_accuracy) {
            writeln!(f, "accuracy      dense {dense:.4}, pruned {pruned:.4} ({} samples)", q.samples)?;
        }
        let kl = q.kl_nats.map_or(String::new(), |kl| format!(", KL {kl:.3e} nats"));
        writeln!(f, "outputs       differ by {:.2}%{kl}", 100.0 * q.relative_difference)?;
        let loss = &self.loss;
        if loss.predicted_by_stage.is_empty() {
            writeln!(f, "loss          measured {:.4} ({})", loss.measured, loss.meaning)
        } else {
            let (predicted, measured) = (loss.predicted, loss.measured);
            writeln!(f, "loss          predicted {predicted:.4}, measured {measured:.4} ({})", loss.meaning)
        }
    }

    fn fmt_cost(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, l, t) = (&self.size, &self.latency, &self.time);
        let kb = |bytes: u64| format!("{:.0} kB", bytes as f64 / 1e3);
        let (dense, pruned) = (kb(s.dense_bytes), kb(s.pruned_bytes));
        let (dense_zstd, pruned_zstd) = (kb(s.dense_zstd_bytes), kb(s.pruned_zstd_bytes));
        writeln!(f, "file          dense {dense}, pruned {pruned}; zstd {dense_zstd} -> {pruned_zstd}")?;
        let (dense, pruned) = (l.dense_ms, l.pruned_ms);
        let (batch, threads) = (l.batch, l.threads);
        writeln!(f, "latency       dense {dense:.2} ms, pruned {pruned:.2} ms (batch {batch}, {threads} threads)")?;
        writeln!(
            f,
            "time          {:.1} s: gradients {:.1}, Fisher {:.1}, pruning {:.1}, other {:.1}",
            t.total_s, t.gradients_s, t.fisher_s, t.pruning_s, t.other_s
        )?;
        writeln!(
            f,
            "per forward   gradients {:.1}x, M-FAC and pruning {:.1}x, all {:.1}x the {:.1} s of the forward passes alone",
            t.gradients_per_forward, t.mfac_per_forward, t.total_per_forward, t.forward_s
        )?;
        write!(f, "peak memory   {:.0} MB", self.peak_memory_bytes as f64 / 1e6)
    }
}
