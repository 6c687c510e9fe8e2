//! What a prune run did: one document for programs (JSON) and its rendering for people.
//!
//! The JSON form is a stable schema, named in its first field: within `hone.report/1` fields are
//! only added, never renamed, retyped or removed. A field that does not apply is `null`. Names end
//! in their unit where they have one; fractions (sparsity, accuracy) lie in [0, 1].

use std::fmt::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic_file::AtomicFile;
use crate::error::Result;
use crate::train;

/// The name of the schema that [`Report`] is.
pub const SCHEMA: &str = "hone.report/1";

/// The report of one run of `hone prune`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The version of hone that wrote the report.
    pub hone_version: String,
    /// The files read and written.
    pub files: Files,
    /// The settings the run used, defaults filled in.
    pub options: Options,
    /// The prunable tensors, in graph order.
    pub layers: Vec<LayerRow>,
    /// Tensors that moved without losing a weight: biases and means of norms to match statistics,
    /// and what else a gradual run trains.
    pub adjusted: Vec<String>,
    /// The tensors that were not pruned.
    pub skipped: Vec<Skipped>,
    /// All prunable tensors together.
    pub total: Total,
    /// Dense and pruned model on the evaluation samples, if any were given.
    pub evaluation: Option<Evaluation>,
    /// The model files.
    pub size: Size,
    /// Dense and pruned model in ONNX Runtime on this machine, if measured.
    pub latency: Option<Latency>,
    /// The parts of the run, in order.
    pub phases: Vec<Phase>,
    /// What the run cost, measured against plain forward passes.
    pub cost: Cost,
    /// The way to the sparsity, where fine-tuning followed each of several steps
    /// (`--schedule gradual`).
    #[serde(default)]
    pub gradual: Option<Gradual>,
}

/// The files of a run, as the caller named them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Files {
    /// The dense model.
    pub model: String,
    /// The samples that the gradients come from; none for magnitude pruning.
    pub calibration: Option<String>,
    /// The samples for the evaluation.
    pub evaluation: Option<String>,
    /// The pruned model.
    pub output: String,
}

/// The settings of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// `mfac` or `magnitude`.
    pub method: String,
    /// The requested fraction of zeros in the prunable tensors.
    pub sparsity: f64,
    /// `unstructured` or N:M.
    pub pattern: String,
    /// `global` or `layer`.
    pub scope: String,
    /// `joint` or `independent`; none for magnitude.
    pub update: Option<String>,
    /// `greedy` or `staged`; none for magnitude and the independent update.
    pub selection: Option<String>,
    /// How often curvature was computed anew on the way to the sparsity; in each step of a gradual
    /// run.
    pub stages: usize,
    /// Fisher blocks are at most this wide; none for whole layers and magnitude.
    pub block_size: Option<usize>,
    /// `relative` (to the mean Fisher diagonal of the layer) or `absolute`; none for magnitude.
    pub damping_kind: Option<String>,
    /// The damping, as a fraction or as λ; none for magnitude.
    pub damping: Option<f64>,
    /// The seed of the Fisher (`--fisher`); none for magnitude.
    pub fisher: Option<String>,
    /// m, the number of gradients of each stage; none for magnitude.
    pub gradients: Option<usize>,
    /// Samples averaged into one gradient (`--fisher-batch`); none for magnitude.
    pub fisher_batch: Option<usize>,
    /// Whether layers got their old statistics back after each stage.
    pub match_statistics: bool,
    /// The seed of all randomness.
    pub seed: u64,
    /// Where the model ran: `cpu`, `cuda:0`.
    pub device: String,
    /// Worker threads.
    pub threads: usize,
    /// The memory limit that was kept, if any.
    pub memory_limit_bytes: Option<u64>,
}

/// One prunable tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerRow {
    /// The name of the initializer.
    pub name: String,
    /// Its dimensions, as the model stores them.
    pub shape: Vec<u64>,
    /// The number of its weights.
    pub weights: u64,
    /// How many of them are zero in the output.
    pub zeros: u64,
    /// zeros / weights.
    pub sparsity: f64,
    /// ½ δᵀFδ of the last stage without damping: the rise of the loss that the samples predict.
    pub predicted_loss: Option<f64>,
}

/// A tensor that was not pruned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// The name of the initializer.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// The number of its elements.
    pub weights: u64,
    /// Why it was left alone, in words.
    pub reason: String,
}

/// All prunable tensors together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// The number of prunable weights.
    pub weights: u64,
    /// How many are zero in the output.
    pub zeros: u64,
    /// zeros / weights.
    pub sparsity: f64,
    /// The sum of the layers' predicted losses, over all stages; none for magnitude.
    pub predicted_loss: Option<f64>,
    /// The rise of the same loss on the calibration samples, as measured; none where the Fisher
    /// does not belong to a loss that can be measured, and where fine-tuning moved it, too.
    pub measured_loss: Option<f64>,
}

/// Both models on the evaluation samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// How many samples.
    pub samples: u64,
    /// The dense model; none without labels.
    pub dense: Option<Quality>,
    /// The pruned model; none without labels.
    pub pruned: Option<Quality>,
    /// How far the outputs of the two models lie apart.
    pub divergence: Divergence,
}

/// A model against labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The fraction of samples whose highest output is the label.
    pub accuracy: f64,
    /// The mean cross-entropy in nats.
    pub loss: f64,
}

/// A pruned model against its dense one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// ‖pruned − dense‖ / ‖dense‖ over all outputs of all samples.
    pub relative_error: f64,
    /// The fraction of samples with the same highest output; none where that means nothing.
    pub agreement: Option<f64>,
}

/// A run in steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gradual {
    /// `geometric` (in the density) or `cubic`.
    pub ramp: String,
    /// The settings of the fine-tuning after each step, as in `hone.finetune/1`; its `steps` are
    /// those after a pruning step that is not the last.
    pub tuning: train::report::Options,
    /// Training steps after the last pruning step.
    pub final_steps: u64,
    /// The pruning steps, in order.
    pub steps: Vec<GradualStep>,
}

/// A pruning step and the fine-tuning after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradualStep {
    /// zeros / weights of the prunable tensors after it.
    pub sparsity: f64,
    /// ½ δᵀFδ of its stages, without damping; none for magnitude.
    pub predicted_loss: Option<f64>,
    /// The evaluation samples after pruning, before fine-tuning; none without samples.
    pub pruned: Option<Standing>,
    /// The same after fine-tuning.
    pub tuned: Option<Standing>,
    /// The training loss of the first and the last batch.
    pub training_loss: Option<[f64; 2]>,
    /// Seconds of pruning, its evaluation included.
    pub prune_seconds: f64,
    /// Seconds of training; both also count what a process did that was stopped.
    pub tune_seconds: f64,
}

/// A model on the evaluation samples, on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Against the labels; none without.
    pub quality: Option<Quality>,
    /// Against the dense model.
    pub divergence: Divergence,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.quality {
            Some(quality) => f.write_str(&percent(quality.accuracy)),
            None => write!(f, "{} off", percent(self.divergence.relative_error)),
        }
    }
}

/// One line for a log.
impl fmt::Display for GradualStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} zeros", percent(self.sparsity))?;
        if let Some([first, last]) = self.training_loss {
            write!(f, ", training loss {first:.4} -> {last:.4}")?;
        }
        match (&self.pruned, &self.tuned) {
            (Some(pruned), Some(tuned)) => write!(f, "; held out: {pruned} -> {tuned}"),
            _ => Ok(()),
        }
    }
}

/// The model files, external data included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// The dense model.
    pub dense_bytes: u64,
    /// The pruned model: as large, because ONNX stores zeros like any number.
    pub pruned_bytes: u64,
    /// The dense model, compressed with zstd.
    pub dense_zstd_bytes: u64,
    /// The pruned model, compressed with zstd.
    pub pruned_zstd_bytes: u64,
    /// The level of zstd.
    pub zstd_level: i32,
}

/// Both models in ONNX Runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Samples per run.
    pub batch: usize,
    /// Runs of each model, taken in turns.
    pub runs: usize,
    /// The median run of the dense model.
    pub dense_median_ms: f64,
    /// The median run of the pruned model.
    pub pruned_median_ms: f64,
}

/// A part of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `import`, `gradients`, `prune`, `write`, `evaluate` and the like.
    pub name: String,
    /// Its wall time.
    pub seconds: f64,
}

/// What the run cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The wall time of the whole run.
    pub total_seconds: f64,
    /// What ONNX Runtime takes for the forward passes alone over the samples that the gradients
    /// used; none for magnitude.
    pub forward_seconds: Option<f64>,
    /// The time of the gradients as a multiple of that.
    pub gradients_multiple: Option<f64>,
    /// The time of M-FAC and pruning as a multiple of that.
    pub pruning_multiple: Option<f64>,
    /// The total time as a multiple of that.
    pub total_multiple: Option<f64>,
    /// The most memory the process held.
    pub peak_memory_bytes: Option<u64>,
}

impl Report {
    /// Writes the JSON form to `path`, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = AtomicFile::create(path)?;
        file.append(self.to_json().as_bytes())?;
        file.commit()
    }

    /// The report as pretty-printed JSON with a line end.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("plain data becomes JSON");
        json.push('\n');
        json
    }
}

/// The report for people: plain text with aligned columns.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} -> {}", self.files.model, self.files.output)?;
        writeln!(f, "{}\n", self.options.summary())?;
        f.write_str(&self.layer_table().render())?;
        if !self.skipped.is_empty() {
            writeln!(f)?;
            f.write_str(&self.skipped_table().render())?;
        }
        if let Some(gradual) = &self.gradual {
            writeln!(f, "\n{}", gradual.summary())?;
            f.write_str(&gradual.table().render())?;
        }
        writeln!(f)?;
        f.write_str(&self.comparison_table().render())?;
        if let (Some(_), "unstructured") = (&self.latency, self.options.pattern.as_str()) {
            writeln!(
                f,
                "ONNX Runtime computes with zeros as with any number: scattered zeros make"
            )?;
            writeln!(f, "a model smaller once compressed, not faster.")?;
        }
        writeln!(f)?;
        f.write_str(&self.cost_table().render())
    }
}

impl Report {
    fn layer_table(&self) -> Table {
        let mut table =
            Table::new(&["<layer", "<shape", ">weights", ">zeros", ">sparsity", ">predicted loss"]);
        let loss = |loss: Option<f64>| loss.map_or("-".into(), |loss| format!("{loss:.3e}"));
        for layer in &self.layers {
            table.row([
                layer.name.clone(),
                shape(&layer.shape),
                layer.weights.to_string(),
                layer.zeros.to_string(),
                percent(layer.sparsity),
                loss(layer.predicted_loss),
            ]);
        }
        let total = &self.total;
        table.row([
            "total".into(),
            String::new(),
            total.weights.to_string(),
            total.zeros.to_string(),
            percent(total.sparsity),
            loss(total.predicted_loss),
        ]);
        if let Some(measured) = total.measured_loss {
            let blank = String::new;
            let label = "measured on the calibration samples".into();
            table.row([label, blank(), blank(), blank(), blank(), loss(Some(measured))]);
        }
        table
    }

    fn skipped_table(&self) -> Table {
        let mut table = Table::new(&["<not pruned", "<shape", ">weights", "<reason"]);
        for tensor in &self.skipped {
            table.row([
                tensor.name.clone(),
                shape(&tensor.shape),
                tensor.weights.to_string(),
                tensor.reason.clone(),
            ]);
        }
        table
    }

    fn comparison_table(&self) -> Table {
        let mut table = Table::new(&["<", ">dense", ">pruned", ">change"]);
        if let Some(evaluation) = &self.evaluation {
            if let (Some(dense), Some(pruned)) = (&evaluation.dense, &evaluation.pruned) {
                let points = 100.0 * (pruned.accuracy - dense.accuracy);
                table.row([
                    format!("accuracy ({} samples)", evaluation.samples),
                    percent(dense.accuracy),
                    percent(pruned.accuracy),
                    format!("{points:+.2} points"),
                ]);
                table.row([
                    "loss".into(),
                    format!("{:.4}", dense.loss),
                    format!("{:.4}", pruned.loss),
                    format!("{:+.4}", pruned.loss - dense.loss),
                ]);
            }
            let divergence = &evaluation.divergence;
            let blank = String::new;
            let error = percent(divergence.relative_error);
            table.row(["output error".into(), blank(), error, blank()]);
            if let Some(agreement) = divergence.agreement {
                table.row(["same answer".into(), blank(), percent(agreement), blank()]);
            }
        }
        let size = &self.size;
        let mut sizes = |label: String, dense: u64, pruned: u64| {
            table.row([label, bytes(dense), bytes(pruned), ratio(pruned as f64, dense as f64)]);
        };
        sizes("file".into(), size.dense_bytes, size.pruned_bytes);
        let label = format!("file, zstd -{}", size.zstd_level);
        sizes(label, size.dense_zstd_bytes, size.pruned_zstd_bytes);
        if let Some(latency) = &self.latency {
            let (dense, pruned) = (latency.dense_median_ms, latency.pruned_median_ms);
            table.row([
                format!("latency, batch {}", latency.batch),
                format!("{dense:.3} ms"),
                format!("{pruned:.3} ms"),
                ratio(pruned, dense),
            ]);
        }
        table
    }

    fn cost_table(&self) -> Table {
        let cost = &self.cost;
        let mut table = Table::new(&["<phase", ">seconds", ">x forward"]);
        let mut line = |name: &str, seconds: f64| {
            let multiple = match cost.forward_seconds {
                Some(forward) if forward > 0.0 => format!("{:.2}", seconds / forward),
                _ => "-".into(),
            };
            table.row([name.into(), format!("{seconds:.3}"), multiple]);
        };
        for phase in &self.phases {
            line(&phase.name, phase.seconds);
        }
        line("total", cost.total_seconds);
        if let Some(forward) = cost.forward_seconds {
            line("forward passes alone", forward);
        }
        if let Some(peak) = cost.peak_memory_bytes {
            table.row(["peak memory".into(), bytes(peak), String::new()]);
        }
        table
    }
}

impl Gradual {
    /// The settings in one line.
    fn summary(&self) -> String {
        let t = &self.tuning;
        let mut line = format!(
            "{} ramp, after each step {} training steps, {} after the last, of {} samples with {}, \
             learning rate {} ({})",
            self.ramp, t.steps, self.final_steps, t.batch, t.optimizer, t.learning_rate, t.schedule
        );
        if let Some(share) = t.distill_weight.filter(|share| *share > 0.0) {
            write!(line, ", {} of the loss from the dense model", percent(share))
                .expect("a string grows");
        }
        line
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "<step",
            ">sparsity",
            ">pruned",
            ">fine-tuned",
            ">training loss",
            ">pruning s",
            ">fine-tuning s",
        ]);
        let or_dash = |text: Option<String>| text.unwrap_or("-".into());
        for (number, step) in self.steps.iter().enumerate() {
            table.row([
                (number + 1).to_string(),
                percent(step.sparsity),
                or_dash(step.pruned.as_ref().map(Standing::to_string)),
                or_dash(step.tuned.as_ref().map(Standing::to_string)),
                or_dash(step.training_loss.map(|[a, b]| format!("{a:.4} -> {b:.4}"))),
                format!("{:.1}", step.prune_seconds),
                format!("{:.1}", step.tune_seconds),
            ]);
        }
        table
    }
}

impl Options {
    /// The settings in one line.
    fn summary(&self) -> String {
        let mut line = format!(
            "{} to {} {}, {} scope",
            self.method,
            percent(self.sparsity),
            self.pattern,
            self.scope
        );
        let mut part = |text: Option<String>| {
            if let Some(text) = text {
                write!(line, ", {text}").expect("a string grows");
            }
        };
        part(self.update.as_ref().map(|update| match &self.selection {
            Some(selection) => format!("{selection} selection, {update} update"),
            None => format!("{update} update"),
        }));
        part((self.stages > 1).then(|| format!("{} stages", self.stages)));
        part(self.block_size.map(|size| format!("blocks of {size}")));
        part(self.damping.map(|damping| {
            format!("{} damping {damping}", self.damping_kind.as_deref().unwrap_or("absolute"))
        }));
        part(self.gradients.map(|m| {
            format!("{m} gradients ({} Fisher)", self.fisher.as_deref().unwrap_or("unknown"))
        }));
        line
    }
}

/// Rows of text under aligned columns.
struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Headings begin with `<` or `>`, the side their column leans to.
    fn new(headings: &[&str]) -> Table {
        let right = headings.iter().map(|heading| heading.starts_with('>')).collect();
        let names = headings.iter().map(|heading| heading[1..].to_owned()).collect();
        Table { right, rows: vec![names] }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.right.len());
        self.rows.push(cells.into());
    }

    fn render(&self) -> String {
        let length = |cell: &String| cell.chars().count();
        let width = |column: usize| self.rows.iter().map(|row| length(&row[column])).max();
        let widths: Vec<usize> =
            (0..self.right.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), &right) in row.iter().zip(&widths).zip(&self.right) {
                let cell = match right {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                };
                line.push_str(if line.is_empty() { "" } else { "  " });
                line.push_str(&cell);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

/// `64x3x3x3`; a scalar has no dimensions.
fn shape(dims: &[u64]) -> String {
    if dims.is_empty() {
        return "scalar".into();
    }
    dims.iter().map(u64::to_string).collect::<Vec<_>>().join("x")
}

/// `0.42 x`, or `-` where there is nothing to compare with.
fn ratio(value: f64, base: f64) -> String {
    if base > 0.0 { format!("{:.2} x", value / base) } else { "-".into() }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let layer = |name: &str, zeros: u64| LayerRow {
            name: name.into(),
            shape: vec![8, 3, 3, 3],
            weights: 216,
            zeros,
            sparsity: zeros as f64 / 216.0,
            predicted_loss: Some(1.5e-3),
        };
        Report {
            schema: SCHEMA.into(),
            hone_version: "0.1.0".into(),
            files: Files {
                model: "a.onnx".into(),
                calibration: Some("c.npz".into()),
                evaluation: None,
                output: "b.onnx".into(),
            },
            options: Options {
                method: "mfac".into(),
                sparsity: 0.5,
                pattern: "unstructured".into(),
                scope: "global".into(),
                update: Some("joint".into()),
                selection: Some("greedy".into()),
                stages: 4,
                block_size: Some(128),
                damping_kind: Some("relative".into()),
                damping: Some(0.1),
                fisher: Some("outputs".into()),
                gradients: Some(512),
                ..Options::default()
            },
            layers: vec![layer("first", 100), layer("a longer name é", 116)],
            adjusted: vec!["b".into()],
            skipped: vec![Skipped {
                name: "bias".into(),
                shape: vec![],
                weights: 1,
                reason: "biases are not pruned".into(),
            }],
            total: Total {
                weights: 432,
                zeros: 216,
                sparsity: 0.5,
                predicted_loss: Some(3e-3),
                measured_loss: Some(2.5e-3),
            },
            evaluation: Some(Evaluation {
                samples: 2000,
                dense: Some(Quality { accuracy: 0.92, loss: 0.25 }),
                pruned: Some(Quality { accuracy: 0.915, loss: 0.26 }),
                divergence: Divergence { relative_error: 0.01, agreement: Some(0.98) },
            }),
            size: Size {
                dense_bytes: 2048,
                pruned_bytes: 2048,
                dense_zstd_bytes: 1900,
                pruned_zstd_bytes: 950,
                zstd_level: 19,
            },
            latency: Some(Latency {
                batch: 1,
                runs: 50,
                dense_median_ms: 1.0,
                pruned_median_ms: 1.01,
            }),
            phases: vec![Phase { name: "gradients".into(), seconds: 2.0 }],
            cost: Cost {
                total_seconds: 3.0,
                forward_seconds: Some(0.5),
                gradients_multiple: Some(4.0),
                peak_memory_bytes: Some(3 << 20),
                ..Cost::default()
            },
            gradual: None,
        }
    }

    #[test]
    fn json_round_trips_and_begins_with_its_schema() {
        let report = report();
        let json = report.to_json();
        assert!(json.starts_with("{\n  \"schema\": \"hone.report/1\""), "{json}");
        assert!(json.contains("\"pruning_multiple\": null"), "what does not apply is null");
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    #[test]
    fn columns_line_up_and_say_the_numbers() {
        let text = report().to_string();
        let line = |start: &str| {
            text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start}: {text}"))
        };
        let end = |line: &str, word: &str| {
            let at = line.find(word).unwrap_or_else(|| panic!("{word}: {line}"));
            line[..at].chars().count() + word.chars().count()
        };
        let heading = line("layer");
        assert_eq!(end(heading, "zeros"), end(line("first"), "100"));
        assert_eq!(end(heading, "zeros"), end(line("a longer name é"), "116"));
        assert_eq!(end(heading, "predicted loss"), end(line("total"), "3.000e-3"));
        assert!(line("accuracy").contains("-0.50 points"));
        assert!(line("file, zstd").contains("0.50 x"));
        assert!(line("gradients").ends_with("4.00"));
        assert!(line("peak memory").contains("3.0 MiB"));
        assert!(line("mfac to 50.00 %").contains("greedy selection, joint update, 4 stages"));
        assert!(text.contains("scattered zeros"));
        assert!(text.lines().all(|l| l == l.trim_end()));
    }

    #[test]
    fn a_report_without_optional_parts_renders() {
        let mut report = report();
        report.evaluation = None;
        report.latency = None;
        report.skipped.clear();
        report.cost = Cost::default();
        report.total.measured_loss = None;
        report.layers.iter_mut().for_each(|layer| layer.predicted_loss = None);
        let text = report.to_string();
        assert!(!text.contains("accuracy") && !text.contains("scattered"), "{text}");
        assert!(text.contains("file, zstd"));
    }
}
