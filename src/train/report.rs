//! What a fine-tuning run did: one document for programs (JSON) and its rendering for people.
//!
//! The JSON form is a stable schema, named in its first field: within `hone.finetune/1` fields are
//! only added, never renamed, retyped or removed. A field that does not apply is `null`. Names end
//! in their unit where they have one; fractions lie in [0, 1].

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic_file::AtomicFile;
use crate::error::Result;

/// The name of the schema that [`Report`] is.
pub const SCHEMA: &str = "hone.finetune/1";

/// The report of one run of `hone finetune`.
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
    /// The trained tensors.
    pub tensors: Vec<TensorRow>,
    /// The model before and after on the evaluation samples, if any were given.
    pub evaluation: Option<Evaluation>,
    /// The run as it went, some steps at a time.
    pub history: Vec<Entry>,
    /// Seconds that this process spent on steps; those before a resumption are not counted.
    pub training_seconds: f64,
    /// Of these, seconds for losses and gradients, the forward and backward passes.
    #[serde(default)]
    pub gradient_seconds: f64,
    /// Steps that this process took.
    pub training_steps: u64,
    /// Seconds in all, reading, evaluation and writing included.
    pub total_seconds: f64,
    /// The most memory the process held.
    pub peak_memory_bytes: u64,
}

/// The files of a run, as the caller named them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Files {
    /// The model to fine-tune.
    pub model: String,
    /// The samples to learn.
    pub data: String,
    /// The teacher, if any.
    pub teacher: Option<String>,
    /// The samples for the evaluation.
    pub evaluation: Option<String>,
    /// The fine-tuned model.
    pub output: String,
}

/// The settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// `mfac`, `adam` or `sgd`.
    pub optimizer: String,
    /// m, the gradients in the window of M-FAC.
    pub window: Option<usize>,
    /// `relative` (to the mean Fisher diagonal) or `absolute`; none without M-FAC.
    pub damping_kind: Option<String>,
    /// The damping, as a fraction or as λ; none without M-FAC.
    pub damping: Option<f64>,
    /// `identity` or `diagonal`, what the damping is a multiple of; none without M-FAC.
    #[serde(default)]
    pub damping_metric: Option<String>,
    /// The learning rate at its peak.
    pub learning_rate: f64,
    /// `constant`, `linear`, `cosine` or `stairs:EVERY:FACTOR`.
    pub schedule: String,
    /// Steps over which the learning rate rises.
    pub warmup_steps: u64,
    /// β of the momentum, β₁ of Adam.
    pub momentum: f64,
    /// The weight decay.
    pub weight_decay: f64,
    /// `coupled` or `decoupled`.
    pub decay: String,
    /// `cross-entropy` or `mse`.
    pub loss: String,
    /// The temperature of the distillation.
    pub temperature: Option<f64>,
    /// The teacher's share in the loss.
    pub distill_weight: Option<f64>,
    /// Samples per step.
    pub batch: usize,
    /// Steps of the whole run.
    pub steps: u64,
    /// The gradient norm that is not exceeded.
    pub clip_norm: Option<f64>,
    /// The decay of the average of the weights.
    pub average: Option<f64>,
    /// Whether zeros of prunable weights stayed zero.
    pub keep_zeros: bool,
    /// The seed of the order of the samples.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
}

/// One trained tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorRow {
    /// The name of the initializer.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// The number of its elements.
    pub weights: u64,
    /// How many are zero in the output.
    pub zeros: u64,
    /// ‖w′ − w‖ / ‖w‖; none where w is zero.
    pub relative_change: Option<f64>,
}

/// The model on the evaluation samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// How many samples.
    pub samples: u64,
    /// Before the first step.
    pub before: Quality,
    /// As written.
    pub after: Quality,
    /// The teacher, if any.
    pub teacher: Option<Quality>,
}

/// A model against labels or targets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The share of right answers; none for targets.
    pub accuracy: Option<f64>,
    /// The mean cross-entropy in nats, or the mean squared error.
    pub loss: f64,
}

/// Some steps of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The last of them, counted from 1.
    pub step: u64,
    /// The mean of their losses, each of its batch before the step.
    pub loss: f64,
    /// The learning rate of the last.
    pub learning_rate: f64,
    /// The gradient norm of the last, before clipping.
    pub gradient_norm: f64,
    /// The model on the evaluation samples after the last, where it was evaluated.
    pub evaluation: Option<Quality>,
}

impl Report {
    /// The report as JSON.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("plain data has a JSON form");
        text + "\n"
    }

    /// Writes the JSON form to `path`, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = AtomicFile::create(path)?;
        file.append(self.to_json().as_bytes())?;
        file.commit()
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.accuracy {
            Some(accuracy) => {
                write!(f, "accuracy {:.2} %, loss {:.4}", 100.0 * accuracy, self.loss)
            }
            None => write!(f, "loss {:.5}", self.loss),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { step, loss, learning_rate, .. } = self;
        write!(f, "step {step}: loss {loss:.4}, learning rate {learning_rate:.3e}")?;
        match self.evaluation {
            Some(quality) => write!(f, "; held out: {quality}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let o = &self.options;
        writeln!(
            f,
            "{} with {}, {} steps of {} samples, learning rate {} ({})",
            self.files.model, o.optimizer, o.steps, o.batch, o.learning_rate, o.schedule
        )?;
        let sum = |of: fn(&TensorRow) -> u64| self.tensors.iter().map(of).sum::<u64>();
        let (weights, zeros) = (sum(|t| t.weights), sum(|t| t.zeros));
        let tensors = self.tensors.len();
        writeln!(f, "trained {tensors} tensors of {weights} weights, {zeros} of them zero")?;
        if let (Some(first), Some(last)) = (self.history.first(), self.history.last()) {
            writeln!(f, "training loss {:.4} -> {:.4}", first.loss, last.loss)?;
        }
        if let Some(e) = &self.evaluation {
            writeln!(f, "on {} held-out samples:", e.samples)?;
            writeln!(f, "  before  {}", e.before)?;
            writeln!(f, "  after   {}", e.after)?;
            if let Some(teacher) = e.teacher {
                writeln!(f, "  teacher {teacher}")?;
            }
        }
        let (seconds, steps) = (self.training_seconds, self.training_steps);
        let each = 1e3 * seconds / steps.max(1) as f64;
        let multiple = seconds / self.gradient_seconds.max(f64::MIN_POSITIVE);
        write!(
            f,
            "{steps} steps in {seconds:.1} s, {each:.1} ms each, {multiple:.2} times the forward \
             and backward passes"
        )
    }
}
