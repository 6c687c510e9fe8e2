//! A pruning run over files: a model and samples in, a pruned model and a report out.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::atomic_file::check_output;
use crate::calibration::{Accuracy, ReadOptions, Samples};
use crate::cancel::Cancel;
use crate::error::{Context, ErrorKind, Result, error};
use crate::evaluate::{self, RunOptions};
use crate::gradient::prepare::declare_baked_batch;
use crate::gradient::seed::Fisher;
use crate::onnx::{Graph, Model, import};
use crate::prune::gradual::Course;
use crate::prune::report::{
    self, Cost, Divergence, Evaluation, Files, Latency, LayerRow, Phase, Quality, Report, SCHEMA,
    Size, Skipped, Standing, Total,
};
use crate::prune::{
    Damping, Gradual, Method, Options, Progress, Pruned, Scope, Selection, Update, compress,
};
use crate::sys;
use crate::tensor::Tensor;
use crate::train;
use crate::train::checkpoint;

/// Files and options of a run.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model to prune.
    pub model: PathBuf,
    /// Samples to take gradients of.
    pub calibration: PathBuf,
    /// Samples to compare dense and pruned on.
    pub evaluation: Option<PathBuf>,
    /// Where the pruned model goes.
    pub output: PathBuf,
    /// How to read the samples.
    pub reading: ReadOptions,
    /// What to do.
    pub options: Options,
    /// To do it in steps with fine-tuning after each.
    pub gradual: Option<Gradual>,
}

impl Job {
    /// Runs it. The output appears whole or not at all, and never replaces the model it came from.
    pub fn run(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Report> {
        let phases = Phases::start();
        check_output(&self.output, &[&self.model])?;
        let kept = self.gradual.as_ref().and_then(|g| g.checkpoint.as_deref());
        checkpoint::check_place(kept, &self.output)?;
        let model = Model::load(&self.model)?;
        let graph = import(&model).context(|| self.model.display().to_string())?;
        let calibration = Samples::read(&self.calibration, &graph.inputs, &self.reading)?;
        let evaluation = self
            .evaluation
            .as_deref()
            .map(|path| Samples::read(path, &graph.inputs, &self.reading))
            .transpose()?;
        let run = Run {
            calibration: &calibration,
            evaluation: evaluation.as_ref(),
            options: &self.options,
            gradual: self.gradual.as_ref(),
            files: self.files(),
        };
        let mut outcome = run.start(model, graph, phases, progress, cancel)?;
        outcome.model.save(&self.output)?;
        if let Some(gradual) = &self.gradual {
            gradual.end();
        }
        outcome.report.size = self.size()?;
        Ok(outcome.finish("write").1)
    }

    fn files(&self) -> Files {
        let name = |path: &Path| path.display().to_string();
        Files {
            model: name(&self.model),
            calibration: Some(name(&self.calibration)),
            evaluation: self.evaluation.as_deref().map(name),
            output: name(&self.output),
        }
    }

    fn size(&self) -> Result<Size> {
        let (dense_bytes, dense_zstd_bytes) = sizes(&self.model)?;
        let (pruned_bytes, pruned_zstd_bytes) = sizes(&self.output)?;
        Ok(Size {
            dense_bytes,
            pruned_bytes,
            dense_zstd_bytes,
            pruned_zstd_bytes,
            zstd_level: ZSTD_LEVEL,
        })
    }
}

/// A run over samples in memory.
#[derive(Debug)]
pub struct Run<'a> {
    /// Samples to take gradients of.
    pub calibration: &'a Samples,
    /// Samples to compare dense and pruned on.
    pub evaluation: Option<&'a Samples>,
    /// What to do.
    pub options: &'a Options,
    /// To do it in steps with fine-tuning after each.
    pub gradual: Option<&'a Gradual>,
    /// What the report and messages call these.
    pub files: Files,
}

/// A run but for its end.
struct Outcome {
    model: Model,
    report: Report,
    phases: Phases,
    pruned: Pruned,
}

impl Outcome {
    /// The model and the report, once what happened since the last mark is named.
    fn finish(mut self, last: &str) -> (Model, Report) {
        self.phases.mark(last);
        self.report.cost.set_total(self.phases.start.elapsed().as_secs_f64());
        self.report.phases = self.phases.finish(&self.pruned);
        (self.model, self.report)
    }
}

impl Run<'_> {
    /// Prunes `model`, whose working graph is `graph` (see [`import`]): the pruned model, which
    /// differs from the dense one in the pruned tensors and what moved with them, and the report,
    /// in which the sizes are those of the bytes of both models.
    pub fn run(
        &self,
        model: Model,
        graph: Graph,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<(Model, Report)> {
        let phases = Phases::start();
        let (dense_bytes, dense_zstd_bytes) = model_sizes(&model)?;
        let mut outcome = self.start(model, graph, phases, progress, cancel)?;
        let (pruned_bytes, pruned_zstd_bytes) = model_sizes(&outcome.model)?;
        outcome.report.size = Size {
            dense_bytes,
            pruned_bytes,
            dense_zstd_bytes,
            pruned_zstd_bytes,
            zstd_level: ZSTD_LEVEL,
        };
        Ok(outcome.finish("measure"))
    }

    fn start(
        &self,
        mut model: Model,
        mut graph: Graph,
        mut phases: Phases,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Outcome> {
        let in_model = || self.files.model.clone();
        let calibration = self.calibration;
        declare_baked_batch(&mut graph, calibration, evaluate::BATCH, cancel).context(in_model)?;
        phases.mark("read");
        let source = Graph::from_model(&model).context(in_model)?;
        let readers = source.uses();
        // What the file holds once and one node reads: changing it changes nothing else.
        let adjustable = |name: &str| {
            source.initializers.contains_key(name)
                && readers.get(name).is_some_and(|u| u.len() == 1)
        };
        let pruned = match self.gradual {
            None => compress(&graph, adjustable, calibration, self.options, progress, cancel)
                .map(|pruned| (pruned, None)),
            Some(plan) => {
                let judge = |now: &Graph| {
                    let models = Models { dense: &graph, pruned: now };
                    let standing =
                        |e: Evaluation| Standing { quality: e.pruned, divergence: e.divergence };
                    let evaluated = self.evaluation.map(|e| self.evaluate(&models, e, cancel));
                    Ok(evaluated.transpose()?.map(standing))
                };
                let course = Course {
                    dense: &graph,
                    source: &source,
                    adjustable: &adjustable,
                    samples: calibration,
                    evaluation: self.evaluation,
                    judge: &judge,
                    options: self.options,
                    plan,
                    progress,
                    cancel,
                };
                self.in_steps(&course)
            }
        };
        let (pruned, gradual) = pruned.map_err(|e| match (e.kind(), &self.files.calibration) {
            (ErrorKind::Data, Some(calibration)) => e.context(calibration),
            _ => e.context(in_model()),
        })?;
        let mut pruned_graph = graph.clone();
        for (name, tensor) in pruned.tensors.iter().chain(&pruned.biases) {
            let file = source.initializers.get(name).unwrap_or(&graph.initializers[name]);
            let stored = tensor.to_floats(file.element_type())?;
            // The working graph holds float32 where the file holds half precision.
            let working = Tensor::f32(stored.shape(), stored.to_f32());
            pruned_graph.initializers.insert(name.clone(), Arc::new(working));
            model.replace_tensor(name, &stored).context(in_model)?;
        }
        phases.mark("prepare and prune");
        progress.begin("checking", 3);
        let models = Models { dense: &graph, pruned: &pruned_graph };
        let evaluated = self.evaluation.map(|e| self.evaluate(&models, e, cancel)).transpose()?;
        progress.advance(1);
        let measured_loss = self.measured_loss(&models, calibration, &pruned, cancel)?;
        phases.mark("evaluate");
        let latency = self.latency(&models, calibration, cancel)?;
        phases.mark("latency");
        progress.advance(2);
        let forward_s = self.forward_s(&graph, calibration, pruned.stages, cancel)?;
        phases.mark("forward passes alone");
        cancel.check()?;
        let layers = layers(&pruned, self.options.method);
        let report = Report {
            schema: SCHEMA.into(),
            hone_version: env!("CARGO_PKG_VERSION").into(),
            files: self.files.clone(),
            options: settings(self.options),
            total: self.total(&layers, &pruned, measured_loss),
            layers,
            adjusted: pruned.biases.iter().map(|(name, _)| name.clone()).collect(),
            skipped: skipped(&pruned),
            evaluation: evaluated,
            size: Size::default(),
            latency: Some(latency),
            cost: cost(&pruned, forward_s),
            phases: Vec::new(),
            gradual,
        };
        Ok(Outcome { model, report, phases, pruned })
    }

    fn in_steps(&self, course: &Course<'_>) -> Result<(Pruned, Option<report::Gradual>)> {
        let plan = course.plan;
        let tuning = plan.tuning_for(self.calibration)?;
        let (pruned, steps) = course.run(&tuning)?;
        let [others, last] = &tuning;
        let gradual = report::Gradual {
            ramp: plan.ramp.to_string(),
            tuning: train::settings(others, self.calibration),
            final_steps: last.steps,
            steps,
        };
        Ok((pruned, Some(gradual)))
    }

    fn run_options(&self) -> RunOptions {
        RunOptions { device: self.options.device, threads: self.options.threads }
    }

    fn main_output(&self, graph: &Graph) -> Result<String> {
        self.options.outputs.first().cloned().map_or_else(|| evaluate::main_output(graph), Ok)
    }

    fn evaluate(
        &self,
        models: &Models<'_>,
        samples: &Samples,
        cancel: &Cancel,
    ) -> Result<Evaluation> {
        let (run, output) = (self.run_options(), self.main_output(models.dense)?);
        let compared =
            evaluate::compare(models.dense, models.pruned, &output, samples, run, cancel)?;
        let quality =
            |right: Accuracy| Quality { accuracy: right.value(), loss: right.mean_loss() };
        let apart = compared.divergence;
        Ok(Evaluation {
            samples: samples.rows() as u64,
            dense: compared.accuracy.map(|[dense, _]| quality(dense)),
            pruned: compared.accuracy.map(|[_, pruned]| quality(pruned)),
            divergence: Divergence { relative_error: apart.relative, agreement: apart.agreement },
        })
    }

    /// What ½ δᵀFδ predicts, measured: for random cotangents it is half the squared change of the
    /// values seeded. The other seeds have no such counterpart on the outputs alone.
    fn measured_loss(
        &self,
        models: &Models<'_>,
        samples: &Samples,
        pruned: &Pruned,
        cancel: &Cancel,
    ) -> Result<Option<f64>> {
        let known = matches!(self.options.fisher, Fisher::Outputs | Fisher::Gaussian);
        if !known || self.gradual.is_some() {
            return Ok(None);
        }
        let run = self.run_options();
        let change = |value: &String| {
            evaluate::compare(models.dense, models.pruned, value, samples, run, cancel)
                .map(|compared| compared.divergence.half_squared)
        };
        Ok(Some(pruned.seeded.iter().map(change).sum::<Result<f64>>()?))
    }

    fn latency(&self, models: &Models<'_>, samples: &Samples, cancel: &Cancel) -> Result<Latency> {
        let batch = evaluate::fixed_batch(models.dense).unwrap_or(1);
        let graphs = [models.dense, models.pruned];
        let [dense_median_ms, pruned_median_ms] =
            evaluate::latencies_ms(graphs, samples, batch, self.run_options(), cancel)?;
        Ok(Latency { batch, runs: evaluate::LATENCY_RUNS, dense_median_ms, pruned_median_ms })
    }

    /// Time of the forward passes of as many samples as gradients were taken of in so many stages.
    fn forward_s(
        &self,
        graph: &Graph,
        samples: &Samples,
        stages: usize,
        cancel: &Cancel,
    ) -> Result<Option<f64>> {
        let o = &self.options;
        if o.method == Method::Magnitude || stages == 0 {
            return Ok(None);
        }
        let output = self.main_output(graph)?;
        let once = evaluate::forward_s(graph, &output, samples, self.run_options(), cancel)?;
        let taken = o.gradients * o.fisher_batch * stages;
        Ok(Some(once * taken as f64 / samples.rows() as f64))
    }

    fn total(&self, layers: &[LayerRow], pruned: &Pruned, measured_loss: Option<f64>) -> Total {
        let (weights, zeros) = layers.iter().fold((0, 0), |(w, z), l| (w + l.weights, z + l.zeros));
        let predicted = || pruned.predicted_loss.iter().sum();
        Total {
            weights,
            zeros,
            sparsity: zeros as f64 / weights.max(1) as f64,
            predicted_loss: (self.options.method == Method::MFac).then(predicted),
            measured_loss,
        }
    }
}

/// The level users get when they do not choose one.
const ZSTD_LEVEL: i32 = 3;

/// Wall time of the parts of a run.
struct Phases {
    start: Instant,
    last: Instant,
    list: Vec<Phase>,
}

impl Phases {
    fn start() -> Phases {
        let now = Instant::now();
        Phases { start: now, last: now, list: Vec::new() }
    }

    /// What happened since the last mark was `name`.
    fn mark(&mut self, name: &str) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.list.push(Phase { name: name.into(), seconds });
    }

    /// The list, with the parts of the pruning itself in the place of the whole.
    fn finish(mut self, pruned: &Pruned) -> Vec<Phase> {
        let at = self.list.iter().position(|p| p.name == "prepare and prune");
        let at = at.expect("a finished run has pruned");
        let parts = [
            ("gradients", pruned.gradient_s),
            ("fisher", pruned.fisher_s),
            ("prune", pruned.prune_s),
            ("statistics", pruned.statistics_s),
            ("fine-tuning", pruned.tune_s),
        ];
        let parts = &parts[..parts.len() - usize::from(pruned.tune_s == 0.0)];
        let known: f64 = parts.iter().map(|(_, s)| s).sum();
        let rest = self.list[at].seconds - known;
        let parts = [("prepare", rest)].into_iter().chain(parts.iter().copied());
        let parts: Vec<_> =
            parts.map(|(name, seconds)| Phase { name: name.into(), seconds }).collect();
        self.list.splice(at..=at, parts);
        self.list
    }
}

/// What the run cost but for its total time, which is not known yet.
fn cost(pruned: &Pruned, forward_seconds: Option<f64>) -> Cost {
    let mut cost = Cost { forward_seconds, ..Cost::default() };
    cost.gradients_multiple = cost.multiple(pruned.gradient_s);
    cost.pruning_multiple = cost.multiple(pruned.fisher_s + pruned.prune_s);
    cost
}

impl Cost {
    /// `seconds` as a multiple of the forward passes.
    fn multiple(&self, seconds: f64) -> Option<f64> {
        self.forward_seconds.map(|forward| seconds / forward.max(f64::MIN_POSITIVE))
    }

    fn set_total(&mut self, seconds: f64) {
        self.total_seconds = seconds;
        self.total_multiple = self.multiple(seconds);
        self.peak_memory_bytes = Some(sys::peak_memory_bytes());
    }
}

struct Models<'a> {
    dense: &'a Graph,
    pruned: &'a Graph,
}

fn layers(pruned: &Pruned, method: Method) -> Vec<LayerRow> {
    let layers = pruned.layers.iter().zip(&pruned.tensors);
    layers
        .map(|(l, (name, tensor))| {
            let zeros = tensor.to_f32().iter().filter(|w| **w == 0.0).count() as u64;
            let weights = tensor.len() as u64;
            LayerRow {
                name: name.clone(),
                shape: tensor.shape().iter().map(|&d| d as u64).collect(),
                weights,
                zeros,
                sparsity: zeros as f64 / weights.max(1) as f64,
                predicted_loss: (method == Method::MFac).then_some(l.predicted_loss),
            }
        })
        .collect()
}

fn skipped(pruned: &Pruned) -> Vec<Skipped> {
    let report = |s: &crate::gradient::parameters::Skipped| Skipped {
        name: s.name.clone(),
        shape: s.shape.iter().map(|&d| d as u64).collect(),
        weights: s.shape.iter().map(|&d| d as u64).product(),
        reason: s.reason.clone(),
    };
    pruned.skipped.iter().map(report).collect()
}

fn settings(o: &Options) -> report::Options {
    let mfac = o.method == Method::MFac;
    let joint = mfac && o.update == Update::Joint;
    let (damping_kind, damping) = match o.damping {
        Damping::Relative(fraction) => ("relative", fraction),
        Damping::Absolute(lambda) => ("absolute", lambda),
    };
    let selection = match o.selection {
        Selection::Greedy => "greedy".into(),
        Selection::Staged { stages } => format!("staged:{stages}"),
    };
    report::Options {
        method: if mfac { "mfac" } else { "magnitude" }.into(),
        sparsity: o.sparsity,
        pattern: o.pattern.to_string(),
        scope: if o.scope == Scope::Global { "global" } else { "layer" }.into(),
        update: mfac.then(|| if joint { "joint" } else { "independent" }.into()),
        selection: joint.then_some(selection),
        stages: if mfac { o.stages } else { 1 },
        block_size: (mfac && o.block != usize::MAX).then_some(o.block),
        damping_kind: mfac.then(|| damping_kind.into()),
        damping: mfac.then_some(damping),
        fisher: mfac.then(|| o.fisher.to_string()),
        gradients: mfac.then_some(o.gradients),
        fisher_batch: mfac.then_some(o.fisher_batch),
        match_statistics: o.match_statistics,
        seed: o.seed,
        device: format!("{:?}", o.device).to_lowercase(),
        threads: o.threads,
        memory_limit_bytes: Some(o.memory_limit_bytes as u64),
    }
}

/// Bytes of a model's files as they are, and compressed.
fn sizes(path: &Path) -> Result<(u64, u64)> {
    let (mut plain, mut packed) = (0, 0);
    let data = Model::load(path)?.data_files()?;
    for path in data.iter().map(PathBuf::as_path).chain([path]) {
        let failed = |e: io::Error| error!(Io, "{}: {e}", path.display());
        let file = fs::File::open(path).map_err(failed)?;
        plain += file.metadata().map_err(failed)?.len();
        let mut encoder = zstd::stream::read::Encoder::new(file, ZSTD_LEVEL).map_err(failed)?;
        packed += io::copy(&mut encoder, &mut io::sink()).map_err(failed)?;
    }
    Ok((plain, packed))
}

/// Bytes of a model with all its tensors, as they are and compressed.
fn model_sizes(model: &Model) -> Result<(u64, u64)> {
    let failed = |e: io::Error| error!(Memory, "{}: cannot be compressed: {e}", model.name());
    let mut encoder = zstd::stream::write::Encoder::new(Count(0), ZSTD_LEVEL).map_err(failed)?;
    let bytes = model.to_bytes()?;
    let mut plain = bytes.len() as u64;
    encoder.write_all(&bytes).map_err(failed)?;
    model.visit_external(&mut |tensor| {
        let bytes = tensor.data().to_le_bytes();
        plain += bytes.len() as u64;
        encoder.write_all(&bytes).map_err(failed)
    })?;
    Ok((plain, encoder.finish().map_err(failed)?.0))
}

/// Counts what is written.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
