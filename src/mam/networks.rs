//! Networks that hone builds for training: residual perceptrons over the one-hot masked row.
//!
//! h_0 = a(W_0 e + b_0), h_j = h_{j−1} + a(W_j h_{j−1} + b_j), output = W h + V e + b with
//! a = LeakyReLU and e the one-hot row (K + 1 symbols per site, one of them "missing"). V and b
//! start as the log-frequencies of single sites, so that before its first step the net is the model
//! of independent sites. θ and φ are separate nets: φ has L·K outputs, θ one. θ has eᵀ A e / 10
//! besides, A = 0 at first: φ's V e are pairwise interactions, and its sums along a chain are
//! quadratic in e, which hidden layers alone learn slowly (rows of more than 2048 do without).
//! The factor keeps the steps of L² entries
//! that one row moves together small.

use std::sync::Arc;

use crate::mam::adapt::symbolic;
use crate::mam::contract::{Contract, INPUT, LOG_P, LOGITS};
use crate::onnx::{Graph, Node};
use crate::random::Stream;
use crate::tensor::{ElementType, Tensor};

/// The operator set of the networks.
const OPSET: i64 = 18;

/// The factor of the quadratic form.
const PAIRS: f32 = 0.1;

/// The widest one-hot row that has a quadratic form: 16 MiB of it.
const MOST_PAIRED: usize = 2048;

/// Slope of the activation below 0.
const SLOPE: f32 = 0.01;

/// The size of a perceptron.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Units of a hidden layer.
    pub hidden: usize,
    /// Hidden layers, at least 1.
    pub layers: usize,
}

/// φ: `x` to `logits` `[B, L, K]`; `log_p[i][k]` are the log-frequencies of site i.
pub fn conditional(contract: &Contract, size: Size, log_p: &[Vec<f64>], seed: u64) -> Graph {
    let (length, vocab) = (contract.length, contract.vocab);
    let mut net = Net::new(contract, "phi", seed);
    let bias = log_p.iter().flat_map(|site| padded(site, vocab)).collect();
    let direct = vec![0.0; net.width * length * vocab];
    let output = net.perceptron(size, length * vocab, direct, bias);
    net.reshaped(&output, LOGITS, &[-1, length as i64, vocab as i64]);
    net.finished(LOGITS, &[length, vocab])
}

/// θ: `x` to `log_p` `[B]`, which starts at `log_z` when nothing is known.
pub fn marginal(
    contract: &Contract,
    size: Size,
    log_p: &[Vec<f64>],
    log_z: f64,
    seed: u64,
) -> Graph {
    let mut net = Net::new(contract, "theta", seed);
    // Symbols are "missing", then the values; a missing site adds nothing.
    let direct = log_p
        .iter()
        .flat_map(|site| std::iter::once(0.0).chain(padded(site, contract.vocab)))
        .collect();
    let output = net.perceptron(size, 1, direct, vec![log_z as f32]);
    let output = if net.width <= MOST_PAIRED { net.with_pairs(&output) } else { output };
    net.reshaped(&output, LOG_P, &[-1]);
    net.finished(LOG_P, &[])
}

/// Both nets in one graph, which share the input and the one-hot row.
pub fn joint(phi: &Graph, theta: &Graph) -> Graph {
    let mut both = phi.clone();
    both.name = "mam".into();
    let shared: Vec<Vec<String>> = phi.nodes.iter().map(|n| n.outputs.clone()).collect();
    both.nodes.extend(theta.nodes.iter().filter(|n| !shared.contains(&n.outputs)).cloned());
    both.initializers.extend(theta.initializers.clone());
    both.outputs = theta.outputs.iter().chain(&phi.outputs).cloned().collect();
    both
}

/// Names of the trained tensors of a net: its weights and biases.
pub fn trained(net: &Graph) -> Vec<String> {
    let float = |t: &Tensor| t.element_type() == ElementType::F32;
    let of_net = |name: &str| name.starts_with("phi.") || name.starts_with("theta.");
    let named = net.initializers.iter().filter(|(name, t)| of_net(name) && float(t));
    named.map(|(name, _)| name.clone()).collect()
}

/// Log-probabilities of all values; what a site cannot have is very unlikely.
fn padded(site: &[f64], vocab: usize) -> impl Iterator<Item = f32> {
    let impossible = std::iter::repeat_n(-20.0, vocab - site.len());
    site.iter().map(|&l| l as f32).chain(impossible)
}

/// A net in the making.
struct Net {
    name: &'static str,
    /// L · (K + 1).
    width: usize,
    graph: Graph,
    random: Stream,
    length: usize,
}

impl Net {
    fn new(contract: &Contract, name: &'static str, seed: u64) -> Net {
        let symbols = contract.vocab + 1;
        let width = contract.length * symbols;
        let mut graph = Graph { name: name.into(), opset: OPSET, ..Graph::default() };
        graph.initializers.extend([
            ("symbols".into(), Arc::new(Tensor::i64([], vec![symbols as i64]))),
            ("off_on".into(), Arc::new(Tensor::f32([2], vec![0.0, 1.0]))),
            ("row_shape".into(), Arc::new(Tensor::i64([2], vec![-1, width as i64]))),
        ]);
        graph.nodes = vec![
            Node::new("OneHot", [INPUT, "symbols", "off_on"], "one_hot"),
            Node::new("Reshape", ["one_hot", "row_shape"], "row"),
        ];
        let stream = if name == "phi" { 0 } else { 1 };
        let random = Stream::new(seed, (3 << 40) + stream);
        Net { name, width, graph, random, length: contract.length }
    }

    /// The layers; `direct` `[width, outputs]` leads from the row past them.
    fn perceptron(
        &mut self,
        size: Size,
        outputs: usize,
        direct: Vec<f32>,
        bias: Vec<f32>,
    ) -> String {
        let name = self.name;
        let mut hidden = "row".to_string();
        for layer in 0..size.layers {
            let inputs = if layer == 0 { self.width } else { size.hidden };
            // The first layer sees one 1 per site.
            let fan_in = if layer == 0 { self.length } else { size.hidden };
            let weight = self.weight(layer, [inputs, size.hidden], (2.0 / fan_in as f32).sqrt());
            let zero = Tensor::f32([size.hidden], vec![0.0; size.hidden]);
            let bias = self.hold(format!("{name}.{layer}.bias"), zero);
            let sum = self.node("Gemm", &[&hidden, &weight, &bias], format!("{name}.{layer}.sum"));
            let active = format!("{name}.{layer}.active");
            let node = Node::new("LeakyRelu", [sum], &active).with("alpha", SLOPE);
            self.graph.nodes.push(node);
            hidden = match layer {
                0 => active,
                _ => self.node("Add", &[&hidden, &active], format!("{name}.{layer}.hidden")),
            };
        }
        let scale = 0.1 / (size.hidden as f32).sqrt();
        let weight = self.weight(size.layers, [size.hidden, outputs], scale);
        let bias = self.hold(format!("{name}.output.bias"), Tensor::f32([outputs], bias));
        let direct = Tensor::f32([self.width, outputs], direct);
        let direct = self.hold(format!("{name}.direct.weight"), direct);
        let by_row = self.node("MatMul", &["row", &direct], format!("{name}.by_row"));
        let by_layers = self.node("Gemm", &[&hidden, &weight, &bias], format!("{name}.by_layers"));
        self.node("Add", &[&by_layers, &by_row], format!("{name}.output"))
    }

    /// output + eᵀ A e / 10.
    fn with_pairs(&mut self, output: &str) -> String {
        let (name, width) = (self.name, self.width);
        let zero = Tensor::f32([width, width], vec![0.0; width * width]);
        let matrix = self.hold(format!("{name}.pairs.weight"), zero);
        // Summed by a product, whose rounding does not depend on the number of rows.
        let factor = self.hold("pairs_factor".into(), Tensor::f32([width, 1], vec![PAIRS; width]));
        let product = self.node("MatMul", &["row", &matrix], format!("{name}.by_pairs"));
        let terms = self.node("Mul", &[&product, "row"], format!("{name}.pair_terms"));
        let scaled = self.node("MatMul", &[&terms, &factor], format!("{name}.pairs"));
        self.node("Add", &[output, &scaled], format!("{name}.with_pairs"))
    }

    fn weight(&mut self, layer: usize, shape: [usize; 2], scale: f32) -> String {
        let count = shape[0] * shape[1];
        let values = (0..count).map(|_| scale * self.random.normal()).collect();
        self.hold(format!("{}.{layer}.weight", self.name), Tensor::f32(shape, values))
    }

    fn hold(&mut self, name: String, tensor: Tensor) -> String {
        self.graph.initializers.insert(name.clone(), Arc::new(tensor));
        name
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: String) -> String {
        self.graph.nodes.push(Node::new(op, inputs.iter().copied(), &output));
        output
    }

    fn reshaped(&mut self, value: &str, output: &str, dims: &[i64]) {
        let shape = format!("{output}_shape");
        let shape = self.hold(shape, Tensor::i64([dims.len()], dims.to_vec()));
        self.node("Reshape", &[value, &shape], output.into());
    }

    fn finished(mut self, output: &str, rest: &[usize]) -> Graph {
        self.graph.inputs = vec![symbolic(INPUT, ElementType::I64, &[self.length])];
        self.graph.outputs = vec![symbolic(output, ElementType::F32, rest)];
        self.graph
    }
}
