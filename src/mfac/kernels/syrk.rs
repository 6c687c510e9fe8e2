//! Symmetric products: H += Σ_k p_k p_kᵀ (n×n) from panels, the lower half only.
//!
//! H is kept in strips of 32 columns. Strip s holds, row-major, the rows from 32·s to n (rounded
//! up to the tile's 8), so each 8×32 tile is contiguous and the strictly upper part is left out
//! but for the corners of tiles on the diagonal, whose numbers mean nothing. Sums are in f32, those
//! of many rows added up in f64, or in f64 throughout.

use super::ahead::Ahead;
use super::panel::{Panels, strips};
use super::tile::{self, HALF, HEIGHT, NARROW, Product, WIDTH};
use super::transpose::{SIDE, interleave};

/// Rows of a call that make good use of the first-level cache: 32 columns of 256 rows take 32 KiB.
pub const DEPTH: usize = 256;
/// The same in f64.
pub const DOUBLE_DEPTH: usize = 96;
/// The most rows that should be summed in f32; such sums are added up in f64 ([`widen`]).
pub const SINGLE_SUMS: usize = 2048;

/// The length of the half of an n×n matrix.
pub fn half_len(n: usize) -> usize {
    offset(n, strips(n))
}

/// H = PᵀP for the k×n matrix P in `panels`, or H += PᵀP unless `fresh`, in f32. What the halves
/// hold is not read if `fresh`.
pub fn single(n: usize, panels: Panels<'_>, fresh: bool, half: &mut [f32], ahead: &mut Ahead) {
    let each = ahead.left().div_ceil(tiles(n).max(1));
    for_each_tile(n, half, |tile, out| {
        ahead.ask(each);
        let product = Product {
            k: panels.k(),
            a: &panels.strip(tile.row / WIDTH)[tile.row % WIDTH..],
            a_stride: panels.row(),
            b: panels.strip(tile.strip),
            b_stride: panels.row(),
            narrow: tile.width <= NARROW,
        };
        match fresh {
            true => product.write_to(out),
            false => product.add_to(out),
        }
    });
}

/// Adds sums in f32 to those in f64, none yet if `half` is empty.
pub fn widen(single: &[f32], half: &mut Vec<f64>) {
    match half.is_empty() {
        true => half.extend(single.iter().map(|&s| f64::from(s))),
        false => half.iter_mut().zip(single).for_each(|(h, &s)| *h += f64::from(s)),
    }
}

/// H += PᵀP in f64 throughout, exact products of f32 numbers: half the speed.
pub fn add_double(n: usize, k: usize, panels: &[f64], half: &mut [f64]) {
    for_each_tile(n, half, |tile, out| {
        let panel = |strip: usize| &panels[strip * WIDTH * k..][..WIDTH * k];
        let (a, b) = (&panel(tile.row / WIDTH)[tile.row % WIDTH..], panel(tile.strip));
        tile::add_double(k, a, b, 0, out);
        if tile.width > HALF {
            tile::add_double(k, a, b, HALF, out);
        }
    });
}

/// Where a tile lies: rows `row..row + 8`, columns from 32·`strip` on, of which `width` count.
#[derive(Clone, Copy, Debug)]
struct Place {
    row: usize,
    strip: usize,
    width: usize,
}

fn tiles(n: usize) -> usize {
    half_len(n) / (HEIGHT * WIDTH)
}

fn for_each_tile<T>(n: usize, half: &mut [T], mut work: impl FnMut(Place, &mut [T])) {
    for strip in 0..strips(n) {
        let first = strip * WIDTH;
        let tiles = &mut half[offset(n, strip)..offset(n, strip + 1)];
        for (t, out) in tiles.chunks_exact_mut(HEIGHT * WIDTH).enumerate() {
            let row = first + t * HEIGHT;
            // Above the diagonal and past n nothing counts.
            let width = (n - first).min(WIDTH).min(row + HEIGHT - first);
            work(Place { row, strip, width }, out);
        }
    }
}

/// Element (i, j) of H, for any i and j below n.
pub fn get<T: Copy>(n: usize, half: &[T], i: usize, j: usize) -> T {
    half[at(n, i.max(j), i.min(j))]
}

/// Where element (i, j) of H lies, j ≤ i.
pub fn at(n: usize, i: usize, j: usize) -> usize {
    let s = j / WIDTH;
    offset(n, s) + (i - s * WIDTH) * WIDTH + j % WIDTH
}

/// Writes scale·H to the dense row-major `out` (n×n), both halves.
pub fn expand<T: Copy + Into<f64>>(n: usize, half: &[T], scale: f64, out: &mut [f64]) {
    for s in 0..strips(n) {
        let width = WIDTH.min(n - s * WIDTH);
        let strip = &half[offset(n, s)..offset(n, s + 1)];
        for (i, row) in strip.chunks_exact(WIDTH).enumerate().take(n - s * WIDTH) {
            for (j, &value) in row[..width.min(i + 1)].iter().enumerate() {
                let (i, j) = (s * WIDTH + i, s * WIDTH + j);
                let value = scale * value.into();
                (out[i * n + j], out[j * n + i]) = (value, value);
            }
        }
    }
}

/// Writes H to the dense row-major `out` (n×n), both halves, in f32.
pub fn mirror(n: usize, half: &[f32], out: &mut [f32]) {
    assert_eq!(out.len(), n * n);
    for s in 0..strips(n) {
        let (first, end) = (s * WIDTH, n.min((s + 1) * WIDTH));
        let strip = &half[offset(n, s)..offset(n, s + 1)];
        let line = |i: usize| &strip[(i - first) * WIDTH..][..end - first];
        for i in first..n {
            let own = end.min(i + 1);
            out[i * n + first..i * n + own].copy_from_slice(&line(i)[..own - first]);
        }
        // Sixteen rows at a time below the corner; in it and at the end one by one.
        let wholes = (n - end) / SIDE;
        for i in (0..wholes).map(|w| end + w * SIDE) {
            let lines = std::array::from_fn(|r| line(i + r));
            interleave(lines, end - first, &mut out[first * n + i..], n);
        }
        for i in (first..end).chain(end + wholes * SIDE..n) {
            for j in first..end.min(i) {
                out[j * n + i] = strip[(i - first) * WIDTH + j - first];
            }
        }
    }
}

/// Where strip s begins.
pub fn offset(n: usize, s: usize) -> usize {
    // Strip t has `rows − 32·t` rows of 32; the sum of an arithmetic progression.
    let rows = n.next_multiple_of(HEIGHT);
    WIDTH * (s * rows - WIDTH * (s * s.saturating_sub(1) / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::kernels::panel;
    use crate::mfac::tolerance::{self, Rng, assert_exact, assert_rounding, gram_columns};

    #[test]
    fn halves_match_a_dense_product_at_odd_sizes() {
        let mut rng = Rng::new(2);
        for (n, k) in [(0, 5), (1, 1), (3, 9), (24, 8), (33, 193), (50, 3), (97, 64), (128, 192)] {
            let rows = rng.normals(n * k);
            let mut panels = vec![0.0; panel::len(k, n)];
            panel::pack(&rows, n, k, n, &mut panels);
            let (mut half, mut one) = (Vec::new(), vec![f32::NAN; half_len(n)]);
            let mut wide = Vec::new();
            panel::widen(&panels, &mut wide);
            let packed = Panels::packed(&panels, k);
            single(n, packed, true, &mut one, &mut Ahead::none());
            widen(&one, &mut half);
            widen(&one, &mut half);
            add_double(n, k, &wide, &mut half);
            let (mut got, want) = (vec![f64::NAN; n * n], gram_columns(&rows, k, n));
            expand(n, &one, 1.0, &mut got);
            assert_rounding(&got, &want, k);
            let mut both = vec![f32::NAN; n * n];
            mirror(n, &one, &mut both);
            assert_exact(&tolerance::widen(&both), &got);
            if n % WIDTH == 0 {
                let mut same = vec![f32::NAN; half_len(n)];
                let there = Panels::in_place(&rows, k, n);
                single(n, there, true, &mut same, &mut Ahead::none());
                let mut again = vec![f32::NAN; n * n];
                mirror(n, &same, &mut again);
                assert_eq!(again, both);
            }
            single(n, packed, false, &mut one, &mut Ahead::none());
            expand(n, &one, 0.5, &mut got);
            assert_rounding(&got, &want, k);
            expand(n, &half, 1.0 / 3.0, &mut got);
            assert_rounding(&got, &want, k);
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                assert_eq!(1.0 / 3.0 * get(n, &half, i, j), got[i * n + j]);
            }
        }
    }
}
