//! The loops under the greedy order, in f32 and in f64: the inverse of a block, and sums of scaled
//! rows.
//!
//! f32 inverts by the symmetric sweep on the register tile, f64 by faer. The rest is plain loops
//! that a compiler makes vectors of, inlined into code compiled for the processor at hand.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Range, SubAssign};

use faer::traits::ComplexField;

use crate::mfac::dense;
use crate::mfac::kernels::tile::WIDTH;
use crate::mfac::kernels::{panel, sweep, syrk};

/// Rows are padded to whole vectors, so that loops over them have no remainder.
pub(super) const LANES: usize = 16;

/// Cancellation took more digits than the type has to spare.
#[derive(Debug)]
pub(super) struct PrecisionLost;

/// A = (F + λI)/λ over some weights of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Damped<'a> {
    /// F of the whole block, B×B.
    pub fisher: &'a [f64],
    /// Which weights, increasing.
    pub offsets: &'a [u32],
    /// B.
    pub len: usize,
    /// λ.
    pub damping: f64,
}

impl Damped<'_> {
    /// Columns `columns` of row i to `out`.
    #[inline(always)]
    pub fn row<T: Real>(&self, i: usize, columns: Range<usize>, out: &mut [T]) {
        let scale = 1.0 / self.damping;
        let entries = &self.fisher[self.offsets[i] as usize * self.len..][..self.len];
        let offsets = &self.offsets[columns.clone()];
        match self.offsets.len() == self.len {
            true => {
                let row = out.iter_mut().zip(&entries[columns.clone()]);
                row.for_each(|(out, f)| *out = T::from_f64(scale * f));
            }
            false => {
                let row = out.iter_mut().zip(offsets);
                row.for_each(|(out, &j)| *out = T::from_f64(scale * entries[j as usize]));
            }
        }
        if columns.contains(&i) {
            out[i - columns.start] = T::from_f64(scale * entries[self.offsets[i] as usize] + 1.0);
        }
    }
}

/// out ← out + Σ_s factors[s] · row_s over the rows of a matrix with rows of `stride`; `out` is a
/// multiple of [`LANES`] long.
#[inline(always)]
pub(super) fn add_rows<T: Real>(out: &mut [T], matrix: &[T], stride: usize, factors: &[T]) {
    let mut start = 0;
    while start < out.len() {
        let matrix = matrix.get(start..).unwrap_or(&[]);
        let out = &mut out[start..];
        start += match out.len() {
            64.. => add_part::<T, 64>(out, matrix, stride, factors),
            48.. => add_part::<T, 48>(out, matrix, stride, factors),
            32.. => add_part::<T, 32>(out, matrix, stride, factors),
            _ => add_part::<T, 16>(out, matrix, stride, factors),
        };
    }
}

/// The first N columns of it, which stay in registers; returns N.
#[inline(always)]
fn add_part<T: Real, const N: usize>(
    out: &mut [T],
    matrix: &[T],
    stride: usize,
    factors: &[T],
) -> usize {
    let out: &mut [T; N] = out.first_chunk_mut().expect("rows of whole vectors");
    let mut sums = *out;
    for (row, &factor) in matrix.chunks(stride).zip(factors) {
        let row: &[T; N] = row.first_chunk().expect("rows as long as the sum");
        for j in 0..N {
            sums[j] = factor.mul_add(row[j], sums[j]);
        }
    }
    *out = sums;
    N
}

/// What the kernel asks of a number: f32 or f64.
pub(super) trait Real:
    Default
    + Copy
    + PartialOrd
    + Add<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
{
    /// The representation, ordered like the number where that is not negative.
    type Bits: Copy + Ord + Default;
    /// Scratch of [`Real::invert`].
    type Inverter: Default;
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;
    /// A pivot below this part of its first value has too few digits left to rank weights by.
    const SPARE: Self;
    /// A pivot below it, though first of its kind, could make a score overflow.
    const TINY: Self;
    /// H = A⁻¹, n×n, computed in `buffer`, which grows.
    ///
    /// The digits that cancel in weight i are those of A_ii·H_ii, the factor by which the other
    /// weights explain it: an error where it exceeds 1/`SPARE`.
    fn invert(
        a: Damped<'_>,
        buffer: &mut Vec<Self>,
        scratch: &mut Self::Inverter,
        h: &mut [Self],
    ) -> Result<(), PrecisionLost>;
    /// Runs `work` compiled for the widest vectors that this processor has.
    fn vectorized<R>(work: impl FnOnce() -> R) -> R;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
    fn mul_add(self, factor: Self, term: Self) -> Self;
    fn bits(self) -> Self::Bits;
}

impl Real for f32 {
    type Bits = u32;
    type Inverter = sweep::Scratch;
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const INFINITY: f32 = f32::INFINITY;
    const SPARE: f32 = 1e-4;
    const TINY: f32 = 1e-30;
    #[inline(always)]
    fn invert(
        a: Damped<'_>,
        buffer: &mut Vec<f32>,
        scratch: &mut sweep::Scratch,
        h: &mut [f32],
    ) -> Result<(), PrecisionLost> {
        let n = a.offsets.len();
        buffer.clear();
        buffer.resize(syrk::half_len(n), 0.0);
        for s in 0..panel::strips(n) {
            let columns = s * WIDTH..n.min((s + 1) * WIDTH);
            let strip = &mut buffer[syrk::offset(n, s)..syrk::offset(n, s + 1)];
            for (i, out) in (columns.start..n).zip(strip.chunks_exact_mut(WIDTH)) {
                a.row(i, columns.clone(), &mut out[..columns.len()]);
            }
        }
        if !sweep::negative_inverse(n, buffer, 1.0 / f32::SPARE, scratch) {
            return Err(PrecisionLost);
        }
        buffer.iter_mut().for_each(|x| *x = -*x);
        syrk::mirror(n, buffer, h);
        Ok(())
    }
    #[inline(always)]
    fn vectorized<R>(work: impl FnOnce() -> R) -> R {
        <f32 as ComplexField>::Arch::default().dispatch(work)
    }
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self as f64
    }
    fn sqrt(self) -> f32 {
        self.sqrt()
    }
    #[inline(always)]
    fn mul_add(self, factor: f32, term: f32) -> f32 {
        self.mul_add(factor, term)
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Real for f64 {
    type Bits = u64;
    type Inverter = Vec<f64>;
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const INFINITY: f64 = f64::INFINITY;
    const SPARE: f64 = 1e-12;
    const TINY: f64 = 1e-200;
    fn invert(
        a: Damped<'_>,
        buffer: &mut Vec<f64>,
        scratch: &mut Vec<f64>,
        h: &mut [f64],
    ) -> Result<(), PrecisionLost> {
        let n = a.offsets.len();
        scratch.resize(n * n, 0.0);
        buffer.resize(n * n, 0.0);
        for (i, out) in h.chunks_exact_mut(n).enumerate() {
            a.row(i, 0..n, out);
        }
        let first: Vec<f64> = h.iter().step_by(n + 1).copied().collect();
        dense::factor(h, n, 0.0, scratch).map_err(|_| PrecisionLost)?;
        dense::invert(scratch, n, h, buffer);
        // False for NaN as well.
        let enough_left = |a: f64, h: f64| a * h * f64::SPARE < 1.0;
        let mut pairs = first.iter().zip(h.iter().step_by(n + 1));
        if pairs.all(|(&a, &h)| enough_left(a, h)) { Ok(()) } else { Err(PrecisionLost) }
    }
    #[inline(always)]
    fn vectorized<R>(work: impl FnOnce() -> R) -> R {
        <f64 as ComplexField>::Arch::default().dispatch(work)
    }
    fn from_f64(value: f64) -> f64 {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn sqrt(self) -> f64 {
        self.sqrt()
    }
    #[inline(always)]
    fn mul_add(self, factor: f64, term: f64) -> f64 {
        self.mul_add(factor, term)
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A smooth kernel with a little on the diagonal: badly conditioned when `extra` is small.
    fn matrix(n: usize, extra: f64) -> Vec<f64> {
        let entry = |i: usize, j: usize| {
            let distance = (i as f64 - j as f64) / 8.0;
            (-distance * distance).exp() + if i == j { extra } else { 0.0 }
        };
        (0..n * n).map(|k| entry(k / n, k % n)).collect()
    }

    /// The largest entry of |AH − I| for the matrix of every `step`th of the weights.
    fn residual<T: Real>(a: &[f64], len: usize, step: usize) -> Result<f64, PrecisionLost> {
        let offsets: Vec<u32> = (0..len as u32).step_by(step).collect();
        let n = offsets.len();
        let mut fisher = a.to_vec();
        fisher.iter_mut().step_by(len + 1).for_each(|f| *f -= 1.0);
        fisher.iter_mut().for_each(|f| *f *= 0.25);
        let damped = Damped { fisher: &fisher, offsets: &offsets, len, damping: 0.25 };
        let mut h = vec![T::ZERO; n * n];
        T::invert(damped, &mut Vec::new(), &mut T::Inverter::default(), &mut h)?;
        let mut largest = 0.0f64;
        for (i, row) in offsets.iter().map(|&i| &a[i as usize * len..][..len]).enumerate() {
            for j in 0..n {
                let terms = offsets.iter().enumerate();
                let product: f64 =
                    terms.map(|(k, &at)| row[at as usize] * h[k * n + j].to_f64()).sum();
                largest = largest.max((product - f64::from(u8::from(i == j))).abs());
            }
        }
        Ok(largest)
    }

    #[test]
    fn inverses_are_inverses_at_all_sizes() {
        for n in [1, 2, 15, 16, 17, 33, 64, 100, 128, 150, 300] {
            let a = matrix(n, 0.5);
            for step in [1, 3] {
                assert!(residual::<f64>(&a, n, step).unwrap() < 1e-13, "{n}");
                assert!(residual::<f32>(&a, n, step).unwrap() < 1e-5, "{n}");
            }
        }
    }

    #[test]
    fn sums_of_rows_are_those_of_one_by_one() {
        let number = |i: usize| ((i * 37 % 101) as f64 - 50.0) / 50.0;
        for (width, rows) in [(16, 0), (16, 5), (48, 1), (80, 9), (144, 130)] {
            let stride = width + 16;
            let matrix: Vec<f64> = (0..stride * rows).map(number).collect();
            let factors: Vec<f64> = (0..rows).map(|s| number(7 * s + 3)).collect();
            let mut out: Vec<f64> = (0..width).map(number).collect();
            let mut want = out.clone();
            add_rows(&mut out, &matrix, stride, &factors);
            for (row, factor) in matrix.chunks(stride.max(1)).zip(&factors) {
                want.iter_mut().zip(row).for_each(|(want, x)| *want += factor * x);
            }
            assert!(out.iter().zip(&want).all(|(out, want)| (out - want).abs() < 1e-12));
        }
    }

    #[test]
    fn what_has_too_few_digits_left_is_refused() {
        let a = matrix(40, 1e-5);
        assert!(residual::<f32>(&a, 40, 1).is_err());
        let rest = residual::<f64>(&a, 40, 1).unwrap();
        assert!(rest < 1e-8, "{rest}");
        let a = matrix(40, -1e-3);
        assert!(residual::<f64>(&a, 40, 1).is_err(), "not positive definite");
        assert!(residual::<f64>(&[f64::NAN], 1, 1).is_err());
    }
}
