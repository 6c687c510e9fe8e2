//! A fine-tuning run: a model and samples in, the model with trained weights and a report out.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::atomic_file::check_output;
use crate::calibration::{Labels, ReadOptions, Samples};
use crate::cancel::Cancel;
use crate::error::{Context, Error, ErrorKind, Result, bail, error};
use crate::evaluate::{self, RunOptions, Runner};
use crate::gradient::prepare::declare_baked_batch;
use crate::mfac::optimizer::{Decay, Schedule};
use crate::onnx::{Graph, Model, import};
use crate::progress::Progress;
use crate::runtime::Device;
use crate::sys;
use crate::tensor::Tensor;
use crate::train::checkpoint::{self, Identity};
use crate::train::report::{self, Entry, Evaluation, Files, Quality, Report, SCHEMA, TensorRow};
use crate::train::{Kind, Loss, StepFigures, TuneOptions, Tuner, WindowDamping};

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// So many steps.
    Steps(u64),
    /// So many times all samples, rounded up to whole steps.
    Epochs(f64),
}

impl Length {
    /// Steps before epochs; none where neither is given.
    pub fn given(steps: Option<u64>, epochs: Option<f64>) -> Option<Length> {
        steps.map(Length::Steps).or(epochs.map(Length::Epochs))
    }

    /// So many times as long.
    pub fn times(self, factor: u64) -> Length {
        match self {
            Length::Steps(steps) => Length::Steps(steps.saturating_mul(factor)),
            Length::Epochs(epochs) => Length::Epochs(epochs * factor as f64),
        }
    }

    /// The steps for `rows` samples in batches of `batch`.
    pub fn steps(self, rows: usize, batch: usize) -> u64 {
        match self {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => (epochs * rows as f64 / batch.max(1) as f64).ceil() as u64,
        }
    }

    /// The options for a run of this length over `rows` samples: its steps, over which a falling
    /// schedule falls. Error `Usage` where there are none.
    pub fn fit(self, options: &TuneOptions, rows: usize) -> Result<TuneOptions> {
        let mut options = options.clone();
        options.steps = self.steps(rows, options.batch);
        if options.steps == 0 {
            bail!(Usage, "a run of 0 steps changes nothing; ask for at least one");
        }
        let falls = options.steps.saturating_sub(options.settings.warmup_steps);
        match &mut options.settings.schedule {
            Schedule::Linear { steps } | Schedule::Cosine { steps } => *steps = falls,
            Schedule::Constant | Schedule::Stairs { .. } => (),
        }
        Ok(options)
    }
}

/// What a run does, wherever its model and samples come from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long the run is; sets [`TuneOptions::steps`] and the steps of a falling schedule.
    pub length: Length,
    /// Steps between two evaluations; 0 for a tenth of the run.
    pub evaluate_every: u64,
    /// Where the state is kept while the run goes on; if it is there, the run goes on from it.
    pub checkpoint: Option<PathBuf>,
    /// Steps between two checkpoints, at least 1.
    pub checkpoint_every: u64,
    /// How to train.
    pub options: TuneOptions,
}

impl Plan {
    /// Removes the checkpoint of a run that is over and whose result is safe.
    pub fn end(&self) {
        if let Some(path) = &self.checkpoint {
            // A file that is gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Files and options of a run.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model to fine-tune.
    pub model: PathBuf,
    /// The samples to learn.
    pub data: PathBuf,
    /// Where the fine-tuned model goes.
    pub output: PathBuf,
    /// The model to learn from, with [`TuneOptions::distillation`].
    pub teacher: Option<PathBuf>,
    /// Samples to evaluate the model on.
    pub evaluation: Option<PathBuf>,
    /// How to read the samples.
    pub reading: ReadOptions,
    /// What to do.
    pub plan: Plan,
}

impl Job {
    /// Runs it. The output appears whole or not at all, and never replaces the model it came from.
    ///
    /// When `cancel` is raised, the state is kept in the checkpoint, if there is one to be kept.
    pub fn run(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Report> {
        let start = Instant::now();
        let sources: Vec<&Path> = [Some(&self.model), self.teacher.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect();
        check_output(&self.output, &sources)?;
        checkpoint::check_place(self.plan.checkpoint.as_deref(), &self.output)?;
        let load = |path: &Path| {
            let model = Model::load(path)?;
            let graph = import(&model).context(|| path.display().to_string())?;
            Ok::<_, Error>((model, graph))
        };
        let (model, graph) = load(&self.model)?;
        let read = |path: &Path| Samples::read(path, &graph.inputs, &self.reading);
        let samples = read(&self.data)?;
        let evaluation = self.evaluation.as_deref().map(read).transpose()?;
        let teacher = self.teacher.as_deref().map(load).transpose()?.map(|(_, graph)| graph);
        let run = Run {
            samples: &samples,
            teacher,
            evaluation: evaluation.as_ref(),
            plan: &self.plan,
            files: self.files(),
        };
        let (model, mut report) = run.run(model, graph, progress, cancel)?;
        model.save(&self.output)?;
        self.plan.end();
        report.total_seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }

    fn files(&self) -> Files {
        let name = |path: &Path| path.display().to_string();
        Files {
            model: name(&self.model),
            data: name(&self.data),
            teacher: self.teacher.as_deref().map(name),
            evaluation: self.evaluation.as_deref().map(name),
            output: name(&self.output),
        }
    }
}

/// A run over samples in memory.
#[derive(Debug)]
pub struct Run<'a> {
    /// The samples to learn.
    pub samples: &'a Samples,
    /// The working graph of the model to learn from, with [`TuneOptions::distillation`].
    pub teacher: Option<Graph>,
    /// Samples to evaluate the model on.
    pub evaluation: Option<&'a Samples>,
    /// What to do.
    pub plan: &'a Plan,
    /// What the report and messages call these.
    pub files: Files,
}

impl Run<'_> {
    /// Trains `model`, whose working graph is `graph` (see [`import`]): the model with new values
    /// in the trained tensors, and the report.
    ///
    /// When `cancel` is raised, the state is kept in the checkpoint, if there is one to be kept;
    /// see [`Plan::end`] for when all went well.
    pub fn run(
        mut self,
        mut model: Model,
        mut graph: Graph,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<(Model, Report)> {
        let start = Instant::now();
        let in_model = || self.files.model.clone();
        let samples = self.samples;
        declare_baked_batch(&mut graph, samples, evaluate::BATCH, cancel).context(in_model)?;
        if let Some(teacher) = &mut self.teacher {
            let name = self.files.teacher.clone().unwrap_or_default();
            declare_baked_batch(teacher, samples, evaluate::BATCH, cancel).context(|| name)?;
        }
        let (this, in_model) = (&self, || self.files.model.clone());
        let teacher = this.teacher.as_ref();
        let options = this.plan.length.fit(&this.plan.options, samples.rows())?;
        let source = Graph::from_model(&model).context(in_model)?;
        let judge = Judge::new(&graph, this.evaluation, &options)?;
        let alone = held_alone(&source, &graph);
        let tuner = Tuner::new(&graph, teacher, alone, samples, &options, cancel);
        let mut tuner = tuner.map_err(|e| match e.kind() {
            ErrorKind::Data => e.context(this.files.data.clone()),
            _ => e.context(in_model()),
        })?;
        let identity = this.identity(&graph, &options)?;
        let log = Log::default();
        let mut course = Course { plan: this.plan, tuner: &mut tuner, identity, log };
        course.resume()?;
        let before = judge.quality(&graph, cancel)?;
        let training = course.train(&judge, progress, cancel)?;
        let log = course.log;
        let mut tensors = Vec::new();
        for (name, new) in tuner.trainer().result().tensors() {
            let file = &source.initializers[name];
            model.replace_tensor(name, &new.to_floats(file.element_type())?).context(in_model)?;
            tensors.push(row(name, &graph.initializers[name], new));
        }
        // The last step of every run is evaluated.
        let after = log.history.last().and_then(|entry| entry.evaluation);
        let taught = teacher.map(|t| judge.quality(t, cancel)).transpose()?.flatten();
        cancel.check()?;
        let report = Report {
            schema: SCHEMA.into(),
            hone_version: env!("CARGO_PKG_VERSION").into(),
            files: this.files.clone(),
            options: settings(&options, samples),
            tensors,
            evaluation: before.zip(after).map(|(before, after)| Evaluation {
                samples: this.evaluation.map_or(0, Samples::rows) as u64,
                before,
                after,
                teacher: taught,
            }),
            history: log.history,
            training_seconds: training.seconds,
            gradient_seconds: training.gradient_s,
            training_steps: training.steps,
            total_seconds: start.elapsed().as_secs_f64(),
            peak_memory_bytes: sys::peak_memory_bytes(),
        };
        Ok((model, report))
    }

    fn identity(&self, graph: &Graph, options: &TuneOptions) -> Result<Identity> {
        if self.plan.checkpoint.is_none() {
            return Ok(Identity::new());
        }
        let of_graph =
            |graph: &Graph| graph.to_bytes().map(|b| checkpoint::fingerprint_of_bytes(&b));
        let mut identity = options.identity();
        identity.insert("model".into(), of_graph(graph)?);
        identity.insert("data".into(), checkpoint::fingerprint(self.samples));
        if let Some(teacher) = &self.teacher {
            identity.insert("teacher".into(), of_graph(teacher)?);
        }
        Ok(identity)
    }
}

/// Whether the file holds a tensor by this name alone for its readers: where the import split it
/// into copies, changing it would change other layers, too.
pub fn held_alone<'g>(source: &'g Graph, graph: &'g Graph) -> impl Fn(&str) -> bool + 'g {
    let (in_file, here) = (source.uses(), graph.uses());
    move |name| {
        let count = |uses: &std::collections::HashMap<&str, Vec<(usize, usize)>>| {
            uses.get(name).map_or(0, Vec::len)
        };
        let same = |old: &Tensor, new: &Tensor| old.shape() == new.shape();
        let (old, new) = (source.initializers.get(name), graph.initializers.get(name));
        old.zip(new).is_some_and(|(old, new)| same(old, new)) && count(&here) >= count(&in_file)
    }
}

/// A run in progress.
struct Course<'r, 'g> {
    plan: &'r Plan,
    tuner: &'r mut Tuner<'g>,
    identity: Identity,
    log: Log,
}

/// What a checkpoint tells beside the state.
#[derive(Default, Serialize, Deserialize)]
struct Log {
    history: Vec<Entry>,
    /// Losses since the last entry: their sum and number.
    sum: f64,
    count: u64,
}

/// What this process did.
struct Training {
    seconds: f64,
    gradient_s: f64,
    steps: u64,
}

impl Course<'_, '_> {
    /// Goes on from the checkpoint, if there is one.
    fn resume(&mut self) -> Result<()> {
        let Some(path) = &self.plan.checkpoint else { return Ok(()) };
        let trainer = self.tuner.trainer_mut();
        let log = checkpoint::read(path, &self.identity, |from| trainer.restore(from))?;
        if let Some(log) = log {
            self.log = serde_json::from_str(&log)
                .map_err(|e| error!(Io, "{}: its log cannot be read: {e}", path.display()))?;
            log::info!("going on after step {}", self.tuner.steps());
        }
        Ok(())
    }

    fn keep(&self) -> Result<()> {
        let Some(path) = &self.plan.checkpoint else { return Ok(()) };
        let log = serde_json::to_string(&self.log).expect("plain data has a JSON form");
        checkpoint::write(path, &self.identity, &log, |to| self.tuner.trainer().save(to))
    }

    fn train(
        &mut self,
        judge: &Judge<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Training> {
        let total = self.tuner.options().steps;
        let every = match self.plan.evaluate_every {
            0 => total.div_ceil(10),
            every => every,
        };
        progress.begin("fine-tuning", total);
        let mut training = Training { seconds: 0.0, gradient_s: 0.0, steps: 0 };
        while !self.tuner.is_done() {
            let start = Instant::now();
            let figures = match self.tuner.step(cancel) {
                Ok(figures) => figures,
                Err(e) => return Err(self.stopped(e)),
            };
            training.seconds += start.elapsed().as_secs_f64();
            training.gradient_s += figures.gradient_s;
            training.steps += 1;
            self.log.sum += figures.loss;
            self.log.count += 1;
            let step = self.tuner.steps();
            progress.advance(step);
            if step.is_multiple_of(every) || step == total {
                let quality = match judge.quality(&self.tuner.model(), cancel) {
                    Ok(quality) => quality,
                    Err(e) => return Err(self.stopped(e)),
                };
                progress.say(&self.enter(step, figures, quality).to_string());
            }
            if step.is_multiple_of(self.plan.checkpoint_every.max(1)) {
                self.keep()?;
            }
        }
        Ok(training)
    }

    /// The error that ends the run; when it was asked to stop, its state is kept.
    fn stopped(&self, e: Error) -> Error {
        let Some(path) = self.plan.checkpoint.as_ref().filter(|_| e.kind() == ErrorKind::Cancelled)
        else {
            return e.context(format!("step {}", self.tuner.steps() + 1));
        };
        match self.keep() {
            Ok(()) => {
                let (steps, path) = (self.tuner.steps(), path.display());
                e.context(format!("{path} holds the run after {steps} steps, run again to go on"))
            }
            Err(failed) => failed,
        }
    }

    /// Closes the entry that ends with this step.
    fn enter(&mut self, step: u64, figures: StepFigures, evaluation: Option<Quality>) -> &Entry {
        let log = &mut self.log;
        log.history.push(Entry {
            step,
            loss: log.sum / log.count.max(1) as f64,
            learning_rate: figures.learning_rate,
            gradient_norm: figures.gradient_norm,
            evaluation,
        });
        (log.sum, log.count) = (0.0, 0);
        log.history.last().expect("one was pushed")
    }
}

/// The samples that models are evaluated on.
struct Judge<'a> {
    samples: Option<&'a Samples>,
    output: String,
    run: RunOptions,
}

impl<'a> Judge<'a> {
    fn new(graph: &Graph, samples: Option<&'a Samples>, o: &TuneOptions) -> Result<Judge<'a>> {
        if samples.is_some_and(|s| s.labels().is_none()) {
            bail!(Data, "the samples for the evaluation have no labels to compare answers with");
        }
        let output = o.output.clone().map_or_else(|| evaluate::main_output(graph), Ok)?;
        let run = RunOptions { device: Device::Cpu, threads: o.threads };
        Ok(Judge { samples, output, run })
    }

    /// How good `graph` is; `None` without samples.
    fn quality(&self, graph: &Graph, cancel: &Cancel) -> Result<Option<Quality>> {
        let Some(samples) = self.samples else { return Ok(None) };
        let (output, run) = (&self.output, self.run);
        if let Some(Labels::Targets(targets)) = samples.labels() {
            let loss = squared_error(graph, output, samples, targets, run, cancel)?;
            return Ok(Some(Quality { accuracy: None, loss }));
        }
        let right = evaluate::accuracy(graph, output, samples, run, cancel)?;
        Ok(Some(Quality { accuracy: Some(right.value()), loss: right.mean_loss() }))
    }
}

/// The mean squared distance of an output to targets.
fn squared_error(
    graph: &Graph,
    output: &str,
    samples: &Samples,
    targets: &Tensor,
    run: RunOptions,
    cancel: &Cancel,
) -> Result<f64> {
    let mut runner = Runner::new(&[graph], &[output.into()], run)?;
    let parts = runner.run(samples, cancel, |rows, outputs| {
        let (have, want) = (outputs[0].to_f64(), targets.take_rows(rows).to_f64());
        if have.len() != want.len() {
            let (have, want) = (outputs[0].shape(), targets.shape());
            bail!(Data, "targets of shape {want:?} do not fit outputs of shape {have:?}");
        }
        Ok(have.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum::<f64>())
    })?;
    Ok(parts.iter().sum::<f64>() / targets.len().max(1) as f64)
}

fn row(name: &str, old: &Tensor, new: &Tensor) -> TensorRow {
    let (old, values) = (old.to_f64(), new.to_f64());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let length = norm(&mut old.iter().copied());
    let moved = norm(&mut old.iter().zip(&values).map(|(a, b)| b - a));
    TensorRow {
        name: name.into(),
        shape: new.shape().iter().map(|&n| n as u64).collect(),
        weights: values.len() as u64,
        zeros: values.iter().filter(|w| **w == 0.0).count() as u64,
        relative_change: (length > 0.0).then(|| moved / length),
    }
}

/// The settings of a run over these samples, for reports.
pub(crate) fn settings(o: &TuneOptions, samples: &Samples) -> report::Options {
    let (optimizer, window, damping, metric) = match o.kind {
        Kind::Mfac { window, damping, metric, .. } => {
            ("mfac", Some(window), Some(damping), Some(metric))
        }
        Kind::Adam => ("adam", None, None, None),
        Kind::Sgd => ("sgd", None, None, None),
    };
    let (damping_kind, damping) = match damping {
        Some(WindowDamping::Relative(fraction)) => (Some("relative"), Some(fraction)),
        Some(WindowDamping::Absolute(lambda)) => (Some("absolute"), Some(lambda)),
        None => (None, None),
    };
    let schedule = match o.settings.schedule {
        Schedule::Constant => "constant".into(),
        Schedule::Linear { .. } => "linear".into(),
        Schedule::Cosine { .. } => "cosine".into(),
        Schedule::Stairs { every, factor } => format!("stairs:{every}:{factor}"),
    };
    let loss = match o.loss_for(samples) {
        Loss::CrossEntropy => "cross-entropy",
        Loss::SquaredError => "mse",
    };
    report::Options {
        optimizer: optimizer.into(),
        window,
        damping_kind: damping_kind.map(String::from),
        damping_metric: metric.map(|m| format!("{m:?}").to_lowercase()),
        damping,
        learning_rate: o.settings.learning_rate,
        schedule,
        warmup_steps: o.settings.warmup_steps,
        momentum: o.momentum,
        weight_decay: o.settings.weight_decay,
        decay: if o.settings.decay == Decay::Coupled { "coupled" } else { "decoupled" }.into(),
        loss: loss.into(),
        temperature: o.distillation.map(|d| d.temperature),
        distill_weight: o.distillation.map(|d| d.weight),
        batch: o.batch,
        steps: o.steps,
        clip_norm: o.clip_norm,
        average: o.average,
        keep_zeros: o.keep_zeros,
        seed: o.seed,
        threads: o.threads,
    }
}
