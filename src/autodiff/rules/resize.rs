//! Resize: along each axis the output is a constant matrix times the input, y = M x, so the
//! cotangent is x̄ = Mᵀ ȳ along each axis in turn.

use crate::autodiff::walk::Pullback;
use crate::error::{Result, bail};
use crate::onnx::Node;

/// Nearest, linear and cubic interpolation in every coordinate mode but cropping.
pub(super) fn resize(p: &mut Pullback) -> Result<()> {
    let (x, y, mut dx) = (p.x(0)?, p.y(0)?, p.g()?);
    let refused = [
        ("antialias", p.node.int("antialias").unwrap_or(0) != 0),
        ("cropping", coordinates(p.node) == "tf_crop_and_resize"),
        ("keep_aspect_ratio_policy", policy(p.node) != "stretch"),
    ];
    if let Some((what, _)) = refused.iter().find(|(_, set)| *set) {
        bail!(Unsupported, "the rule of Resize does not know {what}");
    }
    let scales = scales(p, &x.shape, &y.shape)?;
    for (i, &scale) in scales.iter().enumerate().rev().filter(|(_, scale)| **scale != 1.0) {
        let axis = Axis { input: x.shape[i], output: y.shape[i], scale };
        // Mᵀ, [input, output].
        let mut matrix = vec![0.0; axis.input * axis.output];
        for o in 0..axis.output {
            for (tap, weight) in axis.taps(o, p.node)? {
                matrix[tap * axis.output + o] += weight;
            }
        }
        dx = p.along(&dx, i, axis.input, &matrix);
    }
    p.give(0, dx)
}

fn coordinates(node: &Node) -> &str {
    node.string("coordinate_transformation_mode").unwrap_or("half_pixel")
}

fn policy(node: &Node) -> &str {
    node.string("keep_aspect_ratio_policy").unwrap_or("stretch")
}

/// The scale of every axis: as given, or the ratio of the lengths where sizes are given.
fn scales(p: &Pullback, x: &[usize], y: &[usize]) -> Result<Vec<f32>> {
    let mut scales: Vec<f32> = x.iter().zip(y).map(|(&i, &o)| o as f32 / i as f32).collect();
    if p.node.input(2).is_none() {
        return Ok(scales);
    }
    let Some(given) = p.constant(2) else {
        bail!(Unsupported, "scales are computed by the graph; the rule needs a constant");
    };
    let all: Vec<i64> = (0..x.len() as i64).collect();
    let axes = p.node.ints("axes").unwrap_or(&all);
    for (&axis, scale) in axes.iter().zip(given.to_f32()) {
        scales[super::axis(axis, x.len())?] = scale;
    }
    Ok(scales)
}

/// One axis that changes its length.
struct Axis {
    input: usize,
    output: usize,
    scale: f32,
}

impl Axis {
    /// The inputs that output `o` is made of, with their weights.
    fn taps(&self, o: usize, node: &Node) -> Result<Vec<(usize, f64)>> {
        let at = self.coordinate(o, coordinates(node))?;
        let last = self.input - 1;
        let inside = |i: f32| i.clamp(0.0, last as f32) as usize;
        Ok(match node.string("mode").unwrap_or("nearest") {
            "nearest" => {
                let near = match node.string("nearest_mode").unwrap_or("round_prefer_floor") {
                    "round_prefer_floor" => (at - 0.5).ceil(),
                    "round_prefer_ceil" => (at + 0.5).floor(),
                    "floor" => at.floor(),
                    "ceil" => at.ceil(),
                    other => bail!(Unsupported, "the rule of Resize does not know {other:?}"),
                };
                vec![(inside(near), 1.0)]
            }
            "linear" => {
                let at = at.clamp(0.0, last as f32);
                let (first, part) = (at.floor(), f64::from(at.fract()));
                vec![(inside(first), 1.0 - part), (inside(first + 1.0), part)]
            }
            "cubic" => {
                let a = f64::from(node.float("cubic_coeff_a").unwrap_or(-0.75));
                let weights = cubic(f64::from(at - at.floor()), a);
                let taps = (-1..=2).map(|k| at.floor() + k as f32).zip(weights);
                let exclude = node.int("exclude_outside").unwrap_or(0) != 0;
                let counts = |i: f32| !exclude || (0.0..=last as f32).contains(&i);
                let taps: Vec<(f32, f64)> = taps.filter(|(i, _)| counts(*i)).collect();
                let sum: f64 = taps.iter().map(|(_, w)| w).sum();
                taps.into_iter().map(|(i, w)| (inside(i), w / sum)).collect()
            }
            other => bail!(Unsupported, "the rule of Resize does not know mode {other:?}"),
        })
    }

    /// Where output `o` lies among the inputs, in the arithmetic of the runtime.
    fn coordinate(&self, o: usize, mode: &str) -> Result<f32> {
        let (o, input, output) = (o as f32, self.input as f32, self.output as f32);
        let half_pixel = (o + 0.5) / self.scale - 0.5;
        Ok(match mode {
            "half_pixel" => half_pixel,
            "half_pixel_symmetric" => {
                let cut = output / (self.scale * input);
                input / 2.0 * (1.0 - cut) + half_pixel
            }
            "pytorch_half_pixel" if self.output == 1 => 0.0,
            "pytorch_half_pixel" => half_pixel,
            "align_corners" if self.output == 1 => 0.0,
            "align_corners" => o * (input - 1.0) / (output - 1.0),
            "asymmetric" => o / self.scale,
            other => bail!(Unsupported, "the rule of Resize does not know {other:?}"),
        })
    }
}

/// Keys' cubic kernel with parameter a at the four inputs around a point `t` after the second.
fn cubic(t: f64, a: f64) -> [f64; 4] {
    let far = |d: f64| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
    let near = |d: f64| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}
