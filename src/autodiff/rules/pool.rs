//! Pooling: each output is the maximum or the mean of a window of inputs.

use super::window::{self, Axis};
use crate::autodiff::builder::Term;
use crate::autodiff::walk::Pullback;
use crate::error::{Result, bail};
use crate::onnx::Node;
use crate::tensor::ElementType;

/// Each output's cotangent goes to the input it was taken from, which the operator's second
/// output names.
pub(super) fn max_pool(p: &mut Pullback) -> Result<()> {
    let (x, y, g) = (p.x(0)?, p.y(0)?, p.g()?);
    let axes = window::axes(p.node, &kernel(p.node)?, &x, &y)?;
    let column_major = p.node.int("storage_order").unwrap_or(0) != 0;
    let indices = if column_major {
        row_major_indices(p, &x, &y)
    } else {
        p.extra_output(1, ElementType::I64, &y.shape)
    };
    let tiles = |a: &Axis| {
        a.stride == a.kernel && a.dilation == 1 && a.input == a.output * a.kernel && a.before == 0
    };
    let dx = if axes.iter().all(tiles) {
        spread_over_tiles(p, &g, &indices, &axes)
    } else {
        let flat = p.reshape(&indices, &[y.len()]);
        let updates = p.reshape(&g, &[y.len()]);
        p.scatter_add_flat(&x.shape, &flat, &updates)
    };
    p.give(0, dx)
}

/// The indices of the maxima, counted row by row, from a pool of its own.
fn row_major_indices(p: &mut Pullback, x: &Term, y: &Term) -> Term {
    let mut node = Node::new("MaxPool", [x.name.as_str()], "");
    node.attributes = p.node.attributes.clone();
    node.attributes.remove("storage_order");
    let values = p.emit(node, y.element, y.shape.clone());
    let name = p.fresh(&format!("{}/indices", values.name));
    let last = p.graph.nodes.last_mut().expect("it was emitted just now");
    last.outputs.push(name.clone());
    Term { name, element: ElementType::I64, shape: y.shape.clone() }
}

/// For windows that tile the input: x̄ = ȳ where the place within the tile is that of the
/// maximum. The place follows from the index by remainders, because every length is a multiple
/// of its window's.
fn spread_over_tiles(p: &mut Pullback, g: &Term, indices: &Term, axes: &[Axis]) -> Term {
    let mut interleaved = g.shape[..2].to_vec();
    axes.iter().for_each(|a| interleaved.extend([a.output, 1]));
    let mut full = g.shape[..2].to_vec();
    axes.iter().for_each(|a| full.extend([a.output, a.kernel]));

    let mut hit: Option<Term> = None;
    let mut rest = indices.clone();
    for (i, a) in axes.iter().enumerate().rev() {
        let kernel = p.ints(&[a.kernel as i64]);
        let place = p.binary("Mod", &rest, &kernel);
        let place = p.reshape(&place, &interleaved);
        let mut along = vec![1; full.len()];
        along[2 * i + 3] = a.kernel;
        let places = p.ints(&(0..a.kernel as i64).collect::<Vec<_>>());
        let places = p.reshape(&places, &along);
        let mask = p.mask("Equal", &place, &places, g.element);
        hit = Some(hit.map_or(mask.clone(), |h| p.mul(&h, &mask)));
        if i > 0 {
            let length = p.ints(&[a.input as i64]);
            rest = p.binary("Div", &rest, &length);
        }
    }
    let g = p.reshape(g, &interleaved);
    let spread = hit.map_or(g.clone(), |h| p.mul(&g, &h));
    let shape = [&g.shape[..2], &axes.iter().map(|a| a.input).collect::<Vec<_>>()[..]].concat();
    p.reshape(&spread, &shape)
}

/// x̄[i] = Σ ȳ[o] / (number of inputs that o counts) over the windows o that hold i: along each
/// axis the product with a constant matrix.
pub(super) fn average_pool(p: &mut Pullback) -> Result<()> {
    let (x, y, mut dx) = (p.x(0)?, p.y(0)?, p.g()?);
    let axes = window::axes(p.node, &kernel(p.node)?, &x, &y)?;
    let padding_counts = p.node.int("count_include_pad").unwrap_or(0) != 0;
    // A window may stick out beyond the padding where lengths were rounded up. What lies there
    // counted until opset 19 said that it does not.
    let overhang_counts = padding_counts && p.graph.opset < 19;
    for (i, a) in axes.iter().enumerate().rev() {
        let padded = -(a.before as i64)..(a.input + a.after) as i64;
        let mut matrix = vec![0.0; a.input * a.output];
        for o in 0..a.output {
            let counts =
                |i: &i64| a.holds(*i) || padding_counts && (overhang_counts || padded.contains(i));
            let count = a.reads(o).filter(counts).count();
            for position in a.reads(o).filter(|&i| a.holds(i)) {
                matrix[position as usize * a.output + o] = 1.0 / count as f64;
            }
        }
        dx = p.along(&dx, i + 2, a.input, &matrix);
    }
    p.give(0, dx)
}

/// The mean over all spatial axes: every input gets an equal share.
pub(super) fn global_average_pool(p: &mut Pullback) -> Result<()> {
    let (x, g) = (p.x(0)?, p.g()?);
    let count: usize = x.shape[2..].iter().product();
    let share = p.scale(&g, 1.0 / count as f64);
    p.give(0, share)
}

/// The maximum over all spatial axes: inputs that tie share the cotangent.
pub(super) fn global_max_pool(p: &mut Pullback) -> Result<()> {
    let (x, y, g) = (p.x(0)?, p.y(0)?, p.g()?);
    let hits = p.mask("Equal", &x, &y, x.element);
    let ties = p.sum(&hits, &(2..x.rank()).collect::<Vec<_>>());
    let share = p.div(&g, &ties);
    let dx = p.mul(&share, &hits);
    p.give(0, dx)
}

fn kernel(node: &Node) -> Result<Vec<usize>> {
    match node.ints("kernel_shape") {
        Some(k) if k.iter().all(|&k| k > 0) => Ok(k.iter().map(|&k| k as usize).collect()),
        other => bail!(Model, "kernel_shape is {other:?}"),
    }
}
