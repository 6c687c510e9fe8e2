//! Which weights go, and how the others move: Optimal Brain Surgeon on the blocks of a Fisher.
//!
//! The loss around a trained point w⁰ is the quadratic ½ δᵀFδ with δ = w − w⁰ and the damped
//! empirical Fisher F = λI + (1/m) Σ g gᵀ, block-diagonal here. Removing weight p alone costs
//! ρ_p = w_p² / (2 [F⁻¹]_pp) and moves the others by −F⁻¹_:p w_p / [F⁻¹]_pp. A set P of removed
//! weights is more than the sum of its members: the exact optimum for the survivors S is
//!
//! ```text
//! w_S ← w⁰_S + (F_SS)⁻¹ F_SP w⁰_P,   w_P ← 0,
//! ```
//!
//! and the order of removal that respects it re-scores the survivors after every removal (greedy)
//! or after every stage (staged). Each block orders its own weights; one threshold on the marginal
//! losses, over the whole net or within each layer, decides how far down its order each block goes.
//!
//! The module works on flat vectors and blocks of curvature; it knows no model and no file.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::error::{Result, bail, error};
use crate::mfac::{BlockFisher, Gradients};

mod block;
mod compress;
mod dense;
mod fisher;
mod gradual;
mod greedy;
mod kernel;
mod magnitude;
mod parallel;
mod pattern;
pub mod report;
mod run;
mod schedule;
mod select;
pub mod statistics;
mod wide;

pub use crate::progress::Progress;
pub use compress::{Method, Options, Pruned, compress};
pub use gradual::Gradual;
pub use magnitude::magnitude;
pub use pattern::{Pattern, plan_blocks};
pub use run::{Job, Run};
pub use schedule::{Ramp, schedule};

use block::{Ranking, Scratch, Start, Task};

/// How far one threshold reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One threshold for all layers together: layers that matter less lose more.
    Global,
    /// The same sparsity in each layer.
    Layer,
}

/// How the surviving weights make up for the removed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// The exact optimum for the removed set: w_S ← w⁰_S + (F_SS)⁻¹ F_SP w⁰_P.
    Joint,
    /// The published M-FAC step: all weights are scored once, and the single-weight updates of
    /// the removed ones are added up, −Σ_p F⁻¹_:p w_p / [F⁻¹]_pp. [`Selection`] is not consulted.
    Independent,
}

/// How a block orders its weights for the joint update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// One weight at a time, the rest re-scored after each: O(B²) per weight. Blocks wider than m
    /// re-score their survivors 16 times instead, a quarter of them going each time.
    Greedy,
    /// `stages` times: score all survivors, remove the cheapest, solve jointly from the original
    /// weights. One stage is the classic score followed by an exact update.
    Staged {
        /// How often the survivors are scored, at least 1.
        stages: usize,
    },
}

/// The damping λ of F = λI + (1/m) Σ g gᵀ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Damping {
    /// λ is this fraction of the mean undamped Fisher diagonal of the layer. A layer without any
    /// gradient takes the mean over all layers instead.
    Relative(f64),
    /// λ itself, in units of a squared gradient.
    Absolute(f64),
}

/// A prunable tensor inside the flat vector, in canonical order: outputs × inputs, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The name of the tensor, for messages and reports.
    pub name: String,
    /// Where its weights lie in the flat vector.
    pub range: Range<usize>,
    /// Weights of one output (the length of the input axis); divides the length of `range`. The
    /// groups of an N:M pattern are consecutive inside a row.
    pub row: usize,
}

/// Where the Fisher comes from.
pub trait Curvature: Sync {
    /// The blocks: disjoint, increasing ranges of the flat vector that tile every layer.
    fn blocks(&self) -> &[Range<usize>];
    /// (1/m) Σ g gᵀ of one block without damping: B×B, row-major, both halves, written to `out`.
    /// Errors: `Io` where blocks are kept in a file that cannot be read.
    fn block(&self, index: usize, out: &mut [f64]) -> Result<()>;
    /// The m×B gradients of a block that is wider than m and so has no matrix: it is pruned in dual
    /// form, and [`Curvature::block`] is not asked for it.
    fn gradients(&self, _index: usize) -> Option<Gradients<'_>> {
        None
    }
    /// The mean of the undamped Fisher diagonal over a layer's range of the flat vector.
    fn diagonal_mean(&self, range: Range<usize>) -> f64;
}

impl Curvature for BlockFisher {
    fn blocks(&self) -> &[Range<usize>] {
        self.blocks()
    }
    fn block(&self, index: usize, out: &mut [f64]) -> Result<()> {
        self.block(index, out);
        Ok(())
    }
    fn diagonal_mean(&self, range: Range<usize>) -> f64 {
        self.diagonal_mean(range)
    }
}

/// Who does the work, who may stop it and who watches it.
#[derive(Clone, Copy)]
pub struct Workers<'a> {
    /// Worker threads, at least one is used.
    pub threads: usize,
    /// Asks the work to stop, with an error of kind `Cancelled`.
    pub cancel: &'a Cancel,
    /// Called from any worker: so many block visits are done, of so many.
    pub progress: &'a (dyn Fn(usize, usize) + Sync),
}

impl<'a> Workers<'a> {
    /// Workers that nobody watches.
    pub fn new(threads: usize, cancel: &'a Cancel) -> Workers<'a> {
        Workers { threads, cancel, progress: &|_, _| () }
    }
}

impl fmt::Debug for Workers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({})", self.threads)
    }
}

/// What one pruning step is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Which weights may go together.
    pub pattern: Pattern,
    /// How far the threshold reaches.
    pub scope: Scope,
    /// The fraction of zeros after the step, 0 ≤ sparsity < 1, counting weights that were already
    /// dead. A pattern N:M allows at most 1 − N/M, and completes itself exactly there.
    pub sparsity: f64,
    /// How survivors make up for the removed.
    pub update: Update,
    /// How blocks order their weights.
    pub selection: Selection,
    /// The damping of the Fisher.
    pub damping: Damping,
}

/// The outcome of a pruning step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The flat vector after the step; what lies outside the layers is as it was.
    pub weights: Vec<f32>,
    /// Which weights are not pruned; false exactly where a weight of a layer was removed, now or
    /// before.
    pub alive: Vec<bool>,
    /// ½ δᵀFδ of the Fisher without damping, summed over blocks: the loss the samples predict.
    pub predicted_loss: f64,
    /// ½ δᵀ(F + λI)δ, the objective that the joint update minimizes.
    pub predicted_loss_damped: f64,
    /// The same, layer by layer, in the order of the layers given.
    pub layers: Vec<LayerStep>,
}

/// What a step did to one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerStep {
    /// The name of the tensor.
    pub name: String,
    /// How many weights it has.
    pub weights: usize,
    /// How many of them are pruned after the step.
    pub zeros: usize,
    /// How many of those went in this step.
    pub removed: usize,
    /// The λ that was used.
    pub damping: f64,
    /// ½ δᵀFδ without damping.
    pub predicted_loss: f64,
    /// ½ δᵀ(F + λI)δ.
    pub predicted_loss_damped: f64,
}

/// One pruning step: from `weights` and `alive` (both over the flat vector) to the planned sparsity
/// of all layers together or of each.
///
/// After the step exactly round(sparsity · n) weights of the scope are pruned, n its number of
/// weights, with two exceptions: a layer keeps at least one weight that was alive, because an empty
/// layer disconnects the net; and an N:M pattern ends when each of its groups is full. Weights that
/// are already 0 go first, at no loss. The result is the same for any number of `threads`.
///
/// # Errors
/// `Usage` for a plan or a geometry that makes no sense, `Numerics` when weights or curvature are
/// not finite or λ is too small for the block to be inverted (the layer is named), `Cancelled`.
pub fn step(
    weights: &[f32],
    alive: &[bool],
    layers: &[Layer],
    curvature: &dyn Curvature,
    plan: &StepPlan,
    workers: Workers<'_>,
) -> Result<Step> {
    check(weights, alive, layers, plan)?;
    let tasks = tasks(layers, curvature, plan)?;
    let owners: Vec<usize> = tasks.iter().map(|t| t.layer).collect();
    let start = Start { weights, alive, curvature };
    let (ranking, targets) = rounds(alive, layers, plan);
    let count = tasks.len();
    let visits = count * (targets.len() + 1);
    let mut survivors = alive.to_vec();
    for (round, &sparsity) in targets.iter().enumerate() {
        let progress = (round * count, visits);
        let traces = parallel::map(count, workers, progress, |scratch: &mut Scratch, i| {
            block::rank(scratch, &tasks[i], &start, &survivors, ranking)
        })?;
        let counts = select::counts(&traces, &owners, layers, &survivors, plan.scope, sparsity);
        for ((task, trace), &count) in tasks.iter().zip(&traces).zip(&counts) {
            for &offset in &trace.order[..count] {
                survivors[task.range.start + offset as usize] = false;
            }
        }
    }
    let progress = (count * targets.len(), visits);
    let settled = parallel::map(count, workers, progress, |scratch: &mut Scratch, i| {
        block::settle(scratch, &tasks[i], &start, &survivors, plan.update)
    })?;
    Ok(collect(weights, alive, layers, &tasks, settled, survivors))
}

/// The intermediate sparsities of a step and how blocks are ranked in each.
fn rounds(alive: &[bool], layers: &[Layer], plan: &StepPlan) -> (Ranking, Vec<f64>) {
    match (plan.update, plan.selection) {
        (Update::Independent, _) => (Ranking::Scores, vec![plan.sparsity]),
        (Update::Joint, Selection::Greedy) => (Ranking::Greedy, vec![plan.sparsity]),
        (Update::Joint, Selection::Staged { stages }) => {
            let total: usize = layers.iter().map(|l| l.range.len()).sum();
            let dead = layers.iter().flat_map(|l| &alive[l.range.clone()]).filter(|a| !**a).count();
            let from = dead as f64 / total.max(1) as f64;
            (Ranking::Scores, schedule(from.min(plan.sparsity), plan.sparsity, stages))
        }
    }
}

/// Puts the blocks' outcomes together, in block order.
fn collect(
    weights: &[f32],
    alive: &[bool],
    layers: &[Layer],
    tasks: &[Task<'_>],
    settled: Vec<block::Settled>,
    survivors: Vec<bool>,
) -> Step {
    let mut result = Step {
        weights: weights.to_vec(),
        alive: survivors,
        predicted_loss: 0.0,
        predicted_loss_damped: 0.0,
        layers: layers.iter().map(|l| LayerStep::untouched(l, alive)).collect(),
    };
    for (task, settled) in tasks.iter().zip(settled) {
        let figures = &mut result.layers[task.layer];
        figures.damping = task.damping;
        figures.predicted_loss += settled.loss;
        figures.predicted_loss_damped += settled.loss_damped;
        if !settled.weights.is_empty() {
            result.weights[task.range.clone()].copy_from_slice(&settled.weights);
        }
    }
    for (layer, figures) in layers.iter().zip(&mut result.layers) {
        let zeros = result.alive[layer.range.clone()].iter().filter(|a| !**a).count();
        figures.removed = zeros - figures.zeros;
        figures.zeros = zeros;
        result.predicted_loss += figures.predicted_loss;
        result.predicted_loss_damped += figures.predicted_loss_damped;
        // A weight that was dead on entry is 0 on exit, whatever value it came with.
        for i in layer.range.clone().filter(|&i| !result.alive[i]) {
            result.weights[i] = 0.0;
        }
    }
    result
}

impl LayerStep {
    fn untouched(layer: &Layer, alive: &[bool]) -> LayerStep {
        LayerStep {
            name: layer.name.clone(),
            weights: layer.range.len(),
            zeros: alive[layer.range.clone()].iter().filter(|a| !**a).count(),
            removed: 0,
            damping: 0.0,
            predicted_loss: 0.0,
            predicted_loss_damped: 0.0,
        }
    }
}

/// The plan, the layers and the vectors fit each other.
fn check(weights: &[f32], alive: &[bool], layers: &[Layer], plan: &StepPlan) -> Result<()> {
    check_vectors(weights, alive, layers)?;
    plan.pattern.check_sparsity(plan.sparsity)?;
    if plan.selection == (Selection::Staged { stages: 0 }) {
        bail!(Usage, "a staged selection needs at least 1 stage");
    }
    let (Damping::Relative(damping) | Damping::Absolute(damping)) = plan.damping;
    if !(damping.is_finite() && damping > 0.0) {
        bail!(Usage, "damping {damping} is not a positive number");
    }
    Ok(())
}

/// Layers are increasing, disjoint, whole numbers of rows inside finite vectors of one length.
fn check_vectors(weights: &[f32], alive: &[bool], layers: &[Layer]) -> Result<()> {
    if weights.len() != alive.len() {
        bail!(Usage, "{} weights but a mask of {} entries", weights.len(), alive.len());
    }
    let mut end = 0;
    for layer in layers {
        let (name, range) = (&layer.name, &layer.range);
        if range.start < end || range.end < range.start || range.end > weights.len() {
            bail!(Usage, "layer {name:?}: range {range:?} overlaps another or leaves the vector");
        }
        if layer.row == 0 || !range.len().is_multiple_of(layer.row) {
            bail!(Usage, "layer {name:?}: {} weights are not rows of {}", range.len(), layer.row);
        }
        if let Some(i) = weights[range.clone()].iter().position(|w| !w.is_finite()) {
            let value = weights[range.start + i];
            bail!(
                Numerics,
                "layer {name:?}: weight {i} is {value}; only finite weights are pruned"
            );
        }
        end = range.end;
    }
    Ok(())
}

/// One task per block: its layer and its damping.
fn tasks<'a>(
    layers: &'a [Layer],
    curvature: &dyn Curvature,
    plan: &StepPlan,
) -> Result<Vec<Task<'a>>> {
    let dampings = dampings(layers, curvature, plan.damping)?;
    let blocks = curvature.blocks();
    let mut tasks = Vec::with_capacity(blocks.len());
    for (number, layer) in layers.iter().enumerate() {
        let first = blocks.partition_point(|b| b.start < layer.range.start);
        let mut end = layer.range.start;
        for (index, range) in blocks.iter().enumerate().skip(first) {
            if range.start != end || range.is_empty() || range.end > layer.range.end {
                break;
            }
            end = range.end;
            tasks.push(Task {
                index,
                range: range.clone(),
                layer: number,
                damping: dampings[number],
                groups: plan.pattern.groups(layer, range)?,
                name: &layer.name,
            });
        }
        if end < layer.range.end {
            bail!(
                Usage,
                "layer {:?}: the Fisher has no block that starts at {} of {}",
                layer.name,
                end - layer.range.start,
                layer.range.len()
            );
        }
    }
    Ok(tasks)
}

/// λ of each layer.
fn dampings(layers: &[Layer], curvature: &dyn Curvature, damping: Damping) -> Result<Vec<f64>> {
    let fraction = match damping {
        Damping::Absolute(lambda) => return Ok(vec![lambda; layers.len()]),
        Damping::Relative(fraction) => fraction,
    };
    let mut means = Vec::with_capacity(layers.len());
    for layer in layers {
        let mean = curvature.diagonal_mean(layer.range.clone());
        if !(mean.is_finite() && mean >= 0.0) {
            let name = &layer.name;
            bail!(Numerics, "layer {name:?}: the mean Fisher diagonal is {mean}; check the data");
        }
        means.push(mean);
    }
    let total: f64 = layers.iter().zip(&means).map(|(l, mean)| l.range.len() as f64 * mean).sum();
    let overall = total / layers.iter().map(|l| l.range.len()).sum::<usize>().max(1) as f64;
    let lambda = |mean: f64| fraction * if mean > 0.0 { mean } else { overall };
    let lambdas: Vec<f64> = means.into_iter().map(lambda).collect();
    if lambdas.contains(&0.0) {
        return Err(error!(
            Numerics,
            "all gradients are zero, so the Fisher says nothing; use other samples or another \
             Fisher, or an absolute damping"
        ));
    }
    Ok(lambdas)
}

#[cfg(test)]
mod tests;
