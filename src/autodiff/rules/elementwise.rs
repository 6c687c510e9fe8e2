//! Functions of one operand, elementwise: x̄ = f′(x) · ȳ.

use std::f64::consts::PI;

use crate::autodiff::builder::Term;
use crate::autodiff::walk::Pullback;
use crate::error::Result;

/// y = |x|: sign x.
pub(super) fn abs(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let sign = p.unary("Sign", &x);
    let dx = p.mul(&g, &sign);
    p.give(0, dx)
}

/// −1/√(1−x²).
pub(super) fn acos(p: &mut Pullback) -> Result<()> {
    let dx = over_root(p, 1.0, -1.0)?;
    let dx = p.unary("Neg", &dx);
    p.give(0, dx)
}

/// 1/√(x²−1).
pub(super) fn acosh(p: &mut Pullback) -> Result<()> {
    let dx = over_root(p, -1.0, 1.0)?;
    p.give(0, dx)
}

/// 1/√(1−x²).
pub(super) fn asin(p: &mut Pullback) -> Result<()> {
    let dx = over_root(p, 1.0, -1.0)?;
    p.give(0, dx)
}

/// 1/√(1+x²).
pub(super) fn asinh(p: &mut Pullback) -> Result<()> {
    let dx = over_root(p, 1.0, 1.0)?;
    p.give(0, dx)
}

/// 1/(1+x²).
pub(super) fn atan(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let below = quadratic(p, 1.0, 1.0)?;
    let dx = p.div(&g, &below);
    p.give(0, dx)
}

/// 1/(1−x²).
pub(super) fn atanh(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let below = quadratic(p, 1.0, -1.0)?;
    let dx = p.div(&g, &below);
    p.give(0, dx)
}

/// −sin x.
pub(super) fn cos(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let sin = p.unary("Sin", &x);
    let product = p.mul(&g, &sin);
    let dx = p.unary("Neg", &product);
    p.give(0, dx)
}

/// sinh x = (eˣ − e⁻ˣ)/2, in terms that every runtime has kernels for.
pub(super) fn cosh(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let (up, down) = exponentials(p, &x);
    let twice = p.sub(&up, &down);
    let sinh = p.scale(&twice, 0.5);
    let dx = p.mul(&g, &sinh);
    p.give(0, dx)
}

/// 2/√π · exp(−x²).
pub(super) fn erf(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let square = p.square(&x);
    let exponent = p.unary("Neg", &square);
    let bell = p.unary("Exp", &exponent);
    let slope = p.scale(&bell, 2.0 / PI.sqrt());
    let dx = p.mul(&g, &slope);
    p.give(0, dx)
}

/// y.
pub(super) fn exp(p: &mut Pullback) -> Result<()> {
    let (y, g) = (p.y(0)?, p.g()?);
    let dx = p.mul(&g, &y);
    p.give(0, dx)
}

/// 1/x.
pub(super) fn log(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let dx = p.div(&g, &x);
    p.give(0, dx)
}

/// −1.
pub(super) fn neg(p: &mut Pullback) -> Result<()> {
    let g = p.g()?;
    let dx = p.unary("Neg", &g);
    p.give(0, dx)
}

/// y = 1/x: −y².
pub(super) fn reciprocal(p: &mut Pullback) -> Result<()> {
    let (y, g) = (p.y(0)?, p.g()?);
    let square = p.square(&y);
    let product = p.mul(&g, &square);
    let dx = p.unary("Neg", &product);
    p.give(0, dx)
}

/// cos x.
pub(super) fn sin(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let cos = p.unary("Cos", &x);
    let dx = p.mul(&g, &cos);
    p.give(0, dx)
}

/// cosh x = (eˣ + e⁻ˣ)/2.
pub(super) fn sinh(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let (up, down) = exponentials(p, &x);
    let twice = p.add(&up, &down);
    let cosh = p.scale(&twice, 0.5);
    let dx = p.mul(&g, &cosh);
    p.give(0, dx)
}

/// 1/(2y).
pub(super) fn sqrt(p: &mut Pullback) -> Result<()> {
    let (y, g) = (p.y(0)?, p.g()?);
    let half = p.scale(&g, 0.5);
    let dx = p.div(&half, &y);
    p.give(0, dx)
}

/// 1 + y².
pub(super) fn tan(p: &mut Pullback) -> Result<()> {
    let (y, g) = (p.y(0)?, p.g()?);
    let square = p.square(&y);
    let slope = p.shift(&square, 1.0);
    let dx = p.mul(&g, &slope);
    p.give(0, dx)
}

/// 1 − y².
pub(super) fn tanh(p: &mut Pullback) -> Result<()> {
    let (y, g) = (p.y(0)?, p.g()?);
    let square = p.square(&y);
    let slope = p.subtract_from(1.0, &square);
    let dx = p.mul(&g, &slope);
    p.give(0, dx)
}

/// offset + factor · x².
fn quadratic(p: &mut Pullback, offset: f64, factor: f64) -> Result<Term> {
    let x = p.x(0)?;
    let square = p.square(&x);
    let scaled = p.scale(&square, factor);
    Ok(p.shift(&scaled, offset))
}

/// ȳ/√(offset + factor · x²).
fn over_root(p: &mut Pullback, offset: f64, factor: f64) -> Result<Term> {
    let g = p.g()?;
    let square = quadratic(p, offset, factor)?;
    let root = p.unary("Sqrt", &square);
    Ok(p.div(&g, &root))
}

/// eˣ and e⁻ˣ.
fn exponentials(p: &mut Pullback, x: &Term) -> (Term, Term) {
    let negative = p.unary("Neg", x);
    (p.unary("Exp", x), p.unary("Exp", &negative))
}
