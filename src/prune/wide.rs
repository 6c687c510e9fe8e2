//! Blocks wider than m, in dual form: the B×B Fisher is never formed, m×m matrices are.
//!
//! With the m×B gradients G of a block, S the survivors, P what is gone and M_S = mλI + G_S G_Sᵀ,
//!
//! ```text
//! H_ii = λ[F_SS⁻¹]_ii = 1 − ‖L⁻¹g_i‖²,  M_S = LLᵀ,        δ_S = G_Sᵀ M_S⁻¹ G_P w⁰_P.
//! ```
//!
//! Greedy removal would need B downdates of the diagonal at m·B each; instead survivors are scored
//! [`STAGES`] times on the way to the empty block, each stage takes the cheapest quarter (the last
//! one the rest) and the others move to their joint optimum from the original weights.

use super::Update;
use super::dense;
use super::pattern::Groups;
use super::select::Trace;
use crate::mfac::Gradients;

/// How often a greedy order scores the survivors of a wide block.
pub(super) const STAGES: usize = 16;

/// A stage takes one in so many of the survivors.
const SHARE: usize = 4;

/// Columns of G taken at a time: with 256 gradients they fill half a MiB.
const CHUNK: usize = 256;

/// Buffers for blocks up to the largest seen.
#[derive(Default)]
pub(super) struct Workspace {
    dense: dense::Workspace,
    /// M_S by columns, then L in its lower triangle.
    factor: Vec<f64>,
    /// Some columns of G.
    chunk: Vec<f64>,
    /// A vector over the gradients.
    image: Vec<f64>,
    /// A vector over the block.
    moved: Vec<f64>,
    diagonal: Vec<f64>,
}

/// Rounding has eaten the inverse: the damping is too small.
#[derive(Debug)]
pub(super) struct PrecisionLost;

/// The block and what is known of it.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// Its gradients, m×B.
    pub gradients: Gradients<'a>,
    /// λ.
    pub damping: f64,
    /// w⁰.
    pub weights: &'a [f32],
    /// Which weights were alive at the start.
    pub alive: &'a [bool],
}

impl Workspace {
    /// The order in which the block gives up `survivors`, in `stages` stages.
    pub fn rank(
        &mut self,
        block: Block<'_>,
        survivors: &[bool],
        groups: &Groups,
        budget: &mut [u32],
        stages: usize,
    ) -> Result<Trace, PrecisionLost> {
        let mut left = survivors.to_vec();
        let mut kept = offsets(&left);
        let mut trace = Trace::with_capacity(kept.len());
        for stage in 1..=stages {
            let wanted = if stage == stages { kept.len() } else { kept.len().div_ceil(SHARE) };
            let before = trace.order.len();
            for (score, i) in self.scores(block, &kept, &left)? {
                let budget = &mut budget[groups.group[i as usize] as usize];
                if *budget > 0 && trace.order.len() < before + wanted {
                    *budget -= 1;
                    left[i as usize] = false;
                    trace.push(i, score);
                }
            }
            kept.retain(|&i| left[i as usize]);
            if kept.is_empty() || trace.order.len() == before {
                break;
            }
        }
        Ok(trace)
    }

    /// λw²/(2H_ii) of the kept weights at their joint optimum, cheapest first, ties by position.
    fn scores(
        &mut self,
        block: Block<'_>,
        kept: &[u32],
        survivors: &[bool],
    ) -> Result<Vec<(f64, u32)>, PrecisionLost> {
        self.factor(block, kept)?;
        let mut delta = Vec::new();
        self.joint(block, kept, survivors, &mut delta);
        self.invert_diagonal(block, kept)?;
        let score = |((&i, delta), diagonal): ((&u32, &f64), &f64)| {
            let weight = block.weights[i as usize] as f64 + delta;
            (0.5 * block.damping * weight * weight / diagonal, i)
        };
        let mut scores: Vec<_> = kept.iter().zip(&delta).zip(&self.diagonal).map(score).collect();
        scores.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Ok(scores)
    }

    /// δ_S in the order of `kept`: of the joint update, or of the single-weight updates added up,
    /// Gᵀ M⁻¹ G t with M over all weights alive and t_p = w_p/H_pp at the removed.
    pub fn settle(
        &mut self,
        block: Block<'_>,
        kept: &[u32],
        survivors: &[bool],
        update: Update,
        delta: &mut Vec<f64>,
    ) -> Result<(), PrecisionLost> {
        if update == Update::Joint {
            self.factor(block, kept)?;
            self.joint(block, kept, survivors, delta);
            return Ok(());
        }
        let all = offsets(block.alive);
        self.factor(block, &all)?;
        self.invert_diagonal(block, &all)?;
        clear(&mut self.moved, block.weights.len());
        for (&p, diagonal) in all.iter().zip(&self.diagonal) {
            if !survivors[p as usize] {
                self.moved[p as usize] = block.weights[p as usize] as f64 / diagonal;
            }
        }
        self.spread(block, kept, delta);
        Ok(())
    }

    /// ½ δᵀFδ = ‖Gδ‖²/(2m) of a change of the whole block.
    pub fn loss(&mut self, gradients: Gradients<'_>, change: &[f64]) -> f64 {
        multiply(gradients, change, &mut self.image);
        self.image.iter().map(|x| x * x).sum::<f64>() / (2 * gradients.count().max(1)) as f64
    }

    /// δ_S = G_Sᵀ M_S⁻¹ G_P w_P from the factor over S.
    fn joint(&mut self, block: Block<'_>, kept: &[u32], survivors: &[bool], out: &mut Vec<f64>) {
        let states = block.weights.iter().zip(block.alive.iter().zip(survivors));
        self.moved.clear();
        self.moved.extend(states.map(|(w, (was, is))| if *was && !is { *w as f64 } else { 0.0 }));
        self.spread(block, kept, out);
    }

    /// Gᵀ M⁻¹ G x at the kept weights, x in `moved`.
    fn spread(&mut self, block: Block<'_>, kept: &[u32], out: &mut Vec<f64>) {
        clear(out, kept.len());
        if self.moved.iter().all(|x| *x == 0.0) {
            return;
        }
        let m = block.gradients.count();
        multiply(block.gradients, &self.moved, &mut self.image);
        self.dense.solve(&self.factor, m, &mut self.image);
        let (all, mut scratch) = (0..block.weights.len(), vec![0.0; block.weights.len()]);
        for (i, &y) in self.image.iter().enumerate() {
            let row = block.gradients.row(i, all.clone(), &mut scratch);
            out.iter_mut().zip(kept).for_each(|(out, &j)| *out += row[j as usize] as f64 * y);
        }
    }

    /// L of M_S over the weights at `kept`.
    fn factor(&mut self, block: Block<'_>, kept: &[u32]) -> Result<(), PrecisionLost> {
        let m = block.gradients.count();
        clear(&mut self.factor, m * m);
        for columns in kept.chunks(CHUNK) {
            gather(block.gradients, columns, &mut self.chunk);
            dense::add_gram(&self.chunk, m, &mut self.factor);
        }
        let shift = m as f64 * block.damping;
        self.factor.iter_mut().step_by(m + 1).for_each(|diagonal| *diagonal += shift);
        self.dense.factor(&mut self.factor, m).map_err(|_| PrecisionLost)
    }

    /// H_ii of the weights at `kept` from L, each in (0, 1].
    fn invert_diagonal(&mut self, block: Block<'_>, kept: &[u32]) -> Result<(), PrecisionLost> {
        let m = block.gradients.count();
        self.diagonal.clear();
        for columns in kept.chunks(CHUNK) {
            gather(block.gradients, columns, &mut self.chunk);
            dense::solve_lower(&self.factor, m, &mut self.chunk);
            let norm = |column: &[f64]| 1.0 - column.iter().map(|x| x * x).sum::<f64>();
            self.diagonal.extend(self.chunk.chunks_exact(m).map(norm));
        }
        // Below it fewer than four digits are left; false for NaN as well.
        let sound = self.diagonal.iter().all(|d| *d > 1e-12);
        if sound { Ok(()) } else { Err(PrecisionLost) }
    }
}

/// The columns of G at `columns`, one after the other, m numbers each.
fn gather(gradients: Gradients<'_>, columns: &[u32], out: &mut Vec<f64>) {
    let (m, width) = (gradients.count(), gradients.dimension());
    clear(out, m * columns.len());
    let mut scratch = vec![0.0; width];
    for i in 0..m {
        let row = gradients.row(i, 0..width, &mut scratch);
        for (k, &j) in columns.iter().enumerate() {
            out[k * m + i] = row[j as usize] as f64;
        }
    }
}

/// y = Gx.
fn multiply(gradients: Gradients<'_>, x: &[f64], y: &mut Vec<f64>) {
    let (width, mut scratch) = (gradients.dimension(), vec![0.0; gradients.dimension()]);
    y.clear();
    y.extend((0..gradients.count()).map(|i| {
        let row = gradients.row(i, 0..width, &mut scratch);
        row.iter().zip(x).map(|(g, x)| *g as f64 * x).sum::<f64>()
    }));
}

fn offsets(mask: &[bool]) -> Vec<u32> {
    (0u32..).zip(mask).filter(|(_, set)| **set).map(|(i, _)| i).collect()
}

fn clear(vector: &mut Vec<f64>, len: usize) {
    vector.clear();
    vector.resize(len, 0.0);
}
