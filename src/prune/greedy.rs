//! Greedy removal inside a block: a pivoted Cholesky factorization of H = F⁻¹.
//!
//! Removing weight p leaves the survivors with w ← w − H_:p w_p/H_pp and with the inverse of the
//! smaller Fisher, H ← H − H_:p H_p:/H_pp. So the order of removal is the pivot order of a Cholesky
//! factorization of H whose pivot is always argmin w_p²/(2 H_pp). It is computed in panels: the
//! pivot rows v = (H_p: − Σ_s V_sp V_s:)/√H_pp of a panel are formed lazily from those before them,
//! only w and diag H follow at once; then what is left of H is gathered into its leading corner and
//! gets the panel's rank-k update, so that every panel is cheaper than the one before.
//!
//! H is that of A = (F + λI)/λ, so its diagonal lies in (0, 1], and w by its largest magnitude:
//! nothing overflows in f32, and the precision lost in the downdates shows as a pivot that is small
//! against the diagonal it started from. The kernel gives up then, and the caller repeats it in
//! f64.

use super::kernel::{LANES, PrecisionLost, Real, add_rows, invert};

/// Pivots per panel: the panel stays in the L1 cache, and H is gathered often enough.
const PANEL: usize = 16;

/// Buffers of the greedy order, for blocks up to the largest seen. Positions are compact: the
/// candidates left are 0..n, and `slot` says which weight of the block each one is.
#[derive(Default)]
pub(super) struct Workspace<T: Real> {
    /// A, then its Cholesky factor, rows of `stride`.
    factor: Vec<T>,
    /// H of the candidates, rows of `stride`.
    h: Vec<T>,
    /// The pivot rows of the panel, rows of `stride`.
    v: Vec<T>,
    stride: usize,
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
    /// The order in which a block gives up its weights: the matrix A = (F + λI)/λ (dense, n×n), the
    /// weights (divided by `scale`), the group of each and in `budget` what each group may lose; a
    /// group at 0 bars its other members. Each removal is handed to `emit` as the weight's number
    /// and its marginal score w_p²/H_pp in the scaled units, H = A⁻¹.
    pub fn order(
        &mut self,
        a: &[f64],
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
        a: &[f64],
        weights: &[f64],
        scale: f64,
        group: &[u32],
    ) -> Result<(), PrecisionLost> {
        let n = weights.len();
        self.stride = n.next_multiple_of(LANES);
        let stride = self.stride;
        resize(&mut self.factor, n * stride, T::ZERO);
        resize(&mut self.h, n * stride, T::ZERO);
        for (row, a) in self.factor.chunks_exact_mut(stride).zip(a.chunks_exact(n)) {
            row.iter_mut().zip(a).for_each(|(out, a)| *out = T::from_f64(*a));
        }
        resize(&mut self.initial, stride, T::ONE);
        invert(&mut self.factor, n, stride, &mut self.h, &mut self.initial)?;
        resize(&mut self.v, PANEL * stride, T::ZERO);
        resize(&mut self.score, stride, T::INFINITY.bits());
        resize(&mut self.weight, stride, T::ZERO);
        resize(&mut self.diagonal, stride, T::ONE);
        resize(&mut self.barrier, stride, T::INFINITY);
        for (i, weight) in weights.iter().enumerate() {
            self.weight[i] = T::from_f64(weight / scale);
            self.diagonal[i] = self.h[i * stride + i];
            self.barrier[i] = T::ZERO;
        }
        self.initial.copy_from_slice(&self.diagonal);
        self.slot.clear();
        self.slot.extend(0..n as u32);
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
        let mut left = self.slot.len();
        for i in 0..left {
            if budget[self.group[i] as usize] == 0 {
                self.barrier[i] = T::INFINITY;
            }
        }
        while left > 0 {
            let width = left.next_multiple_of(LANES);
            let mut lowest = self.rescore(width);
            let mut pivots = 0;
            while pivots < PANEL && lowest < T::INFINITY.bits() {
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
            downdate(&mut self.h, &self.v[..pivots * self.stride], self.stride, left);
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

    /// Forms pivot row number `t` of the panel for position `p`, and lets w and diag H follow.
    #[inline(always)]
    fn eliminate(&mut self, p: usize, t: usize, pivot: T, width: usize) {
        let stride = self.stride;
        let root = T::ONE / pivot.sqrt();
        let step = self.weight[p] * root;
        let (before, row) = self.v.split_at_mut(t * stride);
        let row = &mut row[..width];
        row.copy_from_slice(&self.h[p * stride..p * stride + width]);
        let factor = |s: usize| -before[s * stride + p];
        add_rows(row, before, stride, 0, 0..t, factor);
        let (w, d) = (&mut self.weight[..width], &mut self.diagonal[..width]);
        for j in 0..width {
            let v = row[j] * root;
            row[j] = v;
            w[j] -= step * v;
            d[j] -= v * v;
        }
    }

    /// Fills the places of positions that are candidates no more from the end, in H, in the panel
    /// and everywhere else; returns how many candidates are left.
    #[inline(always)]
    fn gather(&mut self, mut left: usize, pivots: usize) -> usize {
        let stride = self.stride;
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
            self.h.copy_within(from * stride..(from + 1) * stride, to * stride);
            self.weight[to] = self.weight[from];
            self.diagonal[to] = self.diagonal[from];
            self.initial[to] = self.initial[from];
            self.barrier[to] = self.barrier[from];
            self.slot[to] = self.slot[from];
            self.group[to] = self.group[from];
        }
        for row in self.h.chunks_exact_mut(stride).take(left) {
            self.moves.iter().for_each(|&(from, to)| row[to] = row[from]);
        }
        for row in self.v.chunks_exact_mut(stride).take(pivots) {
            self.moves.iter().for_each(|&(from, to)| row[to] = row[from]);
        }
        for j in left..left.next_multiple_of(LANES).min(stride) {
            self.barrier[j] = T::INFINITY;
        }
        left
    }
}

/// H ← H − VᵀV on the leading `n` positions (and the padding of their rows).
#[inline(always)]
fn downdate<T: Real>(h: &mut [T], panel: &[T], stride: usize, n: usize) {
    let pivots = panel.len() / stride;
    for (i, row) in h.chunks_exact_mut(stride).take(n).enumerate() {
        let factor = |s: usize| -panel[s * stride + i];
        add_rows(&mut row[..n.next_multiple_of(LANES)], panel, stride, 0, 0..pivots, factor);
    }
}

/// The first position of `value`, which is there.
#[inline(always)]
fn position<T: PartialEq>(slice: &[T], value: T) -> usize {
    slice.iter().position(|x| *x == value).expect("the minimum of the slice")
}

fn resize<T: Copy>(buffer: &mut Vec<T>, len: usize, value: T) {
    buffer.clear();
    buffer.resize(len, value);
}
