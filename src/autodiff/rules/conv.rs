//! Convolutions of any number of spatial axes, with groups, strides, dilations and padding.
//!
//! With y[o] = Σ_k w[k]·x[o·s + k·d − p] along each axis (s stride, d dilation, p padding):
//! x̄[i] = Σ_o Σ_k w[k]·ȳ[o] over o·s + k·d − p = i, and w̄[k] = Σ_o ȳ[o]·x[o·s + k·d − p].
//!
//! x̄ is formed in one of three ways, which differ only in speed: at stride 1 as a convolution of
//! ȳ with the reversed kernel; for depthwise convolutions with strides likewise, after zeros have
//! been put between the elements of ȳ by 0/1 matrices; otherwise by `ConvTranspose`. The reversed
//! kernel is computed in the graph from the kernel, which the runtime does once at load where the
//! kernel is constant; where it is an input, as in training, that is still little beside x̄ itself.

use super::window::{self, Axis};
use crate::autodiff::builder::{Range, Term};
use crate::autodiff::walk::Pullback;
use crate::error::{Result, bail};
use crate::onnx::Node;

/// Y = W ∗ X + b.
pub(super) fn conv(p: &mut Pullback) -> Result<()> {
    let (x, w, y, g) = (p.x(0)?, p.x(1)?, p.y(0)?, p.g()?);
    let group = group(p.node, &x, &w)?;
    let axes = window::axes(p.node, &w.shape[2..], &x, &y)?;
    if p.needs(0) {
        let dx = if axes.iter().all(|a| a.stride == 1 && fits(a)) {
            let pads = |a: &Axis| (a.extent() - 1 - a.before, a.extent() - 1 - a.after);
            convolve_reversed(p, &g, &w, group, &axes, pads)
        } else if group == x.shape[1] {
            let stuffed = stuff(p, &g, &axes);
            convolve_reversed(p, &stuffed, &w, group, &axes, |_| (0, 0))
        } else {
            transposed(p, &g, &w, group, &axes)
        };
        p.give(0, dx)?;
    }
    if p.needs(1) {
        let dw = kernel_gradient(p, &x, &g, group, &axes);
        p.give(1, dw)?;
    }
    bias(p, &g)
}

/// The adjoint of a convolution as an operator of its own: Y = Wᵀ ∗ X + b. Its data gradient is
/// the convolution of ȳ, and its kernel gradient that of a convolution with X and ȳ exchanged.
pub(super) fn conv_transpose(p: &mut Pullback) -> Result<()> {
    let (x, w, y, g) = (p.x(0)?, p.x(1)?, p.y(0)?, p.g()?);
    let group = group(p.node, &x, &w)?;
    let axes = transposed_axes(p.node, &w, &x, &y)?;
    if p.needs(0) {
        let node = Node::new("Conv", [&g.name, &w.name], "");
        let node = geometry(node, &axes, group).with("pads", window::pads(&axes));
        let mut shape = x.shape.clone();
        for (length, a) in shape[2..].iter_mut().zip(&axes) {
            *length = (a.input + a.before + a.after - a.extent()) / a.stride + 1;
        }
        let dx = p.emit(node, x.element, shape);
        // Output padding of a whole stride or more makes the convolution read on past the end.
        let dx = crop(p, &dx, &x.shape);
        p.give(0, dx)?;
    }
    if p.needs(1) {
        let dw = kernel_gradient(p, &g, &x, group, &axes);
        p.give(1, dw)?;
    }
    bias(p, &g)
}

/// b̄ = Σ ȳ over everything but the channels.
fn bias(p: &mut Pullback, g: &Term) -> Result<()> {
    if p.needs(2) {
        let others: Vec<usize> = (0..g.rank()).filter(|&a| a != 1).collect();
        let total = p.sum(g, &others);
        let db = p.reshape(&total, &[g.shape[1]]);
        p.give(2, db)?;
    }
    Ok(())
}

/// The number of groups, which must divide the channels of the data and the rows of the kernel.
fn group(node: &Node, x: &Term, w: &Term) -> Result<usize> {
    let group = node.int("group").unwrap_or(1);
    let divides = |n: usize| x.shape[1].is_multiple_of(n) && w.shape[0].is_multiple_of(n);
    match usize::try_from(group) {
        Ok(n) if n > 0 && x.rank() > 2 && x.rank() == w.rank() && divides(n) => Ok(n),
        _ => {
            let (x, w) = (&x.shape, &w.shape);
            bail!(Model, "{group} groups, data of shape {x:?} and a kernel of shape {w:?} disagree")
        }
    }
}

/// Whether the padding stays within the window, so that the mirrored padding is not negative.
fn fits(a: &Axis) -> bool {
    a.before < a.extent() && a.after < a.extent()
}

/// The convolution of `g` with the kernel reversed and its channel axes exchanged within each
/// group, at stride 1 with the padding that `pads` says.
fn convolve_reversed(
    p: &mut Pullback,
    g: &Term,
    w: &Term,
    group: usize,
    axes: &[Axis],
    pads: impl Fn(&Axis) -> (usize, usize),
) -> Term {
    let (rows, columns, kernel) = (w.shape[0], w.shape[1], &w.shape[2..]);
    let grouped = p.reshape(w, &[&[group, rows / group, columns], kernel].concat());
    let mut order: Vec<usize> = (0..grouped.rank()).collect();
    order.swap(1, 2);
    let exchanged = p.transpose(&grouped, &order);
    let merged = p.reshape(&exchanged, &[&[group * columns, rows / group], kernel].concat());
    let reversed = p.reverse(&merged, &(2..w.rank()).collect::<Vec<_>>());

    let mut shape = vec![g.shape[0], group * columns];
    shape.extend(axes.iter().zip(&g.shape[2..]).map(|(a, n)| {
        let (before, after) = pads(a);
        n + before + after + 1 - a.extent()
    }));
    let (before, after) = (window::each(axes, |a| pads(a).0), window::each(axes, |a| pads(a).1));
    let node = Node::new("Conv", [&g.name, &reversed.name], "")
        .with("kernel_shape", window::each(axes, |a| a.kernel))
        .with("dilations", window::each(axes, |a| a.dilation))
        .with("pads", [before, after].concat())
        .with("group", group as i64);
    p.emit(node, g.element, shape)
}

/// ȳ on the grid that a stride-1 convolution without padding turns into x̄: element o goes to
/// o·stride + extent − 1 − before, between zeros.
fn stuff(p: &mut Pullback, g: &Term, axes: &[Axis]) -> Term {
    let mut stuffed = g.clone();
    for (i, a) in axes.iter().enumerate() {
        let length = a.input + a.extent() - 1;
        let mut matrix = vec![0.0; length * a.output];
        for o in 0..a.output {
            let place = (o * a.stride + a.extent() - 1) as i64 - a.before as i64;
            if (0..length as i64).contains(&place) {
                matrix[place as usize * a.output + o] = 1.0;
            }
        }
        stuffed = p.along(&stuffed, i + 2, length, &matrix);
    }
    stuffed
}

/// x̄ by `ConvTranspose`; its output padding accounts for inputs that no window reached.
fn transposed(p: &mut Pullback, g: &Term, w: &Term, group: usize, axes: &[Axis]) -> Term {
    let reach = |a: &Axis| a.input + a.before + a.after;
    let covered = |a: &Axis| (a.output - 1) * a.stride + a.extent();
    let missing = |a: &Axis| reach(a).saturating_sub(covered(a));
    let node = Node::new("ConvTranspose", [&g.name, &w.name], "");
    let node = geometry(node, axes, group)
        .with("pads", window::pads(axes))
        .with("output_padding", window::each(axes, missing));
    let mut shape = vec![g.shape[0], w.shape[1] * group];
    shape.extend(axes.iter().map(|a| a.input));
    p.emit(node, g.element, shape)
}

/// w̄ as a convolution in which the batch takes the place of the channels: ȳ slides over x, with
/// strides and dilations exchanged. Right for every geometry.
fn kernel_gradient(p: &mut Pullback, x: &Term, g: &Term, group: usize, axes: &[Axis]) -> Term {
    let data = batch_as_channels(p, x, group, true);
    let slider = batch_as_channels(p, g, group, false);
    let mut shape = vec![data.shape[0], slider.shape[0]];
    shape.extend(axes.iter().map(|a| {
        (a.input + a.before + a.after - ((a.output - 1) * a.stride + 1)) / a.dilation + 1
    }));
    let node = Node::new("Conv", [&data.name, &slider.name], "")
        .with("kernel_shape", window::each(axes, |a| a.output))
        .with("strides", window::each(axes, |a| a.dilation))
        .with("dilations", window::each(axes, |a| a.stride))
        .with("pads", window::pads(axes))
        .with("group", group as i64);
    let correlation = p.emit(node, x.element, shape.clone());
    for (length, a) in shape[2..].iter_mut().zip(axes) {
        *length = a.kernel;
    }
    let cropped = crop(p, &correlation, &shape);
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.swap(0, 1);
    p.transpose(&cropped, &order)
}

/// `[N, G·C, …]` as `[C, G·N, …]` (the data) or as `[G·C, N, …]` (the sliding operand).
fn batch_as_channels(p: &mut Pullback, x: &Term, group: usize, data: bool) -> Term {
    let (batch, channels, space) = (x.shape[0], x.shape[1], &x.shape[2..]);
    let mut order: Vec<usize> = (0..x.rank()).collect();
    order.swap(0, 1);
    if !data || group == 1 {
        return p.transpose(x, &order);
    }
    let grouped = p.reshape(x, &[&[batch, group, channels / group], space].concat());
    let order = [vec![2, 1, 0], (3..grouped.rank()).collect()].concat();
    let exchanged = p.transpose(&grouped, &order);
    p.reshape(&exchanged, &[&[channels / group, group * batch], space].concat())
}

/// The leading part of x of the given shape.
fn crop(p: &mut Pullback, x: &Term, shape: &[usize]) -> Term {
    let keep = |axis: usize| Range { axis, start: 0, end: shape[axis] as i64, step: 1 };
    p.slice(x, &(0..x.rank()).map(keep).collect::<Vec<_>>())
}

fn geometry(node: Node, axes: &[Axis], group: usize) -> Node {
    node.with("kernel_shape", window::each(axes, |a| a.kernel))
        .with("strides", window::each(axes, |a| a.stride))
        .with("dilations", window::each(axes, |a| a.dilation))
        .with("group", group as i64)
}

/// The axes of the convolution whose adjoint a `ConvTranspose` node is: its input is the node's
/// output. Where the padding is left to the operator, the lengths determine it.
fn transposed_axes(node: &Node, w: &Term, x: &Term, y: &Term) -> Result<Vec<Axis>> {
    let explicit = Node { attributes: node.attributes.clone(), ..Node::default() };
    let auto = node.string("auto_pad").unwrap_or("NOTSET");
    let explicit = explicit.with("auto_pad", "NOTSET");
    let mut axes = window::axes(&explicit, &w.shape[2..], y, x)?;
    let extra = window::list(node, "output_padding", axes.len(), 0)?;
    if node.ints("output_shape").is_some() || matches!(auto, "SAME_UPPER" | "SAME_LOWER") {
        for (a, extra) in axes.iter_mut().zip(extra) {
            let full = (a.output - 1) * a.stride + a.extent() + extra;
            let total = full.saturating_sub(a.input);
            a.before = if auto == "SAME_UPPER" { total / 2 } else { total - total / 2 };
            a.after = total - a.before;
        }
    }
    Ok(axes)
}
