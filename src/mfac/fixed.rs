//! The static algorithm on a range of weights of any width, in its dual form.
//!
//! With K = λI + GGᵀ/m (m×m, f64) and K = LLᵀ, the paper's recursion amounts to
//! F⁻¹ = (I − VᵀV)/λ with V = L⁻¹G/√m. The diagonal takes one product with T = L⁻¹ whose result is
//! squared and summed in registers; F⁻¹x = (x − Gᵀ K⁻¹ G x/m)/λ takes two passes over G. G is read
//! as it is stored and never copied.
//!
//! Two things keep small damping safe. First, the Gram matrix is summed from f32 products and taken
//! again in f64 when a pivot of its factor is so small that their rounding would show. Second,
//! 1 − ‖v‖² cancels where the gradients determine a weight well; since Σ‖v‖² ≤ m that happens to
//! few weights, and those columns are solved again in f64. What then still drowns in rounding is
//! clamped to its lower bound, 1/F_cc: 0 < 1/F_cc ≤ \[F⁻¹\]_cc ≤ 1/λ always holds.

use std::ops::Range;

use super::kernels::syrk;
use super::kernels::tile::WIDTH;
use super::kernels::{norms, panel};
use super::passes::{self, Sums};
use super::store::Gradients;
use super::{dense, parallel};
use crate::error::{Result, bail};

/// Columns of one step of the diagonal: rows are read in pieces of 1 KiB.
const GROUP: usize = 8 * WIDTH;
/// Columns that a thread takes one group after another: while one is computed the next is fetched.
const RUN: usize = 8 * GROUP;
/// Below this remainder 1 − ‖v‖² a column is solved again in f64.
const RECHECK: f64 = 1.0 / 16.0;
/// A pivot this many times smaller than its row's norm is beyond f32 products.
const PIVOT_RATIO: f64 = 1e3;

/// F⁻¹ = (λI + GᵀG/m)⁻¹ for the gradients G of some weights, as products with G.
#[derive(Debug)]
pub struct Fixed<'a> {
    gradients: Gradients<'a>,
    damping: f64,
    /// GGᵀ/m, both halves.
    gram: Vec<f64>,
    sums: Sums,
    /// L, by columns.
    factor: Vec<f64>,
    /// L⁻¹/√m in f32, packed for `norms`.
    inverse: Vec<f32>,
}

impl<'a> Fixed<'a> {
    /// Prepares F⁻¹ of the weights of `gradients` with damping λ: m²·d/2 multiplications.
    ///
    /// Errors: `Usage` unless 0 < λ < ∞, `Numerics` when λ vanishes beside the gradients in f64
    /// (the message names a damping that does not).
    pub fn precompute(gradients: Gradients<'a>, damping: f64, threads: usize) -> Result<Fixed<'a>> {
        let gram = scaled_gram(gradients, Sums::Single, threads);
        let mut fixed = Fixed {
            gradients,
            damping,
            gram,
            sums: Sums::Single,
            factor: Vec::new(),
            inverse: Vec::new(),
        };
        fixed.set_damping(damping, threads)?;
        Ok(fixed)
    }

    /// Replaces λ; only the m×m part is done again, and the Gram matrix if the smaller λ asks for
    /// f64. Errors as [`Fixed::precompute`]; the old λ then stays.
    pub fn set_damping(&mut self, damping: f64, threads: usize) -> Result<()> {
        if !(damping > 0.0 && damping.is_finite()) {
            bail!(Usage, "the damping must be positive and finite, not {damping}");
        }
        let m = self.gradients.count();
        let mut factor = vec![0.0; m * m];
        let mut result = dense::factor(&self.gram, m, damping, &mut factor);
        let doubtful = result.is_err() || !well_pivoted(&factor, &self.gram, m, damping);
        if self.sums == Sums::Single && doubtful {
            self.gram = scaled_gram(self.gradients, Sums::Double, threads);
            self.sums = Sums::Double;
            result = dense::factor(&self.gram, m, damping, &mut factor);
        }
        result?;
        let mut t = vec![0.0; m * m];
        dense::invert_lower(&factor, m, &mut t);
        self.inverse.resize(norms::packed_len(m), 0.0);
        norms::pack(&t, m, 1.0 / (m.max(1) as f64).sqrt(), &mut self.inverse);
        (self.factor, self.damping) = (factor, damping);
        Ok(())
    }

    /// λ.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Writes \[F⁻¹\]_cc of the weights c in `range` to `out`: m² multiplications each.
    ///
    /// Each is positive and at most 1/λ.
    pub fn diagonal(&self, range: Range<usize>, out: &mut [f64], threads: usize) {
        assert!(range.end <= self.gradients.dimension() && out.len() == range.len());
        let runs = out.len().div_ceil(RUN);
        let mut scratch: Vec<_> = (0..threads.clamp(1, runs.max(1)))
            .map(|_| (Vec::new(), Vec::new(), [0.0; GROUP]))
            .collect();
        let items = out.chunks_mut(RUN).enumerate();
        parallel::for_each(&mut scratch, items, |(packed, row, norms), (run, out)| {
            let first = range.start + run * RUN;
            let end = first + out.len();
            for (group, out) in out.chunks_mut(GROUP).enumerate() {
                let start = first + group * GROUP;
                let columns = start..start + out.len();
                let next = columns.end..end.min(columns.end + GROUP);
                let (own, rows) = (self.gradients.columns(columns), 0..self.gradients.count());
                let panels = passes::panels(own, rows.clone(), packed, row);
                let norms = &mut norms[..panel::strips(out.len()) * WIDTH];
                let ahead = &mut self.gradients.ahead(rows, next);
                norms::column_norms(&self.inverse, panels, norms, ahead);
                for (out, norm) in out.iter_mut().zip(norms) {
                    *out = 1.0 - *norm;
                }
                self.recheck(start, out);
                out.iter_mut().for_each(|x| *x = x.min(1.0) / self.damping);
            }
        });
    }

    /// Solves again in f64 the remainders 1 − ‖v‖² of the columns from `start` that are small.
    fn recheck(&self, start: usize, remainders: &mut [f64]) {
        let doubtful = |x: f64| x < RECHECK || x.is_nan();
        let small: Vec<usize> =
            (0..remainders.len()).filter(|&c| doubtful(remainders[c])).collect();
        if small.is_empty() {
            return;
        }
        let m = self.gradients.count();
        let weights: Vec<usize> = small.iter().map(|c| start + c).collect();
        let columns = self.scaled_columns(&weights);
        let mut v = columns.clone();
        dense::solve_lower(&self.factor, m, &mut v);
        let columns = columns.chunks_exact(m.max(1)).zip(v.chunks_exact(m.max(1)));
        for (c, (g, v)) in small.into_iter().zip(columns) {
            remainders[c] = self.remainder(g, v);
        }
    }

    /// 1 − ‖v‖², at least its bound λ/F_cc, for a column g = G_c/√m and v = L⁻¹g.
    fn remainder(&self, g: &[f64], v: &[f64]) -> f64 {
        let bound = self.damping / (self.damping + inner(g, g));
        (1.0 - inner(v, v)).max(bound)
    }

    /// \[F⁻¹\]_ij, in f64 arithmetic: m² multiplications.
    pub fn element(&self, i: usize, j: usize) -> f64 {
        let mut block = [0.0; 4];
        if i == j {
            self.block(&[i], &mut block[..1]);
            return block[0];
        }
        self.block(&[i, j], &mut block);
        block[1]
    }

    /// F⁻¹\[Q, Q\] for the weights Q in `weights`, dense, q×q, in f64 arithmetic:
    /// q·m² + q²·m multiplications.
    pub fn block(&self, weights: &[usize], out: &mut [f64]) {
        let (m, q) = (self.gradients.count(), weights.len());
        assert!(out.len() == q * q, "F⁻¹[Q, Q] of {q} weights has {q}×{q} elements");
        let columns = self.scaled_columns(weights);
        let mut v = columns.clone();
        dense::solve_lower(&self.factor, m, &mut v);
        let column = |x: &'_ [f64], a: usize| -> Vec<f64> { x[a * m..(a + 1) * m].to_vec() };
        for a in 0..q {
            let va = column(&v, a);
            for b in 0..a {
                let same = f64::from(u8::from(weights[a] == weights[b]));
                let value = (same - inner(&va, &v[b * m..(b + 1) * m])) / self.damping;
                (out[a * q + b], out[b * q + a]) = (value, value);
            }
            out[a * (q + 1)] = self.remainder(&columns[a * m..(a + 1) * m], &va) / self.damping;
        }
    }

    /// F⁻¹\[i, range\] in `out`: one pass over the columns of the range.
    pub fn row(&self, i: usize, range: Range<usize>, out: &mut [f32], threads: usize) {
        let m = self.gradients.count();
        assert!(range.end <= self.gradients.dimension() && out.len() == range.len());
        let mut factors = self.scaled_columns(&[i]);
        let g = factors.clone();
        dense::solve_lower(&self.factor, m, &mut factors);
        let diagonal = self.remainder(&g, &factors) / self.damping;
        factors = g;
        dense::solve(&self.factor, m, &mut factors);
        let scale = -1.0 / ((m as f64).sqrt() * self.damping);
        passes::combine(self.gradients, &factors, range, out, threads, |_, columns, sums, out| {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (scale * sum) as f32;
            }
            if columns.contains(&i) {
                out[i - columns.start] = diagonal as f32;
            }
        });
    }

    /// F⁻¹x for each of the vectors (d numbers each) in `x`, of which the elements of `range` are
    /// written to `out`: two passes over G.
    pub fn apply(&self, x: &[f32], range: Range<usize>, out: &mut [f32], threads: usize) {
        let (m, d) = (self.gradients.count(), self.gradients.dimension());
        let count = x.len() / d.max(1);
        assert!(x.len() == count * d && range.end <= d && out.len() == count * range.len());
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let mut factors = vec![0.0; count * m];
        let scratch = &mut passes::Scratch::default();
        passes::products(self.gradients, &wide, &mut factors, scratch, || (), threads);
        dense::solve(&self.factor, m, &mut factors);
        let (per_gradient, inverse) = (1.0 / m.max(1) as f64, 1.0 / self.damping);
        passes::combine(self.gradients, &factors, range, out, threads, |v, columns, sums, out| {
            let x = &wide[v * d..][columns];
            for ((out, x), sum) in out.iter_mut().zip(x).zip(sums) {
                *out = ((x - per_gradient * sum) * inverse) as f32;
            }
        });
    }

    /// The columns G_c/√m of the weights c, one after the other.
    fn scaled_columns(&self, weights: &[usize]) -> Vec<f64> {
        let m = self.gradients.count();
        let scale = 1.0 / (m as f64).sqrt();
        let mut columns = vec![0.0; weights.len() * m];
        for i in 0..m {
            for (a, &c) in weights.iter().enumerate() {
                let mut number = [0.0];
                columns[a * m + i] =
                    scale * f64::from(self.gradients.row(i, c..c + 1, &mut number)[0]);
            }
        }
        columns
    }
}

/// GGᵀ/m, both halves.
fn scaled_gram(gradients: Gradients<'_>, sums: Sums, threads: usize) -> Vec<f64> {
    let m = gradients.count();
    let mut gram = vec![0.0; m * m];
    syrk::expand(m, &passes::gram(gradients, sums, threads), 1.0 / m.max(1) as f64, &mut gram);
    gram
}

/// Whether no pivot L_ii² is so much smaller than K_ii that f32 products would have spoiled it.
fn well_pivoted(factor: &[f64], gram: &[f64], m: usize, damping: f64) -> bool {
    (0..m).map(|i| i * (m + 1)).all(|i| gram[i] + damping <= PIVOT_RATIO * factor[i] * factor[i])
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::mfac::store::{GradientStore, Storage};
    use crate::mfac::tolerance::{
        Rng, assert_approximate, assert_exact, dense_inverse, hard_gradients, mean_square, widen,
    };

    fn stored(g: &[f32], m: usize, d: usize, storage: Storage) -> GradientStore {
        let mut store = GradientStore::new(m, d, storage, None).unwrap();
        (0..m).for_each(|i| store.set_row(i, &g[i * d..][..d]).unwrap());
        store
    }

    fn diagonal(fixed: &Fixed<'_>, threads: usize) -> Vec<f64> {
        let mut out = vec![f64::NAN; fixed.gradients.dimension()];
        fixed.diagonal(0..out.len(), &mut out, threads);
        out
    }

    /// What the store holds, in f32.
    fn rounded(store: &GradientStore) -> Vec<f32> {
        let mut scratch = vec![0.0; store.dimension()];
        let row = |i| store.all().row(i, 0..store.dimension(), &mut scratch).to_vec();
        (0..store.count()).flat_map(row).collect()
    }

    /// The largest relative error of the diagonal, and the error of F⁻¹x relative to its norm.
    fn errors(fixed: &Fixed<'_>, want: &[f64]) -> (f64, f64) {
        let (d, damping) = (fixed.gradients.dimension(), fixed.damping);
        let got = diagonal(fixed, 2);
        assert!(got.iter().all(|&x| 0.0 < x && x <= 1.0 / damping));
        let error = |c: usize| (got[c] / want[c * (d + 1)] - 1.0).abs();
        let x = Rng::new(32).normals(d);
        let mut y = vec![f32::NAN; d];
        fixed.apply(&x, 0..d, &mut y, 2);
        let exact: Vec<f64> = want.chunks_exact(d).map(|r| inner(r, &widen(&x))).collect();
        let off: Vec<f64> = widen(&y).iter().zip(&exact).map(|(y, e)| y - e).collect();
        let norms = inner(&off, &off) / inner(&exact, &exact);
        ((0..d).map(error).fold(0.0, f64::max), norms.sqrt())
    }

    const SHAPES: [(usize, usize); 3] = [(40, 300), (193, 300), (100, 60)];

    #[test]
    fn hard_gradients_keep_their_digits_at_any_damping() {
        for (m, d) in SHAPES {
            let g = hard_gradients(m, d, 31);
            for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
                let store = stored(&g, m, d, storage);
                let kept = rounded(&store);
                let mut fixed = Fixed::precompute(store.all(), 1.0, 2).unwrap();
                for exponent in 3..=8 {
                    let damping = 10f64.powi(-exponent) * mean_square(&g);
                    fixed.set_damping(damping, 2).unwrap();
                    let (diagonal, product) = errors(&fixed, &dense_inverse(&kept, m, d, damping));
                    let what = format!("{storage:?} m={m} d={d} 1e-{exponent}");
                    assert!(diagonal <= 1e-3, "{what}: diagonal off by {diagonal:e}");
                    assert!(product <= 1e-6, "{what}: product off by {product:e}");
                }
            }
        }
    }

    #[test]
    fn half_precision_costs_what_its_rounding_costs() {
        for (m, d) in SHAPES {
            let g = hard_gradients(m, d, 31);
            for (storage, limits) in
                [(Storage::F16, [(5e-3, 1e-3); 2]), (Storage::Bf16, [(2e-2, 5e-3), (0.1, 1e-2)])]
            {
                let store = stored(&g, m, d, storage);
                for (relative, (of_diagonal, of_product)) in [1e-3, 1e-4].into_iter().zip(limits) {
                    let damping = relative * mean_square(&g);
                    let fixed = Fixed::precompute(store.all(), damping, 2).unwrap();
                    let (diagonal, product) = errors(&fixed, &dense_inverse(&g, m, d, damping));
                    let what = format!("{storage:?} m={m} d={d} {relative:e}");
                    assert!(diagonal <= of_diagonal, "{what}: diagonal off by {diagonal:e}");
                    assert!(product <= of_product, "{what}: product off by {product:e}");
                }
            }
        }
    }

    #[test]
    fn queries_agree_with_the_dense_inverse() {
        for (m, d) in [(1, 1), (1, 7), (3, 100), (256, 40), (264, 130)] {
            let g = Rng::new(33).normals(m * d);
            let damping = 1e-2;
            let want = dense_inverse(&g, m, d, damping);
            let store = stored(&g, m, d, Storage::F32);
            let fixed = Fixed::precompute(store.all(), damping, 2).unwrap();
            let floor = want.iter().step_by(d + 1).fold(0.0f64, |m, x| m.max(*x));
            for i in [0, d / 2, d - 1] {
                let mut row = vec![f32::NAN; d - d / 3];
                fixed.row(i, d / 3..d, &mut row, 2);
                assert_approximate(&widen(&row), &want[i * d + d / 3..(i + 1) * d], 1e-4, floor);
                let element = fixed.element(i, d / 3);
                assert_approximate(&[element], &[want[i * d + d / 3]], 1e-4, floor);
            }
            let weights: Vec<usize> = (0..d).rev().step_by(2).collect();
            let mut block = vec![f64::NAN; weights.len().pow(2)];
            fixed.block(&weights, &mut block);
            let pairs = weights.iter().flat_map(|&i| weights.iter().map(move |&j| i * d + j));
            let dense: Vec<f64> = pairs.map(|at| want[at]).collect();
            assert_approximate(&block, &dense, 1e-4, floor);
            let x = Rng::new(34).normals(3 * d);
            let mut y = vec![f32::NAN; 3 * (d - d / 3)];
            fixed.apply(&x, d / 3..d, &mut y, 2);
            let exact: Vec<f64> = x
                .chunks_exact(d)
                .flat_map(|x| want.chunks_exact(d).skip(d / 3).map(|r| inner(r, &widen(x))))
                .collect();
            assert_approximate(&widen(&y), &exact, 1e-4, floor);
        }
    }

    #[test]
    fn a_range_of_columns_has_the_fisher_of_its_own_weights() {
        let (m, d) = (30, 90);
        let g = Rng::new(35).normals(m * d);
        let store = stored(&g, m, d, Storage::F32);
        let fixed = Fixed::precompute(store.columns(20..70), 0.1, 1).unwrap();
        let own: Vec<f32> = g.chunks_exact(d).flat_map(|r| r[20..70].to_vec()).collect();
        let want: Vec<f64> = dense_inverse(&own, m, 50, 0.1).into_iter().step_by(51).collect();
        assert_approximate(&diagonal(&fixed, 1), &want, 1e-5, 0.0);
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_threads() {
        let (m, d) = (37, 9001);
        let store = stored(&hard_gradients(m, d, 36), m, d, Storage::F16);
        let x = Rng::new(37).normals(d);
        let results = |threads| {
            let fixed = Fixed::precompute(store.all(), 1e-4, threads).unwrap();
            let mut y = vec![f32::NAN; d];
            fixed.apply(&x, 0..d, &mut y, threads);
            [diagonal(&fixed, threads), widen(&y)].concat()
        };
        for threads in [2, 7] {
            assert_exact(&results(threads), &results(1));
        }
    }

    #[test]
    fn hopeless_requests_are_errors_and_empty_ones_are_not() {
        let (m, d) = (40, 50);
        let store = stored(&hard_gradients(m, d, 38), m, d, Storage::F32);
        for damping in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Fixed::precompute(store.all(), damping, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
        let same = stored(&[1.0; 2000], m, d, Storage::F32);
        let error = Fixed::precompute(same.all(), 1e-30, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerics);
        assert!(error.to_string().contains("raise the damping"), "{error}");
        let zero = GradientStore::new(m, d, Storage::F32, None).unwrap();
        let fixed = Fixed::precompute(zero.all(), 0.5, 1).unwrap();
        assert_exact(&diagonal(&fixed, 1), &[2.0; 50]);
        let fixed = Fixed::precompute(store.columns(3..3), 0.5, 1).unwrap();
        assert!(diagonal(&fixed, 1).is_empty());
        let none = GradientStore::new(0, d, Storage::F32, None).unwrap();
        let fixed = Fixed::precompute(none.all(), 0.5, 1).unwrap();
        assert_exact(&diagonal(&fixed, 1), &[2.0; 50]);
        let none = GradientStore::new(0, 1000, Storage::F32, None).unwrap();
        let fixed = Fixed::precompute(none.all(), 0.5, 1).unwrap();
        assert_exact(&diagonal(&fixed, 2), &[2.0; 1000]);
    }
}
