//! Energy-based training: both nets learn f together, from rows that φ itself draws.
//!
//! Balance draws a pool of rows from φ, site by site in random orders, learns from all of them and
//! draws the next with the weights it then has. Reinforce keeps a chain per row of the batch and
//! redraws a block of sites of each before every step, as published. A run's state on disk holds
//! the pool or the chains, so that a resumed run takes the same steps.

use std::path::Path;
use std::time::Instant;

use crate::cancel::Cancel;
use crate::error::{Result, bail};
use crate::mam::contract::{Contract, Kind};
use crate::mam::model::{Mam, log_sum_exp};
use crate::mam::networks;
use crate::mam::rows::Rows;
use crate::mam::sample::SampleOptions;
use crate::mam::train::checkpoint::Checkpoint;
use crate::mam::train::draw::{Draft, Live};
use crate::mam::train::energy::Energy;
use crate::mam::train::objective::{LOSS, Objective, Sample, uniform_log_z};
use crate::mam::train::{
    EnergyFigures, Figures, Run, Stage, TrainOptions, TrainReport, TrainedByEnergy, model, stored,
};
use crate::onnx::Graph;
use crate::train::{Parameters, Trainer};

/// Rows that balance draws at once, if the batch is not larger.
const POOL: usize = 128;

/// Sites that reinforce redraws before a step, as published.
const BLOCK: usize = 4;

/// Draws for a report, and at the end.
const REPORT_DRAWS: usize = 256;
const FINAL_DRAWS: usize = 4096;

/// The stream of draws that are only looked at, away from those of steps.
const LOOK_SEED: u64 = 0x7e57;

/// How to learn from an energy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EnergyOptions {
    /// What is minimised.
    pub objective: Objective,
    /// Steps.
    pub steps: u64,
}

/// Trains a model of the sites and values of `energy`, which are those of `contract`.
/// `options.batch` is a number of rows of any size; the numbers of steps and the regression of
/// maximum likelihood are not looked at.
///
/// `checkpoint`, `report` and `cancel` as for [`crate::mam::train::train`]. Errors: `Usage` for
/// options out of their range, `Numerics` when training diverges or an energy is not finite.
pub fn train_by_energy(
    energy: &Energy,
    contract: &Contract,
    learning: &EnergyOptions,
    options: &TrainOptions,
    checkpoint: Option<&Path>,
    report: &mut dyn FnMut(&TrainReport),
    cancel: &Cancel,
) -> Result<TrainedByEnergy> {
    options.check_shared()?;
    if learning.steps == 0 {
        bail!(Usage, "steps must be at least 1");
    }
    let contract = Contract { kind: Kind::Joint, ..contract.clone() };
    if contract.cardinalities != energy.contract().cardinalities {
        bail!(Usage, "the energy is of other sites or values than the model");
    }
    let run = Run { contract, options, start: Instant::now() };
    let course = Course { run, energy, learning, exact: energy.log_z(cancel)? };
    let what = format!("{learning:?} {}", energy.identity(cancel)?);
    let mut state = Checkpoint::new(checkpoint, course.run.identity(&what))?;
    let nets = course.train(&mut state, report, cancel)?;
    course.finished(nets, cancel)
}

struct Course<'a> {
    run: Run<'a>,
    energy: &'a Energy,
    learning: &'a EnergyOptions,
    /// log Σ f, where it can be computed.
    exact: Option<f64>,
}

impl Course<'_> {
    fn train(
        &self,
        state: &mut Checkpoint,
        report: &mut dyn FnMut(&TrainReport),
        cancel: &Cancel,
    ) -> Result<Graph> {
        let (c, o) = (&self.run.contract, self.run.options);
        let uniform: Vec<Vec<f64>> =
            c.cardinalities.iter().map(|&k| vec![-(k as f64).ln(); k]).collect();
        let phi = networks::conditional(c, o.network, o.size, &uniform, o.seed)?;
        let log_z = uniform_log_z(c);
        let theta = networks::marginal(c, o.network, o.size, &uniform, log_z, o.seed)?;
        let nets = networks::joint(&phi, &theta);
        let objective = self.learning.objective;
        let shard = objective.shard(o.batch, c.length);
        let graph = objective.with_loss(&nets, c, shard);
        let mut source = Source {
            course: self,
            phi: Live::new(&phi, c, o.threads)?,
            theta: Live::new(&theta, c, o.threads)?,
            rows: Vec::new(),
            orders: Vec::new(),
        };
        let nothing: Vec<u32> = (0..c.length as u32).collect();
        let row = vec![0; c.length];
        let blank = || Sample { row: &row, order: &nothing, log_f: 0.0, advantage: 0.0, step: 0 };
        let example = objective.feed(&(0..shard).map(|_| blank()).collect::<Vec<_>>(), c);
        let stage = Stage { number: 3, steps: self.learning.steps };
        let mut trainer = self.run.trainer(&graph, LOSS, &example, stage.steps, cancel)?;
        if let Some(kept) = state.take_kept(3) {
            source.restore(&kept)?;
        }
        state.restore(3, &mut trainer)?;
        let look = |parameters: &Parameters| {
            let mam = self.loaded(&stored(nets.clone(), parameters), cancel)?;
            Ok(Figures::Energy(self.figures(&mam, REPORT_DRAWS, cancel)?))
        };
        let step = |trainer: &mut Trainer, number: u64, state: &mut Checkpoint| {
            let samples = source.samples(trainer.parameters(), number, cancel)?;
            state.keep(source.bytes());
            let part = |s: usize| {
                let of_shard = &samples[s * shard..(s + 1) * shard];
                let borrowed: Vec<Sample> = of_shard.iter().map(Owned::borrow).collect();
                Ok(objective.feed(&borrowed, c))
            };
            Ok(trainer.step(o.batch / shard, &part, cancel)?.loss)
        };
        self.run.take(stage, &mut trainer, step, look, state, report)?;
        Ok(stored(nets, &trainer.result()))
    }

    fn loaded(&self, nets: &Graph, cancel: &Cancel) -> Result<Mam> {
        let models = [model(nets, &self.run.contract)?];
        Mam::from_models(&models, self.run.load_options(), cancel)
    }

    /// What draws of φ and f_θ(∅) say.
    fn figures(&self, mam: &Mam, draws: usize, cancel: &Cancel) -> Result<EnergyFigures> {
        let blank = Rows::all_missing(self.run.contract.length, draws);
        let seed = self.run.options.seed ^ LOOK_SEED;
        let options = SampleOptions { seed, ..SampleOptions::default() };
        let drawn = mam.sample(&blank, &options, cancel)?;
        let drawn = drawn.into_iter().collect::<Result<Vec<_>>>()?;
        let row = |s: &crate::mam::Sample| s.values.iter().map(|&v| v as i32).collect();
        let rows: Vec<Vec<i32>> = drawn.iter().map(row).collect();
        let log_f = self.energy.log_f(&rows, cancel)?;
        let log_w: Vec<f64> = log_f.iter().zip(&drawn).map(|(f, s)| f - s.log_q).collect();
        let n = draws as f64;
        let mean = -log_w.iter().sum::<f64>() / n;
        let square: f64 = log_w.iter().map(|w| (w + mean).powi(2)).sum();
        let total = log_sum_exp(log_w.iter().copied());
        let twice = log_sum_exp(log_w.iter().map(|w| 2.0 * w).collect::<Vec<_>>().into_iter());
        let entropy = -drawn.iter().map(|s| s.log_q).sum::<f64>() / n;
        Ok(EnergyFigures {
            log_z: mam.log_z().unwrap_or(f64::NAN),
            estimate: total - n.ln(),
            free_energy: mean,
            error: (square / (n - 1.0) / n).sqrt(),
            gap: self.exact.map(|z| mean + z),
            exact: self.exact,
            effective: (2.0 * total - twice).exp(),
            draws,
            bits: entropy / self.run.contract.length as f64 / std::f64::consts::LN_2,
        })
    }

    fn finished(&self, graph: Graph, cancel: &Cancel) -> Result<TrainedByEnergy> {
        let mam = self.loaded(&graph, cancel)?;
        let figures = self.figures(&mam, FINAL_DRAWS, cancel)?;
        let mut contract = self.run.contract.clone();
        contract.log_z = mam.log_z();
        let mut note = |key: &str, value: String| drop(contract.notes.insert(key.into(), value));
        note("free_energy", format!("{:.4}", figures.free_energy));
        if let Some(gap) = figures.gap {
            note("kl_gap", format!("{gap:.4}"));
        }
        note("nll_bits", format!("{:.4}", figures.bits));
        note("q", "energy".into());
        note("dtype", "float32".into());
        Ok(TrainedByEnergy { graph, contract, figures })
    }
}

/// Where rows to learn from come from.
struct Source<'a> {
    course: &'a Course<'a>,
    phi: Live,
    theta: Live,
    /// The pool, or the chains.
    rows: Vec<Vec<i32>>,
    /// The orders in which the rows of the pool were filled.
    orders: Vec<Vec<u32>>,
}

/// A [`Sample`] with its row.
struct Owned {
    row: Vec<i32>,
    order: Vec<u32>,
    log_f: f64,
    advantage: f64,
    step: usize,
}

impl Owned {
    fn borrow(&self) -> Sample<'_> {
        let Owned { row, order, log_f, advantage, step } = self;
        Sample { row, order, log_f: *log_f, advantage: *advantage, step: *step }
    }
}

impl Source<'_> {
    /// The batch of a step.
    fn samples(&mut self, w: &Parameters, number: u64, cancel: &Cancel) -> Result<Vec<Owned>> {
        match self.course.learning.objective {
            Objective::Balance => self.pooled(w, number, cancel),
            Objective::Reinforce => self.chained(w, number, cancel),
        }
    }

    fn pooled(&mut self, w: &Parameters, number: u64, cancel: &Cancel) -> Result<Vec<Owned>> {
        let batch = self.course.run.options.batch;
        let steps = (POOL / batch).max(1);
        let at = number % steps as u64;
        if at == 0 {
            self.draw(w, number / steps as u64, batch * steps, cancel)?;
        }
        let range = at as usize * batch..(at as usize + 1) * batch;
        let rows = &self.rows[range.clone()];
        let log_f = self.course.energy.log_f(rows, cancel)?;
        let samples = rows.iter().zip(&self.orders[range]).zip(log_f);
        let owned = |((row, order), log_f): ((&Vec<i32>, &Vec<u32>), f64)| Owned {
            row: row.clone(),
            order: order.clone(),
            log_f,
            advantage: 0.0,
            step: 0,
        };
        Ok(samples.map(owned).collect())
    }

    /// A pool, or new chains.
    fn draw(&mut self, w: &Parameters, number: u64, count: usize, cancel: &Cancel) -> Result<()> {
        let length = self.course.run.contract.length;
        let draft = |i: usize| {
            let mut random = self.course.run.stream(1, number * count as u64 + i as u64);
            let order = random.permutation(length);
            Draft { row: vec![-1; length], order, log_q: 0.0, random }
        };
        let mut drafts: Vec<Draft> = (0..count).map(draft).collect();
        self.phi.fill(w, &mut drafts, cancel)?;
        (self.rows, self.orders) = drafts.into_iter().map(|d| (d.row, d.order)).unzip();
        Ok(())
    }

    fn chained(&mut self, w: &Parameters, number: u64, cancel: &Cancel) -> Result<Vec<Owned>> {
        let (run, batch) = (&self.course.run, self.course.run.options.batch);
        if self.rows.is_empty() {
            self.draw(w, 0, batch, cancel)?;
            self.orders.clear();
        }
        let length = run.contract.length;
        let mut drafts = Vec::with_capacity(batch);
        for (i, row) in self.rows.iter_mut().enumerate() {
            let mut random = run.stream(2, number * batch as u64 + i as u64);
            let mut order = random.permutation(length);
            order.truncate(BLOCK);
            order.iter().for_each(|&site| row[site as usize] = -1);
            drafts.push(Draft { row: std::mem::take(row), order, log_q: 0.0, random });
        }
        self.phi.fill(w, &mut drafts, cancel)?;
        let (rows, mut randoms): (Vec<_>, Vec<_>) =
            drafts.into_iter().map(|d| (d.row, d.random)).unzip();
        self.rows = rows;
        let log_f = self.course.energy.log_f(&self.rows, cancel)?;
        let f = self.theta.marginals(w, &self.rows, cancel)?;
        let gaps: Vec<f64> = f.iter().zip(&log_f).map(|(f, log_f)| f - log_f).collect();
        let mean = gaps.iter().sum::<f64>() / batch as f64;
        let spread = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / batch as f64;
        let samples = self.rows.iter().zip(&mut randoms).zip(log_f.iter().zip(&gaps));
        let owned = |((row, random), (log_f, gap)): ((&Vec<i32>, &mut _), (&f64, &f64))| {
            let random: &mut crate::random::Stream = random;
            Owned {
                row: row.clone(),
                order: random.permutation(length),
                log_f: *log_f,
                advantage: (gap - mean) / (spread.sqrt() + 1e-6),
                step: random.below(length),
            }
        };
        Ok(samples.map(owned).collect())
    }

    /// The rows and orders, to go on from.
    fn bytes(&self) -> Vec<u8> {
        let cells = self.rows.iter().flatten().map(|&v| v as u32);
        let sites = self.orders.iter().flatten().copied();
        cells.chain(sites).flat_map(u32::to_le_bytes).collect()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        let length = self.course.run.contract.length;
        let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let words: Vec<u32> = words.collect();
        let rows = match self.course.learning.objective {
            Objective::Balance => words.len() / length / 2,
            Objective::Reinforce => words.len() / length,
        };
        let (cells, sites) = words.split_at(rows * length);
        let fits = |v: &u32| (*v as usize) < self.course.run.contract.vocab.max(length);
        if !words.len().is_multiple_of(length) || !words.iter().all(fits) {
            bail!(Io, "the rows in the state do not fit the model");
        }
        self.rows = cells.chunks(length).map(|r| r.iter().map(|&v| v as i32).collect()).collect();
        self.orders = sites.chunks(length).map(<[u32]>::to_vec).collect();
        Ok(())
    }
}
