//! Column norms of V = T·G for a lower triangular T, without storing V.
//!
//! T is packed once by groups of eight rows, each only as deep as its last row is long; the eight
//! rows of V they give are squared and summed while still in the tile.

use super::ahead::Ahead;
use super::panel::Panels;
use super::tile::{HEIGHT, Product, Tile, WIDTH, add_squares};

/// The length of a packed m×m lower triangle.
pub fn packed_len(m: usize) -> usize {
    let groups = m.div_ceil(HEIGHT);
    HEIGHT * HEIGHT * (groups * (groups + 1) / 2)
}

/// Packs scale·T, T_ij at `t[j·m + i]`, in f32.
pub fn pack(t: &[f64], m: usize, scale: f64, packed: &mut [f32]) {
    let mut rest = packed;
    for first in (0..m).step_by(HEIGHT) {
        let (group, tail) = rest.split_at_mut(HEIGHT * (first + HEIGHT));
        for (k, column) in group.chunks_exact_mut(HEIGHT).enumerate() {
            for (i, out) in column.iter_mut().enumerate() {
                let row = first + i;
                *out = if k <= row && row < m { (scale * t[k * m + row]) as f32 } else { 0.0 };
            }
        }
        rest = tail;
    }
}

/// `norms[s·32 + c] = ‖T·g‖²` for the columns g of the strips in `panels`, m rows each.
pub fn column_norms(packed: &[f32], panels: Panels<'_>, norms: &mut [f64], ahead: &mut Ahead) {
    norms.fill(0.0);
    let (m, strips) = (panels.k(), norms.chunks_exact_mut(WIDTH));
    let each = ahead.left().div_ceil(m.div_ceil(HEIGHT).max(1) * strips.len().max(1));
    let mut tile: Tile = [0.0; HEIGHT * WIDTH];
    for (s, norms) in strips.enumerate() {
        let mut rest = packed;
        for first in (0..m).step_by(HEIGHT) {
            ahead.ask(each);
            let (group, tail) = rest.split_at(HEIGHT * (first + HEIGHT));
            let product = Product {
                k: m.min(first + HEIGHT),
                a: group,
                a_stride: HEIGHT,
                b: panels.strip(s),
                b_stride: panels.row(),
                narrow: false,
            };
            product.write_to(&mut tile);
            add_squares(&tile, norms);
            rest = tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::kernels::panel;
    use crate::mfac::tolerance::{Rng, assert_rounding};

    #[test]
    fn norms_match_plain_sums_at_odd_sizes() {
        let mut rng = Rng::new(13);
        for (m, n) in [(1, 1), (5, 30), (193, 24), (256, 50), (264, 7)] {
            let t: Vec<f64> = (0..m * m).map(|_| rng.normal() / m as f64).collect();
            let g = rng.normals(m * n);
            let mut packed = vec![f32::NAN; packed_len(m)];
            pack(&t, m, 0.5, &mut packed);
            let mut panels = vec![0.0; panel::len(m, n)];
            panel::pack(&g, n, m, n, &mut panels);
            let panels = Panels::packed(&panels, m);
            let mut norms = vec![f64::NAN; panel::strips(n) * WIDTH];
            column_norms(&packed, panels, &mut norms, &mut Ahead::none());
            let want: Vec<f64> = (0..n)
                .map(|c| {
                    let row = |i: usize| {
                        (0..=i).map(|k| 0.5 * t[k * m + i] * f64::from(g[k * n + c])).sum::<f64>()
                    };
                    (0..m).map(|i| row(i).powi(2)).sum()
                })
                .collect();
            assert_rounding(&norms[..n], &want, m);
        }
    }
}
