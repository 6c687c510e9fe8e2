//! Operands laid out for the tile: a matrix of n columns becomes strips of 32 columns, each strip
//! contiguous and k rows deep, the last one padded with zeros.
//!
//! Strip s holds element (row, column) at `strip(s)[row·32 + column − 32·s]`: contiguous, so
//! that no power-of-two stride of G makes cache lines collide. The padding spares every kernel its
//! edge cases. Whole strips of f32 may be read where they are, as [`Panels`] says.
#![allow(unsafe_code, reason = "functions compiled for processor features, else safe code")]

use super::tile::WIDTH;
use super::transpose::{SIDE, interleave};
use super::vectors::widest;

/// A matrix of k rows as the tile reads it: in strips of 32 columns.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    numbers: &'a [f32],
    k: usize,
    /// Numbers from one strip to the next, and from one row of a strip to the next.
    strip: usize,
    row: usize,
}

impl<'a> Panels<'a> {
    /// What [`pack`] or its like wrote.
    pub fn packed(numbers: &'a [f32], k: usize) -> Panels<'a> {
        Panels { numbers, k, strip: WIDTH * k, row: WIDTH }
    }

    /// Rows where they are, `row` numbers apart, for whole strips only. They should not compete for
    /// places in the first-level cache, see `GradientStore`.
    pub fn in_place(numbers: &'a [f32], k: usize, row: usize) -> Panels<'a> {
        Panels { numbers, k, strip: WIDTH, row }
    }

    /// The number of rows.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Numbers from one row of a strip to the next.
    pub fn row(&self) -> usize {
        self.row
    }

    /// The numbers from strip s on.
    pub fn strip(&self, s: usize) -> &'a [f32] {
        &self.numbers[s * self.strip..]
    }
}

/// The number of strips of `n` columns.
pub fn strips(n: usize) -> usize {
    n.div_ceil(WIDTH)
}

/// The length of the panels of a k×n matrix.
pub fn len(k: usize, n: usize) -> usize {
    strips(n) * WIDTH * k
}

/// Packs the k×n matrix whose row i is `rows[i·stride..][..n]`, in f32 or widened to f64.
pub fn pack<T: From<f32> + Copy>(
    rows: &[f32],
    stride: usize,
    k: usize,
    n: usize,
    panels: &mut [T],
) {
    let strips = panels.chunks_exact_mut((WIDTH * k).max(1));
    for (strip, first) in strips.zip((0..n).step_by(WIDTH)) {
        let columns = &rows[first..(k - 1) * stride + n];
        pack_strip(columns, stride, WIDTH.min(n - first), strip);
    }
}

widest! {
    fn pack_strip<T: From<f32>>(rows: &[f32], stride: usize, width: usize, strip: &mut [T]) =
        pack_any;
}

#[inline(always)]
fn pack_any<T: From<f32> + Copy>(rows: &[f32], stride: usize, width: usize, strip: &mut [T]) {
    match width {
        WIDTH => pack_numbers::<WIDTH, T>(rows, stride, strip),
        24 => pack_numbers::<24, T>(rows, stride, strip),
        16 => pack_numbers::<16, T>(rows, stride, strip),
        8 => pack_numbers::<8, T>(rows, stride, strip),
        _ => {
            let packed = strip.as_chunks_mut::<WIDTH>().0.iter_mut();
            for (packed, row) in packed.zip(rows.chunks(stride)) {
                let (numbers, padding) = packed.split_at_mut(width);
                numbers.iter_mut().zip(row).for_each(|(p, &x)| *p = T::from(x));
                padding.fill(T::from(0.0));
            }
        }
    }
}

#[inline(always)]
fn pack_numbers<const N: usize, T: From<f32> + Copy>(rows: &[f32], stride: usize, strip: &mut [T]) {
    for (packed, row) in strip.as_chunks_mut::<WIDTH>().0.iter_mut().zip(rows.chunks(stride)) {
        let row: &[f32; N] = row.first_chunk().expect("rows of at least so many numbers");
        for j in 0..N {
            packed[j] = T::from(row[j]);
        }
        packed[N..].fill(T::from(0.0));
    }
}

/// Packs row `i` of a matrix of k rows.
pub fn pack_row(row: &[f32], i: usize, k: usize, panels: &mut [f32]) {
    let strips = panels.chunks_exact_mut(WIDTH * k);
    for (strip, row) in strips.zip(row.chunks(WIDTH)) {
        let packed = &mut strip[i * WIDTH..][..WIDTH];
        match <&[f32; WIDTH]>::try_from(row) {
            Ok(row) => packed.copy_from_slice(row),
            Err(_) => {
                packed[..row.len()].copy_from_slice(row);
                packed[row.len()..].fill(0.0);
            }
        }
    }
}

/// The same panels in f64.
pub fn widen(panels: &[f32], wide: &mut Vec<f64>) {
    wide.clear();
    wide.extend(panels.iter().map(|&x| f64::from(x)));
}

/// Packs sixteen vectors of k numbers as the columns from `first` on, a multiple of 16.
pub fn pack_columns(columns: [&[f32]; SIDE], first: usize, k: usize, panels: &mut [f32]) {
    let strip = &mut panels[first / WIDTH * WIDTH * k..][..WIDTH * k];
    interleave(columns, k, &mut strip[first % WIDTH..], WIDTH);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_strips_and_pads_with_zeros() {
        let (k, n, stride) = (3, 34, 38);
        let rows: Vec<f32> = (0..k * stride).map(|i| i as f32).collect();
        let mut panels = vec![f32::NAN; len(k, n)];
        pack(&rows, stride, k, n, &mut panels);
        for i in 0..k {
            for j in 0..strips(n) * WIDTH {
                let want = if j < n { rows[i * stride + j] } else { 0.0 };
                assert_eq!(panels[j / WIDTH * WIDTH * k + i * WIDTH + j % WIDTH], want);
            }
        }
    }

    #[test]
    fn columns_pack_like_the_rows_of_the_transpose() {
        let (k, n) = (13, 34);
        let rows: Vec<f32> = (0..k * n).map(|i| i as f32).collect();
        let columns: Vec<Vec<f32>> = (0..strips(n) * WIDTH)
            .map(|j| (0..k).map(|i| if j < n { rows[i * n + j] } else { 0.0 }).collect())
            .collect();
        let (mut want, mut got) = (vec![f32::NAN; len(k, n)], vec![f32::NAN; len(k, n)]);
        pack(&rows, n, k, n, &mut want);
        for (i, some) in columns.chunks_exact(SIDE).enumerate() {
            pack_columns(std::array::from_fn(|j| &some[j][..]), i * SIDE, k, &mut got);
        }
        assert_eq!(got, want);
    }
}
