//! Greedy removal inside a block: a pivoted Cholesky factorization of H = F⁻¹.
//!
//! Removing weight p leaves the survivors with w ← w − H_:p w_p/H_pp and with the inverse of the
//! smaller Fisher, H ← H − H_:p H_p:/H_pp. So the order of removal is the pivot order of a Cholesky
//! factorization of H whose pivot is always argmin w_p²/(2 H_pp). It is computed in panels: the
//! pivot rows v = (H_p: − Σ_s V_sp V_s:)/√H_pp of a panel are formed lazily from those before them,
//! only w and diag H follow at once; then what is left of H is gathered into its leading corner and
//! gets the panel's rank-k update, so that every panel is cheaper than the one before.
//!
//! H comes scaled by λ, so its diagonal lies in (0, 1], and w by its largest magnitude: nothing
//! overflows in f32, and the precision lost in the downdates shows as a pivot that is small against
//! the diagonal it started from. The kernel gives up then, and the caller repeats it in f64.

use std::ops::{Add, AddAssign, Div, Mul, SubAssign};

use faer::traits::{ComplexField, SimdArch};

/// Rows are padded to whole vectors, so that loops over them have no remainder.
const LANES: usize = 16;
/// Pivots per panel: the panel stays in the L1 cache, and H is gathered often enough.
const PANEL: usize = 16;
/// Rows that [`subtract`] takes at a time.
const UNROLL: usize = 4;
/// Columns that [`subtract`] takes at a time.
const CHUNK: usize = 128;

/// Buffers of the greedy order, for blocks up to the largest seen. Positions are compact: the
/// candidates left are 0..n, and `slot` says which weight of the block each one is.
#[derive(Default)]
pub(super) struct Workspace<T: Real> {
    /// λH of the candidates, rows of `stride`.
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

/// The downdates cancelled more digits than the type has to spare.
#[derive(Debug)]
pub(super) struct PrecisionLost;

impl<T: Real> Workspace<T> {
    /// Loads a block of `n` weights: the lower triangle (column-major) of λH, the weights divided
    /// by `scale`, and the group of each.
    pub fn load(&mut self, lower: &[f64], weights: &[f64], scale: f64, group: &[u32]) {
        let n = weights.len();
        self.stride = n.next_multiple_of(LANES);
        let stride = self.stride;
        resize(&mut self.h, n * stride, T::ZERO);
        for j in 0..n {
            for (i, value) in lower[j * n..(j + 1) * n].iter().enumerate().skip(j) {
                let value = T::from_f64(*value);
                self.h[j * stride + i] = value;
                self.h[i * stride + j] = value;
            }
        }
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
        self.initial.clear();
        self.initial.extend_from_slice(&self.diagonal);
        self.slot.clear();
        self.slot.extend(0..n as u32);
        self.group.clear();
        self.group.extend_from_slice(group);
    }

    /// The whole order of removal of the loaded block, handed to `emit` as the weight's number and
    /// its marginal score w_p²/H_pp in the scaled units. `budget` holds what each group may lose; a
    /// group at 0 bars its other members.
    pub fn order(
        &mut self,
        budget: &mut [u32],
        mut emit: impl FnMut(u32, f64),
    ) -> Result<(), PrecisionLost> {
        let parts = (self, budget, &mut emit);
        <T as ComplexField>::Arch::default().dispatch(
            #[inline(always)]
            move || {
                // Moved out, so that the closure is FnOnce and is inlined into the dispatched code.
                let (this, budget, emit) = parts;
                this.run(budget, emit)
            },
        )
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
        subtract(row, before, stride, p);
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
    for (i, row) in h.chunks_exact_mut(stride).take(n).enumerate() {
        subtract(&mut row[..n.next_multiple_of(LANES)], panel, stride, i);
    }
}

/// out ← out − Σ_s V_sp V_s: over the rows of a panel.
#[inline(always)]
fn subtract<T: Real>(out: &mut [T], panel: &[T], stride: usize, p: usize) {
    for (chunk, out) in out.chunks_mut(CHUNK).enumerate() {
        // A local sum: the compiler sees that no row overlaps it, and makes vectors of the loop.
        let mut sums = [T::ZERO; CHUNK];
        let sums = &mut sums[..out.len()];
        let part = |row: usize| {
            let start = row * stride + chunk * CHUNK;
            &panel[start..start + out.len()]
        };
        let rows = panel.len() / stride;
        let factor = |row: usize| panel[row * stride + p];
        let mut s = 0;
        while s + UNROLL <= rows {
            let [a, b, c, d] = [part(s), part(s + 1), part(s + 2), part(s + 3)];
            let [x, y, z, w] = [factor(s), factor(s + 1), factor(s + 2), factor(s + 3)];
            for j in 0..sums.len() {
                sums[j] += (x * a[j] + y * b[j]) + (z * c[j] + w * d[j]);
            }
            s += UNROLL;
        }
        for s in s..rows {
            let (row, factor) = (part(s), factor(s));
            for j in 0..sums.len() {
                sums[j] += factor * row[j];
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out -= *sum);
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

/// What the kernel asks of a number: f32 or f64.
pub(super) trait Real:
    ComplexField
    + Copy
    + PartialOrd
    + Add<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + SubAssign
{
    /// The representation, ordered like the number where that is not negative.
    type Bits: Copy + Ord + Default;
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;
    /// A pivot below this part of its first value has too few digits left to be ranked by.
    const SPARE: Self;
    /// A pivot below it, though first of its kind, could make a score overflow.
    const TINY: Self;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
    fn bits(self) -> Self::Bits;
}

impl Real for f32 {
    type Bits = u32;
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const INFINITY: f32 = f32::INFINITY;
    const SPARE: f32 = 1e-4;
    const TINY: f32 = 1e-30;
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self as f64
    }
    fn sqrt(self) -> f32 {
        self.sqrt()
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Real for f64 {
    type Bits = u64;
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const INFINITY: f64 = f64::INFINITY;
    const SPARE: f64 = 1e-12;
    const TINY: f64 = 1e-200;
    fn from_f64(value: f64) -> f64 {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn sqrt(self) -> f64 {
        self.sqrt()
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}
