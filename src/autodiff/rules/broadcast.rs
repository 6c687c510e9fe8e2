//! Functions of several operands with broadcasting. Each operand's cotangent is given at the
//! shape of the result and summed over the stretched axes on arrival.

use crate::autodiff::builder::Term;
use crate::autodiff::walk::Pullback;
use crate::error::Result;

/// y = a + b.
pub(super) fn add(p: &mut Pullback) -> Result<()> {
    sum(p)
}

/// y = a − b.
pub(super) fn sub(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    p.give(0, g.clone())?;
    if p.needs(1) {
        let share = p.unary("Neg", &g);
        p.give(1, share)?;
    }
    Ok(())
}

/// y = a·b: ȳb and ȳa.
pub(super) fn mul(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    for (i, other) in [(0, 1), (1, 0)] {
        if p.needs(i) {
            let factor = p.x(other)?;
            let share = p.mul(&g, &factor);
            p.give(i, share)?;
        }
    }
    Ok(())
}

/// y = a/b: ȳ/b and −ȳy/b.
pub(super) fn div(p: &mut Pullback) -> Result<()> {
    let (y, b, g) = (p.y(0)?, p.x(1)?, p.g()?);
    let quotient = p.div(&g, &b);
    p.give(0, quotient.clone())?;
    if p.needs(1) {
        let product = p.mul(&quotient, &y);
        let share = p.unary("Neg", &product);
        p.give(1, share)?;
    }
    Ok(())
}

/// y = xᵉ: ȳ·e·xᵉ⁻¹ and ȳ·y·log x, the latter where x > 0.
pub(super) fn pow(p: &mut Pullback) -> Result<()> {
    let (x, y, g) = (p.x(0)?, p.y(0)?, p.g()?);
    if p.needs(0) {
        let slope = power_slope(p, &x)?;
        let share = p.mul(&g, &slope);
        p.give(0, share)?;
    }
    if p.needs(1) {
        let (zero, one) = (p.scalar(x.element, 0.0), p.scalar(x.element, 1.0));
        let positive =
            p.apply("Greater", &[&x, &zero], crate::tensor::ElementType::Bool, x.shape.clone());
        let safe = p.apply("Where", &[&positive, &x, &one], x.element, x.shape.clone());
        let log = p.unary("Log", &safe);
        let growth = p.mul(&y, &log);
        let share = p.mul(&g, &growth);
        p.give(1, share)?;
    }
    Ok(())
}

/// e·xᵉ⁻¹, without a power where e is a common constant.
fn power_slope(p: &mut Pullback, x: &Term) -> Result<Term> {
    let constant = p.constant(1).filter(|e| e.len() == 1).map(|e| e.to_f64()[0]);
    if let Some(exponent) = constant {
        let lowered = match exponent {
            0.0 => return Ok(p.zeros(x.element, &x.shape)),
            1.0 => return Ok(p.scalar(x.element, 1.0)),
            2.0 => x.clone(),
            3.0 => p.square(x),
            _ => {
                let less = p.scalar(x.element, exponent - 1.0);
                p.binary("Pow", x, &less)
            }
        };
        return Ok(p.scale(&lowered, exponent));
    }
    let exponent = p.x(1)?;
    let exponent = p.cast(&exponent, x.element);
    let less = p.shift(&exponent, -1.0);
    let lowered = p.binary("Pow", x, &less);
    Ok(p.mul(&exponent, &lowered))
}

/// y = Σ xᵢ.
pub(super) fn sum(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    (0..p.arity()).try_for_each(|i| p.give(i, g.clone()))
}

/// y = Σ xᵢ / n.
pub(super) fn mean(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let count = p.arity() as f64;
    let share = p.scale(&g, 1.0 / count);
    (0..p.arity()).try_for_each(|i| p.give(i, share.clone()))
}

/// y = max xᵢ or min xᵢ: operands that tie for the extremum share the cotangent.
pub(super) fn extremum(p: &mut Pullback) -> Result<()> {
    let (y, g) = (p.y(0)?, p.g()?);
    if p.arity() == 1 {
        return p.give(0, g);
    }
    let mut masks = Vec::new();
    for i in 0..p.arity() {
        let x = p.x(i)?;
        masks.push(p.mask("Equal", &x, &y, y.element));
    }
    let mut ties = masks[0].clone();
    for mask in &masks[1..] {
        ties = p.add(&ties, mask);
    }
    let share = p.div(&g, &ties);
    for (i, mask) in masks.iter().enumerate() {
        if p.needs(i) {
            let part = p.mul(&share, mask);
            p.give(i, part)?;
        }
    }
    Ok(())
}

/// y = a where the condition holds, else b.
pub(super) fn choose(p: &mut Pullback) -> Result<()> {
    let (condition, g) = (p.x(0)?, p.g()?);
    let mask = p.cast(&condition, g.element);
    if p.needs(1) {
        let share = p.mul(&g, &mask);
        p.give(1, share)?;
    }
    if p.needs(2) {
        let rest = p.subtract_from(1.0, &mask);
        let share = p.mul(&g, &rest);
        p.give(2, share)?;
    }
    Ok(())
}
