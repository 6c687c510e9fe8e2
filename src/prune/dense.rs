//! Cholesky, solve and the diagonal of the inverse of one block in f64, on faer, with
//! workspace that outlives blocks.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::llt::{factor, solve};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, MatMut, MatRef, Par};

/// Workspace for blocks up to the largest seen.
#[derive(Default)]
pub(super) struct Workspace {
    buffer: Option<MemBuffer>,
    capacity: usize,
}

/// The matrix has no Cholesky factor: in floating point it is not positive definite.
#[derive(Debug)]
pub(super) struct NotPositiveDefinite;

impl Workspace {
    /// A = LLᵀ in place: `a` is n×n with both halves filled, and its lower triangle (column-major)
    /// becomes L.
    pub fn factor(&mut self, a: &mut [f64], n: usize) -> Result<(), NotPositiveDefinite> {
        let stack = self.stack(n);
        let a = MatMut::from_column_major_slice_mut(a, n, n);
        factor::cholesky_in_place(a, Default::default(), Par::Seq, stack, Default::default())
            .map(|_| ())
            .map_err(|_| NotPositiveDefinite)
    }

    /// The diagonal of A⁻¹ = L⁻ᵀL⁻¹ from L: the squared norms of the columns of L⁻¹, which is left
    /// in the lower triangle of `inverse`.
    pub fn invert_diagonal(
        &mut self,
        l: &[f64],
        n: usize,
        inverse: &mut [f64],
        diagonal: &mut [f64],
    ) {
        let out = MatMut::from_column_major_slice_mut(inverse, n, n);
        invert_lower_triangular(out, MatRef::from_column_major_slice(l, n, n), Par::Seq);
        for (j, (column, out)) in inverse.chunks_exact(n).zip(diagonal).enumerate() {
            *out = column[j..].iter().map(|x| x * x).sum();
        }
    }

    /// x ← A⁻¹x from L.
    pub fn solve(&mut self, l: &[f64], n: usize, x: &mut [f64]) {
        let stack = self.stack(n);
        let x = MatMut::from_column_major_slice_mut(x, n, 1);
        solve::solve_in_place(MatRef::from_column_major_slice(l, n, n), x, Par::Seq, stack);
    }

    fn stack(&mut self, n: usize) -> &mut MemStack {
        if self.buffer.is_none() || self.capacity < n {
            let need = StackReq::any_of(&[
                factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()),
                solve::solve_in_place_scratch::<f64>(n, 1, Par::Seq),
            ]);
            self.buffer = Some(MemBuffer::new(need));
            self.capacity = n;
        }
        MemStack::new(self.buffer.as_mut().expect("just filled"))
    }
}

/// A ← A + CCᵀ in the lower triangle of `a` (m×m, by columns), C given by columns of m.
pub(super) fn add_gram(c: &[f64], m: usize, a: &mut [f64]) {
    let c = MatRef::from_column_major_slice(c, m, c.len() / m);
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    let a = MatMut::from_column_major_slice_mut(a, m, m);
    matmul(a, lower, Accum::Add, c, full, c.transpose(), full, 1.0, Par::Seq);
}

/// x ← L⁻¹x for each column of m numbers in `x`.
pub(super) fn solve_lower(l: &[f64], m: usize, x: &mut [f64]) {
    let count = x.len() / m;
    let x = MatMut::from_column_major_slice_mut(x, m, count);
    solve_lower_triangular_in_place(MatRef::from_column_major_slice(l, m, m), x, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_and_diagonals_agree_with_the_matrix() {
        let mut workspace = Workspace::default();
        for n in [1, 2, 7, 33, 5] {
            let entry = |i: usize, j: usize| {
                1.0 / (1.0 + (i as f64 - j as f64).abs()) + if i == j { 0.5 } else { 0.0 }
            };
            let mut l: Vec<f64> = (0..n * n).map(|k| entry(k / n, k % n)).collect();
            workspace.factor(&mut l, n).unwrap();
            let (mut scratch, mut diagonal) = (vec![f64::NAN; n * n], vec![0.0; n]);
            workspace.invert_diagonal(&l, n, &mut scratch, &mut diagonal);
            for column in 0..n {
                let mut x = vec![0.0; n];
                x[column] = 1.0;
                workspace.solve(&l, n, &mut x);
                assert!((x[column] - diagonal[column]).abs() < 1e-12);
                for i in 0..n {
                    let product: f64 = (0..n).map(|k| entry(i, k) * x[k]).sum();
                    assert!((product - f64::from(u8::from(i == column))).abs() < 1e-12);
                }
            }
        }
        assert!(workspace.factor(&mut [1.0, 2.0, 2.0, 1.0], 2).is_err());
    }
}
