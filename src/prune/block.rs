//! One block: ranks its weights for removal, and settles the survivors once it is known what goes.
//!
//! With A = (F + λI)/λ over the weights alive at the start, H = A⁻¹ = λF⁻¹ has its diagonal in
//! (0, 1], and the loss of a weight is ρ_p = λ w_p² / (2 H_pp).

use std::ops::Range;

use super::dense;
use super::greedy;
use super::pattern::Groups;
use super::select::Trace;
use super::{Curvature, Update};
use crate::error::{Result, bail, error};

/// A block to be worked on.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// Its number in the curvature.
    pub index: usize,
    /// Where it lies in the flat vector.
    pub range: Range<usize>,
    /// The number of its layer.
    pub layer: usize,
    /// The name of its layer.
    pub name: String,
    /// λ.
    pub damping: f64,
    /// The pattern over the block.
    pub groups: Groups,
}

/// What a step begins with.
pub(super) struct Start<'a> {
    /// w⁰ over the flat vector.
    pub weights: &'a [f32],
    /// Which weights are not pruned yet.
    pub alive: &'a [bool],
    /// The Fisher.
    pub curvature: &'a dyn Curvature,
}

/// How a block is ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ranking {
    /// One removal at a time.
    Greedy,
    /// All survivors scored once.
    Scores,
}

/// What one thread works with; grows to the largest block it meets.
#[derive(Default)]
pub(super) struct Scratch {
    /// The block of the Fisher, B×B, undamped.
    fisher: Vec<f64>,
    /// A packed part of it, then its Cholesky factor.
    factor: Vec<f64>,
    inverse: Vec<f64>,
    dense: dense::Workspace,
    single: greedy::Workspace<f32>,
    double: greedy::Workspace<f64>,
    /// Offsets of the weights alive at the start, and of those that survive.
    alive: Vec<u32>,
    kept: Vec<u32>,
    weight: Vec<f64>,
    delta: Vec<f64>,
    group: Vec<u32>,
    budget: Vec<u32>,
}

/// What became of a block.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Settled {
    /// Its weights, or nothing where no weight went.
    pub weights: Vec<f32>,
    /// ½ δᵀFδ.
    pub loss: f64,
    /// ½ δᵀ(F + λI)δ.
    pub loss_damped: f64,
}

/// In which order the block gives up the weights that are left in `survivors`.
pub(super) fn rank(
    scratch: &mut Scratch,
    task: &Task,
    start: &Start<'_>,
    survivors: &[bool],
    ranking: Ranking,
) -> Result<Trace> {
    let survivors = &survivors[task.range.clone()];
    scratch.list(&start.alive[task.range.clone()], survivors);
    task.groups.remaining(survivors, &mut scratch.budget);
    if scratch.kept.is_empty() {
        return Ok(Trace::default());
    }
    let weights = &start.weights[task.range.clone()];
    scratch.fetch(task, start.curvature)?;
    scratch.factor(task)?;
    scratch.solve(task, weights, survivors);
    scratch.invert(scratch.kept.len());
    if !scratch.inverse.iter().step_by(scratch.kept.len() + 1).all(|d| *d > 0.0 && *d <= 2.0) {
        return Err(too_small(task));
    }
    let moved = scratch.kept.iter().zip(&scratch.delta);
    scratch.weight.clear();
    scratch.weight.extend(moved.map(|(&i, delta)| weights[i as usize] as f64 + delta));
    scratch.group.clear();
    scratch.group.extend(scratch.kept.iter().map(|&i| task.groups.group[i as usize]));
    match ranking {
        Ranking::Greedy => scratch.rank_greedy(task),
        Ranking::Scores => Ok(scratch.rank_scores(task.damping)),
    }
}

/// The weights of the block once those not in `survivors` are gone, and the loss of that.
pub(super) fn settle(
    scratch: &mut Scratch,
    task: &Task,
    start: &Start<'_>,
    survivors: &[bool],
    update: Update,
) -> Result<Settled> {
    let (alive, survivors) = (&start.alive[task.range.clone()], &survivors[task.range.clone()]);
    scratch.list(alive, survivors);
    if scratch.kept.len() == scratch.alive.len() {
        return Ok(Settled::default());
    }
    let weights = &start.weights[task.range.clone()];
    scratch.fetch(task, start.curvature)?;
    match update {
        Update::Joint if scratch.kept.is_empty() => {}
        Update::Joint => {
            scratch.factor(task)?;
            scratch.solve(task, weights, survivors);
        }
        Update::Independent => scratch.add_single_updates(task, weights, survivors)?,
    }
    let mut settled = Settled { weights: vec![0.0; weights.len()], loss: 0.0, loss_damped: 0.0 };
    for (&i, &delta) in scratch.kept.iter().zip(&scratch.delta) {
        settled.weights[i as usize] = (weights[i as usize] as f64 + delta) as f32;
    }
    if let Some(i) = settled.weights.iter().position(|w| !w.is_finite()) {
        let at = task.range.start + i;
        bail!(
            Numerics,
            "layer {:?}: the update of weight {at} overflows; raise the damping",
            task.name
        );
    }
    let moved = |i: u32| settled.weights[i as usize] as f64 - weights[i as usize] as f64;
    scratch.weight.clear();
    scratch.weight.extend(scratch.alive.iter().map(|&i| moved(i)));
    (settled.loss, settled.loss_damped) =
        losses(&scratch.fisher, weights.len(), &scratch.alive, &scratch.weight, task.damping);
    Ok(settled)
}

/// ½ δᵀFδ and ½ δᵀ(F + λI)δ for a change δ of the weights at `offsets`.
fn losses(fisher: &[f64], len: usize, offsets: &[u32], delta: &[f64], damping: f64) -> (f64, f64) {
    let (mut curved, mut square) = (0.0, 0.0);
    for (&i, &d) in offsets.iter().zip(delta) {
        let row = &fisher[i as usize * len..][..len];
        let product: f64 = offsets.iter().zip(delta).map(|(&j, e)| row[j as usize] * e).sum();
        curved += d * product;
        square += d * d;
    }
    (0.5 * curved, 0.5 * (curved + damping * square))
}

impl Scratch {
    /// Which offsets were alive and which survive.
    fn list(&mut self, alive: &[bool], survivors: &[bool]) {
        let offsets = |mask: &[bool], out: &mut Vec<u32>| {
            out.clear();
            out.extend((0u32..).zip(mask).filter(|(_, alive)| **alive).map(|(i, _)| i));
        };
        offsets(alive, &mut self.alive);
        offsets(survivors, &mut self.kept);
    }

    /// Fetches the block of the Fisher and refuses what is no Fisher.
    fn fetch(&mut self, task: &Task, curvature: &dyn Curvature) -> Result<()> {
        let n = task.range.len();
        self.fisher.resize(n * n, 0.0);
        let fisher = &mut self.fisher;
        curvature.block(task.index, fisher);
        let sound = fisher.iter().all(|f| f.is_finite())
            && fisher.iter().step_by(n + 1).all(|diagonal| *diagonal >= 0.0);
        if !sound {
            bail!(
                Numerics,
                "layer {:?}: the Fisher of weights {:?} is not finite or has a negative diagonal; \
                 look for NaN or huge values in the samples or the gradients",
                task.name,
                task.range
            );
        }
        Ok(())
    }

    /// Cholesky factor of A = (F + λI)/λ over the survivors.
    fn factor(&mut self, task: &Task) -> Result<()> {
        let kept = std::mem::take(&mut self.kept);
        let result = self.factor_over(task, &kept);
        self.kept = kept;
        result
    }

    /// Cholesky factor of A = (F + λI)/λ over `offsets`.
    fn factor_over(&mut self, task: &Task, offsets: &[u32]) -> Result<()> {
        let (n, len) = (offsets.len(), task.range.len());
        self.factor.resize(n * n, 0.0);
        for (&i, out) in offsets.iter().zip(self.factor.chunks_exact_mut(n)) {
            let row = &self.fisher[i as usize * len..][..len];
            for (&j, out) in offsets.iter().zip(out) {
                *out = row[j as usize] / task.damping;
            }
        }
        self.factor.iter_mut().step_by(n + 1).for_each(|diagonal| *diagonal += 1.0);
        self.dense.factor(&mut self.factor, n).map_err(|_| too_small(task))
    }

    /// A⁻¹ from the factor: its lower triangle (column-major).
    fn invert(&mut self, n: usize) {
        self.inverse.resize(n * n, 0.0);
        self.dense.invert(&self.factor, n, &mut self.inverse);
    }

    /// δ_S = (F_SS)⁻¹ F_SP w_P from the factor over the survivors.
    fn solve(&mut self, task: &Task, weights: &[f32], survivors: &[bool]) {
        let (n, len) = (self.kept.len(), task.range.len());
        let gone = |i: &&u32| !survivors[**i as usize];
        self.delta.clear();
        for &i in &self.kept {
            let row = &self.fisher[i as usize * len..][..len];
            let product: f64 = self
                .alive
                .iter()
                .filter(gone)
                .map(|&j| row[j as usize] * weights[j as usize] as f64)
                .sum();
            self.delta.push(product / task.damping);
        }
        if self.kept.len() < self.alive.len() {
            self.dense.solve(&self.factor, n, &mut self.delta);
        }
    }

    /// δ = −Σ_p F⁻¹_:p w_p/[F⁻¹]_pp over the removed p, at the survivors.
    fn add_single_updates(
        &mut self,
        task: &Task,
        weights: &[f32],
        survivors: &[bool],
    ) -> Result<()> {
        let offsets = std::mem::take(&mut self.alive);
        let n = offsets.len();
        let factored = self.factor_over(task, &offsets);
        self.alive = offsets;
        factored?;
        self.invert(n);
        let inverse = &self.inverse;
        let at = |i: usize, j: usize| inverse[i.min(j) * n + i.max(j)];
        self.delta.clear();
        for (i, _) in self.alive.iter().enumerate().filter(|(_, o)| survivors[**o as usize]) {
            let mut sum = 0.0;
            for (p, &offset) in self.alive.iter().enumerate() {
                if !survivors[offset as usize] {
                    sum -= at(i, p) * weights[offset as usize] as f64 / at(p, p);
                }
            }
            self.delta.push(sum);
        }
        Ok(())
    }

    /// Greedy, in f32 where that is enough.
    fn rank_greedy(&mut self, task: &Task) -> Result<Trace> {
        let n = self.kept.len();
        let largest = self.weight.iter().fold(0.0f64, |max, w| max.max(w.abs()));
        let scale = if largest > 0.0 { largest } else { 1.0 };
        let unit = 0.5 * task.damping * scale * scale;
        let budget = self.budget.clone();
        let mut trace = Trace::with_capacity(n);
        let lower = &self.inverse;
        self.single.load(lower, &self.weight, scale, &self.group);
        let kept = &self.kept;
        let emit = |trace: &mut Trace, i: u32, score: f64| {
            trace.push(kept[i as usize], unit * score);
        };
        if self.single.order(&mut self.budget, |i, score| emit(&mut trace, i, score)).is_ok() {
            return Ok(trace);
        }
        trace = Trace::with_capacity(n);
        self.budget.copy_from_slice(&budget);
        self.double.load(lower, &self.weight, scale, &self.group);
        self.double
            .order(&mut self.budget, |i, score| emit(&mut trace, i, score))
            .map_err(|_| too_small(task))?;
        Ok(trace)
    }

    /// By ρ_p = λ w_p²/(2 H_pp), ties by position.
    fn rank_scores(&mut self, damping: f64) -> Trace {
        let n = self.kept.len();
        let rho =
            |i: usize| 0.5 * damping * self.weight[i] * self.weight[i] / self.inverse[i * (n + 1)];
        let mut scores: Vec<(f64, u32)> = (0..n).map(|i| (rho(i), i as u32)).collect();
        scores.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut trace = Trace::with_capacity(n);
        for (score, i) in scores {
            let left = &mut self.budget[self.group[i as usize] as usize];
            if *left > 0 {
                *left -= 1;
                trace.push(self.kept[i as usize], score);
            }
        }
        trace
    }
}

fn too_small(task: &Task) -> crate::error::Error {
    error!(
        Numerics,
        "layer {:?}: the Fisher of weights {:?} cannot be inverted with damping {:e}; raise the damping",
        task.name,
        task.range,
        task.damping
    )
}
