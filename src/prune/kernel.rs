//! The loops under the greedy order, in f32 and in f64: sums of scaled rows, and the inverse of a
//! block made of them.
//!
//! All of it is written as plain loops that a compiler makes vectors of, and is inlined into code
//! compiled for the processor at hand. Products and sums are not fused, so that every processor
//! gives the same bits.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Range, SubAssign};

use faer::traits::ComplexField;

/// Rows are padded to whole vectors, so that loops over them have no remainder.
pub(super) const LANES: usize = 16;
/// Rows that [`add_rows`] takes at a time.
const UNROLL: usize = 4;
/// Columns that [`add_rows`] takes at most at a time.
const CHUNK: usize = 128;
/// Columns of a triangular matrix that are summed together; rows that are zero there are skipped.
const STRIP: usize = 32;

/// Cancellation took more digits than the type has to spare.
#[derive(Debug)]
pub(super) struct PrecisionLost;

/// H ← A⁻¹ for the symmetric positive definite A (n×n, rows of `stride`), of which the upper
/// triangle is read and overwritten by its factor; `h` starts as zeros and is filled whole.
///
/// A = UᵀU by rows, W = U⁻ᵀ by rows, H = WᵀW. The digits that cancel in weight i are those of
/// A_ii·H_ii, the factor by which the other weights explain it; `diagonal` keeps the A_ii.
#[inline(always)]
pub(super) fn invert<T: Real>(
    a: &mut [T],
    n: usize,
    stride: usize,
    h: &mut [T],
    diagonal: &mut [T],
) -> Result<(), PrecisionLost> {
    for t in 0..n {
        let (before, row) = a.split_at_mut(t * stride);
        let (start, first) = (t / LANES * LANES, row[t]);
        diagonal[t] = first;
        let row = &mut row[start..stride];
        add_rows(row, before, stride, start, 0..t, |s| -before[s * stride + t]);
        let pivot = row[t - start];
        if !(pivot > T::SPARE * first && pivot > T::TINY) {
            return Err(PrecisionLost);
        }
        let root = T::ONE / pivot.sqrt();
        row.iter_mut().for_each(|u| *u = *u * root);
    }
    for i in 0..n {
        let (before, row) = h.split_at_mut(i * stride);
        for start in (0..i).step_by(STRIP) {
            let end = (start + STRIP).min(i.next_multiple_of(LANES));
            let part = &mut row[start..end];
            add_rows(part, before, stride, start, start..i, |k| -a[k * stride + i]);
        }
        row[i] += T::ONE;
        let root = T::ONE / a[i * stride + i];
        row[..=i].iter_mut().for_each(|w| *w = *w * root);
    }
    for i in 0..n {
        let (row, below) = h[i * stride..n * stride].split_at_mut(stride);
        let corner = row[i];
        let row = &mut row[..(i + 1).next_multiple_of(LANES)];
        row.iter_mut().for_each(|w| *w = *w * corner);
        add_rows(row, below, stride, 0, 0..n - 1 - i, |k| below[k * stride + i]);
    }
    for (i, &first) in diagonal.iter().enumerate().take(n) {
        // False for NaN as well.
        let enough_left = first * h[i * stride + i] * T::SPARE < T::ONE;
        if !enough_left {
            return Err(PrecisionLost);
        }
        for j in 0..i {
            h[j * stride + i] = h[i * stride + j];
        }
    }
    Ok(())
}

/// out ← out + Σ_s factor(s) · row_s over the rows s of a matrix with rows of `stride`, of which
/// the columns from `start` on lie over `out`.
#[inline(always)]
pub(super) fn add_rows<T: Real>(
    out: &mut [T],
    matrix: &[T],
    stride: usize,
    start: usize,
    rows: Range<usize>,
    factor: impl Fn(usize) -> T,
) {
    for (chunk, out) in out.chunks_mut(CHUNK).enumerate() {
        // A local sum: the compiler sees that no row overlaps it, and makes vectors of the loop.
        let mut sums = [T::ZERO; CHUNK];
        let sums = &mut sums[..out.len()];
        let part = |row: usize| {
            let start = row * stride + start + chunk * CHUNK;
            &matrix[start..start + out.len()]
        };
        let mut s = rows.start;
        while s + UNROLL <= rows.end {
            let [a, b, c, d] = [part(s), part(s + 1), part(s + 2), part(s + 3)];
            let [x, y, z, w] = [factor(s), factor(s + 1), factor(s + 2), factor(s + 3)];
            for j in 0..sums.len() {
                sums[j] += (x * a[j] + y * b[j]) + (z * c[j] + w * d[j]);
            }
            s += UNROLL;
        }
        for s in s..rows.end {
            let (row, factor) = (part(s), factor(s));
            for j in 0..sums.len() {
                sums[j] += factor * row[j];
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum);
    }
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
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;
    /// A pivot below this part of its first value has too few digits left to rank weights by.
    const SPARE: Self;
    /// A pivot below it, though first of its kind, could make a score overflow.
    const TINY: Self;
    /// Runs `work` compiled for the widest vectors that this processor has.
    fn vectorized<R>(work: impl FnOnce() -> R) -> R;
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

    /// The largest entry of |AH − I|.
    fn residual<T: Real>(a: &[f64], n: usize) -> Result<f64, PrecisionLost> {
        let stride = n.next_multiple_of(LANES);
        let mut padded = vec![T::ZERO; n * stride];
        for (row, a) in padded.chunks_exact_mut(stride).zip(a.chunks_exact(n)) {
            row.iter_mut().zip(a).for_each(|(out, a)| *out = T::from_f64(*a));
        }
        let mut h = vec![T::ZERO; n * stride];
        invert(&mut padded, n, stride, &mut h, &mut vec![T::ZERO; n])?;
        let mut largest = 0.0f64;
        for i in 0..n {
            for j in 0..n {
                let product: f64 = (0..n).map(|k| a[i * n + k] * h[k * stride + j].to_f64()).sum();
                largest = largest.max((product - f64::from(u8::from(i == j))).abs());
            }
        }
        Ok(largest)
    }

    #[test]
    fn inverses_are_inverses_at_all_sizes() {
        for n in [1, 2, 15, 16, 17, 33, 64, 100, 128, 150, 300] {
            let a = matrix(n, 0.5);
            assert!(residual::<f64>(&a, n).unwrap() < 1e-13, "{n}");
            assert!(residual::<f32>(&a, n).unwrap() < 1e-5, "{n}");
        }
    }

    #[test]
    fn what_has_too_few_digits_left_is_refused() {
        let a = matrix(40, 1e-5);
        assert!(residual::<f32>(&a, 40).is_err());
        let rest = residual::<f64>(&a, 40).unwrap();
        assert!(rest < 1e-8, "{rest}");
        let a = matrix(40, -1e-3);
        assert!(residual::<f64>(&a, 40).is_err(), "not positive definite");
        assert!(residual::<f64>(&[f64::NAN], 1).is_err());
    }
}
