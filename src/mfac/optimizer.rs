//! Optimizers over a flat weight vector: M-FAC preconditioned SGD, and Adam and SGD beside it.
//!
//! M-FAC: v ← βv + (1 − β)·F⁻¹g, w ← w − ηv, with F of the window the gradient g has just entered.
//! With a damping relative to the gradients, λ = α·(mean diagonal of the window's Fisher), the
//! direction is λF⁻¹g instead: what the window has not seen moves as with SGD, what it has seen
//! moves less, and η means the same for both whatever the scale of the gradients.
//! The damping may be λP instead of λI, with P = √v̂, the metric of Adam: in the coordinates
//! P^(1/2)w it is λI again, so the window holds g̃ = P^(−1/2)g, and P^(−1/2)·λF̃⁻¹g̃ is the
//! direction. What the window has not seen then moves as with Adam.
//! SGD: v ← βv + g, w ← w − ηv. Adam: the published form with bias correction. Weight decay is
//! either coupled, added to g (before it enters the window, as in the published M-FAC), or
//! decoupled, w ← (1 − η·decay)·w. Under a mask the weights that are left out stay exactly zero and
//! their gradients are not seen.

use std::io::{Read, Write};

use super::sliding::Sliding;
use crate::error::{Error, ErrorKind, Result, bail};

/// How the weight decay enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Added to the gradient: g + decay·w.
    Coupled,
    /// Taken off the weights beside the step: w − η·decay·w.
    Decoupled,
}

/// The learning rate over the steps, as a factor of its peak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Always 1.
    Constant,
    /// From 1 down to 0 along a line over `steps`.
    Linear {
        /// Steps until 0.
        steps: u64,
    },
    /// From 1 down to 0 along half a cosine over `steps`.
    Cosine {
        /// Steps until 0.
        steps: u64,
    },
    /// Multiplied by `factor` after each `every` steps.
    Stairs {
        /// Steps on each stair.
        every: u64,
        /// What a stair multiplies by.
        factor: f64,
    },
}

impl Schedule {
    /// The factor at `step`, counted from 0.
    pub fn factor(self, step: u64) -> f64 {
        let part = |steps: u64| (step as f64 / steps.max(1) as f64).min(1.0);
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear { steps } => 1.0 - part(steps),
            Schedule::Cosine { steps } => 0.5 * (1.0 + (std::f64::consts::PI * part(steps)).cos()),
            Schedule::Stairs { every, factor } => {
                factor.powi(i32::try_from(step / every.max(1)).unwrap_or(i32::MAX))
            }
        }
    }
}

/// What all optimizers are told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// η at its peak.
    pub learning_rate: f64,
    /// How η goes on.
    pub schedule: Schedule,
    /// Steps over which η first rises to its peak along a line; the schedule starts after them.
    pub warmup_steps: u64,
    /// The weight decay, 0 for none.
    pub weight_decay: f64,
    /// How the weight decay enters.
    pub decay: Decay,
}

/// Keeps P away from 0 where there was no gradient yet.
const EPSILON: f64 = 1e-8;

/// The direction an optimizer takes.
#[derive(Debug)]
pub enum Method {
    /// M-FAC preconditioned SGD with momentum β on the preconditioned gradient.
    Mfac {
        /// The latest gradients.
        window: Sliding,
        /// β in 0..1.
        momentum: f64,
        /// α, if λ is to follow the gradients: it is measured anew after 1, 2, 4, ... gradients and
        /// then whenever the window has been renewed, and the direction is λF⁻¹g. If `None`, λ
        /// stays what the window was made with, and the direction is F⁻¹g, as published.
        relative_damping: Option<f64>,
        /// β₂, if the damping is λP with P = √v̂ + 10⁻⁸ and the second moment v ← β₂v + (1 − β₂)g²,
        /// v̂ being v corrected for its start. Each gradient enters the window with the P of its
        /// step. `None` for λI, as published.
        diagonal: Option<f64>,
    },
    /// Adam.
    Adam {
        /// β₁ in 0..1.
        first: f64,
        /// β₂ in 0..1.
        second: f64,
        /// Added to the root of the second moment.
        epsilon: f64,
    },
    /// SGD with momentum β.
    Sgd {
        /// β in 0..1.
        momentum: f64,
    },
}

/// An optimizer with its state.
#[derive(Debug)]
pub struct Optimizer {
    method: Method,
    settings: Settings,
    /// False where a weight is kept at zero; empty for no mask.
    mask: Vec<bool>,
    steps: u64,
    /// v of momentum, or Adam's first moment.
    momentum: Vec<f32>,
    /// The second moment of Adam and of a diagonal damping; empty otherwise.
    square: Vec<f32>,
    /// The gradient as seen and the direction from it.
    gradient: Vec<f32>,
    direction: Vec<f32>,
    /// P^(−1/2); empty for the identity.
    roots: Vec<f32>,
}

impl Optimizer {
    /// An optimizer of `dimension` weights; `mask`, if not empty, is false where a weight stays 0.
    ///
    /// Errors of kind `Usage`: a setting out of its range, or lengths that do not agree.
    pub fn new(
        method: Method,
        settings: Settings,
        dimension: usize,
        mask: Vec<bool>,
    ) -> Result<Optimizer> {
        check(&method, &settings)?;
        if !mask.is_empty() && mask.len() != dimension {
            bail!(Usage, "a mask of {} weights does not fit {dimension} weights", mask.len());
        }
        if let Method::Mfac { window, .. } = &method
            && window.dimension() != dimension
        {
            let of = window.dimension();
            bail!(Usage, "a window of gradients of {of} weights does not fit {dimension} weights");
        }
        let zeros = || vec![0.0; dimension];
        let is_diagonal = matches!(method, Method::Mfac { diagonal: Some(_), .. });
        let zeros_if = |is: bool| if is { zeros() } else { Vec::new() };
        let square = zeros_if(is_diagonal || matches!(method, Method::Adam { .. }));
        let roots = zeros_if(is_diagonal);
        let (momentum, gradient, direction) = (zeros(), zeros(), zeros());
        let steps = 0;
        Ok(Optimizer {
            method,
            settings,
            mask,
            steps,
            momentum,
            square,
            gradient,
            direction,
            roots,
        })
    }

    /// d, the number of weights.
    pub fn dimension(&self) -> usize {
        self.momentum.len()
    }

    /// The steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// η of the next step.
    pub fn learning_rate(&self) -> f64 {
        let Settings { learning_rate, schedule, warmup_steps, .. } = self.settings;
        if self.steps < warmup_steps {
            return learning_rate * (self.steps + 1) as f64 / warmup_steps as f64;
        }
        learning_rate * schedule.factor(self.steps - warmup_steps)
    }

    /// Replaces the peak of η, from which the schedule goes on. Error `Usage`: it is negative or
    /// not finite; the old one then stays.
    pub fn set_learning_rate(&mut self, peak: f64) -> Result<()> {
        let settings = Settings { learning_rate: peak, ..self.settings };
        check(&self.method, &settings)?;
        self.settings = settings;
        Ok(())
    }

    /// One step of `weights` (d numbers) along `gradient`.
    ///
    /// Error `Numerics` for a gradient that is not finite; nothing has changed then.
    pub fn step(&mut self, weights: &mut [f32], gradient: &[f32], threads: usize) -> Result<()> {
        assert!(weights.len() == self.momentum.len() && gradient.len() == weights.len());
        self.see(weights, gradient)?;
        let rate = self.learning_rate();
        match &mut self.method {
            Method::Mfac { window, momentum, relative_damping, diagonal } => {
                if let Some(second) = *diagonal {
                    let count = (self.steps + 1) as f64;
                    let (square, roots) = (&mut self.square, &mut self.roots);
                    rescale(&mut self.gradient, square, roots, second, count);
                }
                let (g, direction) = (&self.gradient, &mut self.direction);
                match *relative_damping {
                    None => window.step(g, direction, threads)?,
                    Some(fraction) => {
                        follow(window, fraction, self.steps + 1, g, direction, threads)?
                    }
                }
                for (v, root) in direction.iter_mut().zip(&self.roots) {
                    *v *= root;
                }
                average(&mut self.momentum, &self.direction, *momentum, 1.0 - *momentum);
                self.direction.copy_from_slice(&self.momentum);
            }
            Method::Sgd { momentum } => {
                average(&mut self.momentum, &self.gradient, *momentum, 1.0);
                self.direction.copy_from_slice(&self.momentum);
            }
            Method::Adam { first, second, epsilon } => {
                average(&mut self.momentum, &self.gradient, *first, 1.0 - *first);
                let step = (self.steps + 1) as f64;
                let corrections = (1.0 - first.powf(step), 1.0 - second.powf(step));
                let moments = self.momentum.iter().zip(&mut self.square).zip(&self.gradient);
                for (out, ((m, s), g)) in self.direction.iter_mut().zip(moments) {
                    let g = f64::from(*g);
                    *s = (*second * f64::from(*s) + (1.0 - *second) * g * g) as f32;
                    let root = (f64::from(*s) / corrections.1).sqrt();
                    *out = (f64::from(*m) / corrections.0 / (root + *epsilon)) as f32;
                }
            }
        }
        let decay = match self.settings.decay {
            Decay::Coupled => 0.0,
            Decay::Decoupled => self.settings.weight_decay,
        };
        for (w, direction) in weights.iter_mut().zip(&self.direction) {
            let old = f64::from(*w);
            *w = (old - rate * (decay * old + f64::from(*direction))) as f32;
        }
        for (w, _) in weights.iter_mut().zip(&self.mask).filter(|(_, kept)| !**kept) {
            *w = 0.0;
        }
        self.steps += 1;
        Ok(())
    }

    /// Fills in the gradient with coupled decay, under the mask.
    fn see(&mut self, weights: &[f32], gradient: &[f32]) -> Result<()> {
        if let Some(i) = gradient.iter().position(|g| !g.is_finite()) {
            bail!(
                Numerics,
                "the gradient of weight {i} is {}; lower the learning rate or look at the samples",
                gradient[i]
            );
        }
        let decay = match self.settings.decay {
            Decay::Coupled => self.settings.weight_decay,
            Decay::Decoupled => 0.0,
        };
        for ((out, g), w) in self.gradient.iter_mut().zip(gradient).zip(weights) {
            *out = (f64::from(*g) + decay * f64::from(*w)) as f32;
        }
        for (g, _) in self.gradient.iter_mut().zip(&self.mask).filter(|(_, kept)| !**kept) {
            *g = 0.0;
        }
        Ok(())
    }

    /// Writes the state (not the settings, nor the mask), from which [`Optimizer::restore`] goes on
    /// with the same bits.
    pub fn save(&self, to: &mut dyn Write) -> std::io::Result<()> {
        to.write_all(&self.header())?;
        to.write_all(&self.steps.to_le_bytes())?;
        for number in self.momentum.iter().chain(&self.square) {
            to.write_all(&number.to_le_bytes())?;
        }
        match &self.method {
            Method::Mfac { window, .. } => window.save(to),
            Method::Adam { .. } | Method::Sgd { .. } => Ok(()),
        }
    }

    /// Takes over a state that [`Optimizer::save`] wrote for the same method and weights.
    ///
    /// Errors of kind `Io`: it is cut short, or of another method or number of weights. The
    /// optimizer is then not to be used further.
    pub fn restore(&mut self, from: &mut dyn Read) -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Io, format!("the saved state of the optimizer is cut short: {e}"))
                .with_source(e)
        };
        let want = self.header();
        let mut header = vec![0; want.len()];
        from.read_exact(&mut header).map_err(failed)?;
        if header != want {
            bail!(Io, "the saved state is not of this optimizer and number of weights");
        }
        let mut steps = [0; 8];
        from.read_exact(&mut steps).map_err(failed)?;
        self.steps = u64::from_le_bytes(steps);
        for number in self.momentum.iter_mut().chain(&mut self.square) {
            let mut bytes = [0; 4];
            from.read_exact(&mut bytes).map_err(failed)?;
            *number = f32::from_le_bytes(bytes);
        }
        match &mut self.method {
            Method::Mfac { window, .. } => window.restore(from),
            Method::Adam { .. } | Method::Sgd { .. } => Ok(()),
        }
    }

    /// What a saved state begins with.
    fn header(&self) -> Vec<u8> {
        let method = match self.method {
            Method::Mfac { diagonal: None, .. } => "mfac",
            Method::Mfac { diagonal: Some(_), .. } => "mfad",
            Method::Adam { .. } => "adam",
            Method::Sgd { .. } => "sgd ",
        };
        [b"hone.optimizer/1", method.as_bytes(), &(self.momentum.len() as u64).to_le_bytes()]
            .concat()
    }
}

/// λF⁻¹g with λ = fraction·(mean diagonal of F), for gradient number `count`, counted from 1.
fn follow(
    window: &mut Sliding,
    fraction: f64,
    count: u64,
    gradient: &[f32],
    direction: &mut [f32],
    threads: usize,
) -> Result<()> {
    let capacity = window.capacity() as u64;
    if count.is_multiple_of(capacity) || (count < capacity && count.is_power_of_two()) {
        window.push(gradient, threads)?;
        // Without any gradient there is nothing to measure; whatever λ is, λF⁻¹g = g.
        let damping = fraction * window.mean_diagonal();
        if damping > 0.0 {
            window.set_damping(damping)?;
        }
        window.apply(gradient, direction, threads);
    } else {
        window.step(gradient, direction, threads)?;
    }
    let damping = window.damping();
    direction.iter_mut().for_each(|v| *v = (damping * f64::from(*v)) as f32);
    Ok(())
}

/// Takes gradient number `count` into the second moment, then g ← P^(−1/2)g with P as of then.
fn rescale(g: &mut [f32], square: &mut [f32], roots: &mut [f32], second: f64, count: f64) {
    let correction = 1.0 - second.powf(count);
    for ((g, s), root) in g.iter_mut().zip(square).zip(roots) {
        let x = f64::from(*g);
        *s = (second * f64::from(*s) + (1.0 - second) * x * x) as f32;
        let scale = 1.0 / ((f64::from(*s) / correction).sqrt() + EPSILON).sqrt();
        (*root, *g) = (scale as f32, (x * scale) as f32);
    }
}

/// v ← keep·v + take·x.
fn average(v: &mut [f32], x: &[f32], keep: f64, take: f64) {
    for (v, x) in v.iter_mut().zip(x) {
        *v = (keep * f64::from(*v) + take * f64::from(*x)) as f32;
    }
}

fn check(method: &Method, settings: &Settings) -> Result<()> {
    if let Method::Mfac { relative_damping: Some(fraction), .. } = method
        && !(*fraction > 0.0 && fraction.is_finite())
    {
        bail!(Usage, "the relative damping must be positive and finite, not {fraction}");
    }
    let momenta = match method {
        Method::Mfac { momentum, diagonal, .. } => [*momentum, diagonal.unwrap_or(0.0)],
        Method::Sgd { momentum } => [*momentum, 0.0],
        Method::Adam { first, second, epsilon } => {
            if !(*epsilon > 0.0 && epsilon.is_finite()) {
                bail!(Usage, "Adam's epsilon must be positive, not {epsilon}");
            }
            [*first, *second]
        }
    };
    if let Some(wrong) = momenta.into_iter().find(|m| !(0.0..1.0).contains(m)) {
        bail!(Usage, "a momentum must be at least 0 and below 1, not {wrong}");
    }
    for (name, value) in
        [("learning rate", settings.learning_rate), ("weight decay", settings.weight_decay)]
    {
        if !(value >= 0.0 && value.is_finite()) {
            bail!(Usage, "the {name} must be at least 0 and finite, not {value}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::store::Storage;
    use crate::mfac::tolerance::{Rng, assert_approximate, assert_exact, widen};

    const PLAIN: Settings = Settings {
        learning_rate: 0.1,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        weight_decay: 0.0,
        decay: Decay::Coupled,
    };

    fn mfac(d: usize, momentum: f64) -> Method {
        let window = Sliding::new(8, d, 1e-2, Storage::F32, None).unwrap();
        Method::Mfac { window, momentum, relative_damping: None, diagonal: None }
    }

    /// The same with a damping that follows the gradients.
    fn following(d: usize, momentum: f64) -> Method {
        let window = Sliding::new(8, d, 1.0, Storage::F32, None).unwrap();
        Method::Mfac { window, momentum, relative_damping: Some(0.5), diagonal: None }
    }

    /// The same in the metric of Adam.
    fn diagonal(d: usize) -> Method {
        let window = Sliding::new(8, d, 1.0, Storage::F32, None).unwrap();
        let (momentum, relative_damping) = (0.5, Some(0.5));
        Method::Mfac { window, momentum, relative_damping, diagonal: Some(0.999) }
    }

    fn adam() -> Method {
        Method::Adam { first: 0.9, second: 0.999, epsilon: 1e-8 }
    }

    /// The weights after steps along `gradients`.
    fn run(
        method: Method,
        settings: Settings,
        mask: Vec<bool>,
        gradients: &[[f32; 3]],
    ) -> Vec<f64> {
        let mut weights = [1.0, -2.0, 0.5];
        let mut optimizer = Optimizer::new(method, settings, 3, mask).unwrap();
        gradients.iter().for_each(|g| optimizer.step(&mut weights, g, 1).unwrap());
        widen(&weights)
    }

    #[test]
    fn steps_follow_the_published_formulas() {
        let g = [[0.5, -1.0, 0.0], [0.25, 1.0, 2.0]];
        let sgd = run(Method::Sgd { momentum: 0.5 }, PLAIN, vec![], &g);
        // v₁ = g₁, v₂ = v₁/2 + g₂.
        assert_approximate(&sgd, &[1.0 - 0.05 - 0.05, -2.0 + 0.1 - 0.05, 0.5 - 0.2], 1e-6, 1.0);
        let first = run(adam(), PLAIN, vec![], &g[..1]);
        assert_approximate(&first, &[0.9, -1.9, 0.5], 1e-6, 1.0);
        // One gradient in a window of 8: F⁻¹g = g/(λ + ‖g‖²/8).
        let one = run(mfac(3, 0.5), PLAIN, vec![], &g[..1]);
        let scale = 0.1 * 0.5 / (1e-2 + 1.25 / 8.0);
        assert_approximate(&one, &[1.0 - scale * 0.5, -2.0 + scale, 0.5], 1e-6, 1.0);
        // λ = 0.5·‖g‖²/3: λF⁻¹g = g/(1 + ‖g‖²/(8λ)) = g/(1 + 3/4), whatever the scale of g.
        for c in [1.0f32, 1e-4] {
            let settings = Settings { learning_rate: 0.1 / f64::from(c), ..PLAIN };
            let scaled = [g[0].map(|x| c * x)];
            let one = run(following(3, 0.5), settings, vec![], &scaled);
            let scale = 0.1 * 0.5 / 1.75;
            assert_approximate(&one, &[1.0 - scale * 0.5, -2.0 + scale, 0.5], 1e-6, 1.0);
        }
    }

    #[test]
    fn a_diagonal_damping_solves_in_the_metric_of_adam() {
        // P = |g|, g̃ = sign(g)·√|g| and λ = 0.5·‖g̃‖²/3: the direction is sign(g)/1.75.
        for c in [1.0f32, 1e-4] {
            let one = run(diagonal(3), PLAIN, vec![], &[[0.5, -1.0, 0.0].map(|x| c * x)]);
            let scale = 0.1 * 0.5 / 1.75;
            assert_approximate(&one, &[1.0 - scale, -2.0 + scale, 0.5], 1e-3, 1.0);
        }
        // After n gradients, (λI + G̃ᵀG̃/m)·P^(1/2)u = λg̃, everything in f64 from the definition.
        let (d, n, m) = (5, 4, 8.0);
        let gradients = Rng::new(52).normals(n * d);
        let window = Sliding::new(8, d, 1.0, Storage::F32, None).unwrap();
        let method = Method::Mfac {
            window,
            momentum: 0.0,
            relative_damping: Some(0.5),
            diagonal: Some(0.9),
        };
        let mut optimizer = Optimizer::new(method, PLAIN, d, vec![]).unwrap();
        let (mut v, mut p, mut rows) = (vec![0.0; d], vec![0.0; d], Vec::new());
        let mut u = Vec::new();
        for (t, g) in (1..).zip(gradients.chunks_exact(d)) {
            let mut weights = vec![0.0; d];
            optimizer.step(&mut weights, g, 1).unwrap();
            u = weights.iter().map(|w| -f64::from(*w) / 0.1).collect();
            for ((v, p), &g) in v.iter_mut().zip(&mut p).zip(g) {
                *v = 0.9 * *v + 0.1 * f64::from(g).powi(2);
                *p = (*v / (1.0 - 0.9f64.powi(t))).sqrt();
            }
            let scaled: Vec<f64> =
                g.iter().zip(&p).map(|(&g, p)| f64::from(g) / p.sqrt()).collect();
            rows.push(scaled);
        }
        // λ was set at gradients 1, 2 and 4.
        let squares: f64 = rows.iter().flatten().map(|x| x * x).sum();
        let lambda = 0.5 * squares / (n * d) as f64;
        let y: Vec<f64> = u.iter().zip(&p).map(|(u, p)| u * p.sqrt()).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let products: Vec<f64> = rows.iter().map(|row| dot(row, &y) / m).collect();
        let left: Vec<f64> = (0..d)
            .map(|i| {
                lambda * y[i] + rows.iter().zip(&products).map(|(row, p)| row[i] * p).sum::<f64>()
            })
            .collect();
        let right: Vec<f64> = rows[n - 1].iter().map(|x| lambda * x).collect();
        assert_approximate(&left, &right, 1e-5, 1.0);
    }

    #[test]
    fn decay_is_coupled_or_not_and_masks_are_kept() {
        let zero = [[0.0; 3]];
        let with = |decay| Settings { weight_decay: 0.5, decay, ..PLAIN };
        for decay in [Decay::Coupled, Decay::Decoupled] {
            let sgd = run(Method::Sgd { momentum: 0.0 }, with(decay), vec![], &zero);
            assert_approximate(&sgd, &[0.95, -1.9, 0.475], 1e-6, 1.0);
        }
        let coupled = run(adam(), with(Decay::Coupled), vec![], &zero);
        assert_approximate(&coupled, &[0.9, -1.9, 0.4], 1e-6, 1.0);
        let decoupled = run(adam(), with(Decay::Decoupled), vec![], &zero);
        assert_approximate(&decoupled, &[0.95, -1.9, 0.475], 1e-6, 1.0);
        for method in [mfac(3, 0.9), diagonal(3), adam(), Method::Sgd { momentum: 0.9 }] {
            let mask = vec![true, false, true];
            let w = run(method, with(Decay::Coupled), mask, &[[1.0, 5.0, -1.0]; 3]);
            assert!(w[1] == 0.0 && w[0] < 1.0 && w[2] > 0.5, "{w:?}");
        }
    }

    #[test]
    fn rates_rise_and_fall_as_told() {
        let linear = Schedule::Linear { steps: 4 };
        assert_exact(&[0, 1, 4, 9].map(|s| linear.factor(s)), &[1.0, 0.75, 0.0, 0.0]);
        let cosine = Schedule::Cosine { steps: 4 };
        assert_approximate(&[0, 2, 4].map(|s| cosine.factor(s)), &[1.0, 0.5, 0.0], 1e-12, 1.0);
        let stairs = Schedule::Stairs { every: 3, factor: 0.5 };
        assert_exact(&[0, 2, 3, 8].map(|s| stairs.factor(s)), &[1.0, 1.0, 0.5, 0.25]);
        let settings = Settings { warmup_steps: 4, schedule: linear, ..PLAIN };
        let method = Method::Sgd { momentum: 0.0 };
        let mut optimizer = Optimizer::new(method, settings, 1, vec![]).unwrap();
        let rates: Vec<f64> = (0..6)
            .map(|_| {
                let rate = optimizer.learning_rate();
                optimizer.step(&mut [0.0], &[1.0], 1).unwrap();
                rate
            })
            .collect();
        assert_approximate(&rates, &[0.025, 0.05, 0.075, 0.1, 0.1, 0.075], 1e-12, 0.0);
    }

    #[test]
    fn a_saved_optimizer_goes_on_with_the_same_bits() {
        let d = 20;
        let g = Rng::new(51).normals(20 * d);
        let methods: [fn() -> Method; 4] =
            [|| mfac(20, 0.9), || diagonal(20), adam, || Method::Sgd { momentum: 0.9 }];
        for method in methods {
            let new = || Optimizer::new(method(), PLAIN, d, vec![]).unwrap();
            let (mut optimizer, mut weights) = (new(), vec![0.0; d]);
            for g in g.chunks_exact(d).take(11) {
                optimizer.step(&mut weights, g, 1).unwrap();
            }
            let mut saved = Vec::new();
            optimizer.save(&mut saved).unwrap();
            let (mut restored, mut others) = (new(), weights.clone());
            restored.restore(&mut &saved[..]).unwrap();
            assert_eq!(restored.steps(), 11);
            for g in g.chunks_exact(d).skip(11) {
                optimizer.step(&mut weights, g, 1).unwrap();
                restored.step(&mut others, g, 2).unwrap();
            }
            assert_exact(&widen(&others), &widen(&weights));
            let cut = &saved[..saved.len() - 1];
            assert_eq!(new().restore(&mut &cut[..]).unwrap_err().kind(), ErrorKind::Io);
            saved[17] ^= 1;
            assert_eq!(new().restore(&mut &saved[..]).unwrap_err().kind(), ErrorKind::Io);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let usage = |method, settings, mask: Vec<bool>| {
            assert_eq!(
                Optimizer::new(method, settings, 3, mask).unwrap_err().kind(),
                ErrorKind::Usage
            );
        };
        usage(Method::Sgd { momentum: 1.0 }, PLAIN, vec![]);
        usage(adam(), Settings { learning_rate: f64::NAN, ..PLAIN }, vec![]);
        usage(adam(), Settings { weight_decay: -1.0, ..PLAIN }, vec![]);
        usage(adam(), PLAIN, vec![true]);
        usage(mfac(4, 0.0), PLAIN, vec![]);
        for method in [mfac(3, 0.0), adam()] {
            let mut optimizer = Optimizer::new(method, PLAIN, 3, vec![]).unwrap();
            let mut weights = [1.0, 2.0, 3.0];
            let error = optimizer.step(&mut weights, &[0.0, f32::NAN, 1.0], 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Numerics);
            assert!(weights == [1.0, 2.0, 3.0] && optimizer.steps() == 0);
        }
    }
}
