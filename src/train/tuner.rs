//! Training a model on samples: batches in random order, a loss of its outputs, optimizer steps.
//!
//! Draw n of the run takes its sample from the permutation of epoch n / N, so every sample comes
//! once per epoch whatever the batch, and which samples a step takes depends on the seed and its
//! number alone: a run that is resumed draws what it would have drawn.

use crate::calibration::{Labels, Samples};
use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::evaluate::{self, RunOptions, Runner};
use crate::gradient::parameters::weights;
use crate::gradient::prepare::prepare;
use crate::mfac::optimizer::{Method, Settings};
use crate::mfac::{Optimizer, Sliding, Storage};
use crate::onnx::Graph;
use crate::random::Stream;
use crate::runtime::Device;
use crate::tensor::{Tensor, element_count};
use crate::train::checkpoint::Identity;
use crate::train::objective::judged;
use crate::train::{
    Distillation, Loss, Objective, Parameters, StepFigures, StepGraph, TrainOptions, Trained,
    Trainer,
};

/// Samples per shard at most where the model leaves the choice: activations stay in cache.
const LARGEST_SHARD: usize = 8;

/// β₂ of Adam and of a diagonal damping.
const SECOND_MOMENT: f64 = 0.999;

/// What the outputs of a teacher for all samples may take in memory.
const TEACHER_BYTES: usize = 4 << 30;

/// Which optimizer, with what only it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// M-FAC preconditioned SGD.
    Mfac {
        /// m, the gradients in the window.
        window: usize,
        /// The damping λ.
        damping: WindowDamping,
        /// What λ is a multiple of.
        metric: Metric,
        /// How the window is stored.
        storage: Storage,
    },
    /// Adam with β₂ = 0.999.
    Adam,
    /// SGD.
    Sgd,
}

impl Kind {
    /// M-FAC as it does best on the example (see benches/finetune.py).
    pub const MFAC: Kind = Kind::Mfac {
        window: 128,
        damping: WindowDamping::Relative(Metric::Diagonal.usual_damping()),
        metric: Metric::Diagonal,
        storage: Storage::F32,
    };

    /// A learning rate to start from, measured on the example (see benches/finetune.py).
    pub fn usual_learning_rate(self) -> f64 {
        match self {
            Kind::Mfac { metric, .. } => metric.usual_learning_rate(),
            Kind::Adam | Kind::Sgd => 1e-3,
        }
    }
}

/// What the damping of a window is a multiple of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The identity, as published.
    Identity,
    /// The root of the second moment of each weight's gradient, as in Adam (see [`Method::Mfac`]).
    Diagonal,
}

impl Metric {
    /// See [`Kind::usual_learning_rate`]. Apart, as the compiler would otherwise look at the metric
    /// before it knows that there is one: harmless, but an error to valgrind.
    #[inline(never)]
    fn usual_learning_rate(self) -> f64 {
        match self {
            Metric::Identity => 1.0,
            Metric::Diagonal => 4e-3,
        }
    }

    /// A relative damping to start from, measured on the example.
    pub const fn usual_damping(self) -> f64 {
        match self {
            Metric::Identity => 1.0,
            Metric::Diagonal => 100.0,
        }
    }
}

/// The damping λ of the Fisher of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WindowDamping {
    /// This fraction of its mean diagonal; see [`Method::Mfac`].
    Relative(f64),
    /// λ itself, and the direction as published.
    Absolute(f64),
}

/// How to train.
#[derive(Clone, Debug)]
pub struct TuneOptions {
    /// The optimizer.
    pub kind: Kind,
    /// β of its momentum; β₁ for Adam.
    pub momentum: f64,
    /// Learning rate, schedule and weight decay.
    pub settings: Settings,
    /// Samples per step.
    pub batch: usize,
    /// Steps in all.
    pub steps: u64,
    /// Gradients longer than this are scaled down to it.
    pub clip_norm: Option<f64>,
    /// The decay of an average of the weights, which is then the result.
    pub average: Option<f64>,
    /// The loss; `None` for what the samples have: cross-entropy for class labels, squared error
    /// for targets.
    pub loss: Option<Loss>,
    /// The teacher's share.
    pub distillation: Option<Distillation>,
    /// The output to train on; the only float one if `None`.
    pub output: Option<String>,
    /// The tensors to train.
    pub trained: Trained,
    /// Whether zeros of prunable weights stay zero.
    pub keep_zeros: bool,
    /// Seeds the order of the samples.
    pub seed: u64,
    /// Worker threads; results do not depend on it.
    pub threads: usize,
}

impl TuneOptions {
    /// The loss for these samples.
    pub fn loss_for(&self, samples: &Samples) -> Loss {
        self.loss.unwrap_or(match samples.labels() {
            Some(Labels::Targets(_)) => Loss::SquaredError,
            _ => Loss::CrossEntropy,
        })
    }

    /// An error of kind `Usage` for a setting out of its range, whatever the model.
    pub fn check(&self) -> Result<()> {
        self.distillation.map_or(Ok(()), |d| d.check())?;
        optimizer(self, 1).map(|_| ())
    }

    /// What makes one run differ from another, by name: everything but the number of threads.
    pub fn identity(&self) -> Identity {
        let settings = self.settings;
        [
            ("optimizer", format!("{:?}", self.kind)),
            ("momentum", self.momentum.to_string()),
            ("learning rate", settings.learning_rate.to_string()),
            ("schedule", format!("{:?}", settings.schedule)),
            ("warm-up", settings.warmup_steps.to_string()),
            ("weight decay", format!("{} {:?}", settings.weight_decay, settings.decay)),
            ("batch", self.batch.to_string()),
            ("number of steps", self.steps.to_string()),
            ("clipping", format!("{:?}", self.clip_norm)),
            ("average", format!("{:?}", self.average)),
            ("loss", format!("{:?}", self.loss)),
            ("distillation", format!("{:?}", self.distillation)),
            ("output", format!("{:?}", self.output)),
            ("choice of tensors", format!("{:?}", self.trained)),
            ("keeping of zeros", self.keep_zeros.to_string()),
            ("seed", self.seed.to_string()),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into()
    }
}

/// A model in training.
#[derive(Debug)]
pub struct Tuner<'a> {
    graph: Graph,
    samples: &'a Samples,
    options: TuneOptions,
    objective: Objective,
    trainer: Trainer,
    /// What the teacher says of each sample.
    teacher: Option<Tensor>,
    /// Samples per shard.
    shard: usize,
    /// The permutation of one epoch.
    epoch: (u64, Vec<u32>),
}

impl<'a> Tuner<'a> {
    /// Prepares the training of `graph` (a working graph, see [`crate::onnx::import`]) in those of
    /// its initializers for which `stored(name)`. `teacher` is the graph to learn from when
    /// [`TuneOptions::distillation`] is set; it takes the same inputs.
    ///
    /// Errors: `Usage` for options that do not fit the model, `Data` for samples that lack what the
    /// loss needs, `Unsupported` for an operator without a gradient rule on the way.
    pub fn new(
        graph: &Graph,
        teacher: Option<&Graph>,
        stored: impl Fn(&str) -> bool,
        samples: &'a Samples,
        options: &TuneOptions,
        cancel: &Cancel,
    ) -> Result<Tuner<'a>> {
        let shard = shard_size(graph, options.batch)?;
        let rows: Vec<usize> = (0..shard).map(|i| i % samples.rows()).collect();
        let prepared = prepare(graph, &samples.batch(&rows), cancel)?;
        let loss = options.loss_for(samples);
        let (output, distillation) = (options.output.as_deref(), options.distillation);
        let mut whole = graph.clone();
        let objective = Objective::attach(&mut whole, &prepared.facts, output, loss, distillation)?;
        objective.check(samples)?;
        let teacher = match (teacher, distillation.filter(|d| d.weight > 0.0)) {
            (Some(teacher), Some(_)) => {
                let of =
                    Answers { graph: teacher, output, loss, samples, threads: options.threads };
                Some(of.all(&objective, shard, cancel).context(|| "the teacher")?)
            }
            (None, Some(_)) => bail!(Usage, "distillation needs a teacher"),
            (_, None) => None,
        };
        let names = options.trained.choose(graph, objective.judged(), stored)?;
        let prunable: Vec<String> = weights(graph).0.into_iter().map(|w| w.name).collect();
        let keeps = |name: &str| options.keep_zeros && prunable.iter().any(|p| p == name);
        let parameters = Parameters::new(graph, &names, keeps)?;
        let example = feeds(&objective, samples, teacher.as_ref(), &rows)?;
        let step = StepGraph::new(&whole, objective.loss(), &names, &example, cancel)?;
        let optimizer = optimizer(options, parameters.len())?;
        let train = TrainOptions {
            threads: options.threads,
            clip_norm: options.clip_norm,
            average: options.average,
        };
        let trainer = Trainer::new(&step, parameters, optimizer, train)?;
        let (graph, options, epoch) = (graph.clone(), options.clone(), (u64::MAX, Vec::new()));
        Ok(Tuner { graph, samples, options, objective, trainer, teacher, shard, epoch })
    }

    /// The next step.
    pub fn step(&mut self, cancel: &Cancel) -> Result<StepFigures> {
        let rows = self.rows(self.trainer.steps());
        let Tuner { objective, samples, teacher, shard, trainer, .. } = self;
        let feed = |number: usize| {
            feeds(objective, samples, teacher.as_ref(), &rows[number * *shard..][..*shard])
        };
        trainer.step(rows.len() / *shard, &feed, cancel)
    }

    /// The steps taken.
    pub fn steps(&self) -> u64 {
        self.trainer.steps()
    }

    /// Whether all steps are taken.
    pub fn is_done(&self) -> bool {
        self.steps() >= self.options.steps
    }

    /// How it is trained.
    pub fn options(&self) -> &TuneOptions {
        &self.options
    }

    /// The trainer: weights, and state to save.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// The trainer, to restore a state of.
    pub fn trainer_mut(&mut self) -> &mut Trainer {
        &mut self.trainer
    }

    /// The model with the weights as trained so far.
    pub fn model(&self) -> Graph {
        let mut graph = self.graph.clone();
        self.trainer.result().store(&mut graph);
        graph
    }

    /// The samples of step `step`.
    fn rows(&mut self, step: u64) -> Vec<usize> {
        let (batch, all) = (self.options.batch as u64, self.samples.rows() as u64);
        let mut rows = Vec::with_capacity(self.options.batch);
        for draw in step * batch..(step + 1) * batch {
            let epoch = draw / all;
            if self.epoch.0 != epoch {
                let order = Stream::new(self.options.seed, epoch).permutation(all as usize);
                self.epoch = (epoch, order);
            }
            rows.push(self.epoch.1[(draw % all) as usize] as usize);
        }
        rows
    }
}

/// Samples per shard: what the model declares, else the largest divisor of the batch that keeps
/// activations in cache.
fn shard_size(graph: &Graph, batch: usize) -> Result<usize> {
    if batch == 0 {
        bail!(Usage, "a batch of 0 samples has no gradient");
    }
    match evaluate::fixed_batch(graph) {
        Some(fixed) if fixed == 0 || !batch.is_multiple_of(fixed) => bail!(
            Usage,
            "the model is fixed to batches of {fixed}: a batch of {batch} is no multiple of that"
        ),
        Some(fixed) => Ok(fixed),
        None => {
            let divides = |n: &usize| batch.is_multiple_of(*n);
            Ok((1..=LARGEST_SHARD).rev().find(divides).expect("1 divides every batch"))
        }
    }
}

fn optimizer(options: &TuneOptions, dimension: usize) -> Result<Optimizer> {
    let momentum = options.momentum;
    let method = match options.kind {
        Kind::Mfac { window, damping, metric, storage } => {
            let (lambda, relative_damping) = match damping {
                // The first gradient replaces this λ.
                WindowDamping::Relative(fraction) => (1.0, Some(fraction)),
                WindowDamping::Absolute(lambda) => (lambda, None),
            };
            let window = Sliding::new(window, dimension, lambda, storage, None)?;
            let diagonal = (metric == Metric::Diagonal).then_some(SECOND_MOMENT);
            Method::Mfac { window, momentum, relative_damping, diagonal }
        }
        Kind::Adam => Method::Adam { first: momentum, second: SECOND_MOMENT, epsilon: 1e-8 },
        Kind::Sgd => Method::Sgd { momentum },
    };
    Optimizer::new(method, options.settings, dimension, Vec::new())
}

/// What a step graph is fed for some rows.
fn feeds(
    objective: &Objective,
    samples: &Samples,
    teacher: Option<&Tensor>,
    rows: &[usize],
) -> Result<Vec<(String, Tensor)>> {
    let mut feeds = samples.batch(rows);
    feeds.extend(objective.feeds(rows, samples, teacher.map(|t| t.take_rows(rows)))?);
    Ok(feeds)
}

/// What a teacher is asked.
struct Answers<'a> {
    graph: &'a Graph,
    output: Option<&'a str>,
    loss: Loss,
    samples: &'a Samples,
    threads: usize,
}

impl Answers<'_> {
    /// Its logits or outputs for all samples, which must have the shape that the student's have.
    fn all(&self, objective: &Objective, shard: usize, cancel: &Cancel) -> Result<Tensor> {
        let rows: Vec<usize> = (0..evaluate::fixed_batch(self.graph).unwrap_or(shard))
            .map(|i| i % self.samples.rows())
            .collect();
        let prepared = prepare(self.graph, &self.samples.batch(&rows), cancel)?;
        let place = judged(self.graph, &prepared.facts, self.output, self.loss)?;
        let (own, student) = (place.shape(), objective.judged_shape());
        if own.get(1..) != student.get(1..) || own.first() != Some(&rows.len()) {
            bail!(
                Usage,
                "its {:?} has shape {own:?} for {} samples, but the model's {:?} has {student:?} \
                 for {shard}",
                place.value(),
                rows.len(),
                objective.judged()
            );
        }
        let mut shape = own.to_vec();
        shape[0] = self.samples.rows();
        let bytes = element_count(&shape).and_then(|n| n.checked_mul(4));
        if bytes.is_none_or(|bytes| bytes > TEACHER_BYTES) {
            bail!(
                Memory,
                "its outputs for {} samples of shape {:?} take more than {} GiB; give fewer \
                 samples",
                shape[0],
                &shape[1..],
                TEACHER_BYTES >> 30
            );
        }
        let options = RunOptions { device: Device::Cpu, threads: self.threads };
        let value = place.value().to_string();
        let mut runner = Runner::new(&[self.graph], &[value], options)?;
        let parts = runner.run(self.samples, cancel, |_, outputs| Ok(outputs[0].to_f32()))?;
        Tensor::new(shape, crate::tensor::Data::F32(parts.concat()))
    }
}
