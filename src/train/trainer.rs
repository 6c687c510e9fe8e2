//! The state of a training run and its step: w ← w − ηv for the gradient of one batch.

use std::io::{Read, Write};
use std::time::Instant;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::mfac::Optimizer;
use crate::tensor::Tensor;
use crate::train::{Parameters, StepGraph, Workers};

/// What a trainer does beside the optimizer.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// Worker threads; results do not depend on it.
    pub threads: usize,
    /// Gradients longer than this are scaled down to it.
    pub clip_norm: Option<f64>,
    /// Keeps the average a ← βa + (1 − β)w of the weights after each step, with β in 0..1 as given,
    /// but at most (1 + t)/(10 + t) at step t, so that the start is forgotten soon.
    pub average: Option<f64>,
}

/// Figures of one step.
#[derive(Clone, Copy, Debug)]
pub struct StepFigures {
    /// The mean loss of the batch before the step.
    pub loss: f64,
    /// The length of its gradient, before clipping.
    pub gradient_norm: f64,
    /// η of the step.
    pub learning_rate: f64,
    /// Seconds for the loss and its gradient; the rest of the step is the optimizer's.
    pub gradient_s: f64,
}

/// Weights, optimizer and sessions of a training run.
#[derive(Debug)]
pub struct Trainer {
    parameters: Parameters,
    optimizer: Optimizer,
    workers: Workers,
    options: TrainOptions,
    gradient: Vec<f32>,
    /// The averaged weights; empty when none are kept.
    average: Vec<f32>,
}

impl Trainer {
    /// A trainer of `parameters`, those of `step`, by `optimizer` over their free weights.
    ///
    /// Errors of kind `Usage` when these do not fit each other or an option is out of its range.
    pub fn new(
        step: &StepGraph,
        parameters: Parameters,
        optimizer: Optimizer,
        options: TrainOptions,
    ) -> Result<Trainer> {
        if !step.trained().iter().eq(parameters.tensors().map(|(name, _)| name)) {
            bail!(Usage, "the step graph trains other tensors than the parameters hold");
        }
        if optimizer.dimension() != parameters.len() {
            let (optimizer, parameters) = (optimizer.dimension(), parameters.len());
            bail!(Usage, "an optimizer of {optimizer} weights does not fit {parameters} weights");
        }
        if parameters.is_empty() {
            bail!(Usage, "there is no weight to train");
        }
        if let Some(norm) = options.clip_norm.filter(|n| !(*n > 0.0 && n.is_finite())) {
            bail!(Usage, "the norm to clip gradients to must be positive, not {norm}");
        }
        if let Some(beta) = options.average.filter(|b| !(0.0..1.0).contains(b)) {
            bail!(Usage, "the decay of the average must be at least 0 and below 1, not {beta}");
        }
        let average = if options.average.is_some() { parameters.flat().to_vec() } else { vec![] };
        let gradient = vec![0.0; parameters.len()];
        let workers = Workers::new(step, options.threads)?;
        Ok(Trainer { parameters, optimizer, workers, options, gradient, average })
    }

    /// One step along the gradient of a batch of `shards` shards; `feed` as for
    /// [`Workers::gradient`].
    ///
    /// Errors: `Numerics` when the loss or the gradient is not finite; the weights are then those
    /// before the step.
    pub fn step(
        &mut self,
        shards: usize,
        feed: &(dyn Fn(usize) -> Result<Vec<(String, Tensor)>> + Sync),
        cancel: &Cancel,
    ) -> Result<StepFigures> {
        let Trainer { parameters, optimizer, workers, options, gradient, average } = self;
        let start = Instant::now();
        let loss = workers.gradient(parameters, shards, feed, gradient, cancel)?;
        let gradient_s = start.elapsed().as_secs_f64();
        if let Some(place) = gradient.iter().position(|g| !g.is_finite()) {
            bail!(
                Numerics,
                "the gradient of tensor {:?} is {}; lower the learning rate or look at the samples",
                parameters.name_at(place),
                gradient[place]
            );
        }
        let gradient_norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        if let Some(limit) = options.clip_norm.filter(|limit| gradient_norm > *limit) {
            let scale = limit / gradient_norm;
            gradient.iter_mut().for_each(|g| *g = (f64::from(*g) * scale) as f32);
        }
        let learning_rate = optimizer.learning_rate();
        parameters.update(|weights| optimizer.step(weights, gradient, options.threads))?;
        if let Some(beta) = options.average {
            let steps = optimizer.steps() as f64;
            let keep = beta.min((1.0 + steps) / (10.0 + steps));
            for (a, &w) in average.iter_mut().zip(parameters.flat()) {
                *a = (keep * f64::from(*a) + (1.0 - keep) * f64::from(w)) as f32;
            }
        }
        Ok(StepFigures { loss, gradient_norm, learning_rate, gradient_s })
    }

    /// The mean loss of a batch, without a step; `feed` as for [`Workers::gradient`].
    pub fn loss(
        &mut self,
        shards: usize,
        feed: &(dyn Fn(usize) -> Result<Vec<(String, Tensor)>> + Sync),
        cancel: &Cancel,
    ) -> Result<f64> {
        let gradient = &mut self.gradient;
        self.workers.gradient(&self.parameters, shards, feed, gradient, cancel)
    }

    /// The weights after the latest step.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The weights that are the result: their average where one is kept, else the latest.
    pub fn result(&self) -> Parameters {
        let mut result = self.parameters.clone();
        if !self.average.is_empty() {
            result.update(|weights| weights.copy_from_slice(&self.average));
        }
        result
    }

    /// The steps taken.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Writes the state: weights, average and optimizer. [`Trainer::restore`] goes on from it with
    /// the same bits.
    pub fn save(&self, to: &mut dyn Write) -> std::io::Result<()> {
        to.write_all(MAGIC)?;
        for list in [self.parameters.flat(), &self.average] {
            to.write_all(&(list.len() as u64).to_le_bytes())?;
            for number in list {
                to.write_all(&number.to_le_bytes())?;
            }
        }
        self.optimizer.save(to)
    }

    /// Takes over a state that [`Trainer::save`] wrote for the same tensors and options.
    ///
    /// Errors of kind `Io`: it is cut short or of another run. The trainer is then not to be used
    /// further.
    pub fn restore(&mut self, from: &mut dyn Read) -> Result<()> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(cut_short)?;
        if magic != *MAGIC {
            bail!(Io, "this is not a saved state of a training run");
        }
        self.parameters.update(|weights| read_list(from, weights))?;
        read_list(from, &mut self.average)?;
        self.optimizer.restore(from)
    }
}

const MAGIC: &[u8; 16] = b"hone.trainer/1\0\n";

fn read_list(from: &mut dyn Read, list: &mut [f32]) -> Result<()> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes).map_err(cut_short)?;
    if u64::from_le_bytes(bytes) != list.len() as u64 {
        bail!(Io, "the saved state is of a run with other tensors, zeros or options");
    }
    for number in list {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes).map_err(cut_short)?;
        *number = f32::from_le_bytes(bytes);
    }
    Ok(())
}

fn cut_short(e: std::io::Error) -> Error {
    let message = format!("the saved state of the training run is cut short: {e}");
    Error::new(ErrorKind::Io, message).with_source(e)
}
