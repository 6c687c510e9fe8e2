//! Training marginalization models on rows of the host, as a job.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;

use hone_core::ErrorKind;
use hone_core::atomic_file::AtomicFile;
use hone_core::engine::Outcome;
use hone_core::mam::train::{
    Curve, Energy, EnergyFigures, EnergyGraph, EnergyOptions, Figures, Ising, Method, Objective,
    Regression, TrainOptions, TrainReport, Trained, TrainedByEnergy, train, train_by_energy,
};
use hone_core::mam::{Contract, Network, Rows, Size};
use hone_core::onnx::Model;
use serde_json::json;

use crate::arguments::{given, optional_path, or, slice, threads_or_all};
use crate::engine::hone_engine;
use crate::error::{guard, hone_error};
use crate::job::{hone_job, hone_observer, submit};
use crate::model::hone_model;
use crate::options::{self, Extensible};
use crate::prune::choose;

/// How θ learns from φ.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_regression {
    /// From sums along whole rows.
    Trajectory = 0,
    /// From the difference of two neighbours, as published.
    OneStep = 1,
}

/// What training from an energy minimises.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_energy_objective {
    /// The balance of all parts of whole trajectories.
    Balance = 0,
    /// REINFORCE through θ, and the consistency of single steps, as published.
    Reinforce = 1,
}

/// What either net of a marginalization model is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_network {
    /// Residual perceptrons over the whole row.
    Mlp = 0,
    /// A transformer over the sites.
    Transformer = 1,
    /// 3×3 convolutions of rows with two sides: see `shape`.
    Conv = 2,
}

/// What a convolution finds beyond an edge.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_padding {
    /// TORUS for an Ising model, else ZERO.
    Auto = 0,
    /// Nothing.
    Zero = 1,
    /// The opposite edge; no site is told from others.
    Torus = 2,
}

/// What takes the steps of a training of marginalization models.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hone_mam_optimizer {
    /// Adam with β₁ = 0.9 and β₂ = 0.99.
    Adam = 0,
    /// M-FAC with momentum 0.9, damped in the metric of Adam. From an energy Adam has learnt
    /// several times faster.
    Mfac = 1,
}

/// The Ising model on a torus, log f(x) = coupling·Σ_edges s_i·s_j + field·Σ_i s_i with s = 2x − 1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_ising {
    /// sizeof(hone_ising)
    pub size: usize,
    /// Sites of a column.
    pub rows: usize,
    /// Sites of a row; site (r, c) is the (r·columns + c)th.
    pub columns: usize,
    /// K of each edge, up to 1000 in absolute value.
    pub coupling: f64,
    /// h of each site, likewise.
    pub field: f64,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_ising {}

/// How to train a marginalization model. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_mam_train_options {
    /// sizeof(hone_mam_train_options)
    pub size: usize,
    /// `held_out_count` rows that are only looked at; NULL means every tenth of the others.
    pub held_out: *const i64,
    /// How many.
    pub held_out_count: usize,
    /// How many values sites have: `values_count` numbers, one for all sites or one for each; NULL
    /// means one more than the largest value there is.
    pub values: *const usize,
    /// How many.
    pub values_count: usize,
    /// How sites are laid out for display, such as 28, 28: `shape_count` sides; NULL for nothing.
    pub shape: *const usize,
    /// How many.
    pub shape_count: usize,
    /// η at its peak, from which it falls to 0 along a cosine; 0 means 0.001, and 0.005 for M-FAC.
    pub learning_rate: f64,
    /// Decoupled weight decay; 0 means 0.01, or none from an energy; a negative number none.
    pub weight_decay: f64,
    /// Gradients longer than this are scaled down to it; 0 means 1.
    pub clip_norm: f64,
    /// The result is an average of the weights that decays by this factor per step; 0 means 0.999,
    /// a negative number the latest weights.
    pub average: f64,
    /// Steps of stage 1, in which φ learns the conditionals of every subset; 0 means 4000.
    pub conditional_steps: u64,
    /// Steps of stage 2, in which θ learns what φ says of whole rows; 0 means 4000.
    pub marginal_steps: u64,
    /// Steps between two reports, which advance the progress, and checkpoints; 0 means 250.
    pub report_every: u64,
    /// Keeps the state here, also when the job is cancelled, and goes on from it if it is there, to
    /// the same bits; NULL for none.
    pub checkpoint: *const c_char,
    /// Where the model is written as soon as it is made; NULL means nowhere: see `hone_job_model`.
    pub output: *const c_char,
    /// Of everything random.
    pub seed: u64,
    /// Units of a hidden layer of either net, of a transformer per site, of a convolutional net
    /// channels; 0 means 256, 64 or 32.
    pub hidden: u32,
    /// Hidden layers; 0 means 3, and 4 for convolutions.
    pub layers: u32,
    /// Rows per step, up to 64 or a multiple of 64; 0 means 128.
    pub batch: u32,
    /// A `hone_regression`.
    pub regression: u32,
    /// Threads; 0 means the engine's number. The result does not depend on it.
    pub threads: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Who hears of the progress.
    pub observer: hone_observer,
    /// To learn log f(x) of complete rows, up to log Z, instead of rows: of an Ising model. NULL
    /// for none.
    pub ising: *const hone_ising,
    /// The same of a graph from x (int64 `[B, L]`, values from 0) to log f (float `[B]`), see
    /// docs/mam-contract.md; `values` says how many values sites have unless its metadata does. It
    /// may be freed at once. NULL for none.
    pub energy: *const hone_model,
    /// Steps of training from an energy; 0 means 4000.
    pub energy_steps: u64,
    /// A `hone_energy_objective`.
    pub objective: u32,
    /// A `hone_network`.
    pub network: u32,
    /// Attention heads of a transformer, which divide `hidden`; 0 means 4.
    pub heads: u32,
    /// A `hone_padding`, of convolutions.
    pub padding: u32,
    /// A `hone_mam_optimizer`.
    pub optimizer: u32,
    /// m, the gradients in the window of M-FAC, up to 4096; 0 means 32.
    pub window: u32,
    /// Damping of M-FAC, as a multiple of the mean diagonal of the Fisher matrix in Adam's metric;
    /// 0 means 100.
    pub damping: f64,
    /// A picture (SVG) of the loss and of what the reports measure, by step, is written here when
    /// the training is done; NULL for none.
    pub curve: *const c_char,
    /// Up to this share of the values of a row is replaced by others before θ learns what φ says
    /// of it, so that it follows φ on rows unlike these too; 0 means 0.1, a negative number none.
    pub noise: f64,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_mam_train_options {}

/// Every so many rows one is held out, unless rows to hold out are given.
const HELD_OUT_EVERY: usize = 10;

/// Attention heads unless told otherwise.
const USUAL_HEADS: usize = 4;

/// More gradients in a window only cost memory.
const MOST_WINDOW: usize = 4096;

/// Submits the training of a marginalization model by maximum likelihood on `count` rows of
/// `length` int64 values, which are copied; −1 is missing, and skipped. The job makes a model (see
/// `hone_scorer_new`) and a report (schema "hone.mam.train/1"). `options` may be NULL. It runs on
/// the processor, whatever the engine's device.
///
/// With `ising` or `energy` there are no rows: `rows` is NULL, `count` and `length` are 0, and the
/// report has the schema "hone.mam.energy/1".
///
/// Errors: INVALID_ARGUMENT for options and numbers of rows that cannot be; a row that does not fit
/// is an error of the job, INVALID_DATA, and so is an energy that does not, INVALID_MODEL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_mam_train(
    engine: Option<&hone_engine>,
    rows: *const i64,
    count: usize,
    length: usize,
    options: *const hone_mam_train_options,
    out: Option<&mut MaybeUninit<*mut hone_job>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (engine, out) = (given(engine, "engine")?, given(out, "out")?);
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        options::check_reserved(o.reserved)?;
        // SAFETY: the header says what the pointers in the struct are.
        if let Some(source) = unsafe { source(&o) }? {
            if !rows.is_null() || count != 0 || length != 0 {
                let message = "an energy is learnt without rows: `rows` is NULL, and `count` and \
                               `length` are 0";
                return Err(hone_error::argument(message));
            }
            // SAFETY: as above.
            return unsafe { train_from(source, engine, &o, out) };
        }
        if o.energy_steps != 0 || o.objective != 0 {
            let message = "`energy_steps` and `objective` need `ising` or `energy`";
            return Err(hone_error::argument(message));
        }
        // SAFETY: the header asks for so many rows.
        let rows = unsafe { rows_of(rows, count, length, "rows") }?;
        // SAFETY: the header asks for so many numbers, or NULL.
        let values = unsafe { slice(o.values, o.values_count, "values") }?;
        // SAFETY: the header asks for so many numbers, or NULL.
        let shape = unsafe { slice(o.shape, o.shape_count, "shape") }?;
        let contract = Contract::of_rows(&rows, values, shape)?;
        let (rows, held_out) = match o.held_out.is_null() {
            true => rows.split(HELD_OUT_EVERY)?,
            // SAFETY: the header asks for so many rows.
            false => (rows, unsafe { rows_of(o.held_out, o.held_out_count, length, "held_out") }?),
        };
        let threads = if o.threads == 0 { engine.0.threads } else { threads_or_all(o.threads) };
        let how = how(&o, threads, TrainOptions::default().weight_decay)?;
        how.check()?;
        // SAFETY: the header asks for a string or NULL.
        let checkpoint = unsafe { optional_path(o.checkpoint, "checkpoint") }?;
        // SAFETY: the header asks for a string or NULL.
        let output = unsafe { optional_path(o.output, "output") }?;
        // SAFETY: the header asks for a string or NULL.
        let curve = unsafe { optional_path(o.curve, "curve") }?;
        submit(&engine.0, o.observer, out, move |progress, cancel| {
            let mut history: Vec<TrainReport> = Vec::new();
            progress.begin("conditionals", how.conditional_steps);
            let mut report = |now: &TrainReport| {
                progress.advance(now.step);
                if now.stage == 1 && now.step == now.steps {
                    progress.begin("marginals", how.marginal_steps);
                }
                history.push(*now);
            };
            let checkpoint = checkpoint.as_deref();
            let made = train(&rows, &held_out, &contract, &how, checkpoint, &mut report, cancel)?;
            let model = made.model()?;
            if let Some(path) = output {
                model.save(path)?;
            }
            draw(curve.as_deref(), &history)?;
            let report = document(&rows, &held_out, &made, &history);
            Ok(Outcome { report: format!("{report:#}\n"), model: Some(model.into()) })
        })
    })
}

/// An energy before it is looked at.
enum Source {
    Ising(Ising),
    Graph(Arc<Model>),
}

/// What is learnt instead of rows, if anything.
///
/// # Safety
///
/// The pointers in the struct must be what the header says.
unsafe fn source(o: &hone_mam_train_options) -> Result<Option<Source>, hone_error> {
    // SAFETY: the header asks for a live model or NULL.
    match (o.ising.is_null(), unsafe { o.energy.as_ref() }) {
        (true, None) => Ok(None),
        (true, Some(model)) => Ok(Some(Source::Graph(model.model.clone()))),
        (false, None) => {
            // SAFETY: the header asks for a struct of its size.
            let i = unsafe { options::read(o.ising, "ising") }?;
            if o.values_count != 0 {
                let message = "`values`: the sites of an Ising model have 2 values";
                return Err(hone_error::argument(message));
            }
            let (rows, columns, coupling, field) = (i.rows, i.columns, i.coupling, i.field);
            let text = format!("{rows}x{columns},coupling={coupling},field={field}");
            let ising = text.parse().map_err(|e: hone_core::Error| e.context("`ising`"))?;
            Ok(Some(Source::Ising(ising)))
        }
        (false, Some(_)) => Err(hone_error::argument("`ising` and `energy` are two energies")),
    }
}

/// [`hone_mam_train`] from an energy.
///
/// # Safety
///
/// The pointers in the struct must be what the header says.
unsafe fn train_from(
    source: Source,
    engine: &hone_engine,
    o: &hone_mam_train_options,
    out: &mut MaybeUninit<*mut hone_job>,
) -> Result<(), hone_error> {
    if !o.held_out.is_null() {
        return Err(hone_error::argument("`held_out`: an energy is learnt without rows"));
    }
    if (o.conditional_steps, o.marginal_steps, o.regression) != (0, 0, 0) || o.noise != 0.0 {
        let message = "`conditional_steps`, `marginal_steps`, `regression` and `noise` are of \
                       learning from rows";
        return Err(hone_error::argument(message));
    }
    // SAFETY: the header asks for so many numbers, or NULL.
    let values = unsafe { slice(o.values, o.values_count, "values") }?.to_vec();
    // SAFETY: the header asks for so many numbers, or NULL.
    let shape = unsafe { slice(o.shape, o.shape_count, "shape") }?.to_vec();
    let threads = if o.threads == 0 { engine.0.threads } else { threads_or_all(o.threads) };
    let how = how(o, threads, 0.0)?;
    let objectives = [Objective::Balance, Objective::Reinforce];
    let learning = EnergyOptions {
        objective: choose(o.objective, "hone_energy_objective", &objectives)?,
        steps: or(o.energy_steps, 4000),
    };
    // SAFETY: the header asks for a string or NULL.
    let checkpoint = unsafe { optional_path(o.checkpoint, "checkpoint") }?;
    // SAFETY: the header asks for a string or NULL.
    let output = unsafe { optional_path(o.output, "output") }?;
    // SAFETY: the header asks for a string or NULL.
    let curve = unsafe { optional_path(o.curve, "curve") }?;
    submit(&engine.0, o.observer, out, move |progress, cancel| {
        let (name, energy) = match source {
            Source::Ising(ising) => ("ising".into(), Energy::Ising(ising)),
            Source::Graph(model) => {
                let graph = EnergyGraph::from_model(&model, &values, cancel)?;
                (model.name().to_string(), Energy::Graph(Box::new(graph)))
            }
        };
        let mut contract = energy.contract();
        if !shape.is_empty() {
            if shape.iter().try_fold(1, |n: usize, &s| n.checked_mul(s)) != Some(contract.length) {
                let message = format!("`shape` does not have {} sites", contract.length);
                return Err(hone_core::Error::new(ErrorKind::Usage, message));
            }
            contract.shape = Some(shape);
        }
        contract.notes.insert("energy".into(), name);
        let mut history: Vec<TrainReport> = Vec::new();
        progress.begin("energy", learning.steps);
        let mut report = |now: &TrainReport| {
            progress.advance(now.step);
            history.push(*now);
        };
        let checkpoint = checkpoint.as_deref();
        let made =
            train_by_energy(&energy, &contract, &learning, &how, checkpoint, &mut report, cancel)?;
        let model = made.model()?;
        if let Some(path) = output {
            model.save(path)?;
        }
        draw(curve.as_deref(), &history)?;
        let report = energy_document(&made, &history);
        Ok(Outcome { report: format!("{report:#}\n"), model: Some(model.into()) })
    })
}

fn how(
    o: &hone_mam_train_options,
    threads: usize,
    usual_decay: f64,
) -> Result<TrainOptions, hone_error> {
    let usual = TrainOptions::default();
    // A negative number says that there is to be none.
    let unless = |value: f64, usual: f64| if value < 0.0 { 0.0 } else { or(value, usual) };
    let network = network(o)?;
    let suits = network.usual_size();
    let size = Size {
        hidden: or(o.hidden as usize, suits.hidden),
        layers: or(o.layers as usize, suits.layers),
    };
    network.check_size(size)?;
    let (method, usual_rate) = method(o)?;
    let kinds = [Regression::Trajectory, Regression::OneStep];
    Ok(TrainOptions {
        network,
        size,
        conditional_steps: or(o.conditional_steps, usual.conditional_steps),
        marginal_steps: or(o.marginal_steps, usual.marginal_steps),
        batch: or(o.batch as usize, usual.batch),
        method,
        learning_rate: or(o.learning_rate, usual_rate),
        weight_decay: unless(o.weight_decay, usual_decay),
        clip_norm: or(o.clip_norm, usual.clip_norm),
        average: unless(o.average, usual.average),
        regression: choose(o.regression, "hone_regression", &kinds)?,
        noise: unless(o.noise, usual.noise),
        seed: o.seed,
        threads,
        report_every: or(o.report_every, usual.report_every),
    })
}

fn network(o: &hone_mam_train_options) -> Result<Network, hone_error> {
    let torus = match o.padding {
        0 => !o.ising.is_null(),
        1 => false,
        2 => true,
        other => return Err(hone_error::argument(format!("{other} is no hone_padding"))),
    };
    let heads = or(o.heads as usize, USUAL_HEADS);
    let networks = [Network::Mlp, Network::Transformer { heads }, Network::Conv { torus }];
    let network = choose(o.network, "hone_network", &networks)?;
    if o.heads != 0 && !matches!(network, Network::Transformer { .. }) {
        return Err(hone_error::argument("`heads`: a transformer alone has any"));
    }
    if o.padding != 0 && !matches!(network, Network::Conv { .. }) {
        return Err(hone_error::argument("`padding`: convolutions alone have any"));
    }
    Ok(network)
}

/// What takes the steps, and its usual rate.
fn method(o: &hone_mam_train_options) -> Result<(Method, f64), hone_error> {
    let window = or(o.window as usize, 32);
    if window > MOST_WINDOW {
        let message = format!("`window` is {window}; it is at most {MOST_WINDOW}");
        return Err(hone_error::argument(message));
    }
    let damping = positive(o.damping, "damping")?.unwrap_or(100.0);
    let methods = [(Method::Adam, 1e-3), (Method::Mfac { window, damping }, 5e-3)];
    let (method, rate) = choose(o.optimizer, "hone_mam_optimizer", &methods)?;
    if method == Method::Adam && (o.window != 0 || o.damping != 0.0) {
        return Err(hone_error::argument("`window` and `damping` belong to M-FAC"));
    }
    Ok((method, rate))
}

/// A number above 0, or none for 0.
fn positive(value: f64, what: &str) -> Result<Option<f64>, hone_error> {
    if !(value >= 0.0 && value.is_finite()) {
        return Err(hone_error::argument(format!("`{what}` is {value}, not a positive number")));
    }
    Ok((value > 0.0).then_some(value))
}

/// The picture of a training.
fn draw(path: Option<&Path>, history: &[TrainReport]) -> hone_core::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut curve = Curve::default();
    history.iter().for_each(|report| curve.add(report));
    let mut file = AtomicFile::create(path)?;
    file.append(curve.to_svg().as_bytes())?;
    file.commit()
}

/// # Safety
///
/// `rows` must point to `count` rows of `length` values.
unsafe fn rows_of(
    rows: *const i64,
    count: usize,
    length: usize,
    what: &str,
) -> Result<Rows, hone_error> {
    let cells = count.checked_mul(length).filter(|&cells| cells > 0);
    let cells = cells.ok_or_else(|| {
        hone_error::argument(format!("`{what}`: {count} rows of {length} sites cannot be learnt"))
    })?;
    // SAFETY: as the caller vouches.
    let cells = unsafe { slice(rows, cells, what) }?;
    Ok(Rows::new(length, cells.to_vec())?)
}

fn energy_document(made: &TrainedByEnergy, history: &[TrainReport]) -> serde_json::Value {
    let figures = |f: &EnergyFigures| {
        json!({
            "log_z": f.log_z,
            "exact_log_z": f.exact,
            "estimated_log_z": f.estimate,
            "free_energy": f.free_energy,
            "free_energy_error": f.error,
            "kl": f.gap,
            "effective_draws": f.effective,
            "draws": f.draws,
            "bits_per_site": f.bits,
        })
    };
    let history = history.iter().map(|r| {
        let figures = match &r.figures {
            Figures::Energy(f) => figures(f),
            Figures::Bits(_) | Figures::ThetaError(_) => serde_json::Value::Null,
        };
        json!({ "step": r.step, "loss": r.loss, "figures": figures, "seconds": r.seconds })
    });
    json!({
        "schema": "hone.mam.energy/1",
        "length": made.contract.length,
        "vocab": made.contract.vocab,
        "cardinalities": made.contract.cardinalities,
        "figures": figures(&made.figures),
        "history": history.collect::<Vec<_>>(),
    })
}

fn document(
    rows: &Rows,
    held_out: &Rows,
    made: &Trained,
    history: &[TrainReport],
) -> serde_json::Value {
    let history = history.iter().map(|r| {
        json!({
            "stage": r.stage,
            "step": r.step,
            "loss": r.loss,
            "held_out": r.figures.value(),
            "seconds": r.seconds,
        })
    });
    json!({
        "schema": "hone.mam.train/1",
        "rows": rows.len(),
        "held_out_rows": held_out.len(),
        "length": made.contract.length,
        "vocab": made.contract.vocab,
        "cardinalities": made.contract.cardinalities,
        "bits_per_site": made.bits,
        "theta_minus_phi": { "rms": made.theta_error.rms, "mean": made.theta_error.mean },
        "log_z": made.contract.log_z,
        "history": history.collect::<Vec<_>>(),
    })
}
