//! The static algorithm on a range of weights of any width, in its dual form.
//!
//! With K = λI + GGᵀ/m (m×m, f64) and K = LLᵀ, the paper's recursion amounts to
//! F⁻¹ = (I − VᵀV)/λ with V = L⁻¹G/√m. The diagonal takes one product with T = L⁻¹ whose result is
//! squared and summed in registers; F⁻¹x = (x − Gᵀ K⁻¹ G x/m)/λ takes two passes over G. G is read
//! as it is stored and never copied.
//!
//! Two things keep small damping safe. First, the Gram matrix is summed from f32 products and taken
//! again in f64 when a pivot of its factor is so small that their rounding would show. Second,
//! 1 − ‖v‖² cancels where the gradients determine a weight well; since Σ‖v‖² ≤ m that happens to few
//! weights, and those columns are solved again in f64. What then still drowns in rounding is
//! clamped to its lower bound, 1/F_cc: 0 < 1/F_cc ≤ \[F⁻¹\]_cc ≤ 1/λ always holds.

use std::ops::Range;

use super::dense;
use super::kernels::syrk::{self, Sums};
use super::kernels::tile::{HEIGHT, WIDTH};
use super::kernels::{norms, panel};
use super::store::Gradients;
use super::{parallel, passes};
use crate::error::{Result, bail};

/// Columns of one step of the diagonal: four strips share each row group of T while it is cached.
const GROUP: usize = 4 * WIDTH;
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
        norms::pack(&t, m, 1.0 / (m as f64).sqrt(), &mut self.inverse);
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
        let depth = self.gradients.count().next_multiple_of(HEIGHT);
        let groups = out.len().div_ceil(GROUP);
        let mut scratch: Vec<_> = (0..threads.clamp(1, groups.max(1)))
            .map(|_| (vec![0.0; panel::len(depth, GROUP)], [0.0; GROUP], [0.0; GROUP]))
            .collect();
        let items = out.chunks_mut(GROUP).enumerate();
        parallel::for_each(&mut scratch, items, |(panels, row, norms), (group, out)| {
            let start = range.start + group * GROUP;
            let columns = start..start + out.len();
            let panels = &mut panels[..panel::len(depth, out.len())];
            passes::pack_columns(self.gradients, columns, depth, panels, row);
            let norms = &mut norms[..panel::strips(out.len()) * WIDTH];
            norms::column_norms(&self.inverse, depth, panels, norms);
            for (out, norm) in out.iter_mut().zip(norms) {
                *out = 1.0 - *norm;
            }
            self.recheck(start, out);
            out.iter_mut().for_each(|x| *x = x.min(1.0) / self.damping);
        });
    }

    /// Solves again in f64 the remainders 1 − ‖v‖² of the columns from `start` that are small.
    fn recheck(&self, start: usize, remainders: &mut [f64]) {
        // Written so that NaN counts as small.
        let small: Vec<usize> =
            (0..remainders.len()).filter(|&c| !(remainders[c] >= RECHECK)).collect();
        if small.is_empty() {
            return;
        }
        let m = self.gradients.count();
        let weights: Vec<usize> = small.iter().map(|c| start + c).collect();
        let columns = self.scaled_columns(&weights);
        let mut v = columns.clone();
        dense::solve_lower(&self.factor, m, &mut v);
        let columns = columns.chunks_exact(m).zip(v.chunks_exact(m));
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
        passes::products(self.gradients, &wide, &mut factors, threads);
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
    syrk::expand(m, &passes::gram(gradients, sums, threads), 1.0 / m as f64, &mut gram);
    gram
}

/// Whether no pivot L_ii² is so much smaller than K_ii that f32 products would have spoiled it.
fn well_pivoted(factor: &[f64], gram: &[f64], m: usize, damping: f64) -> bool {
    (0..m).map(|i| i * (m + 1)).all(|i| gram[i] + damping <= PIVOT_RATIO * factor[i] * factor[i])
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
