//! The weight gradient of one sample, for every product that can have a prunable weight.
//!
//! The backward graph hands out a product's input x and the cotangent g of its output; here they
//! become dL/dW for one sample at a time: for a linear layer Σ_t g_t x_tᵀ over the positions t,
//! for a convolution the same over output positions, with x_t the patch under the kernel (im2col,
//! a tile of positions at a time so that it stays in cache). Gradients come out in *row order*:
//! one row per output, inputs in the order of the weight's axes.

use faer::linalg::matmul::matmul;
use faer::mat::{MatMut, MatRef};
use faer::{Accum, Par};

use crate::autodiff::Facts;
use crate::onnx::{Graph, Node};

/// A product with a weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Product {
    /// `Gemm` or `MatMul`.
    Linear(Linear),
    /// `Conv`, with 1 to 3 spatial axes.
    Conv(Window),
    /// `ConvTranspose`: the window slides over the output, so x and g change places.
    ConvTranspose(Window),
}

/// A matrix product: y_n = scale Σ_k W_nk x_k at every position.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    outputs: usize,
    inputs: usize,
    /// Matrices in a batched product, and positions (rows) in each.
    lead: usize,
    positions: usize,
    /// Distance in memory between consecutive positions, and between consecutive inputs.
    x_strides: (usize, usize),
    /// Distance in memory between consecutive positions, and between consecutive outputs.
    g_strides: (usize, usize),
    /// Whether the weight is stored input by input ([K, N]).
    transposed: bool,
    scale: f32,
}

/// A sliding window: at output position l, tap t reads the input at l·stride + t·dilation − pad.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    groups: usize,
    /// Channels of one group, on the side the window slides over and on the other.
    inner: usize,
    outer: usize,
    kernel: Vec<usize>,
    stride: Vec<usize>,
    dilation: Vec<usize>,
    pad: Vec<isize>,
    /// Spatial lengths, on the side the window slides over and on the other.
    inner_size: Vec<usize>,
    outer_size: Vec<usize>,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The input planes of one group with their padding.
    padded: Vec<f32>,
    /// One im2col tile.
    columns: Vec<f32>,
}

/// Bytes of one im2col tile: half of a usual second-level cache.
const TILE_BYTES: usize = 128 << 10;

impl Product {
    /// Whether input `input` of `node` is where a product takes its weight from.
    pub fn is_weight_slot(node: &Node, input: usize, graph: &Graph) -> bool {
        let is_product = match node.op.as_str() {
            "Conv" | "ConvTranspose" => input == 1,
            "Gemm" | "MatMul" => input < 2,
            _ => false,
        };
        let data = || node.input(Product::data_input(input));
        is_product
            && node.domain.is_empty()
            && data().is_some_and(|x| !graph.initializers.contains_key(x))
    }

    /// The product that `node` computes with input `input` as its weight; `None` when the shapes
    /// are not those of one weight matrix or kernel.
    pub fn of(node: &Node, input: usize, facts: &Facts) -> Option<Product> {
        match node.op.as_str() {
            "Gemm" => gemm(node, input, facts),
            "MatMul" => matrix_product(node, input, facts),
            _ => window(node, facts),
        }
    }

    /// The node's input that the weight is multiplied with.
    pub fn data_input(weight_input: usize) -> usize {
        1 - weight_input
    }

    /// Weights of one output.
    pub fn row(&self) -> usize {
        match self {
            Product::Linear(p) => p.inputs,
            Product::Conv(w) => w.inner * w.taps(),
            Product::ConvTranspose(w) => w.outer * w.taps(),
        }
    }

    /// Input channels of one output.
    pub fn channels(&self) -> usize {
        match self {
            Product::Linear(p) => p.inputs,
            Product::Conv(w) => w.inner,
            Product::ConvTranspose(w) => w.outer,
        }
    }

    /// For each weight in row order, its index in the node's weight input.
    pub fn natural(&self) -> Vec<u32> {
        match self {
            Product::Linear(p) if p.transposed => {
                let row = |n| (0..p.inputs).map(move |k| (k * p.outputs + n) as u32);
                (0..p.outputs).flat_map(row).collect()
            }
            Product::Linear(p) => (0..(p.inputs * p.outputs) as u32).collect(),
            Product::Conv(w) => (0..(w.groups * w.outer * self.row()) as u32).collect(),
            // Stored [inputs, outputs of a group, taps].
            Product::ConvTranspose(w) => {
                let (taps, ins, outs) = (w.taps(), w.outer, w.inner);
                let at = |g, o, i, t| (((g * ins + i) * outs + o) * taps + t) as u32;
                let mut order = Vec::new();
                for (g, o) in (0..w.groups).flat_map(|g| (0..outs).map(move |o| (g, o))) {
                    order.extend((0..ins).flat_map(|i| (0..taps).map(move |t| at(g, o, i, t))));
                }
                order
            }
        }
    }

    /// Whether a batch of this many samples splits the product's positions evenly.
    pub fn splits(&self, batch: usize) -> bool {
        match self {
            Product::Linear(p) if p.lead > 1 => p.lead.is_multiple_of(batch),
            Product::Linear(p) => p.positions.is_multiple_of(batch),
            _ => true,
        }
    }

    /// The elements of the cotangent that belong to one sample: whether element `i` does.
    pub fn belongs(&self, i: usize, len: usize, sample: usize, batch: usize) -> bool {
        match self {
            Product::Linear(p) if p.lead == 1 => {
                let position = i / p.g_strides.0 % p.positions;
                position * batch / p.positions == sample
            }
            _ => i * batch / len == sample,
        }
    }

    /// Adds dL/dW of sample `sample` of `batch` to `out`, in row order. `x` and `g` are the
    /// product's data input and the cotangent of its output, for the whole batch.
    pub fn add_gradient(
        &self,
        x: &[f32],
        g: &[f32],
        sample: usize,
        batch: usize,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        self.gradient(x, g, (sample, batch), out, Accum::Add, scratch);
    }

    /// The same into `out` whatever it held before.
    pub fn put_gradient(
        &self,
        x: &[f32],
        g: &[f32],
        sample: usize,
        batch: usize,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        self.gradient(x, g, (sample, batch), out, Accum::Replace, scratch);
    }

    fn gradient(
        &self,
        x: &[f32],
        g: &[f32],
        (sample, batch): (usize, usize),
        out: &mut [f32],
        accum: Accum,
        scratch: &mut Scratch,
    ) {
        let part = |v: &'_ [f32]| v.len() / batch * sample..v.len() / batch * (sample + 1);
        match self {
            Product::Linear(p) => p.gradient(x, g, (sample, batch), out, accum),
            Product::Conv(w) => w.gradient(&x[part(x)], &g[part(g)], out, accum, scratch),
            Product::ConvTranspose(w) => {
                w.transposed_gradient(&x[part(x)], &g[part(g)], out, accum, scratch)
            }
        }
    }
}

impl Linear {
    fn gradient(
        &self,
        x: &[f32],
        g: &[f32],
        (sample, batch): (usize, usize),
        out: &mut [f32],
        mut accum: Accum,
    ) {
        let (matrices, positions) = match self.lead {
            1 => (0..1, self.positions / batch),
            lead => (lead / batch * sample..lead / batch * (sample + 1), self.positions),
        };
        let first = if self.lead == 1 { positions * sample } else { 0 };
        for q in matrices {
            let x = &x[q * self.positions * self.inputs + first * self.x_strides.0..];
            let g = &g[q * self.positions * self.outputs + first * self.g_strides.0..];
            if positions == 1 {
                self.outer_product(x, g, out, std::mem::replace(&mut accum, Accum::Add));
                continue;
            }
            // W (outputs × inputs) += scale · gᵀ (outputs × positions) · x (positions × inputs)
            let g = strided(g, (self.outputs, positions), (self.g_strides.1, self.g_strides.0));
            let x = strided(x, (positions, self.inputs), self.x_strides);
            let out = MatMut::from_row_major_slice_mut(out, self.outputs, self.inputs);
            matmul(out, accum, g, x, self.scale, Par::Seq);
            accum = Accum::Add;
        }
    }

    fn outer_product(&self, x: &[f32], g: &[f32], out: &mut [f32], accum: Accum) {
        for (n, row) in out.chunks_mut(self.inputs).enumerate() {
            let g = g[n * self.g_strides.1] * self.scale;
            let x = x.iter().step_by(self.x_strides.1);
            match accum {
                Accum::Add => row.iter_mut().zip(x).for_each(|(w, x)| *w += g * x),
                Accum::Replace => row.iter_mut().zip(x).for_each(|(w, x)| *w = g * x),
            }
        }
    }
}

impl Window {
    fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// `x`: [groups · inner, inner_size], `g`: [groups · outer, outer_size].
    fn gradient(&self, x: &[f32], g: &[f32], out: &mut [f32], accum: Accum, scratch: &mut Scratch) {
        let row = self.inner * self.taps();
        self.for_tiles(x, scratch, |group, columns, from, width| {
            let accum = if from == 0 { accum } else { Accum::Add };
            let g = self.tile_of_outer(g, group, from, width);
            let out = &mut out[group * self.outer * row..(group + 1) * self.outer * row];
            let out = MatMut::from_row_major_slice_mut(out, self.outer, row);
            matmul(out, accum, g, columns.transpose(), 1.0, Par::Seq);
        });
    }

    /// `x`: [groups · outer, outer_size], `g`: [groups · inner, inner_size]: row order is
    /// [inner, outer, taps] while the product is [outer, inner · taps].
    fn transposed_gradient(
        &self,
        x: &[f32],
        g: &[f32],
        out: &mut [f32],
        accum: Accum,
        scratch: &mut Scratch,
    ) {
        let (taps, row) = (self.taps(), self.outer * self.taps());
        self.for_tiles(g, scratch, |group, columns, from, width| {
            let accum = if from == 0 { accum } else { Accum::Add };
            let x = self.tile_of_outer(x, group, from, width);
            for o in 0..self.inner {
                let start = (group * self.inner + o) * row;
                let out = &mut out[start..start + row];
                let out = MatMut::from_row_major_slice_mut(out, self.outer, taps);
                let columns = columns.subrows(o * taps, taps);
                matmul(out, accum, x, columns.transpose(), 1.0, Par::Seq);
            }
        });
    }

    fn tile_of_outer<'a>(
        &self,
        v: &'a [f32],
        group: usize,
        from: usize,
        width: usize,
    ) -> MatRef<'a, f32> {
        let positions: usize = self.outer_size.iter().product();
        let v = &v[group * self.outer * positions + from..];
        strided(v, (self.outer, width), (positions, 1))
    }

    /// Calls `each(group, columns, from, width)` with the im2col matrix ([inner · taps, width]) of
    /// `width` consecutive positions, for all positions of all groups.
    fn for_tiles(
        &self,
        inner: &[f32],
        scratch: &mut Scratch,
        mut each: impl FnMut(usize, MatRef<'_, f32>, usize, usize),
    ) {
        let rows = self.inner * self.taps();
        if self.is_pointwise() {
            // The planes are their own columns.
            let width: usize = self.outer_size.iter().product();
            for (group, planes) in inner.chunks_exact(rows * width).enumerate() {
                each(group, MatRef::from_row_major_slice(planes, rows, width), 0, width);
            }
            return;
        }
        // A tile is a whole number of lines (runs along the last axis).
        let (line, lines) = self.lines();
        let per_tile = (TILE_BYTES / 4 / (rows * line)).clamp(1, lines.max(1));
        for group in 0..self.groups {
            self.pad_planes(inner, group, &mut scratch.padded);
            for first in (0..lines).step_by(per_tile) {
                let count = per_tile.min(lines - first);
                let width = count * line;
                scratch.columns.resize(rows * width + SLACK, 0.0);
                self.fill_columns(&scratch.padded, first, count, &mut scratch.columns);
                let columns = &scratch.columns[..rows * width];
                let columns = MatRef::from_row_major_slice(columns, rows, width);
                each(group, columns, first * line, width);
            }
        }
    }

    /// Whether every position reads just the element of its own place.
    fn is_pointwise(&self) -> bool {
        let ones = |v: &[usize]| v.iter().all(|&n| n == 1);
        ones(&self.kernel)
            && ones(&self.stride)
            && self.pad.iter().all(|&p| p == 0)
            && self.inner_size == self.outer_size
    }

    /// The length of a line of positions, and how many lines there are.
    fn lines(&self) -> (usize, usize) {
        let (line, leading) = self.outer_size.split_last().expect("at least one spatial axis");
        (*line, leading.iter().product())
    }

    /// How far the window reaches along an axis, padding included.
    fn reach(&self, axis: usize) -> usize {
        (self.outer_size[axis] - 1) * self.stride[axis]
            + (self.kernel[axis] - 1) * self.dilation[axis]
            + 1
    }

    /// Where the coordinates that `index` counts (last axis fastest, `lengths` of them) lead in a
    /// padded plane, one step along an axis being `steps` elements apart.
    fn offset(&self, mut index: usize, lengths: &[usize], steps: &[usize]) -> usize {
        let (mut offset, mut pitch) = (0, 1);
        for axis in (0..lengths.len()).rev() {
            offset += index % lengths[axis] * steps[axis] * pitch;
            index /= lengths[axis];
            pitch *= self.reach(axis);
        }
        offset
    }

    /// The input planes of a group, cut or padded with zeros to what the window reaches.
    fn pad_planes(&self, inner: &[f32], group: usize, padded: &mut Vec<f32>) {
        let last = self.kernel.len() - 1;
        let size: usize = self.inner_size.iter().product();
        let reach: usize = (0..=last).map(|axis| self.reach(axis)).product();
        padded.clear();
        padded.resize(self.inner * reach + SLACK, 0.0);
        let (length, width) = (self.inner_size[last], self.reach(last));
        // The part of a line that has a place in the plane.
        let from = (-self.pad[last]).max(0) as usize;
        let to = (width as isize - self.pad[last]).clamp(0, length as isize) as usize;
        if from >= to {
            return;
        }
        let start = (from as isize + self.pad[last]) as usize;
        for channel in 0..self.inner {
            let plane = &inner[(group * self.inner + channel) * size..][..size];
            for (number, line) in plane.chunks(length).enumerate() {
                let (mut index, mut pitch, mut at) = (number, width, Some(channel * reach + start));
                for axis in (0..last).rev() {
                    let place = (index % self.inner_size[axis]) as isize + self.pad[axis];
                    let inside = (0..self.reach(axis) as isize).contains(&place);
                    at = at.filter(|_| inside).map(|at| at + place as usize * pitch);
                    index /= self.inner_size[axis];
                    pitch *= self.reach(axis);
                }
                if let Some(at) = at {
                    padded[at..at + to - from].copy_from_slice(&line[from..to]);
                }
            }
        }
    }

    fn fill_columns(&self, padded: &[f32], first: usize, count: usize, columns: &mut [f32]) {
        let taps = self.taps();
        let last = self.kernel.len() - 1;
        let (line, _) = self.lines();
        let plane = (padded.len() - SLACK) / self.inner;
        let taps_at: Vec<usize> =
            (0..taps).map(|t| self.offset(t, &self.kernel, &self.dilation)).collect();
        let mut lengths = self.outer_size.clone();
        lengths[last] = 1;
        let lines_at: Vec<usize> =
            (first..first + count).map(|l| self.offset(l, &lengths, &self.stride)).collect();
        for row in 0..self.inner * taps {
            let source = row / taps * plane + taps_at[row % taps];
            for (l, at) in lines_at.iter().enumerate() {
                let to = (row * count + l) * line;
                copy_line(&padded[source + at..], self.stride[last], line, &mut columns[to..]);
            }
        }
    }
}

/// Elements that may be read or written beyond the end of a buffer: lines are copied in pieces.
const SLACK: usize = 8;

/// out[i] = source[i · stride] for i below `length`; what is behind that in `out` may change.
#[inline]
fn copy_line(source: &[f32], stride: usize, length: usize, out: &mut [f32]) {
    if stride != 1 {
        let source = source.iter().step_by(stride);
        return out[..length].iter_mut().zip(source).for_each(|(o, s)| *o = *s);
    }
    for at in (0..length).step_by(SLACK) {
        let piece: [f32; SLACK] = source[at..at + SLACK].try_into().expect("it has this length");
        out[at..at + SLACK].copy_from_slice(&piece);
    }
}

/// A matrix over a slice with any strides.
fn strided(
    v: &[f32],
    (rows, columns): (usize, usize),
    (row, column): (usize, usize),
) -> MatRef<'_, f32> {
    // Whichever axis is dense decides how the library sees the slice.
    if column == 1 {
        MatRef::from_row_major_slice_with_stride(
            &v[..(rows - 1) * row + columns],
            rows,
            columns,
            row,
        )
    } else {
        debug_assert_eq!(row, 1, "one axis of every operand is dense");
        MatRef::from_column_major_slice_with_stride(
            &v[..(columns - 1) * column + rows],
            rows,
            columns,
            column,
        )
    }
}

fn gemm(node: &Node, weight: usize, facts: &Facts) -> Option<Product> {
    let shape = &facts.get(node.input(weight)?)?.shape;
    let flags = [node.int("transA") == Some(1), node.int("transB") == Some(1)];
    let data = Product::data_input(weight);
    let [rows, columns] = facts.get(node.input(data)?)?.shape[..] else { return None };
    let scale = node.float("alpha").unwrap_or(1.0);
    linear_2d(shape, weight, flags[weight], (rows, columns), flags[data], scale)
}

fn matrix_product(node: &Node, weight: usize, facts: &Facts) -> Option<Product> {
    let shape = &facts.get(node.input(weight)?)?.shape;
    let x = &facts.get(node.input(Product::data_input(weight))?)?.shape;
    // A weight with batch axes of its own is many weights; only one counts.
    let (axes, lead) = (shape.len(), shape.len().saturating_sub(2));
    if axes < 2 || x.len() < 2 || shape[..lead].iter().any(|&d| d != 1) {
        return None;
    }
    let (shape, (x_lead, x_last)) = (&shape[lead..], x.split_at(x.len() - 2));
    let matrices: usize = x_lead.iter().product();
    if weight == 1 || matrices == 1 {
        let rows = if weight == 1 { matrices * x_last[0] } else { x_last[0] };
        return linear_2d(shape, weight, false, (rows, x_last[1]), false, 1.0);
    }
    let positions = x_last[1];
    Some(Product::Linear(Linear {
        outputs: shape[0],
        inputs: shape[1],
        lead: matrices,
        positions,
        x_strides: (1, positions),
        g_strides: (1, positions),
        transposed: false,
        scale: 1.0,
    }))
}

/// `shape`: the weight; `x`: the other operand, both before their transposition flags.
fn linear_2d(
    shape: &[usize],
    weight: usize,
    weight_flag: bool,
    (rows, columns): (usize, usize),
    data_flag: bool,
    scale: f32,
) -> Option<Product> {
    let &[a, b] = shape else { return None };
    // On the right (x·W) the weight is [K, N] unless flagged, on the left (W·x) it is [N, K].
    let transposed = (weight == 1) != weight_flag;
    let (outputs, inputs) = if transposed { (b, a) } else { (a, b) };
    // x has positions along its rows on the left of the product, along its columns on the right.
    let by_rows = (weight == 1) != data_flag;
    let positions = if by_rows { rows } else { columns };
    let x_strides = if by_rows { (columns, 1) } else { (1, columns) };
    let g_strides = if weight == 1 { (outputs, 1) } else { (1, positions) };
    (outputs > 0 && inputs > 0 && positions > 0).then_some(Product::Linear(Linear {
        outputs,
        inputs,
        lead: 1,
        positions,
        x_strides,
        g_strides,
        transposed,
        scale,
    }))
}

fn window(node: &Node, facts: &Facts) -> Option<Product> {
    let weight = &facts.get(node.input(1)?)?.shape;
    let x = &facts.get(node.input(0)?)?.shape;
    let y = &facts.get(node.output(0)?)?.shape;
    let axes = weight.len().checked_sub(2)?;
    if !(1..=3).contains(&axes) || x.len() != axes + 2 || y.len() != axes + 2 {
        return None;
    }
    let ints = |name: &str| -> Option<Vec<usize>> {
        let values =
            node.ints(name).map_or(vec![1; axes], |v| v.iter().map(|&i| i as usize).collect());
        (values.len() == axes && values.iter().all(|&v| v > 0)).then_some(values)
    };
    let transposed = node.op == "ConvTranspose";
    let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&g| g > 0)?;
    let (stride, dilation, kernel) = (ints("strides")?, ints("dilations")?, weight[2..].to_vec());
    let (inner_size, outer_size) = if transposed { (&y[2..], &x[2..]) } else { (&x[2..], &y[2..]) };
    let pad = (0..axes)
        .map(|i| {
            let span = (kernel[i] - 1) * dilation[i] + 1;
            let extra = node.ints("output_padding").and_then(|p| p.get(i)).copied().unwrap_or(0);
            let reach = ((outer_size[i] - 1) * stride[i] + span) as isize + extra as isize;
            let total = reach - inner_size[i] as isize;
            match node.string("auto_pad").unwrap_or("NOTSET") {
                // A transposed convolution may be given its output's shape instead of pads.
                "NOTSET" if transposed && node.ints("output_shape").is_some() => {
                    total - total.div_euclid(2)
                }
                "NOTSET" => node.ints("pads").map_or(0, |p| p[i] as isize),
                "SAME_UPPER" => total.max(0) / 2,
                "SAME_LOWER" => total.max(0) - total.max(0) / 2,
                _ => 0,
            }
        })
        .collect();
    if inner_size.iter().chain(outer_size).chain(&kernel).any(|&d| d == 0) {
        return None;
    }
    let window = Window {
        groups,
        inner: weight[1],
        outer: weight[0] / groups,
        kernel,
        stride,
        dilation,
        pad,
        inner_size: inner_size.to_vec(),
        outer_size: outer_size.to_vec(),
    };
    Some(if transposed { Product::ConvTranspose(window) } else { Product::Conv(window) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autodiff::Fact;
    use crate::onnx::Attribute;
    use crate::random::Stream;
    use crate::tensor::ElementType;

    const BATCH: usize = 3;

    fn facts(values: &[(&str, &[usize])]) -> Facts {
        let fact = |shape: &[usize]| Fact {
            element: ElementType::F32,
            shape: shape.to_vec(),
            constant: None,
        };
        values.iter().map(|(name, shape)| (name.to_string(), fact(shape))).collect()
    }

    fn noise(stream: &mut Stream, shape: &[usize]) -> Vec<f32> {
        (0..shape.iter().product()).map(|_| stream.normal()).collect()
    }

    /// The gradient of one sample where the node's weight input has it.
    fn natural(product: &Product, x: &[f32], g: &[f32], sample: usize) -> Vec<f32> {
        let order = product.natural();
        let mut rows = vec![0.0; order.len()];
        product.add_gradient(x, g, sample, BATCH, &mut rows, &mut Scratch::default());
        let mut put = vec![f32::NAN; order.len()];
        product.put_gradient(x, g, sample, BATCH, &mut put, &mut Scratch::default());
        assert_eq!(put, rows);
        let mut out = vec![0.0; order.len()];
        order.iter().zip(&rows).for_each(|(&at, &v)| out[at as usize] = v);
        out
    }

    fn assert_close(have: &[f32], want: &[f64], what: &str) {
        assert_eq!(have.len(), want.len(), "{what}");
        let scale = want.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
        for (i, (h, w)) in have.iter().zip(want).enumerate() {
            assert!((f64::from(*h) - w).abs() < 1e-5 * scale, "{what}: [{i}] is {h}, not {w}");
        }
    }

    /// dL/dW[o, c, k, l] = Σ g[o, y, z] x[c, y·s + k·d − p, ...] by six loops.
    fn convolution(s: &[usize; 10], x: &[f32], g: &[f32], out: [usize; 2]) -> Vec<f64> {
        let [groups, inner, outer, kh, kw, stride, dilation, pad, h, w] = *s;
        let mut weight = vec![0.0; groups * outer * inner * kh * kw];
        for o in 0..groups * outer {
            for c in 0..inner {
                for (k, l) in (0..kh).flat_map(|k| (0..kw).map(move |l| (k, l))) {
                    for (y, z) in (0..out[0]).flat_map(|y| (0..out[1]).map(move |z| (y, z))) {
                        let at = |i: usize, k: usize| (i * stride + k * dilation).checked_sub(pad);
                        let (Some(i), Some(j)) = (at(y, k), at(z, l)) else { continue };
                        if i < h && j < w {
                            let channel = o / outer * inner + c;
                            weight[((o * inner + c) * kh + k) * kw + l] +=
                                f64::from(g[(o * out[0] + y) * out[1] + z])
                                    * f64::from(x[(channel * h + i) * w + j]);
                        }
                    }
                }
            }
        }
        weight
    }

    #[test]
    fn convolutions_agree_with_six_loops() {
        let mut stream = Stream::new(11, 0);
        for case in 0..60 {
            let mut pick = |n: usize| 1 + stream.below(n);
            let (groups, inner, outer) = (pick(3), pick(3), pick(3));
            let (kh, kw, stride, dilation) = (pick(3), pick(3), pick(3), pick(2));
            let pad = pick(3) - 1;
            let span = |k: usize| (k - 1) * dilation + 1;
            let (h, w) = (span(kh) + pick(5), span(kw) + pick(6));
            let out =
                [(h + 2 * pad - span(kh)) / stride + 1, (w + 2 * pad - span(kw)) / stride + 1];
            let node = Node::new("Conv", ["x", "w"], "y")
                .with("group", groups as i64)
                .with("strides", vec![stride as i64; 2])
                .with("dilations", vec![dilation as i64; 2])
                .with("pads", vec![pad as i64; 4]);
            let (xs, gs) = ([BATCH, groups * inner, h, w], [BATCH, groups * outer, out[0], out[1]]);
            let facts = facts(&[("x", &xs), ("w", &[groups * outer, inner, kh, kw]), ("y", &gs)]);
            let product = Product::of(&node, 1, &facts).expect("a convolution");
            let (x, g) = (noise(&mut stream, &xs), noise(&mut stream, &gs));
            for sample in 0..BATCH {
                let part = |v: &'_ [f32]| v.len() / BATCH * sample..v.len() / BATCH * (sample + 1);
                let shape = [groups, inner, outer, kh, kw, stride, dilation, pad, h, w];
                let want = convolution(&shape, &x[part(&x)], &g[part(&g)], out);
                let have = natural(&product, &x, &g, sample);
                assert_close(&have, &want, &format!("case {case}: {shape:?}"));
                // A transposed convolution is the same with x and g in each other's place.
                let mut node = node.clone();
                node.op = "ConvTranspose".into();
                let facts = facts_of_transposed(&xs, &gs, [groups * outer, inner, kh, kw]);
                let product = Product::of(&node, 1, &facts).expect("a transposed convolution");
                let have = natural(&product, &g, &x, sample);
                assert_close(&have, &want, &format!("case {case}, transposed: {shape:?}"));
            }
        }
    }

    fn facts_of_transposed(y: &[usize], x: &[usize], weight: [usize; 4]) -> Facts {
        facts(&[("x", x), ("w", &weight), ("y", y)])
    }

    #[test]
    fn linear_products_agree_with_three_loops() {
        let mut stream = Stream::new(12, 0);
        let (n, k, t) = (5, 4, 2);
        // Node, weight input, shapes of x, w, y, and whether the weight is [K, N].
        let gemm = |flags: [i64; 2], weight: usize| {
            let inputs = if weight == 1 { ["x", "w"] } else { ["w", "x"] };
            let node = Node::new("Gemm", inputs, "y").with("alpha", Attribute::Float(0.5));
            node.with("transA", flags[0]).with("transB", flags[1])
        };
        let matmul = |inputs: [&str; 2]| Node::new("MatMul", inputs, "y");
        let (rows, batched) = (BATCH * t, [BATCH, t, k]);
        type Case = (Node, usize, Vec<usize>, Vec<usize>, Vec<usize>, bool);
        let cases: Vec<Case> = vec![
            (gemm([0, 1], 1), 1, vec![rows, k], vec![n, k], vec![rows, n], false),
            (gemm([0, 0], 1), 1, vec![rows, k], vec![k, n], vec![rows, n], true),
            (gemm([1, 1], 1), 1, vec![k, rows], vec![n, k], vec![rows, n], false),
            (gemm([0, 0], 0), 0, vec![k, rows], vec![n, k], vec![n, rows], false),
            (gemm([1, 1], 0), 0, vec![rows, k], vec![k, n], vec![n, rows], true),
            (matmul(["x", "w"]), 1, batched.to_vec(), vec![k, n], vec![BATCH, t, n], true),
            (matmul(["w", "x"]), 0, vec![BATCH, k, t], vec![n, k], vec![BATCH, n, t], false),
        ];
        for (node, weight, xs, ws, ys, transposed) in cases {
            let facts = facts(&[("x", &xs), ("w", &ws), ("y", &ys)]);
            let product = Product::of(&node, weight, &facts).expect("a linear product");
            assert!(product.splits(BATCH) && !product.splits(4));
            let (x, g) = (noise(&mut stream, &xs), noise(&mut stream, &ys));
            let scale = f64::from(node.float("alpha").unwrap_or(1.0));
            // Where position p (of all rows) keeps input i and output o.
            let last = |shape: &[usize]| shape[shape.len() - 1];
            let x_at = |p: usize, i: usize| match xs.len() {
                3 if weight == 0 => (p / t * k + i) * t + p % t,
                _ if last(&xs) == rows => i * rows + p,
                _ => p * k + i,
            };
            let g_at = |p: usize, o: usize| match ys.len() {
                3 if weight == 0 => (p / t * n + o) * t + p % t,
                _ if last(&ys) == rows => o * rows + p,
                _ => p * n + o,
            };
            for sample in 0..BATCH {
                let mut want = vec![0.0; n * k];
                for p in sample * t..(sample + 1) * t {
                    for (o, i) in (0..n).flat_map(|o| (0..k).map(move |i| (o, i))) {
                        let at = if transposed { i * n + o } else { o * k + i };
                        want[at] += scale * f64::from(g[g_at(p, o)]) * f64::from(x[x_at(p, i)]);
                    }
                }
                assert_close(&natural(&product, &x, &g, sample), &want, &format!("{node:?}"));
                for (i, _) in g.iter().enumerate() {
                    let own = product.belongs(i, g.len(), sample, BATCH);
                    let p = (0..rows).find(|&p| (0..n).any(|o| g_at(p, o) == i));
                    assert_eq!(own, p.map(|p| p / t) == Some(sample), "{node:?}: element {i}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_one_weight_is_refused() {
        let batched = facts(&[("x", &[2, 3, 4]), ("w", &[2, 4, 5]), ("y", &[2, 3, 5])]);
        assert_eq!(Product::of(&Node::new("MatMul", ["x", "w"], "y"), 1, &batched), None);
        let vector = facts(&[("x", &[4]), ("w", &[4, 5]), ("y", &[5])]);
        assert_eq!(Product::of(&Node::new("MatMul", ["x", "w"], "y"), 1, &vector), None);
    }
}
