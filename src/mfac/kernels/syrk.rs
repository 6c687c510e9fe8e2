//! Symmetric products: H += Σ_k p_k p_kᵀ (n×n) from panels, the lower half only.
//!
//! H is kept in strips of 24 columns. Strip s holds, row-major, the rows from 24·s to n (rounded
//! up to the tile's 4), so each 4×24 tile is contiguous and the strictly upper part is left out
//! but for the corners of tiles on the diagonal. Products of one call are summed in f32, calls in
//! f64: callers keep k at [`DEPTH`] or below, which bounds the error by the rounding of that sum.

use super::panel::strips;
use super::tile::{HEIGHT, Tile, WIDTH, accumulate, product};

/// The most rows summed in f32 before they are added to the f64 sums: 24 columns of 192 rows and
/// the 4 of the other operand fit a first-level cache of 32 KiB.
pub const DEPTH: usize = 192;

/// The length of the half of an n×n matrix.
pub fn half_len(n: usize) -> usize {
    offset(n, strips(n))
}

/// H += PᵀP for the k×n matrix P in `panels`.
pub fn add(n: usize, k: usize, panels: &[f32], half: &mut [f64]) {
    let mut tile: Tile = [0.0; HEIGHT * WIDTH];
    for s in 0..strips(n) {
        let b = &panels[s * WIDTH * k..][..WIDTH * k];
        let strip = &mut half[offset(n, s)..offset(n, s + 1)];
        for (t, sums) in strip.chunks_exact_mut(HEIGHT * WIDTH).enumerate() {
            let row = s * WIDTH + t * HEIGHT;
            let a = &panels[row / WIDTH * WIDTH * k + row % WIDTH..];
            product(k, a, WIDTH, b, &mut tile);
            accumulate(&tile, sums);
        }
    }
}

/// Element (i, j) of H, for any i and j below n.
pub fn get(n: usize, half: &[f64], i: usize, j: usize) -> f64 {
    let (i, j) = (i.max(j), i.min(j));
    let s = j / WIDTH;
    half[offset(n, s) + (i - s * WIDTH) * WIDTH + j % WIDTH]
}

/// Writes scale·H to the dense row-major `out` (n×n), both halves.
pub fn expand(n: usize, half: &[f64], scale: f64, out: &mut [f64]) {
    for s in 0..strips(n) {
        let width = WIDTH.min(n - s * WIDTH);
        let strip = &half[offset(n, s)..offset(n, s + 1)];
        for (i, row) in strip.chunks_exact(WIDTH).enumerate().take(n - s * WIDTH) {
            for (j, &value) in row[..width.min(i + 1)].iter().enumerate() {
                let (i, j) = (s * WIDTH + i, s * WIDTH + j);
                out[i * n + j] = scale * value;
                out[j * n + i] = scale * value;
            }
        }
    }
}

/// Where strip s begins.
fn offset(n: usize, s: usize) -> usize {
    // Strip t has `rows − 24·t` rows of 24; the sum of an arithmetic progression.
    let rows = n.next_multiple_of(HEIGHT);
    WIDTH * (s * rows - WIDTH * (s * s.saturating_sub(1) / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::kernels::panel;
    use crate::mfac::tolerance::{Rng, assert_rounding, gram_columns};

    #[test]
    fn halves_match_a_dense_product_at_odd_sizes() {
        let mut rng = Rng::new(2);
        for (n, k) in [(0, 5), (1, 1), (3, 9), (24, 8), (25, 193), (50, 3), (97, 64), (128, 192)] {
            let rows = rng.normals(n * k);
            let mut panels = vec![0.0; panel::len(k, n)];
            panel::pack(&rows, n, k, n, &mut panels);
            let mut half = vec![0.0; half_len(n)];
            add(n, k, &panels, &mut half);
            add(n, k, &panels, &mut half);
            let (mut got, want) = (vec![f64::NAN; n * n], gram_columns(&rows, k, n));
            expand(n, &half, 0.5, &mut got);
            assert_rounding(&got, &want, k);
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                assert_eq!(0.5 * get(n, &half, i, j), got[i * n + j]);
            }
        }
    }
}
