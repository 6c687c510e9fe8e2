//! Reductions over axes. Each cotangent is brought to the shape with the reduced axes kept at
//! length 1 and broadcast from there.

use crate::autodiff::builder::Term;
use crate::autodiff::walk::Pullback;
use crate::error::Result;

/// y = Σ x.
pub(super) fn sum(p: &mut Pullback) -> Result<()> {
    let Some((_, g, _)) = kept(p)? else { return pass(p) };
    p.give(0, g)
}

/// y = Σ x / n.
pub(super) fn mean(p: &mut Pullback) -> Result<()> {
    let Some((_, g, axes)) = kept(p)? else { return pass(p) };
    let x = p.x(0)?;
    let count: usize = axes.iter().map(|&a| x.shape[a]).product();
    let share = p.scale(&g, 1.0 / count as f64);
    p.give(0, share)
}

/// y = max x or min x: elements that tie share the cotangent.
pub(super) fn extremum(p: &mut Pullback) -> Result<()> {
    let Some((y, g, axes)) = kept(p)? else { return pass(p) };
    let x = p.x(0)?;
    let hits = p.mask("Equal", &x, &y, x.element);
    let ties = p.sum(&hits, &axes);
    let share = p.div(&g, &ties);
    let dx = p.mul(&share, &hits);
    p.give(0, dx)
}

/// y = Σ |x|: sign x.
pub(super) fn l1(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let g = kept(p)?.map_or_else(|| p.g(), |(_, g, _)| Ok(g))?;
    let sign = p.unary("Sign", &x);
    let dx = p.mul(&sign, &g);
    p.give(0, dx)
}

/// y = √Σ x²: x/y.
pub(super) fn l2(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let (y, g) = match kept(p)? {
        Some((y, g, _)) => (y, g),
        None => (p.y(0)?, p.g()?),
    };
    let ratio = p.div(&g, &y);
    let dx = p.mul(&x, &ratio);
    p.give(0, dx)
}

/// y = Σ x²: 2x.
pub(super) fn sum_square(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let g = kept(p)?.map_or_else(|| p.g(), |(_, g, _)| Ok(g))?;
    let twice = p.scale(&g, 2.0);
    let dx = p.mul(&x, &twice);
    p.give(0, dx)
}

/// y = log Σ x: e⁻ʸ.
pub(super) fn log_sum(p: &mut Pullback) -> Result<()> {
    let (y, g) = match kept(p)? {
        Some((y, g, _)) => (y, g),
        None => (p.y(0)?, p.g()?),
    };
    let total = p.unary("Exp", &y);
    let dx = p.div(&g, &total);
    p.give(0, dx)
}

/// y = log Σ eˣ: e^(x−y).
pub(super) fn log_sum_exp(p: &mut Pullback) -> Result<()> {
    let Some((y, g, _)) = kept(p)? else { return pass(p) };
    let x = p.x(0)?;
    let less = p.sub(&x, &y);
    let share = p.unary("Exp", &less);
    let dx = p.mul(&share, &g);
    p.give(0, dx)
}

/// y = Π x: the product of the other elements, y/x where x ≠ 0. Where exactly one element of a
/// product is zero, it gets the product of the others; with two or more, every derivative is 0.
pub(super) fn product(p: &mut Pullback) -> Result<()> {
    let Some((_, g, axes)) = kept(p)? else { return pass(p) };
    let x = p.x(0)?;
    let zero = p.mask_scalar("Equal", &x, 0.0);
    let filled = p.add(&x, &zero);
    let rest = p.reduce("ReduceProd", &filled, &axes);
    let zeros = p.sum(&zero, &axes);
    let none = p.mask_scalar("Equal", &zeros, 0.0);
    let one = p.mask_scalar("Equal", &zeros, 1.0);
    let only = p.mul(&zero, &one);
    let live = p.add(&only, &none);
    let others = p.div(&rest, &filled);
    let slope = p.mul(&others, &live);
    let dx = p.mul(&slope, &g);
    p.give(0, dx)
}

/// yᵢ = Σ_{j≤i} xⱼ along one axis: the same sum of ȳ, from the other end.
pub(super) fn cumulative_sum(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let reverse = p.node.int("reverse").unwrap_or(0);
    let mut node = p.node.clone().with("reverse", 1 - reverse);
    node.inputs[0].clone_from(&g.name);
    let dx = p.emit(node, g.element, g.shape.clone());
    p.give(0, dx)
}

/// The output, its cotangent, both with the reduced axes kept, and those axes; `None` where the
/// node is told to reduce nothing.
fn kept(p: &mut Pullback) -> Result<Option<(Term, Term, Vec<usize>)>> {
    let (x, y, g) = (p.x(0)?, p.y(0)?, p.g()?);
    let listed = p.constant_ints(1)?.filter(|axes| !axes.is_empty());
    let axes = match listed {
        Some(axes) => axes.iter().map(|&a| super::axis(a, x.rank())).collect::<Result<_>>()?,
        None if p.node.int("noop_with_empty_axes").unwrap_or(0) != 0 => return Ok(None),
        None => (0..x.rank()).collect::<Vec<_>>(),
    };
    let mut shape = x.shape.clone();
    axes.iter().for_each(|&a| shape[a] = 1);
    Ok(Some((p.reshape(&y, &shape), p.reshape(&g, &shape), axes)))
}

/// y = x.
fn pass(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    p.give(0, g)
}
