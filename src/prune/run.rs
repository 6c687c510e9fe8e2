//! A pruning run over files: a model and samples in, a pruned model and a report out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::calibration::{Labels, ReadOptions, Samples};
use crate::cancel::Cancel;
use crate::error::{Context, Result, bail, error};
use crate::evaluate::{self, RunOptions};
use crate::gradient::seed::Fisher;
use crate::onnx::{Graph, Model, import};
use crate::prune::report::{
    Latency, LayerReport, Loss, Quality, Report, SCHEMA, Settings, Size, SkippedReport, Source, Time,
};
use crate::prune::{
    Damping, Method, Options, Progress, Pruned, Scope, Selection, Update, compress,
};
use crate::sys;
use crate::tensor::{Data, ElementType, Tensor};

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
}

impl Job {
    /// Runs it. The output appears whole or not at all, and never replaces the model it came from.
    pub fn run(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Report> {
        let start = Instant::now();
        self.check_output()?;
        let mut model = Model::load(&self.model)?;
        let in_model = || self.model.display().to_string();
        let graph = import(&model).context(in_model)?;
        let calibration = Samples::read(&self.calibration, &graph.inputs, &self.reading)?;
        let evaluation = self
            .evaluation
            .as_deref()
            .map(|path| Samples::read(path, &graph.inputs, &self.reading))
            .transpose()?;
        let pruned =
            compress(&graph, &calibration, &self.options, progress, cancel).context(in_model)?;
        let mut pruned_graph = graph.clone();
        for (name, tensor) in &pruned.tensors {
            let stored = as_stored(tensor, graph.initializers[name].element_type())?;
            pruned_graph.initializers.insert(name.clone(), Arc::new(stored.clone()));
            model.replace_tensor(name, &stored).context(in_model)?;
        }
        progress.begin("checking", 3);
        let models = Models { dense: &graph, pruned: &pruned_graph };
        let judged = evaluation.as_ref().unwrap_or(&calibration);
        let quality = self.quality(&models, judged, cancel)?;
        progress.advance(1);
        let loss = self.loss(&models, judged, &pruned, cancel)?;
        let latency = self.latency(&models, judged, cancel)?;
        progress.advance(2);
        let forward_s = self.forward_s(&graph, &calibration, cancel)?;
        cancel.check()?;
        model.save(&self.output)?;
        let size = self.size()?;
        let time = self.time(&pruned, forward_s, start.elapsed().as_secs_f64());
        let source = |path: &Path, samples: &Samples| Source { path: path.into(), rows: samples.rows() };
        let layers = layers(&pruned, self.options.method);
        let (weights, zeros) =
            layers.iter().fold((0, 0), |(w, z), l| (w + l.weights, z + l.zeros));
        Ok(Report {
            schema: SCHEMA,
            hone_version: env!("CARGO_PKG_VERSION"),
            model: self.model.clone(),
            output: self.output.clone(),
            calibration: source(&self.calibration, &calibration),
            evaluation: self.evaluation.as_deref().zip(evaluation.as_ref()).map(|(p, s)| source(p, s)),
            options: settings(&self.options),
            prunable_weights: weights,
            zeros,
            sparsity: zeros as f64 / weights.max(1) as f64,
            layers,
            skipped: skipped(&pruned),
            loss,
            quality,
            size,
            notes: self.notes(),
            latency,
            time,
            peak_memory_bytes: sys::peak_memory_bytes(),
        })
    }

    /// What can be known before hours of work: the output is not the model, its folder exists.
    fn check_output(&self) -> Result<()> {
        let output = &self.output;
        let folder = match output.parent() {
            Some(p) if p.as_os_str().is_empty() => Path::new("."),
            Some(p) => p,
            None => bail!(Usage, "--output {} is not a file name", output.display()),
        };
        if !folder.is_dir() {
            bail!(Io, "{}: the folder does not exist; create it first", folder.display());
        }
        if output.is_dir() {
            bail!(Usage, "--output {} is a folder; name a file in it", output.display());
        }
        let same = fs::canonicalize(output).ok().zip(fs::canonicalize(&self.model).ok());
        if same.is_some_and(|(a, b)| a == b) {
            bail!(Usage, "--output is the model itself; write to another file");
        }
        Ok(())
    }

    fn run_options(&self) -> RunOptions {
        RunOptions { device: self.options.device, threads: self.options.threads }
    }

    fn main_output(&self, graph: &Graph) -> Result<String> {
        self.options.outputs.first().cloned().map_or_else(|| evaluate::main_output(graph), Ok)
    }

    fn quality(&self, models: &Models<'_>, samples: &Samples, cancel: &Cancel) -> Result<Quality> {
        let (run, output) = (self.run_options(), self.main_output(models.dense)?);
        let apart =
            evaluate::divergence(models.dense, models.pruned, &output, samples, run, cancel)?;
        let labelled = matches!(samples.labels(), Some(Labels::Classes(_)));
        let accuracy = |graph: &Graph| -> Result<Option<f64>> {
            let run = || evaluate::accuracy(graph, &output, samples, run, cancel);
            labelled.then(run).transpose().map(|a| a.map(|a| a.value()))
        };
        Ok(Quality {
            samples: if self.evaluation.is_some() { "evaluation" } else { "calibration" },
            dense_accuracy: accuracy(models.dense)?,
            pruned_accuracy: accuracy(models.pruned)?,
            relative_difference: apart.relative,
            largest_difference: apart.maximum,
            kl_nats: apart.kl,
            output,
        })
    }

    /// The quantity that ½ δᵀFδ predicts, measured: for random cotangents half the squared change
    /// of what was seeded. For the other seeds the same quantity is measured, which is then only
    /// proportional.
    fn loss(
        &self,
        models: &Models<'_>,
        samples: &Samples,
        pruned: &Pruned,
        cancel: &Cancel,
    ) -> Result<Loss> {
        let run = self.run_options();
        let mut measured = 0.0;
        for value in &pruned.seeded {
            let apart =
                evaluate::divergence(models.dense, models.pruned, value, samples, run, cancel)?;
            measured += apart.half_squared;
        }
        let comparable = matches!(self.options.fisher, Fisher::Outputs | Fisher::Gaussian)
            || self.options.method == Method::Magnitude;
        let change = "half the squared change of the outputs per sample";
        let meaning = if comparable {
            change.to_string()
        } else {
            format!("predicted: of the --fisher {} loss; measured: {change}", self.options.fisher)
        };
        Ok(Loss {
            meaning,
            predicted: pruned.predicted_loss.iter().sum(),
            predicted_by_stage: pruned.predicted_loss.clone(),
            measured,
        })
    }

    fn latency(&self, models: &Models<'_>, samples: &Samples, cancel: &Cancel) -> Result<Latency> {
        let run = self.run_options();
        let batch = evaluate::fixed_batch(models.dense).unwrap_or(1);
        let time = |graph| evaluate::latency_ms(graph, samples, batch, run, cancel);
        let (dense_ms, pruned_ms) = (time(models.dense)?, time(models.pruned)?);
        Ok(Latency { batch, threads: run.threads, dense_ms, pruned_ms })
    }

    /// Time of the forward passes of as many samples as gradients were taken of.
    fn forward_s(&self, graph: &Graph, samples: &Samples, cancel: &Cancel) -> Result<f64> {
        let output = self.main_output(graph)?;
        let once = evaluate::forward_s(graph, &output, samples, self.run_options(), cancel)?;
        let o = &self.options;
        let taken = match o.method {
            Method::MFac => o.gradients * o.fisher_batch * o.stages,
            Method::Magnitude => samples.rows(),
        };
        Ok(once * taken as f64 / samples.rows() as f64)
    }

    fn time(&self, pruned: &Pruned, forward_s: f64, total_s: f64) -> Time {
        let (gradients_s, fisher_s, pruning_s) =
            (pruned.gradient_s, pruned.fisher_s, pruned.prune_s);
        let per_forward = |s: f64| s / forward_s.max(f64::MIN_POSITIVE);
        Time {
            gradients_s,
            fisher_s,
            pruning_s,
            other_s: total_s - gradients_s - fisher_s - pruning_s,
            total_s,
            forward_s,
            gradients_per_forward: per_forward(gradients_s),
            mfac_per_forward: per_forward(fisher_s + pruning_s),
            total_per_forward: per_forward(total_s),
        }
    }

    fn size(&self) -> Result<Size> {
        let (dense_bytes, dense_zstd_bytes) = sizes(&self.model)?;
        let (pruned_bytes, pruned_zstd_bytes) = sizes(&self.output)?;
        Ok(Size { dense_bytes, pruned_bytes, dense_zstd_bytes, pruned_zstd_bytes })
    }

    fn notes(&self) -> Vec<String> {
        let zeros = match self.options.pattern {
            super::Pattern::Unstructured => {
                "scattered zeros make the file compress, not the model faster: ONNX Runtime computes with them as \
                 with other numbers"
            }
            super::Pattern::NOfM { .. } => {
                "ONNX Runtime computes N:M zeros as other numbers on a CPU; hardware with sparse tensor cores gains \
                 once the model is converted for it"
            }
        };
        vec![zeros.into()]
    }
}

struct Models<'a> {
    dense: &'a Graph,
    pruned: &'a Graph,
}

/// The new weights in the element type that the model stores.
fn as_stored(tensor: &Tensor, element: ElementType) -> Result<Tensor> {
    let values = || tensor.to_f32().into_iter();
    let data = match element {
        ElementType::F32 => return Ok(tensor.clone()),
        ElementType::F16 => Data::F16(values().map(half::f16::from_f32).collect()),
        ElementType::BF16 => Data::BF16(values().map(half::bf16::from_f32).collect()),
        ElementType::F64 => Data::F64(values().map(f64::from).collect()),
        other => bail!(Unsupported, "weights of type {other} are not pruned"),
    };
    Tensor::new(tensor.shape(), data)
}

fn layers(pruned: &Pruned, method: Method) -> Vec<LayerReport> {
    let figure = |v: f64| (method == Method::MFac).then_some(v);
    let layers = pruned.layers.iter().zip(&pruned.tensors).zip(&pruned.shapes);
    layers
        .map(|((l, (_, tensor)), shape)| {
            let zeros = tensor.to_f32().iter().filter(|w| **w == 0.0).count();
            LayerReport {
                name: l.name.clone(),
                shape: shape.clone(),
                weights: l.weights,
                zeros,
                sparsity: zeros as f64 / l.weights.max(1) as f64,
                damping: figure(l.damping),
                predicted_loss: figure(l.predicted_loss),
            }
        })
        .collect()
}

fn skipped(pruned: &Pruned) -> Vec<SkippedReport> {
    let report = |s: &crate::gradient::parameters::Skipped| SkippedReport {
        name: s.name.clone(),
        shape: s.shape.clone(),
        reason: s.reason.clone(),
    };
    pruned.skipped.iter().map(report).collect()
}

fn settings(o: &Options) -> Settings {
    Settings {
        method: if o.method == Method::MFac { "mfac" } else { "magnitude" },
        sparsity: o.sparsity,
        pattern: o.pattern.to_string(),
        scope: if o.scope == Scope::Global { "global" } else { "layer" },
        update: if o.update == Update::Joint { "joint" } else { "independent" },
        selection: match o.selection {
            Selection::Greedy => "greedy".into(),
            Selection::Staged { stages } => format!("staged:{stages}"),
        },
        block: (o.block != usize::MAX).then_some(o.block),
        damping_relative: match o.damping {
            Damping::Relative(fraction) => Some(fraction),
            Damping::Absolute(_) => None,
        },
        damping_absolute: match o.damping {
            Damping::Relative(_) => None,
            Damping::Absolute(lambda) => Some(lambda),
        },
        stages: o.stages,
        gradients: o.gradients,
        fisher: o.fisher.to_string(),
        fisher_batch: o.fisher_batch,
        seed: o.seed,
        threads: o.threads,
        device: format!("{:?}", o.device).to_lowercase(),
        memory_limit_bytes: o.memory_limit_bytes,
    }
}

/// Bytes of a model's files as they are, and compressed at zstd's default level.
fn sizes(path: &Path) -> Result<(u64, u64)> {
    let (mut plain, mut packed) = (0, 0);
    let data = Model::load(path)?.data_files()?;
    for path in data.iter().map(PathBuf::as_path).chain([path]) {
        let failed = |e: io::Error| error!(Io, "{}: {e}", path.display());
        let file = fs::File::open(path).map_err(failed)?;
        plain += file.metadata().map_err(failed)?.len();
        let mut encoder = zstd::stream::read::Encoder::new(file, 0).map_err(failed)?;
        packed += io::copy(&mut encoder, &mut io::sink()).map_err(failed)?;
    }
    Ok((plain, packed))
}
