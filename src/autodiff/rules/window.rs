//! The geometry of a sliding window, common to convolutions and pools: along each spatial axis,
//! output o reads inputs o·stride + k·dilation − before for k in 0..kernel.

use crate::autodiff::builder::Term;
use crate::error::{Result, bail};
use crate::onnx::Node;

/// One spatial axis of a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    /// Padding in front of the first and behind the last input.
    pub before: usize,
    pub after: usize,
    /// The length of the input and of the output.
    pub input: usize,
    pub output: usize,
}

impl Axis {
    /// From the first to the last input of a window, exclusive.
    pub fn extent(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }

    /// By how much the last window sticks out beyond the padding, where lengths were rounded up.
    pub fn overrun(&self) -> usize {
        let reach = (self.output - 1) * self.stride + self.extent();
        reach.saturating_sub(self.input + self.before + self.after)
    }

    /// The inputs that output `o` reads, out of range where they are padding.
    pub fn reads(&self, o: usize) -> impl Iterator<Item = i64> {
        let first = (o * self.stride) as i64 - self.before as i64;
        let step = self.dilation as i64;
        (0..self.kernel as i64).map(move |k| first + k * step)
    }

    /// Whether `position` is an input and not padding.
    pub fn holds(&self, position: i64) -> bool {
        (0..self.input as i64).contains(&position)
    }
}

/// The spatial axes of a `Conv` or pooling node from `input` to `output`, both `[N, C, …]`.
pub(super) fn axes(
    node: &Node,
    kernel: &[usize],
    input: &Term,
    output: &Term,
) -> Result<Vec<Axis>> {
    let spatial = kernel.len();
    if input.rank() != spatial + 2 || output.rank() != spatial + 2 || kernel.contains(&0) {
        let (x, y) = (&input.shape, &output.shape);
        bail!(Model, "a window of {kernel:?} does not fit input {x:?} and output {y:?}");
    }
    let strides = list(node, "strides", spatial, 1)?;
    let dilations = list(node, "dilations", spatial, 1)?;
    let pads = list(node, "pads", 2 * spatial, 0)?;
    let auto = node.string("auto_pad").unwrap_or("NOTSET");
    let axis = |i: usize| {
        let mut axis = Axis {
            kernel: kernel[i],
            stride: strides[i],
            dilation: dilations[i],
            before: pads[i],
            after: pads[spatial + i],
            input: input.shape[i + 2],
            output: output.shape[i + 2],
        };
        if auto != "NOTSET" {
            let reach = axis.output.saturating_sub(1) * axis.stride + axis.extent();
            let total = if auto == "VALID" { 0 } else { reach.saturating_sub(axis.input) };
            let smaller = total / 2;
            axis.before = if auto == "SAME_LOWER" { total - smaller } else { smaller };
            axis.after = total - axis.before;
        }
        axis
    };
    let axes: Vec<Axis> = (0..spatial).map(axis).collect();
    match axes.iter().find(|a| a.input == 0 || a.output == 0 || a.overrun() >= a.stride) {
        Some(a) => bail!(Model, "the window does not fit its input: {a:?}"),
        None => Ok(axes),
    }
}

/// An attribute that lists one number for each axis (or each end of each axis).
pub(super) fn list(node: &Node, name: &str, length: usize, default: usize) -> Result<Vec<usize>> {
    let Some(values) = node.ints(name) else { return Ok(vec![default; length]) };
    let unsigned: Option<Vec<usize>> = values.iter().map(|&v| v.try_into().ok()).collect();
    match unsigned {
        Some(v) if v.len() == length && (default == 0 || !v.contains(&0)) => Ok(v),
        _ => bail!(Unsupported, "attribute {name} is {values:?}; {length} numbers were expected"),
    }
}

/// The numbers `f` picks from each axis, as an attribute holds them.
pub(super) fn each(axes: &[Axis], f: impl Fn(&Axis) -> usize) -> Vec<i64> {
    axes.iter().map(|a| f(a) as i64).collect()
}

/// The padding of every axis as an attribute holds it: all fronts, then all ends.
pub(super) fn pads(axes: &[Axis]) -> Vec<i64> {
    [each(axes, |a| a.before), each(axes, |a| a.after)].concat()
}
