//! Pruning a model, from its graph and calibration samples to new weights.
//!
//! Each stage collects gradients of the model as it is then, builds the Fisher from them and takes
//! one pruning step; the schedule of sparsities is geometric in the density. Weights that are zero
//! already count as pruned and stay zero. Nothing here touches files: see [`super::run`] for that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::calibration::Samples;
use crate::cancel::Cancel;
use crate::error::{ErrorKind, Result, bail, error};
use crate::evaluate::{self, RunOptions, Runner};
use crate::gradient::collect::{Collector, Plan};
use crate::gradient::parameters::{self, Parameter, RowOrder, Skipped};
use crate::gradient::prepare::{Prepared, prepare};
use crate::gradient::seed::{Fisher, Seeding};
use crate::onnx::Graph;
use crate::progress::Progress;
use crate::prune::fisher::{Budget, FisherBlocks, Groups};
use crate::prune::statistics::{self, Moments, Place};
use crate::prune::{
    Damping, Layer, Pattern, Scope, Selection, Step, StepPlan, Update, Workers, magnitude,
    plan_blocks, schedule, step,
};
use crate::runtime::Device;
use crate::tensor::Tensor;
use crate::train::checkpoint::Identity;

/// How weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By second-order saliency: M-FAC.
    MFac,
    /// By absolute value, as a baseline.
    Magnitude,
}

/// What to do to a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// The fraction of prunable weights that become zero, 0 to below 1.
    pub sparsity: f64,
    /// How weights are chosen.
    pub method: Method,
    /// Which weights may go together.
    pub pattern: Pattern,
    /// How far one threshold reaches.
    pub scope: Scope,
    /// How the survivors make up for the removed.
    pub update: Update,
    /// How blocks order their weights.
    pub selection: Selection,
    /// Weights per Fisher block; `usize::MAX` for whole layers.
    pub block: usize,
    /// The damping of the Fisher.
    pub damping: Damping,
    /// How often gradients are collected anew on the way to the sparsity.
    pub stages: usize,
    /// Gradients per stage.
    pub gradients: usize,
    /// Samples averaged into a gradient.
    pub fisher_batch: usize,
    /// Which gradients.
    pub fisher: Fisher,
    /// Whether each pruned layer's outputs get their old mean and variance back after each stage
    /// (see [`super::statistics`]); kept only where it brings the model's outputs closer.
    pub match_statistics: bool,
    /// Outputs to differentiate; all float ones if empty.
    pub outputs: Vec<String>,
    /// Names of tensors to leave alone; `*` stands for any characters.
    pub skip: Vec<String>,
    /// Seeds the choice of samples and the random cotangents.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Where graphs run.
    pub device: Device,
    /// What gradients and Fisher blocks may take together, in bytes.
    pub memory_limit_bytes: usize,
}

impl Options {
    /// What makes one run differ from another, by name: everything but the number of threads.
    pub(super) fn identity(&self) -> Identity {
        [
            ("sparsity", self.sparsity.to_string()),
            ("method", format!("{:?}", self.method)),
            ("pattern", self.pattern.to_string()),
            ("scope", format!("{:?}", self.scope)),
            ("update", format!("{:?}", self.update)),
            ("selection", format!("{:?}", self.selection)),
            ("block size", self.block.to_string()),
            ("damping", format!("{:?}", self.damping)),
            ("number of stages", self.stages.to_string()),
            ("number of gradients", self.gradients.to_string()),
            ("number of samples per gradient", self.fisher_batch.to_string()),
            ("Fisher", self.fisher.to_string()),
            ("matching of statistics", self.match_statistics.to_string()),
            ("choice of outputs", format!("{:?}", self.outputs)),
            ("choice of skipped tensors", format!("{:?}", self.skip)),
            ("seed", self.seed.to_string()),
            ("device", format!("{:?}", self.device)),
            ("memory limit", self.memory_limit_bytes.to_string()),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into()
    }

    /// How to run graphs.
    pub fn run(&self) -> RunOptions {
        RunOptions { device: self.device, threads: self.threads }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sparsity: 0.0,
            method: Method::MFac,
            pattern: Pattern::Unstructured,
            scope: Scope::Global,
            update: Update::Joint,
            selection: Selection::Greedy,
            block: 128,
            damping: Damping::Relative(0.01),
            stages: 8,
            gradients: 512,
            fisher_batch: 1,
            fisher: Fisher::Outputs,
            match_statistics: true,
            outputs: Vec::new(),
            skip: Vec::new(),
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            device: Device::Cpu,
            memory_limit_bytes: 4 << 30,
        }
    }
}

/// A pruned model and what happened on the way.
#[derive(Debug)]
pub struct Pruned {
    /// New values of the pruned tensors, float32 in the shape they have in the model.
    pub tensors: Vec<(String, Tensor)>,
    /// New values of biases (and means of norms) that moved to match statistics.
    pub biases: Vec<(String, Tensor)>,
    /// Figures per pruned tensor, of the last stage.
    pub layers: Vec<super::LayerStep>,
    /// Tensors that were left alone, and why.
    pub skipped: Vec<Skipped>,
    /// Predicted loss of each stage, ½ δᵀFδ.
    pub predicted_loss: Vec<f64>,
    /// The value whose seeds the Fisher was made from.
    pub seeded: Vec<String>,
    /// Seconds for collecting gradients, for accumulating the Fisher, and for pruning.
    pub gradient_s: f64,
    /// Seconds spent on Fisher blocks.
    pub fisher_s: f64,
    /// Seconds spent on choosing weights and moving the others.
    pub prune_s: f64,
    /// Seconds spent on matching statistics.
    pub statistics_s: f64,
    /// Seconds spent on fine-tuning between pruning steps.
    pub tune_s: f64,
    /// How often a stage's gradients were taken.
    pub stages: usize,
}

/// Prunes a model by `options`. `graph` is its working graph (see [`crate::onnx::import`]);
/// `adjustable` says which initializers besides the pruned ones may change.
pub fn compress(
    graph: &Graph,
    adjustable: impl Fn(&str) -> bool,
    samples: &Samples,
    options: &Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Pruned> {
    options.pattern.check_sparsity(options.sparsity)?;
    let (mut prepared, batch, seeding) = fix_batch(graph, samples, options, cancel)?;
    let (parameters, skipped) = choose(&prepared, options)?;
    let layers: Vec<Layer> = parameters
        .iter()
        .map(|p| Layer { name: p.name.clone(), range: p.range.clone(), row: p.row })
        .collect();
    let mut weights = read(&prepared, &parameters);
    let mut alive: Vec<bool> = weights.iter().map(|w| *w != 0.0).collect();
    let mut result = Pruned {
        tensors: Vec::new(),
        layers: Vec::new(),
        skipped,
        predicted_loss: Vec::new(),
        seeded: seeding.values(),
        gradient_s: 0.0,
        fisher_s: 0.0,
        prune_s: 0.0,
        statistics_s: 0.0,
        tune_s: 0.0,
        stages: 0,
        biases: Vec::new(),
    };
    let mut matching =
        Matching::new(graph, &prepared, &parameters, samples, options, adjustable, cancel)?;
    if options.method == Method::Magnitude {
        let alive =
            magnitude(&weights, &alive, &layers, options.pattern, options.scope, options.sparsity)?;
        weights.iter_mut().zip(&alive).filter(|(_, alive)| !**alive).for_each(|(w, _)| *w = 0.0);
        result.layers = layers.iter().map(|l| super::LayerStep::untouched(l, &alive)).collect();
        store(&mut prepared, &parameters, &weights);
        matching.apply(&mut prepared, &parameters, &mut weights, &mut result)?;
    } else {
        let from = zeros(&alive).min(options.sparsity);
        let stages = schedule(from, options.sparsity, options.stages);
        result.stages = stages.len();
        for (number, &sparsity) in stages.iter().enumerate() {
            let stage = Stage { number, of: stages.len(), options, batch, progress, cancel };
            let collector_inputs = (&prepared, &parameters[..], samples, &seeding);
            let fisher = stage.fisher(collector_inputs, &layers, &mut result)?;
            let start = Instant::now();
            let taken = stage.step(&weights, &alive, &layers, &fisher, sparsity)?;
            Step { weights, alive, .. } = taken;
            result.predicted_loss.push(taken.predicted_loss);
            result.layers = taken.layers;
            store(&mut prepared, &parameters, &weights);
            result.prune_s += start.elapsed().as_secs_f64();
            matching.apply(&mut prepared, &parameters, &mut weights, &mut result)?;
        }
    }
    result.biases = matching.biases();
    let tensor = |p: &Parameter| Tensor::clone(&prepared.graph.initializers[&p.name]);
    result.tensors = parameters.iter().map(|p| (p.name.clone(), tensor(p))).collect();
    Ok(result)
}

/// The share of the prunable weights of a model that is zero already, and the tensors that are left
/// alone. The errors are those of [`compress`] that need no gradients to be found.
pub(super) fn survey(
    graph: &Graph,
    samples: &Samples,
    options: &Options,
    cancel: &Cancel,
) -> Result<(f64, Vec<Skipped>)> {
    options.pattern.check_sparsity(options.sparsity)?;
    let (prepared, ..) = fix_batch(graph, samples, options, cancel)?;
    let (parameters, skipped) = choose(&prepared, options)?;
    let alive: Vec<bool> = read(&prepared, &parameters).iter().map(|w| *w != 0.0).collect();
    Ok((zeros(&alive), skipped))
}

/// The share of weights that are pruned.
fn zeros(alive: &[bool]) -> f64 {
    alive.iter().filter(|alive| !**alive).count() as f64 / alive.len().max(1) as f64
}

/// Matching the statistics of the dense model, where that is asked for and possible.
struct Matching<'a> {
    dense: &'a Graph,
    samples: Samples,
    options: &'a Options,
    cancel: &'a Cancel,
    places: Vec<Place>,
    batch: usize,
    target: Moments,
    biases: HashMap<String, Vec<f32>>,
    /// The values whose distance to the dense model decides, and what they are there.
    judged: Vec<String>,
    answers: Vec<Vec<Tensor>>,
}

impl<'a> Matching<'a> {
    fn new(
        dense: &'a Graph,
        prepared: &Prepared,
        parameters: &[Parameter],
        samples: &Samples,
        options: &'a Options,
        adjustable: impl Fn(&str) -> bool,
        cancel: &'a Cancel,
    ) -> Result<Matching<'a>> {
        let rows: Vec<usize> = (0..samples.rows().min(statistics::SAMPLES)).collect();
        let samples = Samples::from_tensors(samples.batch(&rows), None)?;
        let mut places = Vec::new();
        let mut target = Moments::new();
        let batch = statistics::batch(&samples, largest_batch(prepared, options));
        if let Some(batch) = batch.filter(|_| options.match_statistics) {
            places = statistics::places(dense, prepared, parameters, adjustable);
            match statistics::dense(dense, &places, &samples, batch, options.run(), cancel) {
                Ok(moments) => target = moments,
                Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                Err(e) => {
                    log::info!("statistics are left alone, the model does not run in batches: {e}");
                    places.clear();
                }
            }
        }
        let bias = |p: &Place| (p.bias().to_string(), dense.initializers[p.bias()].to_f32());
        let biases = places.iter().map(bias).collect();
        let judged = dense.outputs.iter().map(|o| &o.name);
        let is_float = |n: &&String| prepared.facts.get(*n).is_some_and(|f| f.element.is_float());
        let judged: Vec<String> = judged.filter(is_float).cloned().collect();
        let batch = batch.unwrap_or(1);
        let answers = match places.len() {
            0 => Vec::new(),
            _ => Runner::new(&[dense], &judged, options.run())?
                .run(&samples, cancel, |_, o| Ok(o))?,
        };
        Ok(Matching {
            dense,
            samples,
            options,
            cancel,
            places,
            batch,
            target,
            biases,
            judged,
            answers,
        })
    }

    /// Matches statistics after a step, unless that takes the outputs further from the dense ones.
    fn apply(
        &mut self,
        prepared: &mut Prepared,
        parameters: &[Parameter],
        weights: &mut Vec<f32>,
        result: &mut Pruned,
    ) -> Result<()> {
        if self.places.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let before = self.graph(prepared, parameters, &self.biases);
        let (target, run) = (&self.target, self.options.run());
        let maps = statistics::maps(
            &before,
            &self.places,
            target,
            &self.samples,
            self.batch,
            run,
            self.cancel,
        )?;
        let (mut new_weights, mut new_biases) = (weights.clone(), self.biases.clone());
        statistics::apply(&maps, &self.places, parameters, &mut new_weights, &mut new_biases);
        let old = weights.clone();
        store(prepared, parameters, &new_weights);
        let after = self.graph(prepared, parameters, &new_biases);
        let (before, after) = (self.distance(&before)?, self.distance(&after)?);
        log::info!("statistics matched: output change {before:.4e} -> {after:.4e}");
        if after < before {
            *weights = new_weights;
            self.biases = new_biases;
            store_biases(prepared, &self.biases);
        } else {
            store(prepared, parameters, &old);
        }
        result.statistics_s += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// The model with the weights of `prepared` and these biases, for any batch.
    fn graph(
        &self,
        prepared: &Prepared,
        parameters: &[Parameter],
        biases: &HashMap<String, Vec<f32>>,
    ) -> Graph {
        let mut graph = self.dense.clone();
        for p in parameters {
            graph.initializers.insert(p.name.clone(), prepared.graph.initializers[&p.name].clone());
        }
        for (name, bias) in biases {
            let shape = graph.initializers[name].shape().to_vec();
            graph.initializers.insert(name.clone(), Tensor::f32(shape, bias.clone()).into());
        }
        graph
    }

    /// Mean half squared change of the outputs.
    fn distance(&self, graph: &Graph) -> Result<f64> {
        let mut runner = Runner::new(&[graph], &self.judged, self.options.run())?;
        let now = runner.run(&self.samples, self.cancel, |_, outputs| Ok(outputs))?;
        let pairs = now.iter().flatten().zip(self.answers.iter().flatten());
        let sum: f64 = pairs.map(|(now, then)| evaluate::half_squared(then, now)).sum();
        Ok(sum / self.samples.rows() as f64)
    }

    /// The biases that moved, by name.
    fn biases(&self) -> Vec<(String, Tensor)> {
        let mut list: Vec<(String, Tensor)> = Vec::new();
        for (name, new) in &self.biases {
            let old = &self.dense.initializers[name];
            if old.to_f32() != *new {
                list.push((name.clone(), Tensor::f32(old.shape(), new.clone())));
            }
        }
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }
}

/// Samples at a time whose activations stay within a quarter of the memory limit.
fn largest_batch(prepared: &Prepared, options: &Options) -> usize {
    let values = prepared.graph.nodes.iter().flat_map(|n| &n.outputs);
    let elements = |name: &String| prepared.facts.get(name).map_or(0, |f| f.shape.iter().product());
    let all: usize = values.map(elements).sum();
    let batch = prepared.graph.inputs.first().and_then(|i| prepared.facts.get(&i.name));
    let batch = batch.and_then(|f| f.shape.first().copied()).unwrap_or(1).max(1);
    options.memory_limit_bytes / 4 / (4 * (all / batch).max(1) * statistics::AT_ONCE)
}

/// Puts biases into the graph that gradients are taken of.
fn store_biases(prepared: &mut Prepared, biases: &HashMap<String, Vec<f32>>) {
    for (name, bias) in biases {
        let Some(old) = prepared.graph.initializers.get(name) else { continue };
        let tensor = Arc::new(Tensor::f32(old.shape(), bias.clone()));
        if let Some(fact) = prepared.facts.get_mut(name) {
            fact.constant = Some(tensor.clone());
        }
        prepared.graph.initializers.insert(name.clone(), tensor);
    }
}

/// One stage of the schedule.
struct Stage<'a> {
    number: usize,
    of: usize,
    options: &'a Options,
    batch: usize,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

type CollectorInputs<'a> = (&'a Prepared, &'a [Parameter], &'a Samples, &'a Seeding);

impl Stage<'_> {
    fn name(&self, phase: &str) -> String {
        if self.of == 1 { phase.into() } else { format!("{phase} {}/{}", self.number + 1, self.of) }
    }

    /// Collects gradients of the model as it is and sums them into Fisher blocks.
    fn fisher(
        &self,
        (prepared, parameters, samples, seeding): CollectorInputs<'_>,
        layers: &[Layer],
        result: &mut Pruned,
    ) -> Result<FisherBlocks> {
        let options = self.options;
        let plan = Plan {
            gradients: options.gradients,
            fisher_batch: options.fisher_batch,
            // Each stage draws other samples in another order.
            seed: options.seed.wrapping_add(self.number as u64),
            threads: options.threads,
            device: options.device,
        };
        let collector = Collector::new(prepared, parameters, samples, seeding, &plan, self.batch);
        let blocks = plan_blocks(layers, options.block, options.pattern);
        let budget = Budget {
            limit_bytes: options.memory_limit_bytes,
            gradients: options.gradients,
            panel_rows: collector.panel_rows(),
            threads: options.threads,
        };
        let groups = Groups::plan(&blocks, budget, |block| {
            let layer = layers.iter().find(|l| l.range.contains(&block.start));
            layer.map_or(String::new(), |l| l.name.clone())
        })?;
        let total = options.gradients * groups.groups.len();
        self.progress.begin(&self.name("gradients"), total as u64);
        let (start, mut fisher_s, mut done) = (Instant::now(), 0.0, 0);
        let fisher = FisherBlocks::collect(blocks, &groups, budget, &mut |range, sink| {
            collector.collect(range, self.cancel, |panel| {
                let start = Instant::now();
                sink(panel)?;
                fisher_s += start.elapsed().as_secs_f64();
                done += panel.count as u64;
                self.progress.advance(done);
                Ok(())
            })
        })?;
        result.fisher_s += fisher_s;
        result.gradient_s += start.elapsed().as_secs_f64() - fisher_s;
        Ok(fisher)
    }

    fn step(
        &self,
        weights: &[f32],
        alive: &[bool],
        layers: &[Layer],
        fisher: &FisherBlocks,
        sparsity: f64,
    ) -> Result<Step> {
        let plan = StepPlan {
            pattern: self.options.pattern,
            scope: self.options.scope,
            sparsity,
            update: self.options.update,
            selection: self.options.selection,
            damping: self.options.damping,
        };
        let visits = layers.len() as u64;
        self.progress.begin(&self.name("pruning"), visits);
        let progress = |done, of| self.progress.advance(visits * done as u64 / (of as u64).max(1));
        let workers =
            Workers { threads: self.options.threads, cancel: self.cancel, progress: &progress };
        step(weights, alive, layers, fisher, &plan, workers)
    }
}

/// Fixes the batch: what the model declares, else as many samples as stay in cache, else one where
/// samples cannot be told apart in a batch.
fn fix_batch(
    graph: &Graph,
    samples: &Samples,
    options: &Options,
    cancel: &Cancel,
) -> Result<(Prepared, usize, Seeding)> {
    let declared = evaluate::fixed_batch(graph);
    let candidates = declared.map_or(vec![evaluate::BATCH, 1], |batch| vec![batch]);
    let mut last = None;
    for batch in candidates {
        let rows: Vec<usize> = (0..batch).map(|i| i % samples.rows()).collect();
        let prepared = match prepare(graph, &samples.batch(&rows), cancel) {
            Ok(prepared) => prepared,
            // Some exporters bake a batch of one into reshapes although the input declares any.
            Err(e) if batch > 1 && declared.is_none() => {
                last = Some(e);
                continue;
            }
            Err(e) => return Err(e),
        };
        let seeding =
            Seeding::new(options.fisher, &options.outputs, &prepared.graph, &prepared.facts)?;
        seeding.check(samples)?;
        let (parameters, _) = choose(&prepared, options)?;
        let plan = Plan {
            gradients: batch,
            fisher_batch: 1,
            seed: options.seed,
            threads: options.threads,
            device: options.device,
        };
        let collector = Collector::new(&prepared, &parameters, samples, &seeding, &plan, batch);
        if options.method == Method::Magnitude || collector.samples_are_separable(cancel)? {
            return Ok((prepared, batch, seeding));
        }
        if declared.is_some() {
            bail!(
                Unsupported,
                "the model is fixed to batches of {batch} and mixes their samples, so gradients of \
                 single samples do not exist; export it with a batch of 1 or a dynamic batch"
            );
        }
    }
    Err(last.unwrap_or_else(|| error!(Unsupported, "samples cannot be told apart in any batch")))
}

/// The tensors to prune, without those the user or the pattern excludes.
fn choose(prepared: &Prepared, options: &Options) -> Result<(Vec<Parameter>, Vec<Skipped>)> {
    let row_order = match options.pattern {
        Pattern::Unstructured => RowOrder::Taps,
        Pattern::NOfM { .. } => RowOrder::Channels,
    };
    let (mut chosen, mut skipped) = parameters::discover(prepared, row_order);
    for pattern in &options.skip {
        if !chosen.iter().any(|p| matches(pattern, &p.name)) {
            let names: Vec<&str> = chosen.iter().map(|p| p.name.as_str()).collect();
            bail!(
                Usage,
                "--skip {pattern:?} names no prunable tensor; there are {}",
                names.join(", ")
            );
        }
    }
    chosen.retain(|p| {
        let reason = if options.skip.iter().any(|pattern| matches(pattern, &p.name)) {
            "left out by --skip".to_string()
        } else if let Pattern::NOfM { of, .. } = options.pattern
            && !p.channels.is_multiple_of(of)
        {
            format!("its {} input channels are not a multiple of {of}", p.channels)
        } else {
            return true;
        };
        skipped.push(Skipped { name: p.name.clone(), shape: p.shape.clone(), reason });
        false
    });
    if chosen.is_empty() {
        bail!(Unsupported, "the model has no tensor to prune{}", because(&skipped));
    }
    let mut start = 0;
    for p in &mut chosen {
        p.range = start..start + p.range.len();
        start = p.range.end;
    }
    Ok((chosen, skipped))
}

fn because(skipped: &[Skipped]) -> String {
    let largest = skipped.iter().max_by_key(|s| s.shape.iter().product::<usize>());
    largest.map_or(String::new(), |s| format!("; {:?}: {}", s.name, s.reason))
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    (0..=rest.len()).filter(|&i| rest.is_char_boundary(i)).any(|i| matches(tail, &rest[i..]))
}

/// The weights in canonical order.
fn read(prepared: &Prepared, parameters: &[Parameter]) -> Vec<f32> {
    let mut weights = Vec::with_capacity(parameters.last().map_or(0, |p| p.range.end));
    for p in parameters {
        let stored = prepared.graph.initializers[&p.name].to_f32();
        match &p.order {
            None => weights.extend(stored),
            Some(order) => weights.extend(order.iter().map(|&i| stored[i as usize])),
        }
    }
    weights
}

/// Puts weights in canonical order back into the graph.
fn store(prepared: &mut Prepared, parameters: &[Parameter], weights: &[f32]) {
    for p in parameters {
        let new = &weights[p.range.clone()];
        let mut stored = new.to_vec();
        if let Some(order) = &p.order {
            order.iter().zip(new).for_each(|(&i, &w)| stored[i as usize] = w);
        }
        let tensor = Arc::new(Tensor::f32(p.shape.clone(), stored));
        if let Some(fact) = prepared.facts.get_mut(&p.name) {
            fact.constant = Some(tensor.clone());
        }
        prepared.graph.initializers.insert(p.name.clone(), tensor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_patterns() {
        for (pattern, name, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*.weight", "fc.weight", true),
            ("*.weight", "fc.weights", false),
            ("layer*conv*", "layer1.conv2", true),
            ("*", "", true),
            ("*é", "aé", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
