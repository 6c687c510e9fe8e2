//! Recurrent layers as what they do: one step after the other, in operators that have gradients.
//!
//! With the length T of the sequence known, `LSTM`, `GRU` and `RNN` become T copies of their step
//!
//! ```text
//! LSTM  i, o, f = σ(W x_t + R h + b)   g = tanh(W x_t + R h + b)   c ← f c + i g   h ← o tanh(c)
//! GRU   z, r = σ(W x_t + R h + b)      g = tanh(W x_t + b_W + r (R h + b_R))   h ← (1−z) g + z h
//! RNN   h ← tanh(W x_t + R h + b)
//! ```
//!
//! (or, for a GRU that resets before its product, g = tanh(W x_t + R (r h) + b)). W x_t is one
//! product for all steps, samples first. In a layer of one direction W and R are weights of
//! products like any other, and R that of T of them; in one of two they are cut out of a common
//! tensor and left alone. A layer of a form that is not unrolled (peepholes, other activations,
//! clipping, sequences of different lengths, batch-major layout) stays as it is.

use crate::onnx::graph::Names;
use crate::onnx::{Attribute, Graph, Node};
use crate::tensor::{Data, Tensor};

/// Longer sequences are not unrolled: the graph would have tens of thousands of nodes.
const LONGEST: usize = 1024;

/// Whether there is anything to unroll.
pub fn is_recurrent(node: &Node) -> bool {
    node.domain.is_empty() && matches!(node.op.as_str(), "LSTM" | "GRU" | "RNN")
}

/// Unrolls the recurrent layers of `graph`; `shape` knows the shapes of values. Returns whether
/// there was one.
pub fn unroll(graph: &mut Graph, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> bool {
    let mut unrolling = Unrolling { names: Names::of(graph), ..Unrolling::default() };
    let mut found = false;
    let zero = |name: &str| match graph.initializers.get(name).map(|t| t.data()) {
        Some(Data::F32(v)) => v.iter().all(|&v| v == 0.0),
        _ => false,
    };
    for node in &graph.nodes {
        match Layer::of(node, graph, shape) {
            Some(layer) => {
                unrolling.base =
                    node.outputs.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
                unrolling.layer(node, layer, &zero);
                found = true;
            }
            None => unrolling.nodes.push(node.clone()),
        }
    }
    graph.nodes = unrolling.nodes;
    graph.initializers.extend(unrolling.constants.into_iter().map(|(name, t)| (name, t.into())));
    found
}

/// The part of a step that tells the kinds of layers apart.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Lstm,
    /// Whether the reset gate acts behind the product with R.
    Gru {
        linear_before_reset: bool,
    },
    Rnn,
}

impl Kind {
    /// Rows of W and R in multiples of the hidden size.
    fn gates(self) -> usize {
        match self {
            Kind::Lstm => 4,
            Kind::Gru { .. } => 3,
            Kind::Rnn => 1,
        }
    }

    fn activations(self) -> &'static [&'static str] {
        match self {
            Kind::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Kind::Gru { .. } => &["Sigmoid", "Tanh"],
            Kind::Rnn => &["Tanh"],
        }
    }
}

/// What is known of a layer before it is unrolled.
#[derive(Clone, Copy, Debug)]
struct Layer {
    kind: Kind,
    steps: usize,
    hidden: usize,
    /// One or two; the first runs backwards where `reversed`.
    directions: usize,
    reversed: bool,
}

impl Layer {
    /// The layer that `node` is, if it is one that can be unrolled.
    fn of(node: &Node, graph: &Graph, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<Layer> {
        if !is_recurrent(node) {
            return None;
        }
        let layer = Layer::read(node, graph, shape);
        if layer.is_none() {
            log::info!("{} is of a form that is not unrolled", node.describe());
        }
        layer
    }

    fn read(
        node: &Node,
        graph: &Graph,
        shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Option<Layer> {
        let kind = match node.op.as_str() {
            "LSTM" => Kind::Lstm,
            "GRU" => {
                Kind::Gru { linear_before_reset: node.int("linear_before_reset").unwrap_or(0) != 0 }
            }
            _ => Kind::Rnn,
        };
        let [steps, _, _] = shape(node.input(0)?)?[..] else { return None };
        let [directions, _, hidden] = shape(node.input(2)?)?[..] else { return None };
        let plain = ["layout", "input_forget"].iter().all(|a| node.int(a).unwrap_or(0) == 0)
            && ["clip", "activation_alpha", "activation_beta"]
                .iter()
                .all(|a| !node.attributes.contains_key(*a))
            && has_activations(node, kind.activations())
            && node.input(7).is_none();
        let whole = node.input(4).is_none_or(|lengths| {
            let data = graph.initializers.get(lengths).map(|t| t.data());
            matches!(data, Some(Data::I32(v)) if v.iter().all(|&l| l as usize == steps))
        });
        let direction = node.string("direction").unwrap_or("forward");
        let fits = directions == if direction == "bidirectional" { 2 } else { 1 };
        let reversed = direction == "reverse";
        let sized = (1..=LONGEST).contains(&steps) && hidden > 0;
        let layer = Layer { kind, steps, hidden, directions, reversed };
        (plain && whole && fits && sized).then_some(layer)
    }
}

/// Whether a node names the usual activations, or none.
fn has_activations(node: &Node, usual: &[&str]) -> bool {
    match node.attributes.get("activations") {
        None => true,
        Some(Attribute::Other(raw)) => {
            let named = raw.strings.iter().zip(usual.iter().cycle());
            named.into_iter().all(|(name, usual)| name.as_slice() == usual.as_bytes())
        }
        Some(_) => false,
    }
}

#[derive(Default)]
struct Unrolling {
    names: Names,
    nodes: Vec<Node>,
    constants: Vec<(String, Tensor)>,
    /// What the names of the values in between start with.
    base: String,
}

impl Unrolling {
    fn layer(&mut self, node: &Node, layer: Layer, zero: &dyn Fn(&str) -> bool) {
        let Layer { hidden, directions, .. } = layer;
        let x = self.transpose(&node.inputs[0], &[1, 0, 2]);
        let runs: Vec<Run> =
            (0..directions).map(|d| self.direction(node, layer, d, &x, zero)).collect();
        let h = hidden as i64;
        if let Some(y) = node.output(0) {
            let mut sides = Vec::new();
            for run in &runs {
                let steps: Vec<String> =
                    run.outputs.iter().map(|o| self.reshape(o, &[1, 1, -1, h])).collect();
                sides.push(self.concat(&steps, 0));
            }
            let all = self.concat(&sides, 1);
            self.rename(all, y);
        }
        let last =
            |run: &Run, output| if output == 1 { run.hidden.clone() } else { run.cell.clone() };
        for output in [1, 2] {
            let Some(name) = node.output(output) else { continue };
            let parts: Vec<String> =
                runs.iter().map(|r| self.reshape(&last(r, output), &[1, -1, h])).collect();
            let all = self.concat(&parts, 0);
            self.rename(all, name);
        }
    }

    /// Everything that one direction computes; `x` is the input with samples first, `zero` knows
    /// initial states that are zero.
    fn direction(
        &mut self,
        node: &Node,
        layer: Layer,
        d: usize,
        x: &str,
        zero: &dyn Fn(&str) -> bool,
    ) -> Run {
        let Layer { kind, steps, hidden, directions, reversed } = layer;
        let (h, rows) = (hidden as i64, (kind.gates() * hidden) as i64);
        // Without a cut the way from the tensor to the product is one that pruning can follow.
        let part = |s: &mut Unrolling, name: &str| match directions {
            1 => name.to_owned(),
            _ => s.slice(name, d as i64),
        };
        let [w, r] = [1, 2].map(|i| {
            let cut = part(self, &node.inputs[i]);
            let flat = self.reshape(&cut, &[rows, -1]);
            self.transpose(&flat, &[1, 0])
        });
        let mut wx = self.apply("MatMul", &[x, &w]);
        let mut inner_bias = None;
        if let Some(bias) = node.input(3) {
            let cut = part(self, bias);
            let both = self.reshape(&cut, &[2, rows]);
            let biases = self.split(&both, 0, 2, 1);
            wx = self.apply("Add", &[&wx, &biases[0]]);
            match kind {
                // Its last gate multiplies what R adds, so R's bias stays with R.
                Kind::Gru { .. } => inner_bias = Some(biases[1].clone()),
                _ => wx = self.apply("Add", &[&wx, &biases[1]]),
            }
        }
        let mut state = |input: usize| {
            let initial = node.input(input).filter(|name| !zero(name))?;
            let cut = part(self, initial);
            Some(self.reshape(&cut, &[-1, h]))
        };
        let mut now = State { hidden: state(5), cell: state(6) };
        let inputs = self.split(&wx, 1, steps, 1);
        let mut outputs = vec![String::new(); steps];
        for step in 0..steps {
            let t = if reversed || d == 1 { steps - 1 - step } else { step };
            let x = self.reshape(&inputs[t], &[-1, rows]);
            let cells = Cells { x, r: &r, bias: inner_bias.as_deref(), hidden };
            let new = match kind {
                Kind::Lstm => {
                    let (hidden, cell) = self.lstm(&cells, &now);
                    now.cell = Some(cell);
                    hidden
                }
                Kind::Gru { linear_before_reset: true } => self.gru(&cells, &now),
                Kind::Gru { .. } => self.gru_early(&cells, &now),
                Kind::Rnn => {
                    let sum = self.sum_with_state(&cells, &now);
                    self.apply("Tanh", &[&sum])
                }
            };
            outputs[t].clone_from(&new);
            now.hidden = Some(new);
        }
        let last = |state: Option<String>| state.unwrap_or_default();
        Run { outputs, hidden: last(now.hidden), cell: last(now.cell) }
    }

    fn lstm(&mut self, cells: &Cells<'_>, now: &State) -> (String, String) {
        let sum = self.sum_with_state(cells, now);
        let gates = self.split(&sum, 1, 4, cells.hidden);
        let [i, o, f] = [0, 1, 2].map(|k| self.apply("Sigmoid", &[&gates[k]]));
        let g = self.apply("Tanh", &[&gates[3]]);
        let mut cell = self.apply("Mul", &[&i, &g]);
        if let Some(c) = &now.cell {
            let kept = self.apply("Mul", &[&f, c]);
            cell = self.apply("Add", &[&kept, &cell]);
        }
        let squashed = self.apply("Tanh", &[&cell]);
        (self.apply("Mul", &[&o, &squashed]), cell)
    }

    fn gru(&mut self, cells: &Cells<'_>, now: &State) -> String {
        let n = cells.hidden;
        let mut rh = now.hidden.as_ref().map(|h| self.apply("MatMul", &[h, cells.r]));
        if let Some(bias) = cells.bias {
            rh = Some(rh.map_or(bias.to_owned(), |rh| self.apply("Add", &[&rh, bias])));
        }
        let of_x = self.split(&cells.x, 1, 3, n);
        let of_h = rh.map(|rh| self.split(&rh, 1, 3, n));
        let [z, r] = [0, 1].map(|k| {
            let sum = of_h.as_ref().map(|h| self.apply("Add", &[&of_x[k], &h[k]]));
            self.apply("Sigmoid", &[&sum.unwrap_or_else(|| of_x[k].clone())])
        });
        let sum = of_h.map(|h| {
            let reset = self.apply("Mul", &[&r, &h[2]]);
            self.apply("Add", &[&of_x[2], &reset])
        });
        self.mixed(&z, &sum.unwrap_or_else(|| of_x[2].clone()), now)
    }

    /// A GRU that resets the state before its product: R is cut in three, so it is left alone.
    fn gru_early(&mut self, cells: &Cells<'_>, now: &State) -> String {
        let n = cells.hidden;
        let of_x = self.split(&cells.x, 1, 3, n);
        let r = self.split(cells.r, 1, 3, n);
        let bias = cells.bias.map(|b| self.split(b, 1, 3, n));
        let gate = |s: &mut Unrolling, k: usize, h: Option<&String>| {
            let mut sum = of_x[k].clone();
            if let Some(bias) = &bias {
                sum = s.apply("Add", &[&sum, &bias[k]]);
            }
            if let Some(h) = h {
                let rh = s.apply("MatMul", &[h, &r[k]]);
                sum = s.apply("Add", &[&sum, &rh]);
            }
            sum
        };
        let [z, r] = [0, 1].map(|k| {
            let sum = gate(self, k, now.hidden.as_ref());
            self.apply("Sigmoid", &[&sum])
        });
        let reset = now.hidden.as_ref().map(|h| self.apply("Mul", &[&r, h]));
        let sum = gate(self, 2, reset.as_ref());
        self.mixed(&z, &sum, now)
    }

    /// (1 − z) tanh(sum) + z h, as g + z (h − g).
    fn mixed(&mut self, z: &str, sum: &str, now: &State) -> String {
        let g = self.apply("Tanh", &[sum]);
        match &now.hidden {
            Some(h) => {
                let change = self.apply("Sub", &[h, &g]);
                let part = self.apply("Mul", &[z, &change]);
                self.apply("Add", &[&g, &part])
            }
            None => {
                let part = self.apply("Mul", &[z, &g]);
                self.apply("Sub", &[&g, &part])
            }
        }
    }

    /// W x_t + R h with all biases.
    fn sum_with_state(&mut self, cells: &Cells<'_>, now: &State) -> String {
        let Some(h) = &now.hidden else { return cells.x.clone() };
        let rh = self.apply("MatMul", &[h, cells.r]);
        self.apply("Add", &[&cells.x, &rh])
    }

    fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.with("Transpose", &[x], &[("perm", order.to_vec().into())])
    }

    fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.constant(Tensor::i64([shape.len()], shape.to_vec()));
        self.apply("Reshape", &[x, &shape])
    }

    /// Element `d` of the first axis, which stays.
    fn slice(&mut self, x: &str, d: i64) -> String {
        let [start, end, axis] = [d, d + 1, 0].map(|v| self.constant(Tensor::i64([1], vec![v])));
        self.apply("Slice", &[x, &start, &end, &axis])
    }

    /// `count` parts of the same `length` along an axis.
    fn split(&mut self, x: &str, axis: i64, count: usize, length: usize) -> Vec<String> {
        if count == 1 {
            return vec![x.to_owned()];
        }
        let lengths = self.constant(Tensor::i64([count], vec![length as i64; count]));
        let parts: Vec<String> =
            (0..count).map(|_| self.names.fresh(&format!("{}/Split", self.base))).collect();
        let mut node = Node::new("Split", [x, lengths.as_str()], "").with("axis", axis);
        node.outputs.clone_from(&parts);
        self.nodes.push(node);
        parts
    }

    fn concat(&mut self, parts: &[String], axis: i64) -> String {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.with("Concat", &parts, &[("axis", axis.into())])
    }

    /// The last value takes the name of an output of the layer.
    fn rename(&mut self, value: String, output: &str) {
        let last = self.nodes.last_mut().expect("a layer has nodes");
        debug_assert_eq!(last.outputs, [value], "the last node makes the result");
        last.outputs = vec![output.to_owned()];
    }

    fn apply(&mut self, op: &str, inputs: &[&str]) -> String {
        self.with(op, inputs, &[])
    }

    fn with(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let output = self.names.fresh(&format!("{}/{op}", self.base));
        let mut node = Node::new(op, inputs.iter().copied(), &output);
        let named = attributes.iter().map(|(name, value)| (name.to_string(), value.clone()));
        node.attributes.extend(named);
        self.nodes.push(node);
        output
    }

    fn constant(&mut self, tensor: Tensor) -> String {
        let name = self.names.fresh(&format!("{}/constant", self.base));
        self.constants.push((name.clone(), tensor));
        name
    }
}

/// What a step takes besides the state.
struct Cells<'a> {
    /// W x_t and its biases.
    x: String,
    /// R, transposed.
    r: &'a str,
    /// R's bias, where it is not in `x`.
    bias: Option<&'a str>,
    hidden: usize,
}

/// The state before a step; an absent part is zero.
struct State {
    hidden: Option<String>,
    cell: Option<String>,
}

/// The states of one direction.
struct Run {
    /// h after each step, by its place in the sequence.
    outputs: Vec<String>,
    hidden: String,
    cell: String,
}
