//! Matrix products. For Y = AB: Ā = ȲBᵀ and B̄ = AᵀȲ.

use crate::autodiff::builder::Term;
use crate::autodiff::walk::Pullback;
use crate::error::Result;
use crate::onnx::Node;

/// Y = α op(A) op(B) + β C, where op is the identity or the transposition.
pub(super) fn gemm(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let alpha = p.node.float("alpha").unwrap_or(1.0);
    let beta = p.node.float("beta").unwrap_or(1.0);
    let transposed = |name| p.node.int(name).unwrap_or(0) != 0;
    let (ta, tb) = (transposed("transA"), transposed("transB"));
    if p.needs(0) {
        let b = p.x(1)?;
        let da = match ta {
            false => product(p, (&g, false), (&b, !tb), alpha),
            true => product(p, (&b, tb), (&g, true), alpha),
        };
        p.give(0, da)?;
    }
    if p.needs(1) {
        let a = p.x(0)?;
        let db = match tb {
            false => product(p, (&a, !ta), (&g, false), alpha),
            true => product(p, (&g, true), (&a, ta), alpha),
        };
        p.give(1, db)?;
    }
    if p.needs(2) {
        let dc = p.scale(&g, beta.into());
        p.give(2, dc)?;
    }
    Ok(())
}

/// α op(A) op(B), each operand with whether it is to be transposed.
fn product(p: &mut Pullback, a: (&Term, bool), b: (&Term, bool), alpha: f32) -> Term {
    let ((a, ta), (b, tb)) = (a, b);
    let shape = vec![a.shape[usize::from(ta)], b.shape[usize::from(!tb)]];
    let node = Node::new("Gemm", [&a.name, &b.name], "")
        .with("alpha", alpha)
        .with("transA", i64::from(ta))
        .with("transB", i64::from(tb));
    p.emit(node, a.element, shape)
}

/// Y = AB over the last two axes, with the leading axes broadcast; a vector stands for a row on
/// the left and for a column on the right.
pub(super) fn matmul(p: &mut Pullback) -> Result<()> {
    let (a, b, g) = (p.x(0)?, p.x(1)?, p.g()?);
    let (row, column) = (a.rank() == 1, b.rank() == 1);
    let a = if row { p.reshape(&a, &[1, a.len()]) } else { a };
    let b = if column { p.reshape(&b, &[b.len(), 1]) } else { b };
    let g = restore_matrix(p, &g, row, column);
    if p.needs(0) {
        let bt = p.transpose_last(&b);
        let da = p.matmul(&g, &bt);
        let da = if row { sum_to_vector(p, &da) } else { da };
        p.give(0, da)?;
    }
    if p.needs(1) {
        let db = right_operand(p, &a, &b, &g);
        let db = if column { sum_to_vector(p, &db) } else { db };
        p.give(1, db)?;
    }
    Ok(())
}

/// B̄; where B is one matrix for a batch of A, as one product over all rows of the batch.
fn right_operand(p: &mut Pullback, a: &Term, b: &Term, g: &Term) -> Term {
    let (inner, columns) = (a.shape[a.rank() - 1], g.shape[g.rank() - 1]);
    if b.rank() == 2 && a.rank() > 2 {
        let rows = a.len().checked_div(inner).unwrap_or(0);
        let a = p.reshape(a, &[rows, inner]);
        let g = p.reshape(g, &[rows, columns]);
        let at = p.transpose_last(&a);
        return p.matmul(&at, &g);
    }
    let at = p.transpose_last(a);
    p.matmul(&at, g)
}

/// ȳ with the axes that vector operands removed from the result.
fn restore_matrix(p: &mut Pullback, g: &Term, row: bool, column: bool) -> Term {
    let mut shape = g.shape.clone();
    if column {
        shape.push(1);
    }
    if row {
        shape.insert(shape.len() - 1, 1);
    }
    p.reshape(g, &shape)
}

/// A batch of rows or columns, summed over the batch, as one vector.
fn sum_to_vector(p: &mut Pullback, x: &Term) -> Term {
    let batch: Vec<usize> = (0..x.rank() - 2).collect();
    let total = p.sum(x, &batch);
    p.reshape(&total, &[total.len()])
}
