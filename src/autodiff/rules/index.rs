//! Reading and writing at computed places. What was read is added back to where it was read,
//! because a place may be read more than once.

use super::axis;
use crate::autodiff::builder::{Term, signed};
use crate::autodiff::walk::Pullback;
use crate::error::{Result, bail};
use crate::onnx::Node;
use crate::tensor::ElementType;

/// y = x at `indices` of one axis. A constant place becomes padding; otherwise rows are added
/// into zeros by `ScatterND`, with the axis in front.
pub(super) fn gather(p: &mut Pullback) -> Result<()> {
    let (x, indices, g) = (p.x(0)?, p.x(1)?, p.g()?);
    let axis = axis(p.node.int("axis").unwrap_or(0), x.rank())?;
    if let Some(places) = p.constant_ints(1).ok().flatten()
        && let Some(places) = distinct(&places, x.shape[axis])
    {
        let mut shape = x.shape.clone();
        shape[axis] = places.len();
        let g = p.reshape(&g, &shape);
        let dx = p.spread(&g, axis, &places, x.shape[axis]);
        return p.give(0, dx);
    }
    let width = indices.rank();
    let order: Vec<usize> =
        (axis..axis + width).chain(0..axis).chain(axis + width..g.rank()).collect();
    let updates = p.transpose(&g, &order);
    let mut shape = x.shape.clone();
    shape.remove(axis);
    shape.insert(0, x.shape[axis]);
    let rows = counted(p, &indices, x.shape[axis]);
    let rows = p.reshape(&rows, &[&indices.shape[..], &[1]].concat());
    let sum = scatter_rows(p, &shape, &rows, &updates);
    let back: Vec<usize> = (1..=axis).chain([0]).chain(axis + 1..x.rank()).collect();
    let dx = p.transpose(&sum, &back);
    p.give(0, dx)
}

/// y[i] = x[indices[i]] along one axis, elementwise.
pub(super) fn gather_elements(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let indices = p.node.inputs[1].clone();
    let axis = p.node.int("axis").unwrap_or(0);
    let zeros = p.zeros(g.element, &x.shape);
    let node = Node::new("ScatterElements", [&zeros.name, &indices, &g.name], "")
        .with("axis", axis)
        .with("reduction", "add");
    let dx = p.emit(node, g.element, x.shape);
    p.give(0, dx)
}

/// y = x at tuples of indices, within each of the leading `batch_dims` axes.
pub(super) fn gather_nd(p: &mut Pullback) -> Result<()> {
    let (x, indices, g) = (p.x(0)?, p.x(1)?, p.g()?);
    let batch = usize::try_from(p.node.int("batch_dims").unwrap_or(0)).unwrap_or(0);
    if batch == 0 {
        let dx = scatter_rows(p, &x.shape, &indices, &g);
        return p.give(0, dx);
    }
    // The batch axes become one leading index of each tuple.
    let lead: usize = x.shape[..batch].iter().product();
    let inner: usize = indices.shape[batch..indices.rank() - 1].iter().product();
    let width = indices.shape[indices.rank() - 1];
    let numbers: Vec<i64> = (0..lead * inner).map(|i| (i / inner) as i64).collect();
    let numbers = p.ints(&numbers);
    let numbers = p.reshape(&numbers, &[lead, inner, 1]);
    let tuples = p.reshape(&indices, &[lead, inner, width]);
    let tuples = p.concat(&[numbers, tuples], 2);
    let merged = [&[lead], &x.shape[batch..]].concat();
    let updates = p.reshape(&g, &[&[lead, inner], &x.shape[batch + width..]].concat());
    let sum = scatter_rows(p, &merged, &tuples, &updates);
    let dx = p.reshape(&sum, &x.shape);
    p.give(0, dx)
}

/// y = x with `updates` written (or added) at tuples of indices.
pub(super) fn scatter_nd(p: &mut Pullback) -> Result<()> {
    let (indices, updates, g) = (p.x(1)?, p.x(2)?, p.g()?);
    let added = additive(p)?;
    if p.needs(2) {
        let share = p.apply("GatherND", &[&g, &indices], g.element, updates.shape.clone());
        p.give(2, share)?;
    }
    let dx = if added {
        g
    } else {
        let zeros = p.zeros(g.element, &updates.shape);
        p.apply("ScatterND", &[&g, &indices, &zeros], g.element, g.shape.clone())
    };
    p.give(0, dx)
}

/// y = x with `updates` written (or added) along one axis.
pub(super) fn scatter_elements(p: &mut Pullback) -> Result<()> {
    let (updates, g) = (p.x(2)?, p.g()?);
    let indices = p.node.inputs[1].clone();
    let axis = p.node.int("axis").unwrap_or(0);
    let added = additive(p)?;
    if p.needs(2) {
        let node = Node::new("GatherElements", [&g.name, &indices], "").with("axis", axis);
        let share = p.emit(node, g.element, updates.shape.clone());
        p.give(2, share)?;
    }
    let dx = if added {
        g
    } else {
        let zeros = p.zeros(g.element, &updates.shape);
        let node = Node::new("ScatterElements", [&g.name, &indices, &zeros.name], "");
        p.emit(node.with("axis", axis), g.element, g.shape.clone())
    };
    p.give(0, dx)
}

/// The largest or smallest elements of an axis go back to their places.
pub(super) fn top_k(p: &mut Pullback) -> Result<()> {
    let (x, y, g) = (p.x(0)?, p.y(0)?, p.g()?);
    let indices = p.extra_output(1, ElementType::I64, &y.shape);
    let zeros = p.zeros(g.element, &x.shape);
    let node = Node::new("ScatterElements", [&zeros.name, &indices.name, &g.name], "")
        .with("axis", p.node.int("axis").unwrap_or(-1))
        .with("reduction", "add");
    let dx = p.emit(node, g.element, x.shape);
    p.give(0, dx)
}

/// Zeros of `shape` plus each row of `updates` at its tuple in `indices`.
fn scatter_rows(p: &mut Pullback, shape: &[usize], indices: &Term, updates: &Term) -> Term {
    let zeros = p.zeros(updates.element, shape);
    let node = Node::new("ScatterND", [&zeros.name, &indices.name, &updates.name], "");
    p.emit(node.with("reduction", "add"), updates.element, shape.to_vec())
}

/// Indices as int64 counted from the front of an axis of `length`.
fn counted(p: &mut Pullback, indices: &Term, length: usize) -> Term {
    let indices = p.cast(indices, ElementType::I64);
    let length = p.ints(&signed(&[length]));
    let length = p.reshape(&length, &[]);
    p.binary("Mod", &indices, &length)
}

/// Constant indices counted from the front, where each place is read once.
fn distinct(indices: &[i64], length: usize) -> Option<Vec<usize>> {
    let mut seen = std::collections::HashSet::new();
    let place = |&i: &i64| {
        let place = usize::try_from(if i < 0 { i + length as i64 } else { i }).ok()?;
        (place < length && seen.insert(place)).then_some(place)
    };
    indices.iter().map(place).collect()
}

/// Whether updates are added; an error where they multiply or compete.
fn additive(p: &Pullback) -> Result<bool> {
    match p.node.string("reduction").unwrap_or("none") {
        "none" => Ok(false),
        "add" => Ok(true),
        other => bail!(Unsupported, "there is no rule for the reduction {other:?}"),
    }
}
