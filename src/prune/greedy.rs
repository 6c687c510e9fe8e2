//! Greedy removal inside a block: a pivoted Cholesky factorization of H = F⁻¹.
//!
//! Removing weight p leaves the survivors with w ← w − H_:p w_p/H_pp and with the inverse of the
//! smaller Fisher, H ← H − H_:p H_p:/H_pp. So the order of removal is the pivot order of a Cholesky
//! factorization of H whose pivot is always argmin w_p²/(2 H_pp). It looks left: H stays as it was,
//! the pivot row v = (H_p: − Σ_s V_sp V_s:)/√H_pp is formed from those before it, and only w and
//! diag H follow at once. Every few pivots the positions of removed weights are filled from the
//! end, so that rows shrink: n³/6 multiply-adds in all, on rows that the caches hold.
//!
//! H is that of A = (F + λI)/λ, so its diagonal lies in (0, 1], and w by its largest magnitude:
//! nothing overflows in f32, and the precision lost in the downdates shows as a pivot that is small
//! against the diagonal it started from. The kernel gives up then, and the caller repeats it in
//! f64.

use super::kernel::{Damped, LANES, PrecisionLost, Real, add_rows};

/// Pivots between two fillings of empty positions.
const PANEL: usize = 16;

/// Buffers of the greedy order, for blocks up to the largest seen. Positions are compact: the
/// candidates left are 0..n, and `slot` says which weight of the block each one is.
#[derive(Default)]
pub(super) struct Workspace<T: Real> {
    /// H, n×n, by weights of the block.
    h: Vec<T>,
    /// What H is computed in, then the pivot rows, by positions, rows of `stride`.
    v: Vec<T>,
    stride: usize,
    inverter: T::Inverter,
    /// The numbers of the pivot rows at the new pivot.
    factor: Vec<T>,
    weight: Vec<T>,
    diagonal: Vec<T>,
    /// The diagonal at the start, the measure of lost precision.
    initial: Vec<T>,
    /// 0 for a candidate, ∞ for a position that is none any more (removed, barred or padding).
    barrier: Vec<T>,
    score: Vec<T::Bits>,
    slot: Vec<u32>,
    group: Vec<u32>,
    moves: Vec<(usize, usize)>,
}

impl<T: Real> Workspace<T> {
    /// The order in which a block gives up its weights: the matrix A, the weights (divided by
    /// `scale`), the group of each and in `budget` what each group may lose; a group at 0 bars its
    /// other members. Each removal is handed to `emit` as the weight's number and its marginal
    /// score w_p²/H_pp in the scaled units, H = A⁻¹.
    pub fn order(
        &mut self,
        a: Damped<'_>,
        weights: &[f64],
        scale: f64,
        group: &[u32],
        budget: &mut [u32],
        mut emit: impl FnMut(u32, f64),
    ) -> Result<(), PrecisionLost> {
        let parts = (self, budget, &mut emit);
        T::vectorized(
            #[inline(always)]
            move || {
                // Moved out, so that the closure is FnOnce and is inlined into the dispatched code.
                let (this, budget, emit) = parts;
                this.load(a, weights, scale, group)?;
                this.run(budget, emit)
            },
        )
    }

    #[inline(always)]
    fn load(
        &mut self,
        a: Damped<'_>,
        weights: &[f64],
        scale: f64,
        group: &[u32],
    ) -> Result<(), PrecisionLost> {
        let n = weights.len();
        self.h.resize(n * n, T::ZERO);
        T::invert(a, &mut self.v, &mut self.inverter, &mut self.h[..n * n])?;
        let padded = n.next_multiple_of(LANES);
        // An odd number of vectors, or rows would compete for the same cache lines.
        self.stride = LANES * (n.div_ceil(LANES) | 1);
        if self.v.len() < n * self.stride {
            self.v.resize(n * self.stride, T::ZERO);
        }
        reset(&mut self.score, padded, T::INFINITY.bits());
        reset(&mut self.weight, padded, T::ZERO);
        reset(&mut self.diagonal, padded, T::ONE);
        reset(&mut self.barrier, padded, T::INFINITY);
        for (i, weight) in weights.iter().enumerate() {
            self.weight[i] = T::from_f64(weight / scale);
            self.diagonal[i] = self.h[i * n + i];
            self.barrier[i] = T::ZERO;
        }
        self.initial.clone_from(&self.diagonal);
        self.slot.clear();
        self.slot.extend(0..padded as u32);
        // Padding reads something, and is barred.
        self.slot[n..].fill(0);
        self.group.clear();
        self.group.extend_from_slice(group);
        Ok(())
    }

    #[inline(always)]
    fn run(
        &mut self,
        budget: &mut [u32],
        emit: &mut impl FnMut(u32, f64),
    ) -> Result<(), PrecisionLost> {
        let mut left = self.group.len();
        for i in 0..left {
            if budget[self.group[i] as usize] == 0 {
                self.barrier[i] = T::INFINITY;
            }
        }
        let mut pivots = 0;
        while left > 0 {
            let width = left.next_multiple_of(LANES);
            let mut lowest = self.rescore(width);
            let end = pivots + PANEL;
            while pivots < end && lowest < T::INFINITY.bits() {
                let p = position(&self.score[..width], lowest);
                let pivot = self.diagonal[p];
                if !(pivot > T::SPARE * self.initial[p] && pivot > T::TINY) {
                    return Err(PrecisionLost);
                }
                emit(self.slot[p], (self.weight[p] * self.weight[p] / pivot).to_f64());
                self.retire(p, left, budget);
                self.eliminate(p, pivots, pivot, width);
                lowest = self.rescore(width);
                pivots += 1;
            }
            let before = left;
            left = self.gather(left, pivots);
            if left == before {
                return Err(PrecisionLost); // candidates without a finite score
            }
        }
        Ok(())
    }

    /// Scores of all positions; returns the bits of the lowest. Non-negative numbers are ordered as
    /// their bits, and whatever a barred position holds (∞, NaN, a negative number) comes after.
    #[inline(always)]
    fn rescore(&mut self, width: usize) -> T::Bits {
        let (w, d) = (&self.weight[..width], &self.diagonal[..width]);
        let (barrier, score) = (&self.barrier[..width], &mut self.score[..width]);
        let mut lowest = T::INFINITY.bits();
        for j in 0..width {
            score[j] = (w[j] * w[j] / d[j] + barrier[j]).bits();
            lowest = lowest.min(score[j]);
        }
        lowest
    }

    /// Position `p` is no candidate any more, nor are those of its group if it was the last that
    /// the group may lose.
    #[inline(always)]
    fn retire(&mut self, p: usize, left: usize, budget: &mut [u32]) {
        self.barrier[p] = T::INFINITY;
        let group = self.group[p];
        budget[group as usize] -= 1;
        if budget[group as usize] == 0 {
            for (barrier, _) in
                self.barrier[..left].iter_mut().zip(&self.group).filter(|(_, g)| **g == group)
            {
                *barrier = T::INFINITY;
            }
        }
    }

    /// Forms pivot row number `t` for position `p`, and lets w and diag H follow.
    #[inline(always)]
    fn eliminate(&mut self, p: usize, t: usize, pivot: T, width: usize) {
        let (stride, n) = (self.stride, self.group.len());
        let root = T::ONE / pivot.sqrt();
        let step = self.weight[p] * root;
        let (before, row) = self.v.split_at_mut(t * stride);
        let row = &mut row[..width];
        let h = &self.h[self.slot[p] as usize * n..][..n];
        row.iter_mut().zip(&self.slot[..width]).for_each(|(v, &j)| *v = h[j as usize]);
        self.factor.clear();
        self.factor.extend(before.chunks_exact(stride).map(|v| -v[p]));
        add_rows(row, before, stride, &self.factor);
        let (w, d) = (&mut self.weight[..width], &mut self.diagonal[..width]);
        for j in 0..width {
            let v = row[j] * root;
            row[j] = v;
            w[j] -= step * v;
            d[j] -= v * v;
        }
    }

    /// Fills the places of positions that are candidates no more from the end, in the pivot rows
    /// and everywhere else; returns how many candidates are left.
    #[inline(always)]
    fn gather(&mut self, mut left: usize, pivots: usize) -> usize {
        let open = |barrier: &T| *barrier < T::INFINITY;
        self.moves.clear();
        let mut to = 0;
        while to < left {
            if open(&self.barrier[to]) {
                to += 1;
                continue;
            }
            left -= 1;
            if to < left && open(&self.barrier[left]) {
                self.moves.push((left, to));
                to += 1;
            }
        }
        for &(from, to) in &self.moves {
            self.weight[to] = self.weight[from];
            self.diagonal[to] = self.diagonal[from];
            self.initial[to] = self.initial[from];
            self.barrier[to] = self.barrier[from];
            self.slot[to] = self.slot[from];
            self.group[to] = self.group[from];
        }
        for row in self.v.chunks_exact_mut(self.stride).take(pivots) {
            self.moves.iter().for_each(|&(from, to)| row[to] = row[from]);
        }
        for j in left..left.next_multiple_of(LANES) {
            self.barrier[j] = T::INFINITY;
        }
        left
    }
}

/// The first position of `value`, which is there.
#[inline(always)]
fn position<T: PartialEq + Copy>(slice: &[T], value: T) -> usize {
    let at = slice.iter().zip(0u32..).map(|(x, j)| if *x == value { j } else { u32::MAX });
    at.min().expect("scores of candidates") as usize
}

fn reset<T: Copy>(buffer: &mut Vec<T>, len: usize, value: T) {
    buffer.clear();
    buffer.resize(len, value);
}
