//! What the user can type, before it is turned into options of the library.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use hone::Result;
use hone::calibration::{ReadOptions, parse_scale};
use hone::gradient::seed::Fisher;
use hone::prune::{Pattern, Ramp};
use hone::runtime::Device;

use crate::mam::arguments::MamArguments;

/// Compresses ONNX models with second-order information (M-FAC).
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 2 usage, 3 files, 4 malformed model, 5 unsupported model, \
                  6 data, 7 ONNX Runtime or device, 8 memory limit, 9 numerics, 130 interrupted."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// More messages on standard error; twice for ONNX Runtime's own.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, and it lives as long as the process")]
pub enum Command {
    Prune(Prune),
    Finetune(Finetune),
    Eval(Eval),
    Inspect(Inspect),
    Gradient(Gradient),
    Mam(MamArguments),
}

/// How to read samples.
#[derive(Debug, Args)]
#[command(next_help_heading = "Samples")]
pub struct Reading {
    /// Factor for integer samples fed to a float input, such as 1/255.
    #[arg(long, value_name = "FACTOR")]
    pub scale: Option<String>,
    /// Mean to subtract after scaling: one number, or one per channel separated by commas.
    #[arg(long, value_name = "NUMBERS", allow_hyphen_values = true)]
    pub mean: Option<String>,
    /// Standard deviation to divide by after subtracting the mean.
    #[arg(long, value_name = "NUMBERS")]
    pub std: Option<String>,
    /// Read at most this many samples of each file.
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
}

/// How to run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub struct Running {
    /// Where graphs run: cpu, cuda (an error without a GPU) or auto (a warning and the CPU).
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// Worker threads; all processors by default. Results do not depend on it.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Prune a model: choose weights by M-FAC, move the others to make up for them, check the result.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone prune examples/fashion/model.onnx \
    --calibration examples/fashion/calibration.npz \\\n      \
    --sparsity 0.9 --evaluation examples/fashion/test.npz --output pruned.onnx\n\n\
    In steps, with fine-tuning after each; the same command goes on after a stop:\n  \
    hone prune examples/fashion/model.onnx \
    --calibration examples/fashion/calibration.npz \\\n      \
    --sparsity 0.98 --schedule gradual --steps 6 --checkpoint run.state --output pruned.onnx\n\n\
    Samples are .npy (models with one input), .npz (arrays named as the model's inputs, and \
    `labels`), or a folder of\nimages with one sub-folder per class.")]
pub struct Prune {
    /// The model: an ordinary inference model in ONNX.
    pub model: PathBuf,
    /// Samples to take gradients of, a few hundred or more; labels are not needed by default.
    #[arg(long, value_name = "SAMPLES")]
    pub calibration: PathBuf,
    /// The fraction of prunable weights to remove, such as 0.9; given by an N:M pattern.
    #[arg(long, value_name = "FRACTION")]
    pub sparsity: Option<f64>,
    /// Where to write the pruned model.
    #[arg(short, long, value_name = "MODEL")]
    pub output: PathBuf,
    /// Samples to compare the dense and the pruned model on, with labels for accuracy.
    #[arg(long, value_name = "SAMPLES")]
    pub evaluation: Option<PathBuf>,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Which weights go together: unstructured, or N:M (at most N of M consecutive inputs stay).
    #[arg(long, default_value = "unstructured", help_heading = "Which weights")]
    pub pattern: Pattern,
    /// One threshold for all layers (global), or the same sparsity in each (layer).
    #[arg(long, default_value = "global", value_parser = ["global", "layer"])]
    #[arg(help_heading = "Which weights")]
    pub scope: String,
    /// Tensors to leave alone; * stands for any characters. May be repeated.
    #[arg(long, value_name = "NAME", help_heading = "Which weights")]
    pub skip: Vec<String>,
    /// mfac, or magnitude as a baseline.
    #[arg(long, default_value = "mfac", value_parser = ["mfac", "magnitude"])]
    #[arg(help_heading = "Which weights")]
    pub method: String,

    /// How the others make up for removed weights: joint (exact), or independent (as published).
    #[arg(long, default_value = "joint", value_parser = ["joint", "independent"])]
    #[arg(help_heading = "M-FAC")]
    pub update: String,
    /// How weights are ordered: greedy, or staged:N to re-score N times on one set of gradients.
    #[arg(long, default_value = "greedy", value_name = "greedy|staged:N", help_heading = "M-FAC")]
    pub selection: String,
    /// Weights per Fisher block, or `layer` for whole layers.
    #[arg(long, default_value = "128", value_name = "WEIGHTS|layer", help_heading = "M-FAC")]
    pub block: String,
    /// Damping λ as a fraction of the layer's mean Fisher diagonal.
    #[arg(long, default_value_t = 0.01, value_name = "FRACTION", help_heading = "M-FAC")]
    pub damping: f64,
    /// Damping λ itself, in units of a squared gradient, instead of the fraction.
    #[arg(long, value_name = "LAMBDA", conflicts_with = "damping", help_heading = "M-FAC")]
    pub damping_absolute: Option<f64>,
    /// How often gradients are taken anew on the way to the sparsity: 8 times by default, 2 times
    /// in each step of a gradual run.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "M-FAC")]
    pub stages: Option<u32>,
    /// Gradients per stage (m).
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(value_name = "M", help_heading = "M-FAC")]
    pub gradients: u32,
    /// What is differentiated: outputs (random cotangents, no labels), gaussian, labels, sampled,
    /// mse, or scalar.
    #[arg(long, default_value = "outputs", help_heading = "M-FAC")]
    pub fisher: Fisher,
    /// Samples averaged into one gradient.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    #[arg(value_name = "SAMPLES", help_heading = "M-FAC")]
    pub fisher_batch: u32,
    /// Outputs to differentiate; all float ones by default. May be repeated.
    #[arg(long = "outputs", value_name = "NAME", help_heading = "M-FAC")]
    pub outputs: Vec<String>,

    /// Rescale and shift each output of the pruned layers to its old mean and variance after each
    /// stage, through weights and biases: on, off, or auto (on for the joint update).
    #[arg(long, default_value = "auto", value_parser = ["on", "off", "auto"])]
    #[arg(help_heading = "M-FAC")]
    pub match_statistics: String,

    #[command(flatten)]
    pub gradual: GradualArguments,

    #[command(flatten)]
    pub reading: Reading,
    #[command(flatten)]
    pub running: Running,
    /// What gradients and Fisher blocks may take in memory, such as 512MiB or 4GiB.
    #[arg(long, default_value = "4GiB", value_name = "SIZE", help_heading = "Running")]
    pub memory_limit: String,
}

/// Pruning in steps; all of it but the schedule is for `--schedule gradual` only.
#[derive(Debug, Args)]
#[command(next_help_heading = "Gradual pruning")]
pub struct GradualArguments {
    /// one-shot, or gradual: in steps, with fine-tuning on the calibration samples after each.
    #[arg(long, default_value = "one-shot", value_parser = ["one-shot", "gradual"])]
    pub schedule: String,
    /// Pruning steps, each followed by fine-tuning [default: 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub steps: Option<u32>,
    /// How sparsity rises: geometric in the density, or cubic (first fast, then slow) [default:
    /// geometric]
    #[arg(long)]
    pub ramp: Option<Ramp>,
    /// How often each sample is seen after each step but the last [default: 3]
    #[arg(long, value_name = "NUMBER", conflicts_with = "tune_steps")]
    pub tune_epochs: Option<f64>,
    /// The number of training steps after each pruning step but the last, instead of epochs.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub tune_steps: Option<u64>,
    /// How often each sample is seen after the last step; by default 8 times as often as after
    /// another.
    #[arg(long, value_name = "NUMBER", conflicts_with = "final_steps")]
    pub final_epochs: Option<f64>,
    /// The number of training steps after the last pruning step, instead of epochs.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub final_steps: Option<u64>,
    /// Samples per training step [default: 64]
    #[arg(long, value_name = "SAMPLES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub batch: Option<u32>,
    /// mfac, adam or sgd [default: mfac]
    #[arg(long, value_parser = ["mfac", "adam", "sgd"])]
    pub optimizer: Option<String>,
    /// The learning rate at its peak, from which it falls to 0 along a cosine after each step; by
    /// default 0.004 for mfac, 0.001 for adam and sgd.
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// What is minimised: cross-entropy (for class labels), mse (for targets), or auto [default:
    /// auto]
    #[arg(long, value_parser = ["auto", "cross-entropy", "mse"])]
    pub loss: Option<String>,
    /// The share of the dense model's outputs in the loss, from 0 to 1; by default a half, and all
    /// where the samples have no labels.
    #[arg(long, value_name = "FRACTION")]
    pub distill_weight: Option<f64>,
    /// Keeps the state of the run here, and goes on from it when it is there; removed at the end.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Training steps between two checkpoints [default: 200]; the end of each pruning and each
    /// fine-tuning writes one, and Ctrl-C, too.
    #[arg(long, value_name = "STEPS", requires = "checkpoint")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,
}

/// Train a model further, such as a pruned one: its zeros stay, BatchNorm statistics are frozen.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone finetune pruned.onnx \
    --data examples/fashion/calibration.npz \\\n      \
    --distill examples/fashion/model.onnx --epochs 10 \\\n      \
    --evaluation examples/fashion/test.npz --output tuned.onnx\n\n\
    Samples need `labels` (classes) or `targets` (numbers), unless the model learns from another \
    one alone\n(--distill DENSE --distill-weight 1). The output differs from the model in the \
    trained tensors only.")]
pub struct Finetune {
    /// The model: an ordinary inference model in ONNX.
    pub model: PathBuf,
    /// The samples to learn, with labels or targets.
    #[arg(long, value_name = "SAMPLES")]
    pub data: PathBuf,
    /// Where to write the fine-tuned model.
    #[arg(short, long, value_name = "MODEL")]
    pub output: PathBuf,
    /// Samples to judge the model on while it learns and at the end, with labels or targets.
    #[arg(long, value_name = "SAMPLES")]
    pub evaluation: Option<PathBuf>,
    /// Steps between two evaluations; a tenth of the run by default.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub evaluate_every: Option<u64>,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Seed of the order of the samples.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// How often each sample is seen.
    #[arg(long, default_value_t = 5.0, value_name = "NUMBER", help_heading = "How long")]
    pub epochs: f64,
    /// The number of steps, instead of epochs.
    #[arg(long, value_name = "STEPS", conflicts_with = "epochs", help_heading = "How long")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Samples per step.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    #[arg(value_name = "SAMPLES", help_heading = "How long")]
    pub batch: u32,
    /// Keeps the state of the run here, and goes on from it when it is there; removed at the end.
    #[arg(long, value_name = "FILE", help_heading = "How long")]
    pub checkpoint: Option<PathBuf>,
    /// Steps between two checkpoints; Ctrl-C writes one as well.
    #[arg(long, default_value_t = 200, value_name = "STEPS", help_heading = "How long")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: u64,

    /// mfac, adam or sgd.
    #[arg(long, default_value = "mfac", value_parser = ["mfac", "adam", "sgd"])]
    #[arg(help_heading = "Optimizer")]
    pub optimizer: String,
    /// The learning rate at its peak; by default 0.004 for mfac (1 with the damping metric
    /// identity), 0.001 for adam and sgd.
    #[arg(long, value_name = "RATE", help_heading = "Optimizer")]
    pub learning_rate: Option<f64>,
    /// How it goes on: constant, linear or cosine (to 0 at the end), or stairs:EVERY:FACTOR.
    #[arg(long, default_value = "cosine", help_heading = "Optimizer")]
    pub schedule: String,
    /// Steps over which it first rises to its peak.
    #[arg(long, default_value_t = 0, value_name = "STEPS", help_heading = "Optimizer")]
    pub warmup: u64,
    /// Momentum, from 0 to below 1; for Adam that of the first moment.
    #[arg(long, default_value_t = 0.9, value_name = "BETA", help_heading = "Optimizer")]
    pub momentum: f64,
    /// Weight decay.
    #[arg(long, default_value_t = 0.0, value_name = "RATE", help_heading = "Optimizer")]
    pub weight_decay: f64,
    /// Decay beside the step (decoupled) or as part of the gradient (coupled).
    #[arg(long, default_value = "decoupled", value_parser = ["decoupled", "coupled"])]
    #[arg(help_heading = "Optimizer")]
    pub decay: String,
    /// Scales gradients down to this norm where they are longer.
    #[arg(long, value_name = "NORM", help_heading = "Optimizer")]
    pub clip: Option<f64>,
    /// Writes an average of the weights that decays by this factor per step, such as 0.999.
    #[arg(long, value_name = "FACTOR", help_heading = "Optimizer")]
    pub average: Option<f64>,
    /// M-FAC: gradients in the window (m).
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    #[arg(value_name = "M", help_heading = "Optimizer")]
    pub window: u32,
    /// M-FAC: what the damping is a multiple of: diagonal (the root of the second moment of each
    /// weight's gradient, as in Adam) or identity (as published) [default: diagonal]
    #[arg(long, value_parser = ["diagonal", "identity"], help_heading = "Optimizer")]
    pub damping_metric: Option<String>,
    /// M-FAC: damping λ as a multiple of the window's mean Fisher diagonal [default: 100; 1 with
    /// the metric identity]. The direction is λF⁻¹g, so that the learning rate is of the size of
    /// that of Adam, or of SGD.
    #[arg(long, value_name = "MULTIPLE", help_heading = "Optimizer")]
    pub damping: Option<f64>,
    /// M-FAC: damping λ itself, and the direction F⁻¹g, as published; the metric is identity unless
    /// it is given.
    #[arg(long, value_name = "LAMBDA", conflicts_with = "damping", help_heading = "Optimizer")]
    pub damping_absolute: Option<f64>,
    /// M-FAC: how the window is stored.
    #[arg(long, default_value = "f32", value_parser = ["f32", "f16", "bf16"])]
    #[arg(help_heading = "Optimizer")]
    pub window_storage: String,

    /// What is minimised: cross-entropy (for class labels), mse (for targets), or auto.
    #[arg(long, default_value = "auto", value_parser = ["auto", "cross-entropy", "mse"])]
    #[arg(help_heading = "What is learned")]
    pub loss: String,
    /// The output to train; needed where there are several float ones.
    #[arg(long, value_name = "NAME", help_heading = "What is learned")]
    pub output_name: Option<String>,
    /// Learn also from the outputs of this model, such as the dense one.
    #[arg(long, value_name = "MODEL", help_heading = "What is learned")]
    pub distill: Option<PathBuf>,
    /// Its share in the loss, from 0 to 1; with 1 no labels are needed.
    #[arg(long, default_value_t = 0.5, value_name = "FRACTION", requires = "distill")]
    #[arg(help_heading = "What is learned")]
    pub distill_weight: f64,
    /// What the logits of both are divided by before they are compared.
    #[arg(long, default_value_t = 2.0, value_name = "T", requires = "distill")]
    #[arg(help_heading = "What is learned")]
    pub temperature: f64,
    /// What is trained: all (weights, biases, norms, embeddings), weights (the prunable ones), or
    /// the name of a tensor; * stands for any characters. Names may be repeated.
    #[arg(long, value_name = "all|weights|NAME", help_heading = "What is learned")]
    pub train: Vec<String>,
    /// Let zeros of prunable weights move, too.
    #[arg(long, help_heading = "What is learned")]
    pub free_zeros: bool,

    #[command(flatten)]
    pub reading: Reading,
    /// Worker threads; all processors by default. Results do not depend on it.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Running")]
    pub threads: Option<u16>,
}

/// Accuracy and cross-entropy of a model on labelled samples.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone eval examples/fashion/model.onnx \
    --data examples/fashion/test.npz")]
pub struct Eval {
    /// The model.
    pub model: PathBuf,
    /// Samples with labels.
    #[arg(long, value_name = "SAMPLES")]
    pub data: PathBuf,
    /// The output to judge; the first float one by default.
    #[arg(long = "output-name", value_name = "NAME")]
    pub output: Option<String>,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reading: Reading,
    #[command(flatten)]
    pub running: Running,
}

/// What a model consists of, what can be pruned, and which operators have gradient rules.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone inspect examples/fashion/model.onnx")]
pub struct Inspect {
    /// The model.
    pub model: PathBuf,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Write the backward graph of a model: a vector-Jacobian product as an ONNX model.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone gradient examples/fashion/model.onnx \\\n      \
    --samples examples/fashion/calibration.npz --output backward.onnx\n\n\
    The graph takes the model's inputs and a cotangent for each differentiated output, and returns \
    the outputs and the gradients of the chosen values. The metadata `hone.seeds` and \
    `hone.gradients` name them.")]
pub struct Gradient {
    /// The model.
    pub model: PathBuf,
    /// Samples whose first rows fix the shapes.
    #[arg(long, value_name = "SAMPLES")]
    pub samples: PathBuf,
    /// Where to write the backward graph.
    #[arg(short, long, value_name = "MODEL")]
    pub output: PathBuf,
    /// Values whose gradients are wanted: inputs, initializers or inner values; all prunable
    /// tensors by default. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub wrt: Vec<String>,
    /// Outputs to differentiate; all float ones by default. May be repeated.
    #[arg(long = "of", value_name = "NAME")]
    pub of: Vec<String>,
    /// Samples per run.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    #[command(flatten)]
    pub reading: Reading,
}

impl Reading {
    /// The same as options of the library.
    pub fn options(&self) -> Result<ReadOptions> {
        let numbers = |text: &Option<String>| text.as_deref().map(parse_scale).transpose();
        Ok(ReadOptions {
            scale: numbers(&self.scale)?,
            mean: numbers(&self.mean)?,
            std: numbers(&self.std)?,
            limit: self.limit,
            ..ReadOptions::default()
        })
    }
}

impl Running {
    /// The number of worker threads.
    pub fn threads(&self) -> usize {
        threads(self.threads)
    }
}

impl Finetune {
    /// The number of worker threads.
    pub fn threads(&self) -> usize {
        threads(self.threads)
    }
}

/// As many as asked for, else as there are processors.
fn threads(asked: Option<u16>) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
    asked.map_or_else(all, usize::from)
}
