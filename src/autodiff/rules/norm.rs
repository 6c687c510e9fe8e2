//! Normalizations: x̂ = (x − μ)·r with r = 1/√(σ² + ε) over some axes, then y = γx̂ + β.
//!
//! Where μ and σ² are functions of x, with v̂ = γȳ and n elements in each mean:
//! x̄ = r·(v̂ − mean(v̂) − x̂·mean(v̂x̂)).

use crate::autodiff::builder::Term;
use crate::autodiff::walk::Pullback;
use crate::error::{Result, bail};

/// Inference: μ and σ² are parameters. x̄ = ȳγr, γ̄ = Σȳx̂, β̄ = Σȳ, μ̄ = −Σȳγr and
/// σ̄² = −½Σȳx̂γr².
pub(super) fn batch(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let statistics = p.node.outputs.iter().skip(1).any(|o| !o.is_empty());
    if p.node.int("training_mode").unwrap_or(0) != 0 || statistics {
        bail!(
            Unsupported,
            "BatchNormalization is in training mode; export the model for inference"
        );
    }
    let mut along = vec![1; x.rank()];
    along[1] = x.shape[1];
    let gamma = parameter(p, 1, &along, &x)?;
    let variance = parameter(p, 4, &along, &x)?;
    let r = inverse_root(p, &variance);
    let slope = p.mul(&gamma, &r);
    let share = p.mul(&g, &slope);
    p.give(0, share.clone())?;
    if p.needs(3) {
        let down = p.unary("Neg", &share);
        give_channels(p, 3, &down)?;
    }
    give_channels(p, 2, &g)?;
    if p.needs(1) || p.needs(4) {
        let mean = parameter(p, 3, &along, &x)?;
        let centred = p.sub(&x, &mean);
        let normal = p.mul(&centred, &r);
        let product = p.mul(&g, &normal);
        give_channels(p, 1, &product)?;
        let squared = p.square(&r);
        let factor = p.mul(&gamma, &squared);
        let factor = p.scale(&factor, -0.5);
        let narrowed = p.mul(&product, &factor);
        give_channels(p, 4, &narrowed)?;
    }
    Ok(())
}

/// Over all axes from `axis` on. Outputs 1 and 2 are μ and r and may have cotangents of their own.
pub(super) fn layer(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let axis = super::axis(p.node.int("axis").unwrap_or(-1), x.rank())?;
    let axes: Vec<usize> = (axis..x.rank()).collect();
    let (r, normal) = normalized(p, &x, &axes);
    if p.needs(1) {
        let product = p.mul(&g, &normal);
        p.give(1, product)?;
    }
    p.give(2, g.clone())?;
    if p.needs(0) {
        let gamma = p.x(1)?;
        let v = p.mul(&g, &gamma);
        let mut dx = centred(p, &v, &normal, &r, &axes);
        let count: usize = x.shape[axis..].iter().product();
        if let Some(mean) = p.cotangent(1) {
            let mean = p.cast(&mean, x.element);
            let share = p.scale(&mean, 1.0 / count as f64);
            dx = p.add(&dx, &share);
        }
        if let Some(inverse) = p.cotangent(2) {
            let inverse = p.cast(&inverse, x.element);
            let squared = p.square(&r);
            let product = p.mul(&inverse, &squared);
            let scaled = p.scale(&product, -1.0 / count as f64);
            let share = p.mul(&normal, &scaled);
            dx = p.add(&dx, &share);
        }
        p.give(0, dx)?;
    }
    Ok(())
}

/// Over the spatial axes of each channel of each sample.
pub(super) fn instance(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let axes: Vec<usize> = (2..x.rank()).collect();
    let mut along = vec![1; x.rank()];
    along[1] = x.shape[1];
    let (r, normal) = normalized(p, &x, &axes);
    scale_and_shift(p, &g, &normal)?;
    if p.needs(0) {
        let gamma = parameter(p, 1, &along, &x)?;
        let v = p.mul(&g, &gamma);
        let dx = centred(p, &v, &normal, &r, &axes);
        p.give(0, dx)?;
    }
    Ok(())
}

/// Over the channels and places of each group of each sample, γ and β per channel.
pub(super) fn group(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let groups = usize::try_from(p.node.int("num_groups").unwrap_or(1)).unwrap_or(0);
    if groups == 0 || p.x(1)?.shape != [x.shape[1]] {
        bail!(Unsupported, "GroupNormalization with a scale for each group; use opset 21");
    }
    let grouped = [x.shape[0], groups, x.len() / (x.shape[0] * groups).max(1)];
    let rows = p.reshape(&x, &grouped);
    let (r, normal_rows) = normalized(p, &rows, &[2]);
    let normal = p.reshape(&normal_rows, &x.shape);
    scale_and_shift(p, &g, &normal)?;
    if p.needs(0) {
        let mut along = vec![1; x.rank()];
        along[1] = x.shape[1];
        let gamma = parameter(p, 1, &along, &x)?;
        let v = p.mul(&g, &gamma);
        let v = p.reshape(&v, &grouped);
        let dx = centred(p, &v, &normal_rows, &r, &[2]);
        let dx = p.reshape(&dx, &x.shape);
        p.give(0, dx)?;
    }
    Ok(())
}

/// y = γ·x·r, r = 1/√(mean x² + ε): x̄ = r·(v̂ − x̂·mean(v̂x̂)).
pub(super) fn root_mean_square(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let axis = super::axis(p.node.int("axis").unwrap_or(-1), x.rank())?;
    let axes: Vec<usize> = (axis..x.rank()).collect();
    let square = p.square(&x);
    let mean = p.reduce("ReduceMean", &square, &axes);
    let r = inverse_root(p, &mean);
    let normal = p.mul(&x, &r);
    if p.needs(1) {
        let product = p.mul(&g, &normal);
        p.give(1, product)?;
    }
    if p.needs(0) {
        let gamma = p.x(1)?;
        let v = p.mul(&g, &gamma);
        let product = p.mul(&v, &normal);
        let projection = p.reduce("ReduceMean", &product, &axes);
        let along = p.mul(&normal, &projection);
        let across = p.sub(&v, &along);
        let dx = p.mul(&across, &r);
        p.give(0, dx)?;
    }
    Ok(())
}

/// y = x/‖x‖ over one axis. For the 2-norm x̄ = (ȳ − y Σȳy)/‖x‖, for the 1-norm
/// x̄ = (ȳ − sign x · Σȳy)/‖x‖.
pub(super) fn lp(p: &mut Pullback) -> Result<()> {
    let (x, y, g) = (p.x(0)?, p.y(0)?, p.g()?);
    let axis = super::axis(p.node.int("axis").unwrap_or(-1), x.rank())?;
    let absolute = p.node.int("p").unwrap_or(2) == 1;
    let norm = p.reduce(if absolute { "ReduceL1" } else { "ReduceL2" }, &x, &[axis]);
    let product = p.mul(&g, &y);
    let total = p.sum(&product, &[axis]);
    let direction = if absolute { p.unary("Sign", &x) } else { y };
    let along = p.mul(&direction, &total);
    let across = p.sub(&g, &along);
    let dx = p.div(&across, &norm);
    p.give(0, dx)
}

/// r and x̂, computed anew from x.
fn normalized(p: &mut Pullback, x: &Term, axes: &[usize]) -> (Term, Term) {
    let mean = p.reduce("ReduceMean", x, axes);
    let centred = p.sub(x, &mean);
    let square = p.square(&centred);
    let variance = p.reduce("ReduceMean", &square, axes);
    let r = inverse_root(p, &variance);
    let normal = p.mul(&centred, &r);
    (r, normal)
}

/// r·(v̂ − mean(v̂) − x̂·mean(v̂x̂)).
fn centred(p: &mut Pullback, v: &Term, normal: &Term, r: &Term, axes: &[usize]) -> Term {
    let mean = p.reduce("ReduceMean", v, axes);
    let product = p.mul(v, normal);
    let projection = p.reduce("ReduceMean", &product, axes);
    let along = p.mul(normal, &projection);
    let off_mean = p.sub(v, &mean);
    let across = p.sub(&off_mean, &along);
    p.mul(&across, r)
}

/// γ̄ = Σȳx̂ and β̄ = Σȳ for parameters with one element for each channel.
fn scale_and_shift(p: &mut Pullback, g: &Term, normal: &Term) -> Result<()> {
    if p.needs(1) {
        let product = p.mul(g, normal);
        give_channels(p, 1, &product)?;
    }
    give_channels(p, 2, g)
}

/// Gives input `i`, which has one element for each channel, the sum over all other axes.
fn give_channels(p: &mut Pullback, i: usize, x: &Term) -> Result<()> {
    if !p.needs(i) {
        return Ok(());
    }
    let others: Vec<usize> = (0..x.rank()).filter(|&a| a != 1).collect();
    let total = p.sum(x, &others);
    let vector = p.reshape(&total, &[x.shape[1]]);
    p.give(i, vector)
}

/// 1/√(v + ε).
fn inverse_root(p: &mut Pullback, v: &Term) -> Term {
    let epsilon = p.node.float("epsilon").unwrap_or(1e-5);
    let shifted = p.shift(v, epsilon.into());
    let root = p.unary("Sqrt", &shifted);
    p.unary("Reciprocal", &root)
}

/// Input `i`, one element for each channel, shaped to broadcast over `x` and of its type.
fn parameter(p: &mut Pullback, i: usize, shape: &[usize], x: &Term) -> Result<Term> {
    let vector = p.x(i)?;
    let vector = p.cast(&vector, x.element);
    Ok(p.reshape(&vector, shape))
}
