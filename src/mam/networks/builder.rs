//! A net in the making: its graph, its random numbers, and what all networks are made of.

use std::sync::Arc;

use crate::mam::adapt::symbolic;
use crate::mam::contract::{Contract, INPUT};
use crate::onnx::{Graph, Node};
use crate::random::Stream;
use crate::tensor::{ElementType, Tensor};

/// The operator set of the networks; `Pad` wraps around from this one on.
const OPSET: i64 = 19;

/// Slope of the activation below 0.
const SLOPE: f32 = 0.01;

/// A graph that grows by nodes and tensors of one half. Names that begin with that of the half are
/// its own; the others are the same in both, so that halves in one file share them.
pub struct Net<'a> {
    pub name: &'static str,
    pub contract: &'a Contract,
    graph: Graph,
    random: Stream,
}

impl<'a> Net<'a> {
    /// The symbols of a row, "missing" and then the values, as `one_hot` `[B, L, K + 1]`.
    pub fn new(contract: &'a Contract, name: &'static str, seed: u64) -> Net<'a> {
        let graph = Graph { name: name.into(), opset: OPSET, ..Graph::default() };
        let stream = if name == "phi" { 0 } else { 1 };
        let random = Stream::new(seed, (3 << 40) + stream);
        let mut net = Net { name, contract, graph, random };
        let symbols = net.symbols() as i64;
        let symbols = net.hold("symbols", Tensor::i64([], vec![symbols]));
        let off_on = net.hold("off_on", Tensor::f32([2], vec![0.0, 1.0]));
        net.graph.nodes.push(Node::new("OneHot", [INPUT, &symbols, &off_on], "one_hot"));
        net
    }

    /// K + 1.
    pub fn symbols(&self) -> usize {
        self.contract.vocab + 1
    }

    /// The one-hot row `[B, L (K + 1)]`, and its width.
    pub fn row(&mut self) -> (String, usize) {
        let width = self.contract.length * self.symbols();
        (self.reshaped("one_hot", "row", &[-1, width as i64]), width)
    }

    /// A tensor of this half, by what follows its name.
    pub fn own(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// Keeps a tensor.
    pub fn hold(&mut self, name: &str, tensor: Tensor) -> String {
        self.graph.initializers.insert(name.into(), Arc::new(tensor));
        name.into()
    }

    /// A trained tensor of random numbers of this standard deviation.
    pub fn weight(&mut self, name: &str, shape: &[usize], scale: f32) -> String {
        let count = shape.iter().product();
        let values = (0..count).map(|_| scale * self.random.normal()).collect();
        self.trained(name, shape, values)
    }

    /// A trained tensor.
    pub fn trained(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> String {
        let name = self.own(name);
        self.hold(&name, Tensor::f32(shape.to_vec(), values))
    }

    /// A trained tensor that starts at zero.
    pub fn zeros(&mut self, name: &str, shape: &[usize]) -> String {
        self.trained(name, shape, vec![0.0; shape.iter().product()])
    }

    /// Adds a node; values shared by the halves are named without that of the half.
    pub fn push(&mut self, node: Node) -> String {
        let output = node.outputs[0].clone();
        if !self.graph.nodes.iter().any(|n| n.outputs[0] == output) {
            self.graph.nodes.push(node);
        }
        output
    }

    /// Adds a node of this half.
    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str) -> String {
        let output = self.own(output);
        self.push(Node::new(op, inputs.iter().copied(), &output))
    }

    /// a(x).
    pub fn active(&mut self, x: &str, output: &str) -> String {
        let output = self.own(output);
        self.push(Node::new("LeakyRelu", [x], &output).with("alpha", SLOPE))
    }

    /// x W + b over the last axis; W starts random at `scale`, b at zero.
    pub fn affine(&mut self, x: &str, layer: &str, shape: [usize; 2], scale: f32) -> String {
        let weight = self.weight(&format!("{layer}.weight"), &shape, scale);
        let bias = self.zeros(&format!("{layer}.bias"), &shape[1..]);
        let product = self.node("MatMul", &[x, &weight], &format!("{layer}.product"));
        self.node("Add", &[&product, &bias], &format!("{layer}.sum"))
    }

    /// h + a(h W + b).
    pub fn residual(&mut self, h: &str, layer: &str, width: usize) -> String {
        let sum = self.affine(h, layer, [width, width], (2.0 / width as f32).sqrt());
        let active = self.active(&sum, &format!("{layer}.active"));
        self.node("Add", &[h, &active], &format!("{layer}.hidden"))
    }

    /// `value` in another shape, as `output` whatever half this is.
    pub fn reshaped(&mut self, value: &str, output: &str, dims: &[i64]) -> String {
        let shape = format!("{output}_shape");
        let shape = self.hold(&shape, Tensor::i64([dims.len()], dims.to_vec()));
        self.push(Node::new("Reshape", [value, &shape], output))
    }

    /// The whole graph, whose result is the value `output` with `rest` behind the batch.
    pub fn finished(mut self, output: &str, rest: &[usize]) -> Graph {
        self.graph.inputs = vec![symbolic(INPUT, ElementType::I64, &[self.contract.length])];
        self.graph.outputs = vec![symbolic(output, ElementType::F32, rest)];
        self.graph
    }
}
