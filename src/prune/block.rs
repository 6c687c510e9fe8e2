//! One block: ranks its weights for removal, and settles the survivors once it is known what goes.
//!
//! With A = (F + λI)/λ over the weights alive at the start, H = A⁻¹ = λF⁻¹ has its diagonal in
//! (0, 1], and the loss of a weight is ρ_p = λ w_p² / (2 H_pp).

use std::ops::Range;

use super::dense;
use super::greedy;
use super::kernel::{Damped, Real};
use super::pattern::Groups;
use super::select::Trace;
use super::wide;
use super::{Curvature, Update};
use crate::error::{Result, bail, error};

/// A block to be worked on.
#[derive(Clone, Debug)]
pub(super) struct Task<'a> {
    /// Its number in the curvature.
    pub index: usize,
    /// Where it lies in the flat vector.
    pub range: Range<usize>,
    /// The number of its layer.
    pub layer: usize,
    /// The name of its layer.
    pub name: &'a str,
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
    /// One removal at a time, from the weights at the start.
    Greedy,
    /// All survivors scored once, from their joint optimum.
    Scores,
}

/// What one thread works with; grows to the largest block it meets. Vectors named for weights of
/// the block run over all of it, over those alive, or over those kept.
#[derive(Default)]
pub(super) struct Scratch {
    /// The block of the Fisher, B×B, undamped.
    fisher: Vec<f64>,
    /// A packed part of it, then its Cholesky factor.
    factor: Vec<f64>,
    /// L⁻¹.
    inverse: Vec<f64>,
    dense: dense::Workspace,
    single: greedy::Workspace<f32>,
    double: greedy::Workspace<f64>,
    wide: wide::Workspace,
    /// Offsets of the weights alive at the start, and of those that survive.
    alive: Vec<u32>,
    kept: Vec<u32>,
    /// A change of all weights of the block, and F times it.
    change: Vec<f64>,
    pull: Vec<f64>,
    /// The kept weights, their change, and their diagonal of A⁻¹.
    weight: Vec<f64>,
    delta: Vec<f64>,
    diagonal: Vec<f64>,
    group: Vec<u32>,
    /// What each group may lose, and a copy to count down.
    budget: Vec<u32>,
    left: Vec<u32>,
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
    task: &Task<'_>,
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
    if let Some(block) = wide(task, start) {
        let stages = if ranking == Ranking::Greedy { wide::STAGES } else { 1 };
        let (budget, groups) = (&mut scratch.budget, &task.groups);
        let trace = scratch.wide.rank(block, survivors, groups, budget, stages);
        return trace.map_err(|_| too_small(task));
    }
    scratch.fetch(task, start.curvature)?;
    reset(&mut scratch.delta, scratch.kept.len());
    if ranking == Ranking::Scores {
        scratch.factor_kept(task)?;
        scratch.solve_joint(task, weights, survivors);
    }
    let moved = scratch.kept.iter().zip(&scratch.delta);
    scratch.weight.clear();
    scratch.weight.extend(moved.map(|(&i, delta)| weights[i as usize] as f64 + delta));
    scratch.group.clear();
    scratch.group.extend(scratch.kept.iter().map(|&i| task.groups.group[i as usize]));
    match ranking {
        Ranking::Greedy => scratch.rank_greedy(task),
        Ranking::Scores => scratch.rank_scores(task),
    }
}

/// The weights of the block once those not in `survivors` are gone, and the loss of that.
pub(super) fn settle(
    scratch: &mut Scratch,
    task: &Task<'_>,
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
    let wide = wide(task, start);
    if wide.is_none() {
        scratch.fetch(task, start.curvature)?;
    }
    match (update, wide) {
        (Update::Joint, _) if scratch.kept.is_empty() => {}
        (_, Some(block)) => {
            let (kept, delta) = (&scratch.kept, &mut scratch.delta);
            scratch
                .wide
                .settle(block, kept, survivors, update, delta)
                .map_err(|_| too_small(task))?
        }
        (Update::Joint, None) => {
            scratch.factor_kept(task)?;
            scratch.solve_joint(task, weights, survivors);
        }
        (Update::Independent, None) => scratch.add_single_updates(task, weights, survivors)?,
    }
    let mut settled = Settled { weights: vec![0.0; weights.len()], loss: 0.0, loss_damped: 0.0 };
    for (&i, &delta) in scratch.kept.iter().zip(&scratch.delta) {
        let weight = (weights[i as usize] as f64 + delta) as f32;
        if !weight.is_finite() {
            let name = task.name;
            bail!(Numerics, "layer {name:?}: the update overflows a weight; raise the damping");
        }
        settled.weights[i as usize] = weight;
    }
    reset(&mut scratch.change, weights.len());
    for &i in &scratch.alive {
        let i = i as usize;
        scratch.change[i] = settled.weights[i] as f64 - weights[i] as f64;
    }
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    settled.loss = match wide {
        Some(block) => scratch.wide.loss(block.gradients, &scratch.change),
        None => {
            multiply(&scratch.fisher, &scratch.change, &mut scratch.pull);
            0.5 * dot(&scratch.change, &scratch.pull)
        }
    };
    settled.loss_damped = settled.loss + 0.5 * task.damping * dot(&scratch.change, &scratch.change);
    Ok(settled)
}

/// The block in dual form, if that is its form.
fn wide<'a>(task: &Task<'_>, start: &Start<'a>) -> Option<wide::Block<'a>> {
    let gradients = start.curvature.gradients(task.index)?;
    let (weights, alive) = (&start.weights[task.range.clone()], &start.alive[task.range.clone()]);
    Some(wide::Block { gradients, damping: task.damping, weights, alive })
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
    fn fetch(&mut self, task: &Task<'_>, curvature: &dyn Curvature) -> Result<()> {
        let n = task.range.len();
        self.fisher.resize(n * n, 0.0);
        curvature.block(task.index, &mut self.fisher)?;
        // 0·f is NaN where f is not finite; sums side by side, so that they are made in vectors.
        let mut zeros = [0.0; 16];
        for chunk in self.fisher.chunks(zeros.len()) {
            zeros.iter_mut().zip(chunk).for_each(|(zero, f)| *zero += 0.0 * f);
        }
        let sound = zeros.iter().all(|zero| *zero == 0.0)
            && self.fisher.iter().step_by(n + 1).all(|diagonal| *diagonal >= 0.0);
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

    /// Cholesky factor of A over the survivors.
    fn factor_kept(&mut self, task: &Task<'_>) -> Result<()> {
        pack(&self.fisher, task, &self.kept, &mut self.factor);
        self.dense.factor(&mut self.factor, self.kept.len()).map_err(|_| too_small(task))
    }

    /// δ_S = (F_SS)⁻¹ F_SP w_P from the factor over the survivors.
    fn solve_joint(&mut self, task: &Task<'_>, weights: &[f32], survivors: &[bool]) {
        reset(&mut self.delta, self.kept.len());
        if self.kept.len() == self.alive.len() {
            return;
        }
        reset(&mut self.change, weights.len());
        for &p in self.alive.iter().filter(|p| !survivors[**p as usize]) {
            self.change[p as usize] = weights[p as usize] as f64;
        }
        multiply(&self.fisher, &self.change, &mut self.pull);
        for (delta, &i) in self.delta.iter_mut().zip(&self.kept) {
            *delta = self.pull[i as usize] / task.damping;
        }
        self.dense.solve(&self.factor, self.kept.len(), &mut self.delta);
    }

    /// δ = −Σ_p F⁻¹_:p w_p/[F⁻¹]_pp over the removed p, at the survivors: one solve with the right
    /// side w_p/H_pp.
    fn add_single_updates(
        &mut self,
        task: &Task<'_>,
        weights: &[f32],
        survivors: &[bool],
    ) -> Result<()> {
        let n = self.alive.len();
        pack(&self.fisher, task, &self.alive, &mut self.factor);
        self.dense.factor(&mut self.factor, n).map_err(|_| too_small(task))?;
        self.invert_diagonal(n, task)?;
        let side = self.alive.iter().zip(&self.diagonal).map(|(&p, diagonal)| {
            if survivors[p as usize] { 0.0 } else { -weights[p as usize] as f64 / diagonal }
        });
        self.pull.clear();
        self.pull.extend(side);
        self.dense.solve(&self.factor, n, &mut self.pull);
        let moves = self.alive.iter().zip(&self.pull).filter(|(i, _)| survivors[**i as usize]);
        self.delta.clear();
        self.delta.extend(moves.map(|(_, delta)| delta));
        Ok(())
    }

    /// The diagonal of A⁻¹ from the factor.
    fn invert_diagonal(&mut self, n: usize, task: &Task<'_>) -> Result<()> {
        self.inverse.resize(n * n, 0.0);
        self.diagonal.resize(n, 0.0);
        self.dense.invert_diagonal(&self.factor, n, &mut self.inverse, &mut self.diagonal);
        check_diagonal(task, self.diagonal.iter())
    }

    /// Greedy, in f32 where that is enough.
    fn rank_greedy(&mut self, task: &Task<'_>) -> Result<Trace> {
        let n = self.kept.len();
        let (fisher, offsets, len) = (&self.fisher[..], &self.kept[..], task.range.len());
        let a = Damped { fisher, offsets, len, damping: task.damping };
        let largest = self.weight.iter().fold(0.0f64, |max, w| max.max(w.abs()));
        let scale = if largest > 0.0 { largest } else { 1.0 };
        let unit = 0.5 * task.damping * scale * scale;
        let (weight, group) = (&self.weight, &self.group);
        self.left.clone_from(&self.budget);
        let mut trace = Trace::with_capacity(n);
        let single = self.single.order(a, weight, scale, group, &mut self.left, |i, score| {
            trace.push(self.kept[i as usize], unit * score);
        });
        if single.is_ok() {
            return Ok(trace);
        }
        let mut trace = Trace::with_capacity(n);
        let double = self.double.order(a, weight, scale, group, &mut self.budget, |i, score| {
            trace.push(self.kept[i as usize], unit * score);
        });
        double.map_err(|_| too_small(task))?;
        Ok(trace)
    }

    /// By ρ_p = λ w_p²/(2 H_pp), ties by position.
    fn rank_scores(&mut self, task: &Task<'_>) -> Result<Trace> {
        let n = self.kept.len();
        self.invert_diagonal(n, task)?;
        let rho = |i: usize| 0.5 * task.damping * self.weight[i].powi(2) / self.diagonal[i];
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
        Ok(trace)
    }
}

/// A over the weights at `offsets`.
fn damped<'a>(fisher: &'a [f64], task: &Task<'_>, offsets: &'a [u32]) -> Damped<'a> {
    Damped { fisher, offsets, len: task.range.len(), damping: task.damping }
}

/// A over the weights at `offsets`, both halves.
fn pack(fisher: &[f64], task: &Task<'_>, offsets: &[u32], out: &mut Vec<f64>) {
    let n = offsets.len();
    out.resize(n * n, 0.0);
    let a = damped(fisher, task, offsets);
    out.chunks_exact_mut(n.max(1)).enumerate().for_each(|(i, out)| a.row(i, 0..n, out));
}

/// y = Fx for the symmetric F; rows where x is 0 are passed over.
fn multiply(fisher: &[f64], x: &[f64], y: &mut Vec<f64>) {
    reset(y, x.len());
    f64::vectorized(
        #[inline(always)]
        || {
            for (row, &x) in fisher.chunks_exact(x.len()).zip(x).filter(|(_, x)| **x != 0.0) {
                y.iter_mut().zip(row).for_each(|(y, f)| *y += f * x);
            }
        },
    )
}

fn reset(vector: &mut Vec<f64>, len: usize) {
    vector.clear();
    vector.resize(len, 0.0);
}

/// The diagonal of A⁻¹ lies in (0, 1], or rounding has eaten it.
fn check_diagonal<'a>(task: &Task<'_>, mut diagonal: impl Iterator<Item = &'a f64>) -> Result<()> {
    if diagonal.all(|d| *d > 0.0 && *d <= 1.0 + 1e-6) { Ok(()) } else { Err(too_small(task)) }
}

fn too_small(task: &Task<'_>) -> crate::error::Error {
    error!(
        Numerics,
        "layer {:?}: the Fisher of weights {:?} cannot be inverted with damping {:e}; raise the \
         damping",
        task.name,
        task.range,
        task.damping
    )
}
