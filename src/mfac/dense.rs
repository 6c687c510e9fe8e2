//! Dense symmetric positive definite matrices in f64: factor, solve, invert.
//!
//! Damped Fisher blocks λI + F_Q and the m×m matrix S = mλI + GGᵀ are factored here, A = LLᵀ, on
//! faer's sequential kernels: hone runs threads outside, over blocks. A symmetric matrix is a slice
//! of n×n numbers, both halves filled; a triangular one is stored by columns, L_ij at `l[j·n + i]`
//! (by rows faer is five to forty times slower), and only its lower triangle means anything.

use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Accum, MatMut, MatRef, Par};

use faer::dyn_stack::{MemBuffer, MemStack};

use crate::error::{Result, bail};

/// Writes to `l` the L with LLᵀ = A + `damping`·I; what lies above its diagonal is undefined.
///
/// Errors of kind `Numerics`: an element is not finite, or the damped matrix is not positive
/// definite in f64; the message then names the damping at which it is.
pub fn factor(a: &[f64], n: usize, damping: f64, l: &mut [f64]) -> Result<()> {
    assert_eq!(a.len(), n * n);
    if try_factor(a, n, damping, l) {
        return Ok(());
    }
    if let Some(i) = a.iter().position(|x| !x.is_finite()) {
        bail!(
            Numerics,
            "element ({}, {}) of the curvature is not finite; look for NaN or overflow in the \
             gradients",
            i % n,
            i / n
        );
    }
    let enough = enough_damping(a, n, damping, l);
    bail!(
        Numerics,
        "a {n}×{n} block of the curvature is not positive definite with damping {damping:e}; raise \
         the damping to {enough:e} or more"
    )
}

/// Solves LLᵀx = b in place for each of the vectors in `x`, one after the other, n numbers each.
pub fn solve(l: &[f64], n: usize, x: &mut [f64]) {
    solve_lower(l, n, x);
    let count = x.len() / n.max(1);
    solve_upper_triangular_in_place(view(l, n).transpose(), columns(x, n, count), Par::Seq);
}

/// Solves Lx = b in place for each of the vectors in `x`, one after the other, n numbers each.
pub fn solve_lower(l: &[f64], n: usize, x: &mut [f64]) {
    let count = x.len() / n.max(1);
    assert_eq!(x.len(), n * count);
    solve_lower_triangular_in_place(view(l, n), columns(x, n, count), Par::Seq);
}

/// T = L⁻¹ in the lower triangle of `t`, zeros above.
pub fn invert_lower(l: &[f64], n: usize, t: &mut [f64]) {
    t.fill(0.0);
    invert_lower_triangular(view_mut(t, n), view(l, n), Par::Seq);
}

/// (LLᵀ)⁻¹ in `out`, both halves; `t` is scratch of n·n.
pub fn invert(l: &[f64], n: usize, out: &mut [f64], t: &mut [f64]) {
    invert_lower(l, n, t);
    let t = view(t, n);
    matmul(
        view_mut(out, n),
        BlockStructure::TriangularLower,
        Accum::Replace,
        t.transpose(),
        BlockStructure::TriangularUpper,
        t,
        BlockStructure::TriangularLower,
        1.0,
        Par::Seq,
    );
    for j in 0..n {
        for i in j + 1..n {
            out[i * n + j] = out[j * n + i];
        }
    }
}

/// Factors A + `damping`·I; false if it is not positive definite or not finite.
fn try_factor(a: &[f64], n: usize, damping: f64, l: &mut [f64]) -> bool {
    l.copy_from_slice(a);
    l.iter_mut().step_by(n + 1).for_each(|x| *x += damping);
    let mut memory =
        MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut memory);
    let factored =
        cholesky_in_place(view_mut(l, n), Default::default(), Par::Seq, stack, Default::default());
    factored.is_ok() && l.iter().step_by(n + 1).all(|x| x.is_finite() && *x > 0.0)
}

/// The first damping of a geometric ladder at which A is positive definite.
fn enough_damping(a: &[f64], n: usize, damping: f64, l: &mut [f64]) -> f64 {
    let largest = a.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let mut enough = damping.max(largest * f64::EPSILON);
    // A symmetric matrix is definite once the damping exceeds its norm, at most n·max|a|.
    while enough < 2.0 * largest * n as f64 {
        enough *= 10.0;
        if try_factor(a, n, enough, l) {
            break;
        }
    }
    enough
}

fn view(a: &[f64], n: usize) -> MatRef<'_, f64> {
    MatRef::from_column_major_slice(a, n, n)
}

fn view_mut(a: &mut [f64], n: usize) -> MatMut<'_, f64> {
    MatMut::from_column_major_slice_mut(a, n, n)
}

fn columns(x: &mut [f64], n: usize, count: usize) -> MatMut<'_, f64> {
    MatMut::from_column_major_slice_mut(x, n, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::mfac::tolerance::{Rng, assert_approximate, gram_columns};

    /// GᵀG + λI for m random gradients.
    fn damped(n: usize, m: usize, damping: f64) -> Vec<f64> {
        let mut a = gram_columns(&Rng::new(7).normals(m * n), m, n);
        (0..n).for_each(|i| a[i * (n + 1)] += damping);
        a
    }

    fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n * n];
        for i in 0..n {
            for k in 0..n {
                for j in 0..n {
                    out[i * n + j] += a[i * n + k] * b[k * n + j];
                }
            }
        }
        out
    }

    fn identity(n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n * n];
        out.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
        out
    }

    fn factored(a: &[f64], n: usize, damping: f64) -> Vec<f64> {
        let mut l = vec![f64::NAN; n * n];
        factor(a, n, damping, &mut l).unwrap();
        (0..n).for_each(|j| l[j * n..][..j].fill(0.0));
        l
    }

    #[test]
    fn inverses_and_solves_undo_the_matrix() {
        for n in [0, 1, 2, 13, 64, 193, 256] {
            let a = damped(n, 2 * n, 0.5);
            let l = factored(&a, n, 0.0);
            let (mut inverse, mut t) = (vec![f64::NAN; n * n], vec![f64::NAN; n * n]);
            invert(&l, n, &mut inverse, &mut t);
            assert_approximate(&product(&a, &inverse, n), &identity(n), 1e-10, 1.0);
            let mut x = [identity(n), a.clone()].concat();
            solve(&l, n, &mut x);
            assert_approximate(&x[..n * n], &inverse, 1e-10, 1.0);
            assert_approximate(&x[n * n..], &identity(n), 1e-10, 1.0);
            // By rows the slices hold Lᵀ and Tᵀ.
            assert_approximate(&product(&t, &l, n), &identity(n), 1e-12, 1.0);
        }
    }

    #[test]
    fn damping_is_added_to_the_diagonal() {
        let got = factored(&damped(20, 5, 0.0), 20, 0.25);
        assert_approximate(&got, &factored(&damped(20, 5, 0.25), 20, 0.0), 1e-13, 1.0);
    }

    #[test]
    fn the_error_names_a_damping_that_works() {
        let (n, singular) = (40, damped(40, 5, -1e-6));
        let error = factor(&singular, n, 0.0, &mut vec![0.0; n * n]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerics);
        let message = error.to_string();
        let enough = message.split("raise the damping to ").nth(1).unwrap();
        let enough: f64 = enough.split(' ').next().unwrap().parse().unwrap();
        assert!((1e-7..1e-4).contains(&enough), "{message}");
        factored(&singular, n, enough);
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        for (i, bad) in [(0, f64::NAN), (7, f64::INFINITY), (24, f64::NAN)] {
            let mut a = identity(5);
            a[i] = bad;
            a[i % 5 * 5 + i / 5] = bad;
            let error = factor(&a, 5, 1.0, &mut [0.0; 25]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Numerics);
            assert!(error.to_string().contains("not finite"), "{error}");
        }
    }
}
