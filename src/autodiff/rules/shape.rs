//! Rearrangements: the elements move, and the cotangents move back.

use super::axis;
use crate::autodiff::builder::Term;
use crate::autodiff::walk::Pullback;
use crate::error::{Result, bail};
use crate::onnx::Node;

/// The same elements, possibly broadcast or of another type.
pub(super) fn pass(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    p.give(0, g)
}

/// The same elements in another shape.
pub(super) fn reshape(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let dx = p.reshape(&g, &x.shape);
    p.give(0, dx)
}

/// The inverse permutation of the axes.
pub(super) fn transpose(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let mut inverse: Vec<usize> = (0..g.rank()).rev().collect();
    if let Some(order) = p.node.ints("perm") {
        for (i, &a) in order.iter().enumerate() {
            inverse[axis(a, g.rank())?] = i;
        }
    }
    let dx = p.transpose(&g, &inverse);
    p.give(0, dx)
}

/// Each operand gets its part.
pub(super) fn concat(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let axis = axis(p.node.int("axis").unwrap_or(0), g.rank())?;
    let mut start = 0;
    for i in 0..p.arity() {
        let end = start + p.x(i)?.shape[axis];
        if p.needs(i) {
            let part = p.narrow(&g, axis, start, end);
            p.give(i, part)?;
        }
        start = end;
    }
    Ok(())
}

/// The parts' cotangents one after the other, zeros for those without.
pub(super) fn split(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let axis = axis(p.node.int("axis").unwrap_or(0), x.rank())?;
    let mut parts = Vec::new();
    for i in 0..p.node.outputs.len() {
        let y = p.y(i)?;
        parts.push(p.cotangent(i).unwrap_or_else(|| p.zeros(y.element, &y.shape)));
    }
    let dx = p.concat(&parts, axis);
    p.give(0, dx)
}

/// The elements go back to where they were read, everything else gets zero.
pub(super) fn slice(p: &mut Pullback) -> Result<()> {
    let (x, mut dx) = (p.x(0)?, p.g()?);
    let Some(starts) = p.constant_ints(1)? else { bail!(Model, "input starts is missing") };
    let axes = match p.constant_ints(3)? {
        Some(axes) => axes.iter().map(|&a| axis(a, x.rank())).collect::<Result<_>>()?,
        None => (0..starts.len()).collect::<Vec<_>>(),
    };
    let steps = p.constant_ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
        let length = x.shape[axis] as i64;
        let start = if start < 0 { start + length } else { start };
        let first = if step > 0 { start.clamp(0, length) } else { start.clamp(-1, length - 1) };
        let places = (0..dx.shape[axis] as i64).map(|j| first + j * step);
        let Some(places) = places.map(|i| usize::try_from(i).ok()).collect::<Option<Vec<_>>>()
        else {
            bail!(Model, "the slice starts outside axis {axis}")
        };
        dx = p.spread(&dx, axis, &places, x.shape[axis]);
    }
    p.give(0, dx)
}

/// Constant padding is cut off again; the other modes copy elements of the input outwards, and
/// the copies' cotangents are added to their originals'.
pub(super) fn pad(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let Some(pads) = p.constant_ints(1)? else { bail!(Model, "input pads is missing") };
    let axes = match p.constant_ints(3)? {
        Some(axes) => axes.iter().map(|&a| axis(a, x.rank())).collect::<Result<_>>()?,
        None => (0..x.rank()).collect::<Vec<_>>(),
    };
    if pads.len() != 2 * axes.len() {
        bail!(Model, "{} pads for {} axes", pads.len(), axes.len());
    }
    let mode = p.node.string("mode").unwrap_or("constant");
    let (mut before, mut after) = (vec![0; x.rank()], vec![0; x.rank()]);
    for (i, &axis) in axes.iter().enumerate() {
        before[axis] = pads[i];
        after[axis] = pads[axes.len() + i];
    }
    if mode == "constant" {
        let negated = |v: &[i64]| v.iter().map(|n| -n).collect::<Vec<_>>();
        let dx = p.pad(&g, &negated(&before), &negated(&after));
        if p.needs(2) {
            let all: Vec<usize> = (0..g.rank()).collect();
            let (total, inside) = (p.sum(&g, &all), p.sum(&dx, &all));
            let outside = p.sub(&total, &inside);
            let constant = p.x(2)?;
            let share = p.reshape(&outside, &constant.shape);
            p.give(2, share)?;
        }
        return p.give(0, dx);
    }
    let mut dx = g.clone();
    for axis in 0..x.rank() {
        if (before[axis], after[axis]) != (0, 0) {
            let (length, padded) = (x.shape[axis] as i64, g.shape[axis]);
            let mut matrix = vec![0.0; x.shape[axis] * padded];
            for o in 0..padded {
                let source = source(mode, o as i64 - before[axis], length)?;
                matrix[source as usize * padded + o] = 1.0;
            }
            dx = p.along(&dx, axis, x.shape[axis], &matrix);
        }
    }
    p.give(0, dx)
}

/// The element of an axis that padding copies to position `i` outside it.
fn source(mode: &str, i: i64, length: i64) -> Result<i64> {
    Ok(match mode {
        "edge" => i.clamp(0, length - 1),
        "wrap" => i.rem_euclid(length),
        "reflect" if length == 1 => 0,
        "reflect" => {
            let period = 2 * (length - 1);
            let phase = i.rem_euclid(period);
            phase.min(period - phase)
        }
        _ => bail!(Unsupported, "there is no rule for padding mode {mode:?}"),
    })
}

/// Inference passes its input; training draws a mask that the rule does not follow.
pub(super) fn dropout(p: &mut Pullback) -> Result<()> {
    let training = match p.node.input(2) {
        None => false,
        Some(_) => p.constant_ints(2)?.is_some_and(|v| v.first() != Some(&0)),
    };
    if training {
        bail!(Unsupported, "Dropout is in training mode; export the model for inference");
    }
    pass(p)
}

/// Repetitions are summed: each axis of length n·r is r runs of n.
pub(super) fn tile(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let mut shape = Vec::new();
    for (&whole, &part) in g.shape.iter().zip(&x.shape) {
        shape.extend([whole.checked_div(part).unwrap_or(0), part]);
    }
    let runs = p.reshape(&g, &shape);
    let repeated: Vec<usize> = (0..x.rank()).map(|i| 2 * i).filter(|&i| shape[i] != 1).collect();
    let total = p.sum(&runs, &repeated);
    let dx = p.reshape(&total, &x.shape);
    p.give(0, dx)
}

/// The same triangle of the cotangent.
pub(super) fn trilu(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let mut node = p.node.clone();
    node.inputs[0].clone_from(&g.name);
    let dx = p.emit(node, g.element, g.shape.clone());
    p.give(0, dx)
}

/// Blocks of space from depth: `[N, C·b², H, W]` to `[N, C, H·b, W·b]`.
pub(super) fn depth_to_space(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let block = p.node.int("blocksize").unwrap_or(1);
    let dx = if p.node.string("mode").unwrap_or("DCR") == "DCR" {
        let node = Node::new("SpaceToDepth", [g.name.as_str()], "").with("blocksize", block);
        p.emit(node, g.element, x.shape)
    } else {
        space_to_columns(p, &g, &x, block as usize)
    };
    p.give(0, dx)
}

/// `SpaceToDepth` with the channel as the slowest of the three parts of the depth.
fn space_to_columns(p: &mut Pullback, g: &Term, x: &Term, block: usize) -> Term {
    let [n, c, h, w] = [g.shape[0], g.shape[1], x.shape[2], x.shape[3]];
    let apart = p.reshape(g, &[n, c, h, block, w, block]);
    let moved = p.transpose(&apart, &[0, 1, 3, 5, 2, 4]);
    p.reshape(&moved, &x.shape)
}

/// Depth from blocks of space: the inverse of [`depth_to_space`].
pub(super) fn space_to_depth(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let block = p.node.int("blocksize").unwrap_or(1);
    let mode = p.node.string("mode").unwrap_or("DCR");
    let node = Node::new("DepthToSpace", [g.name.as_str()], "");
    let node = node.with("blocksize", block).with("mode", mode);
    let dx = p.emit(node, g.element, x.shape);
    p.give(0, dx)
}
