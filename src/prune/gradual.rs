//! Gradual pruning: steps of [`compress`] with fine-tuning after each.
//!
//! Step j takes the model from sparsity s_{j−1} to s_j with gradients of the model as it is then,
//! and [`Tuner`] trains what is left, zeros kept, on the same samples: by their labels, by the
//! outputs of the dense model, or by both. Both halves of a step are phases of a run that a
//! checkpoint can hold: it keeps the weights that the phase began with and, within fine-tuning, the
//! state of the trainer, so that a run that was stopped ends with the bytes of one that was not.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::compress::{self, Options, Pruned, compress};
use super::report::{GradualStep, Standing};
use super::{LayerStep, Ramp};
use crate::calibration::Samples;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result, bail, error};
use crate::onnx::Graph;
use crate::progress::Progress;
use crate::tensor::{Data, Tensor};
use crate::train::checkpoint::{self, Identity};
use crate::train::{Distillation, Kind, Length, TuneOptions, Tuner, held_alone};

/// How to prune in steps with fine-tuning after each.
#[derive(Clone, Debug)]
pub struct Gradual {
    /// Pruning steps, at least 1; each takes gradients [`Options::stages`] times.
    pub steps: usize,
    /// How sparsity rises from step to step.
    pub ramp: Ramp,
    /// How long is trained after each step but the last.
    pub length: Length,
    /// How long is trained after the last step: what is left then is what the run is for, so most
    /// of the training belongs here ([`Gradual::LAST`] times the others by default).
    pub final_length: Length,
    /// How is trained, by the labels of the samples and by the dense model, whose share is left to
    /// [`Gradual::tuning_for`] where there is no [`TuneOptions::distillation`]. The seed is that of
    /// [`Options`] and differs from step to step.
    pub tuning: TuneOptions,
    /// Where the state is kept while the run goes on; if it is there, the run goes on from it.
    pub checkpoint: Option<PathBuf>,
    /// Training steps between two checkpoints, at least 1. Every phase ends with one as well.
    pub checkpoint_every: u64,
}

impl Gradual {
    /// The dense model has half a share in the loss and the labels the other: the default.
    pub const HALF: Distillation = Distillation { temperature: 2.0, weight: 0.5 };
    /// How often each sample is seen after each step but the last: the default.
    pub const EPOCHS: f64 = 3.0;
    /// How much longer is trained after the last step than after another: the default.
    pub const LAST: u64 = 8;

    /// Removes the checkpoint of a run that is over and whose result is safe.
    pub fn end(&self) {
        if let Some(path) = &self.checkpoint {
            // A file that is gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }

    /// How is trained on these samples after each step but the last, and after the last: without
    /// labels the dense model alone is learned from.
    ///
    /// Error of kind `Usage` where no training step would be taken.
    pub fn tuning_for(&self, samples: &Samples) -> Result<[TuneOptions; 2]> {
        let mut tuning = self.tuning.clone();
        let weight = if samples.labels().is_some() { Self::HALF.weight } else { 1.0 };
        tuning.distillation.get_or_insert(Distillation { weight, ..Self::HALF });
        let fit = |length: Length| length.fit(&tuning, samples.rows());
        Ok([fit(self.length)?, fit(self.final_length)?])
    }
}

/// What a gradual run works on.
pub(super) struct Course<'a> {
    /// The working graph of the dense model.
    pub dense: &'a Graph,
    /// The model as its file holds it.
    pub source: &'a Graph,
    /// Which initializers besides the pruned ones may change to match statistics.
    pub adjustable: &'a dyn Fn(&str) -> bool,
    /// The samples to take gradients of and to train on.
    pub samples: &'a Samples,
    /// Samples held out, if any, and what a model is worth on them.
    pub evaluation: Option<&'a Samples>,
    pub judge: &'a dyn Fn(&Graph) -> Result<Option<Standing>>,
    /// What to do in each step.
    pub options: &'a Options,
    /// The steps.
    pub plan: &'a Gradual,
    pub progress: &'a dyn Progress,
    pub cancel: &'a Cancel,
}

/// Where a run stands.
struct State {
    /// 2j before step j prunes, 2j + 1 before its fine-tuning, j counted from 0.
    phase: usize,
    /// The model at the beginning of the phase.
    graph: Graph,
    log: Log,
}

/// What a checkpoint tells beside the state.
#[derive(Default, Serialize, Deserialize)]
struct Log {
    /// The steps so far, the one in work included.
    steps: Vec<GradualStep>,
    /// Figures per pruned tensor, of the latest step.
    layers: Vec<LayerStep>,
}

/// Seconds of this process, and gradient collections.
#[derive(Default)]
struct Spent {
    gradient_s: f64,
    fisher_s: f64,
    prune_s: f64,
    statistics_s: f64,
    tune_s: f64,
    stages: usize,
}

impl<'a> Course<'a> {
    /// Runs it: the model in the end and what happened in each step. `tuning` says how is trained,
    /// see [`Gradual::tuning_for`].
    ///
    /// Errors of options and samples that do not fit the model come before any work.
    pub fn run(&self, tuning: &[TuneOptions; 2]) -> Result<(Pruned, Vec<GradualStep>)> {
        let Course { dense, samples, options, plan, cancel, .. } = *self;
        let (from, skipped) = compress::survey(dense, samples, options, cancel)?;
        if from >= options.sparsity {
            bail!(
                Usage,
                "{:.2} % of the prunable weights are zero already: a gradual run to {:.2} % has \
                 nothing to remove",
                100.0 * from,
                100.0 * options.sparsity
            );
        }
        tuning.iter().try_for_each(TuneOptions::check)?;
        // Without a window: that of the dense model could exceed the memory that the pruned need.
        let light = |t: &TuneOptions| TuneOptions { kind: Kind::Sgd, ..t.clone() };
        self.tuner(dense, &[light(&tuning[0]), light(&tuning[1])], 0)?;
        let sparsities = plan.ramp.sparsities(from, options.sparsity, plan.steps);
        let identity = self.identity(tuning)?;
        let mut state = State { phase: 0, graph: dense.clone(), log: Log::default() };
        let mut spent = Spent::default();
        self.go(&mut state, &sparsities, tuning, &identity, &mut spent)
            .map_err(|e| self.stopped(e, &state))?;
        Ok(self.finish(state, skipped, spent))
    }

    /// The phases that are left.
    fn go(
        &self,
        state: &mut State,
        sparsities: &[f64],
        tuning: &[TuneOptions; 2],
        identity: &Identity,
        spent: &mut Spent,
    ) -> Result<()> {
        let mut tuner = self.resume(identity, tuning, state)?;
        while let Some(&sparsity) = sparsities.get(state.phase / 2) {
            if state.phase.is_multiple_of(2) {
                self.prune(state, sparsity, spent)?;
            } else {
                let mut tuner = match tuner.take() {
                    Some(tuner) => tuner,
                    None => self.tuner(&state.graph, tuning, state.phase / 2)?,
                };
                if let Err(e) = self.tune(state, &mut tuner, spent, identity) {
                    if e.kind() == ErrorKind::Cancelled {
                        self.keep(state, Some(&tuner), identity)?;
                    }
                    return Err(e);
                }
            }
            state.phase += 1;
            self.keep(state, None, identity)?;
        }
        Ok(())
    }

    /// The first half of a step.
    fn prune(&self, state: &mut State, sparsity: f64, spent: &mut Spent) -> Result<()> {
        let start = Instant::now();
        let number = state.phase / 2;
        let mut options = self.options.clone();
        options.sparsity = sparsity;
        // Each step draws other samples in another order.
        options.seed = options.seed.wrapping_add((number * options.stages) as u64);
        let progress = Prefixed { inner: self.progress, prefix: self.prefix(number) };
        let (samples, cancel) = (self.samples, self.cancel);
        let pruned = compress(&state.graph, self.adjustable, samples, &options, &progress, cancel)?;
        for (name, tensor) in pruned.tensors.iter().chain(&pruned.biases) {
            state.graph.initializers.insert(name.clone(), Arc::new(tensor.clone()));
        }
        spent.gradient_s += pruned.gradient_s;
        spent.fisher_s += pruned.fisher_s;
        spent.prune_s += pruned.prune_s;
        spent.statistics_s += pruned.statistics_s;
        spent.stages += pruned.stages;
        let (weights, zeros) =
            pruned.layers.iter().fold((0, 0), |(w, z), l| (w + l.weights, z + l.zeros));
        let prune_seconds = start.elapsed().as_secs_f64();
        state.log.layers = pruned.layers;
        state.log.steps.push(GradualStep {
            sparsity: zeros as f64 / weights.max(1) as f64,
            predicted_loss: pruned.predicted_loss.iter().copied().reduce(|a, b| a + b),
            pruned: (self.judge)(&state.graph)?,
            tuned: None,
            training_loss: None,
            prune_seconds,
            tune_seconds: 0.0,
        });
        Ok(())
    }

    /// The second half.
    fn tune(
        &self,
        state: &mut State,
        tuner: &mut Tuner<'_>,
        spent: &mut Spent,
        identity: &Identity,
    ) -> Result<()> {
        let number = state.phase / 2;
        let total = tuner.options().steps;
        self.progress.begin(&format!("{}fine-tuning", self.prefix(number)), total);
        while !tuner.is_done() {
            let start = Instant::now();
            let loss = tuner.step(self.cancel)?.loss;
            let (seconds, done) = (start.elapsed().as_secs_f64(), tuner.steps());
            spent.tune_s += seconds;
            let step = state.log.steps.last_mut().expect("it was pruned before");
            step.tune_seconds += seconds;
            step.training_loss = Some(step.training_loss.map_or([loss; 2], |[a, _]| [a, loss]));
            self.progress.advance(done);
            if done.is_multiple_of(self.plan.checkpoint_every.max(1)) && done < total {
                self.keep(state, Some(tuner), identity)?;
            }
        }
        let graph = tuner.model();
        let tuned = (self.judge)(&graph)?;
        let step = state.log.steps.last_mut().expect("it was pruned before");
        step.tuned = tuned;
        self.progress.say(&format!("{}{step}", self.prefix(number)));
        state.graph = graph;
        Ok(())
    }

    fn prefix(&self, number: usize) -> String {
        format!("step {}/{}: ", number + 1, self.plan.steps)
    }

    fn tuner(&self, graph: &Graph, tuning: &[TuneOptions; 2], number: usize) -> Result<Tuner<'a>> {
        let mut options = tuning[usize::from(number + 1 == self.plan.steps)].clone();
        options.seed = self.options.seed.wrapping_add(number as u64);
        let stored = held_alone(self.source, self.dense);
        Tuner::new(graph, Some(self.dense), stored, self.samples, &options, self.cancel)
    }

    fn finish(
        &self,
        state: State,
        skipped: Vec<crate::gradient::parameters::Skipped>,
        spent: Spent,
    ) -> (Pruned, Vec<GradualStep>) {
        let State { graph, log: Log { steps, layers }, .. } = state;
        let (tensors, others): (Vec<_>, Vec<_>) = layers
            .iter()
            .map(|l| (l.name.as_str(), true))
            .chain(changed(self.dense, &graph).map(|(name, _)| (name, false)))
            .filter(|(name, pruned)| *pruned || !layers.iter().any(|l| l.name == *name))
            .map(|(name, pruned)| (pruned, (name.into(), Tensor::clone(&graph.initializers[name]))))
            .partition(|(pruned, _)| *pruned);
        let bare = |list: Vec<(bool, (String, Tensor))>| list.into_iter().map(|(_, t)| t).collect();
        let pruned = Pruned {
            tensors: bare(tensors),
            biases: bare(others),
            layers,
            skipped,
            predicted_loss: steps.iter().filter_map(|s| s.predicted_loss).collect(),
            // Fine-tuning moved the outputs, too: there is nothing to compare the prediction with.
            seeded: Vec::new(),
            gradient_s: spent.gradient_s,
            fisher_s: spent.fisher_s,
            prune_s: spent.prune_s,
            statistics_s: spent.statistics_s,
            tune_s: spent.tune_s,
            stages: spent.stages,
        };
        (pruned, steps)
    }
}

/// Checkpoints.
impl<'a> Course<'a> {
    /// Goes on from the checkpoint, if there is one: with this tuner, where it was within a
    /// fine-tuning.
    fn resume(
        &self,
        identity: &Identity,
        tuning: &[TuneOptions; 2],
        state: &mut State,
    ) -> Result<Option<Tuner<'a>>> {
        let Some(path) = &self.plan.checkpoint else { return Ok(None) };
        let mut tuner = None;
        let log = checkpoint::read(path, identity, |from| {
            let is_training = state.read(from, 2 * self.plan.steps).map_err(damaged)?;
            if is_training {
                let mut begun = self.tuner(&state.graph, tuning, state.phase / 2)?;
                begun.trainer_mut().restore(from)?;
                tuner = Some(begun);
            }
            Ok(())
        })?;
        if let Some(log) = log {
            state.log = serde_json::from_str(&log)
                .map_err(|e| error!(Io, "{}: its log cannot be read: {e}", path.display()))?;
            if state.log.steps.len() != state.phase.div_ceil(2) {
                bail!(Io, "{}: its log does not fit its state; delete it", path.display());
            }
            log::info!("going on with phase {} of {}", state.phase + 1, 2 * self.plan.steps);
        }
        Ok(tuner)
    }

    fn keep(&self, state: &State, tuner: Option<&Tuner<'_>>, identity: &Identity) -> Result<()> {
        let Some(path) = &self.plan.checkpoint else { return Ok(()) };
        let log = serde_json::to_string(&state.log).expect("plain data has a JSON form");
        checkpoint::write(path, identity, &log, |to| {
            state.write(to, self.dense, tuner.is_some())?;
            tuner.map_or(Ok(()), |tuner| tuner.trainer().save(to))
        })
    }

    /// The error that ends the run, with what can be done about it.
    fn stopped(&self, e: Error, state: &State) -> Error {
        match &self.plan.checkpoint {
            Some(path) if e.kind() == ErrorKind::Cancelled && path.exists() => {
                e.context(format!("{} holds the run so far, run again to go on", path.display()))
            }
            _ => match self.prefix(state.phase / 2).strip_suffix(": ") {
                Some(step) if e.kind() != ErrorKind::Usage => e.context(step),
                _ => e,
            },
        }
    }

    /// What the run is: everything that its result depends on.
    fn identity(&self, tuning: &[TuneOptions; 2]) -> Result<Identity> {
        let Course { dense, samples, options, plan, .. } = self;
        if plan.checkpoint.is_none() {
            return Ok(Identity::new());
        }
        let mut identity = tuning[0].identity();
        identity.extend(options.identity());
        let evaluation = self.evaluation.map_or("none".into(), checkpoint::fingerprint);
        identity.extend(
            [
                ("evaluation", evaluation),
                ("pruning steps", plan.steps.to_string()),
                ("ramp", plan.ramp.to_string()),
                ("final steps", tuning[1].steps.to_string()),
                ("model", checkpoint::fingerprint_of_bytes(&dense.to_bytes()?)),
                ("data", checkpoint::fingerprint(samples)),
            ]
            .map(|(name, value)| (name.to_string(), value)),
        );
        Ok(identity)
    }
}

impl State {
    /// Writes the phase and the initializers that differ from those of `dense`.
    fn write(&self, to: &mut dyn Write, dense: &Graph, is_training: bool) -> io::Result<()> {
        let changed: Vec<_> = changed(dense, &self.graph).collect();
        for number in [self.phase, usize::from(is_training), changed.len()] {
            to.write_all(&(number as u64).to_le_bytes())?;
        }
        for (name, tensor) in changed {
            let values = tensor.to_f32();
            to.write_all(&(name.len() as u64).to_le_bytes())?;
            to.write_all(name.as_bytes())?;
            to.write_all(&(values.len() as u64).to_le_bytes())?;
            for value in &*values {
                to.write_all(&value.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Takes over what [`State::write`] wrote, the graph being the dense one before; whether the
    /// state of a trainer follows.
    fn read(&mut self, from: &mut dyn Read, phases: usize) -> io::Result<bool> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "it makes no sense");
        let [phase, is_training, count] =
            [number(from)?, number(from)?, number(from)?].map(|n| n as usize);
        let fits = phase <= phases && is_training <= phase % 2;
        if !fits || count > self.graph.initializers.len() {
            return Err(invalid());
        }
        self.phase = phase;
        let longest = self.graph.initializers.keys().map(String::len).max().unwrap_or(0);
        for _ in 0..count {
            let length = number(from)? as usize;
            if length > longest {
                return Err(invalid());
            }
            let mut name = vec![0; length];
            from.read_exact(&mut name)?;
            let name = String::from_utf8(name).map_err(|_| invalid())?;
            let tensor = self.graph.initializers.get_mut(&name).ok_or_else(invalid)?;
            if number(from)? != tensor.len() as u64 {
                return Err(invalid());
            }
            let mut values = Vec::with_capacity(tensor.len());
            for _ in 0..tensor.len() {
                let mut bytes = [0; 4];
                from.read_exact(&mut bytes)?;
                values.push(f32::from_le_bytes(bytes));
            }
            let shape = tensor.shape().to_vec();
            let new = Tensor::new(shape, Data::F32(values)).map_err(io::Error::other)?;
            *tensor = Arc::new(new);
        }
        Ok(is_training == 1)
    }
}

fn number(from: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn damaged(e: io::Error) -> Error {
    let message = format!("the saved state of the gradual run cannot be used: {e}");
    Error::new(ErrorKind::Io, message).with_source(e)
}

/// The initializers of `now` that are not those of `then`.
fn changed<'g>(then: &'g Graph, now: &'g Graph) -> impl Iterator<Item = (&'g str, &'g Tensor)> {
    let same = |name: &str, new: &Arc<Tensor>| {
        let old = &then.initializers[name];
        // Bit by bit, as −0 equals 0.
        Arc::ptr_eq(old, new) || old.data().to_le_bytes() == new.data().to_le_bytes()
    };
    now.initializers
        .iter()
        .filter(move |(name, new)| !same(name, new))
        .map(|(name, new)| (name.as_str(), &**new))
}

/// Progress whose phases are named after the step.
struct Prefixed<'a> {
    inner: &'a dyn Progress,
    prefix: String,
}

impl Progress for Prefixed<'_> {
    fn begin(&self, phase: &str, total: u64) {
        self.inner.begin(&format!("{}{phase}", self.prefix), total);
    }

    fn advance(&self, done: u64) {
        self.inner.advance(done);
    }

    fn say(&self, line: &str) {
        self.inner.say(line);
    }
}
