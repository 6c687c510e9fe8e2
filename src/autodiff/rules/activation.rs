//! Activation functions: x̄ = f′(x) · ȳ, from the output wherever the output determines the slope.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use crate::autodiff::builder::Term;
use crate::autodiff::walk::Pullback;
use crate::error::Result;

/// y = max(x, 0): 1 where y > 0.
pub(super) fn relu(p: &mut Pullback) -> Result<()> {
    let y = p.y(0)?;
    let slope = p.mask_scalar("Greater", &y, 0.0);
    give_times(p, &slope)
}

/// y = min(max(x, low), high): 1 strictly between the bounds, which get what they cut off.
pub(super) fn clip(p: &mut Pullback) -> Result<()> {
    let (x, y, g) = (p.x(0)?, p.y(0)?, p.g()?);
    let low = p.node.input(1).map(|_| p.x(1)).transpose()?;
    let high = p.node.input(2).map(|_| p.x(2)).transpose()?;
    let mut dx = g.clone();
    if let Some(low) = &low {
        let inside = p.mask("Greater", &y, low, y.element);
        dx = p.mul(&dx, &inside);
    }
    if let Some(high) = &high {
        let inside = p.mask("Less", &y, high, y.element);
        dx = p.mul(&dx, &inside);
    }
    p.give(0, dx)?;
    if let Some(low) = low.as_ref().filter(|_| p.needs(1)) {
        let raised = p.mask("Less", &x, low, y.element);
        let mut share = p.mul(&g, &raised);
        if let Some(high) = &high {
            let stays = p.mask("Less", low, high, y.element);
            share = p.mul(&share, &stays);
        }
        p.give(1, share)?;
    }
    if let Some(high) = high.as_ref().filter(|_| p.needs(2)) {
        let raised = low.map_or(x.clone(), |low| p.binary("Max", &x, &low));
        let cut = p.mask("Greater", &raised, high, y.element);
        let share = p.mul(&g, &cut);
        p.give(2, share)?;
    }
    Ok(())
}

/// y(1 − y).
pub(super) fn sigmoid(p: &mut Pullback) -> Result<()> {
    let y = p.y(0)?;
    let rest = p.subtract_from(1.0, &y);
    let slope = p.mul(&y, &rest);
    give_times(p, &slope)
}

/// y = clamp(αx + β, 0, 1): α where 0 < y < 1.
pub(super) fn hard_sigmoid(p: &mut Pullback) -> Result<()> {
    let y = p.y(0)?;
    let alpha = parameter(p, "alpha", 0.2);
    let between = between_zero_and_one(p, &y);
    let slope = p.scale(&between, alpha);
    give_times(p, &slope)
}

/// y = x·h, h = clamp(x/6 + 1/2, 0, 1): h + x/6 where 0 < h < 1.
pub(super) fn hard_swish(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let (zero, one) = (p.scalar(x.element, 0.0), p.scalar(x.element, 1.0));
    let sixth = p.scale(&x, 1.0 / 6.0);
    let line = p.shift(&sixth, 0.5);
    let h = p.apply("Clip", &[&line, &zero, &one], x.element, x.shape.clone());
    let between = between_zero_and_one(p, &h);
    let ramp = p.mul(&sixth, &between);
    let slope = p.add(&h, &ramp);
    give_times(p, &slope)
}

/// y = x where x > 0, else αx.
pub(super) fn leaky_relu(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let alpha = parameter(p, "alpha", 0.01);
    let positive = p.mask_scalar("Greater", &x, 0.0);
    let slope = mix(p, &positive, 1.0, alpha);
    give_times(p, &slope)
}

/// [`leaky_relu`] with an operand for α, which gets x where x < 0.
pub(super) fn prelu(p: &mut Pullback) -> Result<()> {
    let (x, alpha, g) = (p.x(0)?, p.x(1)?, p.g()?);
    let positive = p.mask_scalar("Greater", &x, 0.0);
    let negative = p.subtract_from(1.0, &positive);
    let sloped = p.mul(&negative, &alpha);
    let slope = p.add(&positive, &sloped);
    give_times(p, &slope)?;
    if p.needs(1) {
        let below = p.mul(&x, &negative);
        let share = p.mul(&g, &below);
        p.give(1, share)?;
    }
    Ok(())
}

/// y = x where x > α, else 0.
pub(super) fn thresholded_relu(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let alpha = parameter(p, "alpha", 1.0);
    let slope = p.mask_scalar("Greater", &x, alpha);
    give_times(p, &slope)
}

/// y = x where x > 0, else α(eˣ − 1): 1 or y + α.
pub(super) fn elu(p: &mut Pullback) -> Result<()> {
    let alpha = parameter(p, "alpha", 1.0);
    exponential_linear(p, 1.0, alpha, 1.0)
}

/// y = γx where x > 0, else γα(eˣ − 1): γ or y + γα.
pub(super) fn selu(p: &mut Pullback) -> Result<()> {
    let alpha = parameter(p, "alpha", 1.673_263_242_354_377_2);
    let gamma = parameter(p, "gamma", 1.050_700_987_355_480_5);
    exponential_linear(p, gamma, gamma * alpha, 1.0)
}

/// y = x where x > 0, else α(e^(x/α) − 1): 1 or y/α + 1.
pub(super) fn celu(p: &mut Pullback) -> Result<()> {
    let alpha = parameter(p, "alpha", 1.0);
    exponential_linear(p, 1.0, 1.0, 1.0 / alpha)
}

/// The slope of the exponential family: `right` where y > 0, else `factor` · y + `left`.
fn exponential_linear(p: &mut Pullback, right: f64, left: f64, factor: f64) -> Result<()> {
    let y = p.y(0)?;
    let positive = p.mask_scalar("Greater", &y, 0.0);
    let zero = p.scalar(y.element, 0.0);
    let below = p.binary("Min", &y, &zero);
    let scaled = p.scale(&below, factor);
    let flat = mix(p, &positive, right, left);
    let slope = p.add(&flat, &scaled);
    give_times(p, &slope)
}

/// y = x·Φ(x) with the normal distribution Φ: Φ + xφ; or its approximation by tanh.
pub(super) fn gelu(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    if p.node.string("approximate") == Some("tanh") {
        return gelu_tanh(p, &x);
    }
    let scaled = p.scale(&x, FRAC_1_SQRT_2);
    let erf = p.unary("Erf", &scaled);
    let shifted = p.shift(&erf, 1.0);
    let cdf = p.scale(&shifted, 0.5);
    let square = p.square(&x);
    let exponent = p.scale(&square, -0.5);
    let bell = p.unary("Exp", &exponent);
    let density = p.scale(&bell, 1.0 / (2.0 * PI).sqrt());
    let ramp = p.mul(&x, &density);
    let slope = p.add(&cdf, &ramp);
    give_times(p, &slope)
}

/// y = x(1 + t)/2, t = tanh(u), u = √(2/π)(x + 0.044715x³):
/// (1 + t)/2 + x/2 · (1 − t²) · √(2/π)(1 + 0.134145x²).
fn gelu_tanh(p: &mut Pullback, x: &Term) -> Result<()> {
    let root = (2.0 / PI).sqrt();
    let square = p.square(x);
    let cubic = p.scale(&square, 0.044715 * root);
    let factor = p.shift(&cubic, root);
    let u = p.mul(x, &factor);
    let t = p.unary("Tanh", &u);
    let shifted = p.shift(&t, 1.0);
    let gate = p.scale(&shifted, 0.5);
    let t_square = p.square(&t);
    let t_slope = p.subtract_from(1.0, &t_square);
    let u_bend = p.scale(&square, 3.0 * 0.044715 * root);
    let u_slope = p.shift(&u_bend, root);
    let half = p.scale(x, 0.5);
    let chain = p.mul(&t_slope, &u_slope);
    let ramp = p.mul(&half, &chain);
    let slope = p.add(&gate, &ramp);
    give_times(p, &slope)
}

/// y = x·s, s = sigmoid(αx): s + αy(1 − s).
pub(super) fn swish(p: &mut Pullback) -> Result<()> {
    let (x, y) = (p.x(0)?, p.y(0)?);
    let alpha = parameter(p, "alpha", 1.0);
    let scaled = p.scale(&x, alpha);
    let s = p.unary("Sigmoid", &scaled);
    let rest = p.subtract_from(1.0, &s);
    let product = p.mul(&y, &rest);
    let ramp = p.scale(&product, alpha);
    let slope = p.add(&s, &ramp);
    give_times(p, &slope)
}

/// y = x·t, t = tanh(log(1 + eˣ)): t + x(1 − t²)·sigmoid(x).
pub(super) fn mish(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let soft = p.unary("Softplus", &x);
    let t = p.unary("Tanh", &soft);
    let square = p.square(&t);
    let rest = p.subtract_from(1.0, &square);
    let s = p.unary("Sigmoid", &x);
    let bent = p.mul(&rest, &s);
    let ramp = p.mul(&x, &bent);
    let slope = p.add(&t, &ramp);
    give_times(p, &slope)
}

/// y = log(1 + eˣ): sigmoid(x).
pub(super) fn softplus(p: &mut Pullback) -> Result<()> {
    let x = p.x(0)?;
    let slope = p.unary("Sigmoid", &x);
    give_times(p, &slope)
}

/// y = x/(1 + |x|): (1 − |y|)².
pub(super) fn softsign(p: &mut Pullback) -> Result<()> {
    let y = p.y(0)?;
    let size = p.unary("Abs", &y);
    let rest = p.subtract_from(1.0, &size);
    let slope = p.square(&rest);
    give_times(p, &slope)
}

/// x̄ = y(ȳ − Σ ȳy), summed over the axis.
pub(super) fn softmax(p: &mut Pullback) -> Result<()> {
    let (y, g) = (p.y(0)?, p.g()?);
    let axis = super::axis(p.node.int("axis").unwrap_or(-1), y.rank())?;
    let product = p.mul(&g, &y);
    let total = p.sum(&product, &[axis]);
    let centred = p.sub(&g, &total);
    let dx = p.mul(&y, &centred);
    p.give(0, dx)
}

/// x̄ = ȳ − eʸ Σ ȳ, summed over the axis.
pub(super) fn log_softmax(p: &mut Pullback) -> Result<()> {
    let (y, g) = (p.y(0)?, p.g()?);
    let axis = super::axis(p.node.int("axis").unwrap_or(-1), y.rank())?;
    let total = p.sum(&g, &[axis]);
    let share = p.unary("Exp", &y);
    let spread = p.mul(&share, &total);
    let dx = p.sub(&g, &spread);
    p.give(0, dx)
}

/// x̄ = slope · ȳ.
fn give_times(p: &mut Pullback, slope: &Term) -> Result<()> {
    let g = p.g()?;
    let dx = p.mul(&g, slope);
    p.give(0, dx)
}

/// `one` where the mask is 1 and `zero` where it is 0.
fn mix(p: &mut Pullback, mask: &Term, one: f64, zero: f64) -> Term {
    let scaled = p.scale(mask, one - zero);
    if zero == 0.0 { scaled } else { p.shift(&scaled, zero) }
}

fn between_zero_and_one(p: &mut Pullback, y: &Term) -> Term {
    let above = p.mask_scalar("Greater", y, 0.0);
    let below = p.mask_scalar("Less", y, 1.0);
    p.mul(&above, &below)
}

fn parameter(p: &Pullback, name: &str, default: f64) -> f64 {
    p.node.float(name).map_or(default, f64::from)
}
