//! Training: by maximum likelihood in two stages here, by an energy in [`train_by_energy`].
//!
//! Maximum likelihood: first φ on any-order conditionals, then θ on what φ says of
//! whole trajectories.
//!
//! Stage 1, for a row x, an order σ and t ~ U{0 … L−1}:
//! −1/(L−t) Σ_{d ≥ t} log p_φ(x_σ(d) | x_σ(<t)), in nats per site.
//!
//! Stage 2, φ fixed: along a trajectory (x, σ) the sums c_d = Σ_{e<d} log p_φ(x_σ(e) | x_σ(<e)) are
//! direct targets, (f_θ(x_σ(<d)) − c_d)² with c_0 = 0; or, as published, one step at a time,
//! (f_θ(x_σ(<d)) + log p_φ(x_σ(d) | x_σ(<d)) − f_θ(x_σ(≤d)))² and f_θ(∅)². A third
//! of the trajectories are data, a third begin as data and are drawn from φ from somewhere on, a
//! third are drawn from φ; the drawn ones never repeat. θ's trunk starts as φ's. These two were
//! measured on the digits: θ − φ on held-out images fell from 1.47 to 1.29 nats rms. Rows that
//! are neither data nor draws are less likely to φ, and θ has to meet such: some values of the data
//! are replaced ([`TrainOptions::noise`]), which takes θ − φ on images held out of the training
//! set from 1.72 to 1.28 and, with another seed, from 1.57 to 1.06.
//!
//! Missing values of the data are neither known nor asked for. Everything random depends on the
//! seed and the number of the step alone, so a run that is stopped and resumed ends in the same
//! bits.

mod checkpoint;
mod conditionals;
mod curve;
mod draw;
mod energies;
mod energy;
#[cfg(test)]
mod gradients;
mod marginals;
mod objective;

use std::path::Path;
use std::time::Instant;

use crate::cancel::Cancel;
use crate::error::{Context, ErrorKind, Result, bail};
use crate::mam::contract::{Contract, Kind};
use crate::mam::half::{DEFAULT_BATCH, LoadOptions};
use crate::mam::model::Mam;
use crate::mam::networks::{self, Network, Size};
use crate::mam::rows::{Rows, known_sites};
use crate::mam::score::{Method as Scoring, ScoreOptions};
use crate::mam::{Orders, Residuals};
use crate::mfac::optimizer::{Decay, Method as Optimization, Optimizer, Schedule, Settings};
use crate::mfac::{Sliding, Storage};
use crate::onnx::{Graph, Model};
use crate::random::Stream;
use crate::runtime::Device;
use crate::tensor::Tensor;
use crate::train::{Parameters, StepGraph, TrainOptions as StepOptions, Trainer};
use checkpoint::Checkpoint;

pub use curve::Curve;
pub use energies::{EnergyOptions, train_by_energy};
pub use energy::{Energy, EnergyGraph, Ising};
pub use objective::Objective;

/// Rows of one run of a training graph; larger batches are several of these.
const SHARD: usize = 64;

/// Held-out rows that are looked at for a report, and at the end.
const REPORT_ROWS: usize = 128;
const FINAL_ROWS: usize = 512;

/// Orders of φ's chains at the end, as published.
const FINAL_ORDERS: usize = 5;

/// What takes the steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Adam with β₁ = 0.9, β₂ = 0.99.
    Adam,
    /// M-FAC preconditioned SGD with momentum 0.9, damped in the metric of Adam (β₂ = 0.99).
    Mfac {
        /// m, the gradients in the window.
        window: usize,
        /// The damping λ as a multiple of the mean diagonal of their Fisher matrix in that metric.
        damping: f64,
    },
}

impl Method {
    /// A peak of the learning rate that suits it, by maximum likelihood or `by_energy`. M-FAC's was
    /// measured on the torus of 4×4, where one of two runs diverged at 0.2.
    pub fn usual_learning_rate(self, by_energy: bool) -> f64 {
        match (self, by_energy) {
            (Method::Adam, _) => 1e-3,
            (Method::Mfac { .. }, false) => 5e-3,
            (Method::Mfac { .. }, true) => 0.05,
        }
    }
}

/// How θ learns from φ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regression {
    /// On the sums along whole trajectories.
    Trajectory,
    /// On the difference of two neighbours, as published.
    OneStep,
}

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// What both nets are.
    pub network: Network,
    /// Of both nets.
    pub size: Size,
    /// Steps of stage 1.
    pub conditional_steps: u64,
    /// Steps of stage 2.
    pub marginal_steps: u64,
    /// Rows per step: up to 64, or a multiple of 64.
    pub batch: usize,
    /// What takes the steps.
    pub method: Method,
    /// η at its peak; it falls to 0 along a cosine.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients longer than this are scaled down to it.
    pub clip_norm: f64,
    /// β of the average of weights that is the result.
    pub average: f64,
    /// How θ learns.
    pub regression: Regression,
    /// Up to this share of the values of a row of data is replaced by others in stage 2, below 1.
    pub noise: f64,
    /// Of everything random.
    pub seed: u64,
    /// Worker threads; the result does not depend on it.
    pub threads: usize,
    /// Steps between reports and checkpoints.
    pub report_every: u64,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            network: Network::Mlp,
            size: Network::Mlp.usual_size(),
            conditional_steps: 4000,
            marginal_steps: 4000,
            batch: 128,
            method: Method::Adam,
            learning_rate: 1e-3,
            weight_decay: 0.01,
            clip_norm: 1.0,
            average: 0.999,
            regression: Regression::Trajectory,
            noise: 0.1,
            seed: 0,
            threads: 1,
            report_every: 250,
        }
    }
}

impl TrainOptions {
    /// An error of kind `Usage` for options out of their range in maximum likelihood.
    pub fn check(&self) -> Result<()> {
        let o = self;
        o.check_shared()?;
        if o.batch > SHARD && !o.batch.is_multiple_of(SHARD) {
            bail!(Usage, "a batch has up to {SHARD} rows or a multiple of that, not {}", o.batch);
        }
        if o.conditional_steps == 0 || o.marginal_steps == 0 {
            bail!(Usage, "steps must be at least 1");
        }
        if !(0.0..1.0).contains(&o.noise) {
            bail!(Usage, "the noise is a share of the values, from 0 to below 1, not {}", o.noise);
        }
        Ok(())
    }

    /// The same for what every training looks at.
    fn check_shared(&self) -> Result<()> {
        self.network.check_size(self.size)?;
        if self.batch == 0 || self.report_every == 0 {
            bail!(Usage, "a batch has at least 1 row, and reports are at least 1 step apart");
        }
        Ok(())
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
pub struct TrainReport {
    /// 1 for conditionals, 2 for marginals, 3 for both together from an energy.
    pub stage: usize,
    /// Steps taken of the stage.
    pub step: u64,
    /// Steps of the stage.
    pub steps: u64,
    /// The mean loss since the last report.
    pub loss: f64,
    /// What was measured.
    pub figures: Figures,
    /// Seconds since the run began or was resumed.
    pub seconds: f64,
}

/// What a report measures.
#[derive(Clone, Copy, Debug)]
pub enum Figures {
    /// Stage 1: bits per site of φ along one order on held-out rows.
    Bits(f64),
    /// Stage 2: the root mean square of log p_θ(x_S) − log p_φ(x_S) on held-out rows, in nats.
    ThetaError(f64),
    /// Stage 3.
    Energy(EnergyFigures),
}

impl Figures {
    /// The measured number; of an energy E_q[log q − log f].
    pub fn value(&self) -> f64 {
        match self {
            Figures::Bits(value) | Figures::ThetaError(value) => *value,
            Figures::Energy(figures) => figures.free_energy,
        }
    }
}

/// How close a model is to an energy, in nats, by rows x drawn from φ along random orders σ with
/// probability q(x|σ).
#[derive(Clone, Copy, Debug)]
pub struct EnergyFigures {
    /// f_θ(∅): log Z as θ has learnt it.
    pub log_z: f64,
    /// log mean f/q: an estimate of log Z by importance.
    pub estimate: f64,
    /// E_q[log q − log f], at least −log Z.
    pub free_energy: f64,
    /// Its standard error.
    pub error: f64,
    /// KL(q ‖ f/Z) = E_q[log q − log f] + log Z, where log Z is known.
    pub gap: Option<f64>,
    /// log Z, where it can be computed.
    pub exact: Option<f64>,
    /// (Σ w)² / Σ w² of w = f/q: how many draws of f the draws of φ are worth.
    pub effective: f64,
    /// Draws of φ.
    pub draws: usize,
    /// E_q[−log q] in bits per site.
    pub bits: f64,
}

/// A model trained by an energy.
#[derive(Clone, Debug)]
pub struct TrainedByEnergy {
    /// Both halves.
    pub graph: Graph,
    /// What the file says: with log Z and what was measured.
    pub contract: Contract,
    /// What the final model reaches.
    pub figures: EnergyFigures,
}

/// A trained model.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Both halves.
    pub graph: Graph,
    /// What the file says: with log Z and what was measured on held-out rows.
    pub contract: Contract,
    /// Bits per known site of φ over 5 orders on held-out rows.
    pub bits: f64,
    /// log p_θ(x_S) − log p_φ(x_S) (5 orders) of random subsets of held-out rows, in nats.
    pub theta_error: Residuals,
}

impl TrainedByEnergy {
    /// The model as a file holds it.
    pub fn model(&self) -> Result<Model> {
        model(&self.graph, &self.contract)
    }
}

impl Trained {
    /// The model as a file holds it.
    pub fn model(&self) -> Result<Model> {
        model(&self.graph, &self.contract)
    }
}

/// What every training has.
struct Run<'a> {
    contract: Contract,
    options: &'a TrainOptions,
    start: Instant,
}

/// Rows to learn from and rows to look at.
struct Task<'a> {
    run: Run<'a>,
    rows: Vec<Vec<i32>>,
    held_out: Rows,
}

/// Trains a model of `contract`'s sites and values on `rows`; `held_out` is only looked at.
///
/// With a `checkpoint`, the state is written there at every report and when `cancel` is raised, and
/// a run that finds its own state there goes on from it. Errors: `Usage` for options out of their
/// range, `Data` for bad rows, `Numerics` when training diverges.
pub fn train(
    rows: &Rows,
    held_out: &Rows,
    contract: &Contract,
    options: &TrainOptions,
    checkpoint: Option<&Path>,
    report: &mut dyn FnMut(&TrainReport),
    cancel: &Cancel,
) -> Result<Trained> {
    options.check()?;
    let contract = Contract { kind: Kind::Joint, ..contract.clone() };
    let good = |rows: &Rows, what: &str| -> Result<Vec<Vec<i32>>> {
        let checked = rows.checked(&contract)?.into_iter().enumerate();
        checked.map(|(r, row)| row.context(|| format!("{what} row {r}"))).collect()
    };
    let mut learnt = good(rows, "training")?;
    good(held_out, "held-out")?;
    learnt.retain(|row| known_sites(row).next().is_some());
    if learnt.is_empty() || held_out.is_empty() {
        bail!(Data, "training needs at least one row to learn from and one held-out row");
    }
    let held_out = held_out.slice(0..held_out.len().min(FINAL_ROWS));
    let run = Run { contract, options, start: Instant::now() };
    let task = Task { run, rows: learnt, held_out };
    let mut state = Checkpoint::new(checkpoint, task.run.identity(&task.data()))?;
    let log_p = task.log_frequencies();

    let (c, network, size) = (&task.run.contract, options.network, options.size);
    let phi = networks::conditional(c, network, size, &log_p, options.seed)?;
    let phi = match state.take_phi() {
        Some(weights) => {
            let mut parameters = Parameters::new(&phi, &networks::trained(&phi), |_| false)?;
            parameters.update(|w| w.copy_from_slice(&weights));
            stored(phi, &parameters)
        }
        None => conditionals::train(&task, phi, &mut state, report, cancel)?,
    };
    let mut theta = networks::marginal(c, network, size, &log_p, 0.0, options.seed)?;
    networks::start_trunk(&phi, &mut theta);
    let theta = marginals::train(&task, &phi, theta, &mut state, report, cancel)?;
    task.finished(&phi, &theta, cancel)
}

impl Run<'_> {
    /// Rows per shard, and shards per step.
    fn shards(&self) -> (usize, usize) {
        let shard = self.options.batch.min(SHARD);
        (shard, self.options.batch / shard)
    }

    /// The random numbers of a shard of a step.
    fn stream(&self, stage: u64, number: u64) -> Stream {
        Stream::new(self.options.seed, ((4 + stage) << 48) + number)
    }

    fn trainer(
        &self,
        graph: &Graph,
        loss: &str,
        shard: &[(String, Tensor)],
        steps: u64,
        cancel: &Cancel,
    ) -> Result<Trainer> {
        let o = self.options;
        let names = networks::trained(graph);
        let step = StepGraph::new(graph, loss, &names, shard, cancel)?;
        let parameters = Parameters::new(graph, &names, |_| false)?;
        let settings = Settings {
            learning_rate: o.learning_rate,
            schedule: Schedule::Cosine { steps },
            warmup_steps: steps.min(100),
            weight_decay: o.weight_decay,
            decay: Decay::Decoupled,
        };
        let method = match o.method {
            Method::Adam => Optimization::Adam { first: 0.9, second: 0.99, epsilon: 1e-8 },
            Method::Mfac { window, damping } => Optimization::Mfac {
                // The first gradient replaces this λ.
                window: Sliding::new(window, parameters.len(), 1.0, Storage::F32, None)?,
                momentum: 0.9,
                relative_damping: Some(damping),
                diagonal: Some(0.99),
            },
        };
        let optimizer = Optimizer::new(method, settings, parameters.len(), Vec::new())?;
        let options = StepOptions {
            threads: o.threads,
            clip_norm: Some(o.clip_norm),
            average: Some(o.average),
        };
        Trainer::new(&step, parameters, optimizer, options)
    }

    /// Everything that the result depends on, as text; `data` are those of the data.
    fn identity(&self, data: &str) -> String {
        let mut options = self.options.clone();
        // Neither changes the result.
        (options.threads, options.report_every) = (0, 0);
        format!("{options:?} {:?} {data}", self.contract.metadata())
    }

    /// Takes the steps of a stage that are left; reports and saves on the way.
    fn take(
        &self,
        stage: Stage,
        trainer: &mut Trainer,
        mut step: impl FnMut(&mut Trainer, u64, &mut Checkpoint) -> Result<f64>,
        look: impl Fn(&Parameters) -> Result<Figures>,
        state: &mut Checkpoint,
        report: &mut dyn FnMut(&TrainReport),
    ) -> Result<()> {
        let (mut sum, mut count) = (0.0, 0);
        while trainer.steps() < stage.steps {
            let number = trainer.steps();
            match step(trainer, number, state) {
                Ok(loss) => sum += loss,
                Err(e) => {
                    // The weights are those before the step.
                    if e.kind() == ErrorKind::Cancelled {
                        state.save(stage.number, trainer)?;
                    }
                    return Err(e.context(format!("step {number}")));
                }
            }
            count += 1;
            let done = trainer.steps();
            if done.is_multiple_of(self.options.report_every) || done == stage.steps {
                let figures = look(&trainer.result())?;
                report(&TrainReport {
                    stage: stage.number,
                    step: done,
                    steps: stage.steps,
                    loss: sum / count as f64,
                    figures,
                    seconds: self.start.elapsed().as_secs_f64(),
                });
                (sum, count) = (0.0, 0);
                state.save(stage.number, trainer)?;
            }
        }
        Ok(())
    }

    fn load_options(&self) -> LoadOptions {
        LoadOptions { device: Device::Cpu, threads: self.options.threads, batch: DEFAULT_BATCH }
    }
}

impl Task<'_> {
    /// What tells these data from others.
    fn data(&self) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for cell in self.rows.iter().flatten() {
            hash = (hash ^ *cell as u64).wrapping_mul(0x0100_0000_01b3);
        }
        format!("{} rows {hash:016x}", self.rows.len())
    }

    /// Smoothed log-frequencies of each site's values.
    fn log_frequencies(&self) -> Vec<Vec<f64>> {
        let site = |(i, &values): (usize, &usize)| {
            let mut counts = vec![1.0; values];
            self.rows.iter().filter(|r| r[i] >= 0).for_each(|r| counts[r[i] as usize] += 1.0);
            let total: f64 = counts.iter().sum();
            counts.iter().map(|c| (c / total).ln()).collect()
        };
        self.run.contract.cardinalities.iter().enumerate().map(site).collect()
    }

    /// φ's bits per known site on the first `count` held-out rows.
    fn bits(&self, mam: &Mam, count: usize, orders: usize, cancel: &Cancel) -> Result<f64> {
        let rows = self.held_out.slice(0..self.held_out.len().min(count));
        let scores = mam.score(&rows, &by(Scoring::Phi, orders), cancel)?;
        let scores = scores.into_iter().collect::<Result<Vec<_>>>()?;
        let known: usize = scores.iter().map(|s| s.known).sum();
        let total: f64 = scores.iter().filter_map(|s| Some(s.phi?.log_p)).sum();
        Ok(-total / known.max(1) as f64 / std::f64::consts::LN_2)
    }

    /// log p_θ(x_S) − log p_φ(x_S) on random subsets S of held-out rows.
    fn theta_error(
        &self,
        mam: &Mam,
        count: usize,
        orders: usize,
        cancel: &Cancel,
    ) -> Result<Residuals> {
        let count = self.held_out.len().min(count);
        let mut cells = Vec::new();
        for r in 0..count {
            let mut random = self.run.stream(3, r as u64);
            let row = self.held_out.row(r);
            let keep = 1 + random.below(row.len());
            let order = random.permutation(row.len());
            let mut masked = vec![-1; row.len()];
            order[..keep].iter().for_each(|&s| masked[s as usize] = row[s as usize]);
            cells.extend(masked);
        }
        let rows = Rows::new(self.run.contract.length, cells)?;
        let scores = mam.score(&rows, &by(Scoring::Bracket, orders), cancel)?;
        let gap = |s: crate::mam::Score| s.theta.unwrap_or(0.0) - s.phi.map_or(0.0, |p| p.log_p);
        let gaps = scores.into_iter().map(|s| Ok(gap(s?))).collect::<Result<Vec<_>>>()?;
        Ok(Residuals::new(&gaps))
    }

    /// Puts the halves together and measures them.
    fn finished(&self, phi: &Graph, theta: &Graph, cancel: &Cancel) -> Result<Trained> {
        let graph = networks::joint(phi, theta);
        let mut contract = self.run.contract.clone();
        let mam = Mam::from_models(&[model(&graph, &contract)?], self.run.load_options(), cancel)?;
        let bits = self.bits(&mam, FINAL_ROWS, FINAL_ORDERS, cancel)?;
        let theta_error = self.theta_error(&mam, FINAL_ROWS, FINAL_ORDERS, cancel)?;
        contract.log_z = mam.log_z();
        let mut note = |key: &str, value: String| drop(contract.notes.insert(key.into(), value));
        note("nll_bits", format!("{bits:.4}"));
        note("marginal_rms", format!("{:.4}", theta_error.rms));
        note("q", "data+model".into());
        note("dtype", "float32".into());
        Ok(Trained { graph, contract, bits, theta_error })
    }
}

/// What [`Task::run`] has to know of a stage.
#[derive(Clone, Copy)]
struct Stage {
    number: usize,
    steps: u64,
}

fn by(method: Scoring, orders: usize) -> ScoreOptions {
    ScoreOptions {
        method,
        // Other orders than those of a user's default seed.
        orders: Orders::Random { count: orders, seed: 0x7e57 },
        log_normaliser: None,
        conflict: false,
        surprise: false,
    }
}

/// The graph with these weights.
fn stored(mut graph: Graph, parameters: &Parameters) -> Graph {
    parameters.store(&mut graph);
    graph
}

/// A model in memory of a graph and what it says of itself.
fn model(graph: &Graph, contract: &Contract) -> Result<Model> {
    let mut proto = graph.to_proto();
    for (key, value) in contract.metadata() {
        proto.metadata_props.push(crate::onnx::proto::StringStringEntryProto {
            key: Some(key),
            value: Some(value),
            ..Default::default()
        });
    }
    Model::from_bytes(&buffa::Message::encode_to_vec(&proto), None)
}
