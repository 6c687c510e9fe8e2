//! What the user can type after `hone mam`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hone::Result;
use hone::cancel::Cancel;
use hone::mam::{LoadOptions, Mam, RowData, read_rows};

use crate::arguments::Running;

/// Marginalization models: score, condition, impute and sample rows with missing values.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone mam inspect examples/mam/digits.onnx\n\n\
    A model is an ONNX file that keeps docs/mam-contract.md, or two files, one for each half: θ, \
    which gives the log-marginal of any subset of sites in one pass, and φ, which gives the \
    distribution of any site given others.\n\
    Rows are .npy, .npz (array x, perhaps bool arrays known and given), .csv or, for models with \
    an alphabet, .txt; -1, an empty field or ? is a missing value. Answers are JSON lines, \
    log-probabilities in nats; null is an impossible value or an infinite bound.")]
pub struct MamArguments {
    #[command(subcommand)]
    pub command: MamCommand,
}

#[derive(Debug, Subcommand)]
pub enum MamCommand {
    Inspect(Inspect),
    Score(Score),
    Condition(Condition),
    Sample(Sample),
    Impute(Impute),
    Check(Check),
    Adapt(Adapt),
    Train(Train),
    Prune(Prune),
}

/// The model and how it is run.
#[derive(Debug, Args)]
pub struct Files {
    /// The model: one file, or the two files of its halves.
    #[arg(value_name = "MODEL", num_args = 1..=2, required = true)]
    pub model: Vec<PathBuf>,
    /// Most rows in one run of a net. Answers do not depend on it.
    #[arg(long, default_value_t = hone::mam::DEFAULT_BATCH as u32, help_heading = "Running")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65536), value_name = "ROWS")]
    pub batch: u32,
    #[command(flatten)]
    pub running: Running,
}

/// Rows to ask about.
#[derive(Debug, Args)]
pub struct Data {
    /// Rows: .npy, .npz, .csv or .txt.
    #[arg(long, value_name = "ROWS")]
    pub data: PathBuf,
    #[command(flatten)]
    pub reading: ReadingRows,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Rows")]
pub struct ReadingRows {
    /// Numbers become value 1 from this one on and 0 below, as to binarise images.
    #[arg(long, value_name = "NUMBER")]
    pub threshold: Option<f64>,
    /// Read at most this many rows.
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
}

/// What the model is: its contract, its halves, log Z, and what is odd about it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone mam inspect examples/mam/digits.onnx")]
pub struct Inspect {
    #[command(flatten)]
    pub files: Files,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Log-likelihoods of rows, or log-marginals of their known sites.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone mam score examples/mam/digits.onnx \
    --data examples/mam/test.npy --limit 3\n\n\
    theta is one pass and not normalised unless the model is exact: `theta` is no likelihood, \
    `theta_normalised` is one.\nphi averages chains over orders. bracket computes both, and \
    bounds the log of the mean over all orders from both sides.")]
pub struct Score {
    #[command(flatten)]
    pub files: Files,
    #[command(flatten)]
    pub data: Data,
    /// theta, phi or bracket; bracket if the model has both halves, else the one it has.
    #[arg(long, value_parser = ["theta", "phi", "bracket"])]
    pub method: Option<String>,
    /// Orders of φ's chains: how many random ones, or `forward`.
    #[arg(long, value_name = "COUNT|forward")]
    pub orders: Option<String>,
    /// Estimate log Σ p_θ from this many draws and subtract it from θ's scores of complete rows.
    #[arg(long, value_name = "DRAWS", value_parser = clap::value_parser!(u32).range(2..))]
    pub correct: Option<u32>,
    /// Add Σ log p(x_i) − log p(x): high where values contradict each other.
    #[arg(long)]
    pub conflict: bool,
    /// Add −log p(x_i | all others) of each known site.
    #[arg(long)]
    pub surprise: bool,
    /// Seed of the orders and draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the answers here instead of to standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Distributions of missing sites given the known ones, or log p(asked sites | given sites).
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone mam condition examples/mam/digits.onnx \
    --data examples/mam/occluded.npz --limit 1\n\n\
    If the .npz has a bool array `given`, the answer is log p(known, not given | given), as a \
    ratio of θ's marginals and as\nchains of φ, with the gap between them; otherwise the \
    distribution of every missing site.")]
pub struct Condition {
    #[command(flatten)]
    pub files: Files,
    #[command(flatten)]
    pub data: Data,
    /// Which half distributions come from: phi, one pass for all sites, or theta.
    #[arg(long, value_parser = ["phi", "theta"])]
    pub source: Option<String>,
    /// Orders of φ's chains: how many random ones, or `forward`.
    #[arg(long, value_name = "COUNT|forward")]
    pub orders: Option<String>,
    /// Seed of the orders.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the answers here instead of to standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How values are drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = "Drawing")]
pub struct Drawing {
    /// In which order sites are filled: random, forward, or numbers of all sites with commas.
    #[arg(long, default_value = "random", value_name = "random|forward|SITES")]
    pub order: String,
    /// Below 1 for likelier values, above 1 for more varied ones.
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f64,
    /// Draw from the likeliest so many values of a site only.
    #[arg(long, value_name = "VALUES")]
    pub top_k: Option<usize>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print the rows as text: pictures of two-valued models with a shape, texts of an alphabet.
    #[arg(long, conflicts_with = "output")]
    pub show: bool,
    /// Also write the rows as a grid of pictures, of models with a shape of two sides. Behind
    /// evidence stand its completions: what was given is grey, what was drawn blue to orange.
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Where to write: .npy for the values alone, .csv, .txt, or JSON lines under any other name.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Draw rows from the model, one site after the other.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone mam sample examples/mam/digits.onnx --count 4 --show")]
pub struct Sample {
    #[command(flatten)]
    pub files: Files,
    /// How many; with --evidence, for each of its rows.
    #[arg(short = 'n', long, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub count: u64,
    /// Rows whose known values every draw keeps.
    #[arg(long, value_name = "ROWS")]
    pub evidence: Option<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingRows,
    #[command(flatten)]
    pub drawing: Drawing,
}

/// Fill in missing values by block-Gibbs sweeps; known values are never touched.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone mam impute examples/mam/digits.onnx \
    --data examples/mam/occluded.npz --limit 2 --show")]
pub struct Impute {
    #[command(flatten)]
    pub files: Files,
    #[command(flatten)]
    pub data: Data,
    /// Completions of each row.
    #[arg(short = 'n', long, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub count: u64,
    /// How often each missing site is redrawn after it was first filled.
    #[arg(long, default_value_t = 4)]
    pub sweeps: u32,
    /// Sites that are erased and redrawn together.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub block: u32,
    #[command(flatten)]
    pub drawing: Drawing,
}

/// How far the model can be trusted: do θ and φ agree, and does θ sum to one?
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone mam check examples/mam/digits.onnx \
    --data examples/mam/test.npy --limit 64")]
pub struct Check {
    #[command(flatten)]
    pub files: Files,
    /// Rows to check on; 256 samples of the model by default.
    #[arg(long, value_name = "ROWS")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingRows,
    /// Steps (a subset and a site more) per row.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// Orders of φ's chains.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub orders: u32,
    /// Draws for the estimate of log Σ p_θ.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..))]
    pub draws: u32,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Turn a net with other inputs and outputs into a file that keeps the contract.
#[derive(Debug, Args)]
#[command(
    after_help = "Example, a net of 28 x 28 pixels -1 and +1, 0 for missing, with a mask and \
    a step:\n  hone mam adapt net.onnx --length 784 --shape 28,28 --values=-1,1 \\\n      \
    --missing 0 --mask-input mask --step-input t --log-p logp --logits logits \\\n      \
    --output model.onnx"
)]
pub struct Adapt {
    /// The net.
    pub net: PathBuf,
    /// Where to write the model.
    #[arg(short, long, value_name = "MODEL")]
    pub output: PathBuf,
    /// The number of sites.
    #[arg(long)]
    pub length: usize,
    /// What the net is fed for value 0, 1, ... of a site.
    #[arg(long, value_name = "NUMBERS", allow_hyphen_values = true, value_delimiter = ',')]
    pub values: Vec<f64>,
    /// What it is fed at a missing site.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub missing: f64,
    /// The input for the values; needed only if it is unclear.
    #[arg(long, value_name = "NAME")]
    pub values_input: Option<String>,
    /// An input that says which sites are known.
    #[arg(long, value_name = "NAME")]
    pub mask_input: Option<String>,
    /// That input says which sites are missing instead.
    #[arg(long, requires = "mask_input")]
    pub mask_is_missing: bool,
    /// An input for the number of known sites.
    #[arg(long, value_name = "NAME")]
    pub step_input: Option<String>,
    /// The output that is log p, up to a constant.
    #[arg(long, value_name = "NAME")]
    pub log_p: Option<String>,
    /// The output that is the logits of every site.
    #[arg(long, value_name = "NAME")]
    pub logits: Option<String>,
    /// The logits have their values on axis 1 instead of on the last.
    #[arg(long, requires = "logits")]
    pub logits_values_first: bool,
    /// How sites are laid out for display, such as 28,28.
    #[arg(long, value_name = "SIDES", value_delimiter = ',')]
    pub shape: Vec<usize>,
}

/// Train a model by maximum likelihood, φ on the conditionals of every subset, then θ on what φ
/// says of whole rows; or both together from an energy.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  hone mam train --data examples/mam/train.npy \
    --output digits.onnx \\\n      \
    --conditional-steps 200 --marginal-steps 200 --seed 1\n  \
    hone mam train --energy ising:4x4,coupling=0.2,field=0.2 --output ising.onnx \\\n      \
    --steps 2000 --batch 32\n\n\
    With --energy a model learns log f(x) of complete rows, up to log Z, which it learns as well: \
    of an Ising model on a\ntorus, or of an ONNX graph from x (int64 [B, L], values from 0) to \
    log f (float [B]).\n\
    The same options, data and seed give the same file for any number of threads. With \
    --checkpoint a run that is stopped\ngoes on where it was.")]
pub struct Train {
    /// Rows to learn from: .npy, .npz or .csv; missing values are skipped.
    #[arg(long, value_name = "ROWS", required_unless_present = "energy")]
    pub data: Option<PathBuf>,
    /// Learn from an energy instead: ising:ROWSxCOLUMNS,coupling=K,field=H or an ONNX graph.
    #[arg(long, value_name = "ENERGY", conflicts_with_all = [
        "data", "held_out", "threshold", "limit", "conditional_steps", "marginal_steps",
        "regression", "noise"])]
    pub energy: Option<String>,
    /// Where to write the model.
    #[arg(short, long, value_name = "MODEL")]
    pub output: PathBuf,
    /// Rows that are only looked at; by default every tenth row of the data.
    #[arg(long, value_name = "ROWS")]
    pub held_out: Option<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingRows,
    /// How many values each site has: one number for all, or one per site with commas; by default
    /// what the data hold.
    #[arg(long, value_name = "COUNT", value_delimiter = ',', help_heading = "Rows")]
    pub values: Vec<usize>,
    /// How sites are laid out for display, such as 28,28; by default as the array.
    #[arg(long, value_name = "SIDES", value_delimiter = ',', help_heading = "Rows")]
    pub shape: Vec<usize>,
    /// What either net is: mlp (residual perceptrons), transformer (over the sites), or conv (3x3
    /// convolutions of rows with two sides: see --shape).
    #[arg(long, default_value = "mlp", value_parser = ["mlp", "transformer", "conv"])]
    #[arg(help_heading = "Network")]
    pub network: String,
    /// Units of a hidden layer, per site for a transformer, channels for conv; by default 256, 64
    /// or 32.
    #[arg(long, value_name = "UNITS", help_heading = "Network")]
    pub hidden: Option<usize>,
    /// Hidden layers; by default 3, for conv 4.
    #[arg(long, value_name = "COUNT", help_heading = "Network")]
    pub layers: Option<usize>,
    /// Attention heads of a transformer, which divide its units; by default 4.
    #[arg(long, value_name = "COUNT", help_heading = "Network")]
    pub heads: Option<usize>,
    /// What conv finds beyond an edge: zero, or torus (the opposite edge, and no site is told from
    /// others); by default torus for an Ising energy, else zero.
    #[arg(long, value_parser = ["zero", "torus"], help_heading = "Network")]
    pub padding: Option<String>,
    /// Steps of stage 1, in which φ learns.
    #[arg(long, default_value_t = 4000, value_name = "STEPS", help_heading = "Training")]
    pub conditional_steps: u64,
    /// Steps of stage 2, in which θ learns.
    #[arg(long, default_value_t = 4000, value_name = "STEPS", help_heading = "Training")]
    pub marginal_steps: u64,
    /// Steps of a training by an energy.
    #[arg(long, default_value_t = 4000, value_name = "STEPS", help_heading = "Training")]
    #[arg(requires = "energy")]
    pub steps: u64,
    /// What a training by an energy minimises: balance (of all parts of whole trajectories), or
    /// reinforce (as published).
    #[arg(long, default_value = "balance", value_parser = ["balance", "reinforce"])]
    #[arg(help_heading = "Training", requires = "energy")]
    pub objective: String,
    /// Rows per step: of data up to 64, or a multiple of 64.
    #[arg(long, default_value_t = 128, value_name = "ROWS", help_heading = "Training")]
    pub batch: usize,
    /// What takes the steps; from an energy, adam has learnt faster in short runs.
    #[arg(long, default_value = "adam", value_parser = ["adam", "mfac"])]
    #[arg(help_heading = "Training")]
    pub optimizer: String,
    /// Gradients in the window of M-FAC.
    #[arg(long, default_value_t = 32, value_name = "GRADIENTS", help_heading = "Training")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: u32,
    /// Damping of M-FAC, as a multiple of the mean diagonal of the Fisher matrix in Adam's metric.
    #[arg(long, default_value_t = 100.0, value_name = "MULTIPLE", help_heading = "Training")]
    pub damping: f64,
    /// The learning rate at its peak, from which it falls to 0 along a cosine; 1e-3 by default for
    /// adam, 5e-3 for mfac, 0.05 for mfac with --energy.
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// Decoupled weight decay; 0.01 by default, and 0 with --energy.
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Gradients longer than this are scaled down to it.
    #[arg(long, default_value_t = 1.0, value_name = "NORM", help_heading = "Training")]
    pub clip_norm: f64,
    /// The result is the average of the weights with this decay per step.
    #[arg(long, default_value_t = 0.999, value_name = "DECAY", help_heading = "Training")]
    pub average: f64,
    /// How θ learns: trajectory (sums along whole rows), or one-step (as published).
    #[arg(long, default_value = "trajectory", value_parser = ["trajectory", "one-step"])]
    #[arg(help_heading = "Training")]
    pub regression: String,
    /// Up to this share of the values of a row of data is replaced by others before θ learns what φ
    /// says of it, so that θ follows φ on rows unlike the data too.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", help_heading = "Training")]
    pub noise: f64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    pub seed: u64,
    /// Keep the state here, and go on from it if it is there.
    #[arg(long, value_name = "FILE", help_heading = "Training")]
    pub checkpoint: Option<PathBuf>,
    /// Draw the loss and what the reports measure, by step, into this file.
    #[arg(long, value_name = "FILE.svg", help_heading = "Training")]
    pub curve: Option<PathBuf>,
    /// Steps between reports and checkpoints.
    #[arg(long, default_value_t = 250, value_name = "STEPS", help_heading = "Training")]
    pub report_every: u64,
    /// Worker threads; all processors by default. The result does not depend on it.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Running")]
    pub threads: Option<u16>,
}

/// Prune a model by the losses of its halves, and set its answers beside those of the dense one.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hone mam prune examples/mam/digits.onnx \
    --data examples/mam/train.npy --sparsity 0.5 --sparsity 0.9 \\\n      \
    --evaluation examples/mam/test.npy --output pruned.onnx\n\n\
    With several sparsities each goes into the name of its file: pruned-0.5.onnx. Of a model in \
    two files,\ngive --output twice. The metadata are kept, log Z and bits per dimension are \
    those of the pruned model.")]
pub struct Prune {
    #[command(flatten)]
    pub files: Files,
    /// Rows like those the model was trained on: .npy, .npz, .csv or .txt.
    #[arg(long, value_name = "ROWS")]
    pub data: PathBuf,
    /// The fraction of each half's prunable weights to remove, such as 0.8. May be repeated.
    #[arg(long, value_name = "FRACTION", required = true)]
    pub sparsity: Vec<f64>,
    /// Where to write the pruned model.
    #[arg(short, long, value_name = "MODEL", required = true)]
    pub output: Vec<PathBuf>,
    /// Held-out rows to compare the dense and the pruned model on.
    #[arg(long, value_name = "ROWS")]
    pub evaluation: Option<PathBuf>,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingRows,
    /// Orders of φ's chains in the comparison.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub orders: u32,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// mfac, or magnitude as a baseline.
    #[arg(long, default_value = "mfac", value_parser = ["mfac", "magnitude"])]
    #[arg(help_heading = "Which weights")]
    pub method: String,
    /// One threshold for all layers of a half (global), or the same sparsity in each (layer).
    #[arg(long, default_value = "global", value_parser = ["global", "layer"])]
    #[arg(help_heading = "Which weights")]
    pub scope: String,
    /// Tensors to leave alone; * stands for any characters. May be repeated.
    #[arg(long, value_name = "NAME", help_heading = "Which weights")]
    pub skip: Vec<String>,
    /// What is differentiated at random masks: outputs (random cotangents), sampled (φ's
    /// cross-entropy with values of its own), or training (both halves' losses).
    #[arg(long, default_value = "outputs", value_parser = ["outputs", "sampled", "training"])]
    #[arg(help_heading = "M-FAC")]
    pub fisher: String,
    /// How often gradients are taken anew on the way to the sparsity.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    #[arg(help_heading = "M-FAC")]
    pub stages: u32,
    /// Gradients per stage (m).
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(value_name = "M", help_heading = "M-FAC")]
    pub gradients: u32,
    /// Weights per Fisher block.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(value_name = "WEIGHTS", help_heading = "M-FAC")]
    pub block: u32,
    /// Damping λ as a fraction of the layer's mean Fisher diagonal.
    #[arg(long, default_value_t = 0.01, value_name = "FRACTION", help_heading = "M-FAC")]
    pub damping: f64,
}

impl Files {
    /// Loads the model and says what is odd about it.
    pub fn load(&self, cancel: &Cancel) -> Result<Mam> {
        let mam = Mam::load(&self.model, self.options(), cancel)?;
        mam.warnings().iter().for_each(|w| log::warn!("{w}"));
        Ok(mam)
    }

    /// How the model is run.
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            device: self.running.device,
            threads: self.running.threads(),
            batch: self.batch as usize,
        }
    }
}

impl Data {
    pub fn read(&self, mam: &Mam) -> Result<RowData> {
        self.reading.read(&self.data, mam)
    }
}

impl ReadingRows {
    pub fn read(&self, path: &std::path::Path, mam: &Mam) -> Result<RowData> {
        read_rows(path, mam.contract(), self.threshold, self.limit)
    }
}
