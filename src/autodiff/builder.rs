//! Emits the nodes of a backward pass: each method appends one operator application (or a few)
//! and returns a [`Term`], a name with its type and static shape.
//!
//! Rules written with these methods read like the formulas they implement, because shapes are
//! tracked here, constants are shared here, and names are made up here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use half::{bf16, f16};

use super::{Fact, Facts};
use crate::error::{Result, error};
use crate::onnx::{Graph, Node};
use crate::tensor::{Data, ElementType, Tensor};

/// A value of the graph under construction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Term {
    pub name: String,
    pub element: ElementType,
    pub shape: Vec<usize>,
}

impl Term {
    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A stretch of an axis as the operator `Slice` reads it: from `start` to `end`, exclusive, by
/// `step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub axis: usize,
    pub start: i64,
    pub end: i64,
    pub step: i64,
}

/// The graph under construction: the forward nodes, then what has been emitted so far.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub graph: Graph,
    facts: &'a Facts,
    names: HashSet<String>,
    constants: HashMap<(ElementType, Vec<usize>, Vec<u64>), Term>,
    count: usize,
}

impl<'a> Builder<'a> {
    /// Starts from a copy of the forward graph.
    pub fn new(graph: &Graph, facts: &'a Facts) -> Builder<'a> {
        Builder {
            graph: graph.clone(),
            facts,
            names: graph.names(),
            constants: HashMap::new(),
            count: 0,
        }
    }

    /// What is known of a forward value.
    pub fn fact(&self, name: &str) -> Result<&'a Fact> {
        self.facts
            .get(name)
            .ok_or_else(|| error!(Model, "the type and shape of value {name:?} are not known"))
    }

    /// A forward value as a term.
    pub fn term(&self, name: &str) -> Result<Term> {
        let fact = self.fact(name)?;
        Ok(Term { name: name.into(), element: fact.element, shape: fact.shape.clone() })
    }

    /// The value of a forward value that is the same in every run.
    pub fn constant_value(&self, name: &str) -> Option<Arc<Tensor>> {
        let known = self.facts.get(name).and_then(|f| f.constant.clone());
        known.or_else(|| self.graph.initializers.get(name).cloned())
    }

    /// A name that nothing else has: `wish` itself or `wish` with a number.
    pub fn fresh(&mut self, wish: &str) -> String {
        let mut name = wish.to_string();
        let mut n = 1;
        while !self.names.insert(name.clone()) {
            n += 1;
            name = format!("{wish}.{n}");
        }
        name
    }

    fn fresh_numbered(&mut self, kind: &str) -> String {
        self.count += 1;
        let wish = format!("hone/{kind}/{}", self.count);
        self.fresh(&wish)
    }

    /// Appends `node` with one output of the given type and shape.
    pub fn emit(&mut self, mut node: Node, element: ElementType, shape: Vec<usize>) -> Term {
        let name = self.fresh_numbered("b");
        node.outputs = vec![name.clone()];
        node.name = name.clone();
        self.graph.nodes.push(node);
        Term { name, element, shape }
    }

    /// Applies `op`, without attributes, to `inputs`.
    pub fn apply(
        &mut self,
        op: &str,
        inputs: &[&Term],
        element: ElementType,
        shape: Vec<usize>,
    ) -> Term {
        self.emit(Node::new(op, inputs.iter().map(|t| t.name.as_str()), ""), element, shape)
    }
}

/// Constants.
impl Builder<'_> {
    /// A constant, shared with every equal one.
    pub fn constant(&mut self, tensor: Tensor) -> Term {
        let bits = match tensor.data() {
            Data::I64(v) => v.iter().map(|&x| x as u64).collect(),
            _ => tensor.to_f64().iter().map(|x| x.to_bits()).collect(),
        };
        let key = (tensor.element_type(), tensor.shape().to_vec(), bits);
        if let Some(term) = self.constants.get(&key) {
            return term.clone();
        }
        let name = self.fresh_numbered("c");
        let term = Term { name: name.clone(), element: key.0, shape: key.1.clone() };
        self.graph.initializers.insert(name, Arc::new(tensor));
        self.constants.insert(key, term.clone());
        term
    }

    /// A list of integers.
    pub fn ints(&mut self, values: &[i64]) -> Term {
        self.constant(Tensor::i64([values.len()], values.to_vec()))
    }

    /// A constant of float type `element`.
    pub fn floats(&mut self, element: ElementType, shape: &[usize], values: &[f64]) -> Term {
        let data = match element {
            ElementType::F64 => Data::F64(values.to_vec()),
            ElementType::F16 => Data::F16(values.iter().map(|&x| f16::from_f64(x)).collect()),
            ElementType::BF16 => Data::BF16(values.iter().map(|&x| bf16::from_f64(x)).collect()),
            _ => Data::F32(values.iter().map(|&x| x as f32).collect()),
        };
        self.constant(Tensor::new(shape, data).expect("the rule computed both"))
    }

    /// A single number of float type `element`, of rank 0.
    pub fn scalar(&mut self, element: ElementType, value: f64) -> Term {
        self.floats(element, &[], &[value])
    }

    /// Zeros, which take no room in the model file.
    pub fn zeros(&mut self, element: ElementType, shape: &[usize]) -> Term {
        let dims = self.ints(&signed(shape));
        let zero = match element {
            ElementType::F64 => Data::F64(vec![0.0]),
            ElementType::F16 => Data::F16(vec![f16::ZERO]),
            ElementType::BF16 => Data::BF16(vec![bf16::ZERO]),
            _ => Data::F32(vec![0.0]),
        };
        let value = Tensor::new([1], zero).expect("one element");
        let node = Node::new("ConstantOfShape", [dims.name], "").with("value", value);
        self.emit(node, element, shape.to_vec())
    }
}

/// Elementwise operators.
impl Builder<'_> {
    /// `op` of one operand, elementwise.
    pub fn unary(&mut self, op: &str, x: &Term) -> Term {
        self.apply(op, &[x], x.element, x.shape.clone())
    }

    /// `op` of two operands, elementwise with broadcasting.
    pub fn binary(&mut self, op: &str, a: &Term, b: &Term) -> Term {
        let shape = broadcast(&a.shape, &b.shape);
        self.apply(op, &[a, b], a.element, shape)
    }

    /// a + b.
    pub fn add(&mut self, a: &Term, b: &Term) -> Term {
        self.binary("Add", a, b)
    }

    /// a − b.
    pub fn sub(&mut self, a: &Term, b: &Term) -> Term {
        self.binary("Sub", a, b)
    }

    /// a · b, elementwise.
    pub fn mul(&mut self, a: &Term, b: &Term) -> Term {
        self.binary("Mul", a, b)
    }

    /// a / b, elementwise.
    pub fn div(&mut self, a: &Term, b: &Term) -> Term {
        self.binary("Div", a, b)
    }

    /// factor · x.
    pub fn scale(&mut self, x: &Term, factor: f64) -> Term {
        if factor == 1.0 {
            return x.clone();
        }
        if factor == -1.0 {
            return self.unary("Neg", x);
        }
        let factor = self.scalar(x.element, factor);
        self.mul(x, &factor)
    }

    /// x + offset.
    pub fn shift(&mut self, x: &Term, offset: f64) -> Term {
        let offset = self.scalar(x.element, offset);
        self.add(x, &offset)
    }

    /// offset − x.
    pub fn subtract_from(&mut self, offset: f64, x: &Term) -> Term {
        let offset = self.scalar(x.element, offset);
        self.sub(&offset, x)
    }

    /// x².
    pub fn square(&mut self, x: &Term) -> Term {
        self.mul(x, x)
    }

    /// 1 where the comparison `op` (`Greater`, `Less`, `Equal`, …) holds and 0 elsewhere, as
    /// numbers of type `element`: multiplying by it is far cheaper than the operator `Where`.
    pub fn mask(&mut self, op: &str, a: &Term, b: &Term, element: ElementType) -> Term {
        let shape = broadcast(&a.shape, &b.shape);
        let truth = self.apply(op, &[a, b], ElementType::Bool, shape);
        self.cast(&truth, element)
    }

    /// [`Self::mask`] against a number.
    pub fn mask_scalar(&mut self, op: &str, x: &Term, threshold: f64) -> Term {
        let threshold = self.scalar(x.element, threshold);
        self.mask(op, x, &threshold, x.element)
    }

    /// x converted to `element`.
    pub fn cast(&mut self, x: &Term, element: ElementType) -> Term {
        if x.element == element {
            return x.clone();
        }
        let node = Node::new("Cast", [x.name.as_str()], "").with("to", element.to_onnx() as i64);
        self.emit(node, element, x.shape.clone())
    }
}

/// Products and sums over axes.
impl Builder<'_> {
    /// The matrix product over the last two axes, both operands of rank 2 or more.
    pub fn matmul(&mut self, a: &Term, b: &Term) -> Term {
        let (ra, rb) = (a.rank(), b.rank());
        let mut shape = broadcast(&a.shape[..ra - 2], &b.shape[..rb - 2]);
        shape.extend([a.shape[ra - 2], b.shape[rb - 1]]);
        self.apply("MatMul", &[a, b], a.element, shape)
    }

    /// x with axis `axis` multiplied by a constant `matrix` of shape [out, in], row-major:
    /// y[…, o, …] = Σ_i matrix[o, i] · x[…, i, …].
    pub fn along(&mut self, x: &Term, axis: usize, out: usize, matrix: &[f64]) -> Term {
        let length = x.shape[axis];
        let mut shape = x.shape.clone();
        shape[axis] = out;
        let before: usize = x.shape[..axis].iter().product();
        let after: usize = x.shape[axis + 1..].iter().product();
        let product = if after == 1 {
            let transposed = transpose_matrix(matrix, out, length);
            let matrix = self.floats(x.element, &[length, out], &transposed);
            let rows = self.reshape(x, &[before, length]);
            self.matmul(&rows, &matrix)
        } else {
            let matrix = self.floats(x.element, &[out, length], matrix);
            let slabs = self.reshape(x, &[before, length, after]);
            self.matmul(&matrix, &slabs)
        };
        self.reshape(&product, &shape)
    }

    /// The reduction `op` (`ReduceSum`, `ReduceMean`, …) over `axes`, which stay with length 1.
    pub fn reduce(&mut self, op: &str, x: &Term, axes: &[usize]) -> Term {
        if axes.is_empty() {
            return x.clone();
        }
        let mut shape = x.shape.clone();
        axes.iter().for_each(|&a| shape[a] = 1);
        let list = self.ints(&signed(axes));
        let node = Node::new(op, [&x.name, &list.name], "").with("keepdims", 1i64);
        self.emit(node, x.element, shape)
    }

    /// The sum over `axes`, which stay with length 1.
    pub fn sum(&mut self, x: &Term, axes: &[usize]) -> Term {
        self.reduce("ReduceSum", x, axes)
    }

    /// x fitted to the shape of the operand that its gradient belongs to: summed over the axes
    /// that broadcasting stretched, stretched over the axes that a reduction summed.
    pub fn fit(&mut self, x: &Term, shape: &[usize]) -> Term {
        if x.shape == shape {
            return x.clone();
        }
        let lead = x.rank().saturating_sub(shape.len());
        let stretched =
            |axis: &usize| *axis < lead || (shape[axis - lead] == 1 && x.shape[*axis] != 1);
        let axes: Vec<usize> =
            (0..x.rank()).filter(|a| x.rank() >= shape.len() && stretched(a)).collect();
        let summed = self.sum(x, &axes);
        let cut = self.reshape(&summed, &summed.shape[lead..]);
        self.expand(&cut, shape)
    }

    /// x broadcast to `shape`.
    pub fn expand(&mut self, x: &Term, shape: &[usize]) -> Term {
        if x.shape == shape {
            return x.clone();
        }
        let dims = self.ints(&signed(shape));
        self.apply("Expand", &[x, &dims], x.element, shape.to_vec())
    }
}

/// Rearrangements.
impl Builder<'_> {
    /// The elements of x under another shape.
    pub fn reshape(&mut self, x: &Term, shape: &[usize]) -> Term {
        if x.shape == shape {
            return x.clone();
        }
        let dims = self.ints(&signed(shape));
        let mut node = Node::new("Reshape", [&x.name, &dims.name], "");
        if shape.contains(&0) {
            node = node.with("allowzero", 1i64);
        }
        self.emit(node, x.element, shape.to_vec())
    }

    /// x with its axes in the order `order`.
    pub fn transpose(&mut self, x: &Term, order: &[usize]) -> Term {
        if order.iter().enumerate().all(|(i, &a)| i == a) {
            return x.clone();
        }
        let shape = order.iter().map(|&a| x.shape[a]).collect();
        let node = Node::new("Transpose", [x.name.as_str()], "").with("perm", signed(order));
        self.emit(node, x.element, shape)
    }

    /// x with its last two axes exchanged.
    pub fn transpose_last(&mut self, x: &Term) -> Term {
        let mut order: Vec<usize> = (0..x.rank()).collect();
        order.swap(x.rank() - 2, x.rank() - 1);
        self.transpose(x, &order)
    }

    /// The elements of x in `ranges`; every range selects at least one element.
    pub fn slice(&mut self, x: &Term, ranges: &[Range]) -> Term {
        let whole = |r: &Range| r.start == 0 && r.end == x.shape[r.axis] as i64 && r.step == 1;
        let ranges: Vec<Range> = ranges.iter().copied().filter(|r| !whole(r)).collect();
        if ranges.is_empty() {
            return x.clone();
        }
        let mut shape = x.shape.clone();
        for r in &ranges {
            shape[r.axis] =
                (r.end - r.start).unsigned_abs().div_ceil(r.step.unsigned_abs()) as usize;
        }
        self.emit_slice(x, &ranges, shape)
    }

    /// Elements `start..end` of one axis of x.
    pub fn narrow(&mut self, x: &Term, axis: usize, start: usize, end: usize) -> Term {
        self.slice(x, &[Range { axis, start: start as i64, end: end as i64, step: 1 }])
    }

    /// x with the order of the elements on each of `axes` reversed.
    pub fn reverse(&mut self, x: &Term, axes: &[usize]) -> Term {
        let flipped = |&axis: &usize| {
            (x.shape[axis] > 1).then(|| Range {
                axis,
                start: x.shape[axis] as i64 - 1,
                end: -(x.shape[axis] as i64) - 1,
                step: -1,
            })
        };
        let ranges: Vec<Range> = axes.iter().filter_map(flipped).collect();
        if ranges.is_empty() {
            return x.clone();
        }
        self.emit_slice(x, &ranges, x.shape.clone())
    }

    fn emit_slice(&mut self, x: &Term, ranges: &[Range], shape: Vec<usize>) -> Term {
        let mut list = |f: fn(&Range) -> i64| self.ints(&ranges.iter().map(f).collect::<Vec<_>>());
        let lists = [list(|r| r.start), list(|r| r.end), list(|r| r.axis as i64), list(|r| r.step)];
        let [starts, ends, axes, steps] = &lists;
        self.apply("Slice", &[x, starts, ends, axes, steps], x.element, shape)
    }

    /// x with `before` and `after` zeros around each axis; negative numbers crop.
    pub fn pad(&mut self, x: &Term, before: &[i64], after: &[i64]) -> Term {
        if before.iter().chain(after).all(|&n| n == 0) {
            return x.clone();
        }
        if before.iter().chain(after).all(|&n| n <= 0) {
            let keep = |axis: usize| Range {
                axis,
                start: -before[axis],
                end: x.shape[axis] as i64 + after[axis],
                step: 1,
            };
            return self.slice(x, &(0..x.rank()).map(keep).collect::<Vec<_>>());
        }
        let axes = x.shape.iter().zip(before.iter().zip(after));
        let shape = axes.map(|(&n, (b, a))| (n as i64 + b + a) as usize).collect();
        let pads = self.ints(&[before, after].concat());
        self.apply("Pad", &[x, &pads], x.element, shape)
    }

    /// `parts` one after the other on `axis`.
    pub fn concat(&mut self, parts: &[Term], axis: usize) -> Term {
        if let [only] = parts {
            return only.clone();
        }
        let mut shape = parts[0].shape.clone();
        shape[axis] = parts.iter().map(|p| p.shape[axis]).sum();
        let node = Node::new("Concat", parts.iter().map(|p| p.name.as_str()), "");
        self.emit(node.with("axis", axis as i64), parts[0].element, shape)
    }

    /// The elements of x at `indices` on `axis`.
    pub fn gather(&mut self, x: &Term, indices: &Term, axis: usize) -> Term {
        let shape = [&x.shape[..axis], &indices.shape, &x.shape[axis + 1..]].concat();
        let node = Node::new("Gather", [&x.name, &indices.name], "").with("axis", axis as i64);
        self.emit(node, x.element, shape)
    }

    /// The adjoint of reading the `positions` of an axis of `length`: element j of x goes to
    /// positions[j] of an axis of zeros. The positions are distinct.
    pub fn spread(&mut self, x: &Term, axis: usize, positions: &[usize], length: usize) -> Term {
        let count = x.shape[axis];
        let first = positions.first().copied().unwrap_or(0);
        let (mut before, mut after) = (vec![0; x.rank()], vec![0; x.rank()]);
        if positions.iter().enumerate().all(|(j, &p)| p == first + j) {
            before[axis] = first as i64;
            after[axis] = (length - first - count) as i64;
            return self.pad(x, &before, &after);
        }
        // One slice of zeros behind the elements serves every position that nothing goes to.
        after[axis] = 1;
        let extended = self.pad(x, &before, &after);
        let mut source = vec![count as i64; length];
        positions.iter().enumerate().for_each(|(j, &p)| source[p] = j as i64);
        let source = self.ints(&source);
        self.gather(&extended, &source, axis)
    }

    /// Zeros of `shape` plus each element of the flat `updates` at its place in the flat
    /// `indices`, which may repeat.
    pub fn scatter_add_flat(&mut self, shape: &[usize], indices: &Term, updates: &Term) -> Term {
        let zeros = self.zeros(updates.element, &[shape.iter().product()]);
        let names = [&zeros.name, &indices.name, &updates.name];
        let node =
            Node::new("ScatterElements", names, "").with("axis", 0i64).with("reduction", "add");
        let flat = self.emit(node, updates.element, zeros.shape.clone());
        self.reshape(&flat, shape)
    }
}

/// A shape or list of axes as ONNX stores it.
pub(crate) fn signed(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&d| d as i64).collect()
}

/// The shape that operands of shapes `a` and `b` broadcast to.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank).map(|i| if at(a, i) == 1 { at(b, i) } else { at(a, i) }).collect()
}

fn transpose_matrix(matrix: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])).collect()
}
