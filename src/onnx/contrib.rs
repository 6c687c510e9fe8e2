//! Fused operators of ONNX Runtime's `com.microsoft` domain, expanded into standard operators for
//! which hone has gradients. Operators without an expansion stay; they are an error only where a
//! gradient has to pass through them.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use crate::error::{Context, Result, bail, error};
use crate::onnx::graph::{Attribute, Graph, Names, Node};
use crate::onnx::types::FloatTypes;
use crate::tensor::Tensor;

/// Expands the fused operators that hone knows. `rank` may know the number of axes of a value.
pub fn expand(graph: &mut Graph, rank: &dyn Fn(&str) -> Option<usize>) -> Result<()> {
    let is_fused =
        |node: &Node| node.domain == "com.microsoft" || node.op == "SimplifiedLayerNormalization";
    if !graph.nodes.iter().any(is_fused) {
        return Ok(());
    }
    let mut expansion = Expansion {
        rank,
        types: FloatTypes::of(graph),
        names: Names::of(graph),
        nodes: Vec::with_capacity(graph.nodes.len()),
        constants: Vec::new(),
        base: String::new(),
    };
    for node in std::mem::take(&mut graph.nodes) {
        if is_fused(&node) {
            expansion.base =
                node.outputs.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
            let name = node.describe();
            expansion.node(node).context(|| name)?;
        } else {
            expansion.nodes.push(node);
        }
    }
    graph.nodes = expansion.nodes;
    let constants = expansion.constants.into_iter().map(|(name, tensor)| (name, tensor.into()));
    graph.initializers.extend(constants);
    Ok(())
}

struct Expansion<'a> {
    rank: &'a dyn Fn(&str) -> Option<usize>,
    types: FloatTypes,
    names: Names,
    nodes: Vec<Node>,
    constants: Vec<(String, Tensor)>,
    /// What the names of the values in between start with.
    base: String,
}

impl Expansion<'_> {
    fn node(&mut self, node: Node) -> Result<()> {
        match node.op.as_str() {
            "Gelu" => {
                let x = required(&node, 0)?;
                let y = self.gelu(x);
                self.finish(y, &node)
            }
            "BiasGelu" => {
                let x = self.apply("Add", &[required(&node, 0)?, required(&node, 1)?]);
                let y = self.gelu(&x);
                self.finish(y, &node)
            }
            "FastGelu" => self.fast_gelu(&node),
            "QuickGelu" => {
                let x = required(&node, 0)?;
                let alpha = self.scalar(x, node.float("alpha").unwrap_or(1.702));
                let scaled = self.apply("Mul", &[x, &alpha]);
                let gate = self.apply("Sigmoid", &[&scaled]);
                let y = self.apply("Mul", &[x, &gate]);
                self.finish(y, &node)
            }
            "SkipLayerNormalization" => self.skip_layer_normalization(&node),
            "SkipSimplifiedLayerNormalization" => {
                let sum = self.skip_sum(&node, 3)?;
                self.simplified_layer_normalization(&node, &sum, required(&node, 2)?)
            }
            "SimplifiedLayerNormalization" => {
                if node.int("axis").unwrap_or(-1) != -1 {
                    bail!(Unsupported, "hone knows it over the last axis only");
                }
                let x = required(&node, 0)?;
                self.simplified_layer_normalization(&node, x, required(&node, 1)?)
            }
            "FusedMatMul" => self.fused_matmul(&node),
            "FusedConv" => {
                let mut y = self.take("Conv", &node, 3, &ACTIVATION);
                if let Some(z) = node.input(3) {
                    y = self.apply("Add", &[&y, z]);
                }
                let y = self.activation(&node, y)?;
                self.finish(y, &node)
            }
            "FusedGemm" => {
                let y = self.take("Gemm", &node, 3, &ACTIVATION);
                let y = self.activation(&node, y)?;
                self.finish(y, &node)
            }
            _ => {
                self.nodes.push(node);
                Ok(())
            }
        }
    }

    /// `x Φ(x) = x/2 (1 + erf(x/√2))`
    fn gelu(&mut self, x: &str) -> String {
        let [root, half, one] = [FRAC_1_SQRT_2, 0.5, 1.0].map(|c| self.scalar(x, c));
        let scaled = self.apply("Mul", &[x, &root]);
        let erf = self.apply("Erf", &[&scaled]);
        let gate = self.apply("Add", &[&erf, &one]);
        let product = self.apply("Mul", &[x, &gate]);
        self.apply("Mul", &[&product, &half])
    }

    /// `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`
    fn fast_gelu(&mut self, node: &Node) -> Result<()> {
        let x = match node.input(1) {
            Some(bias) => self.apply("Add", &[required(node, 0)?, bias]),
            None => required(node, 0)?.to_owned(),
        };
        let [cubic, linear, half, one] =
            [0.044715 * FRAC_2_PI.sqrt(), FRAC_2_PI.sqrt(), 0.5, 1.0].map(|c| self.scalar(&x, c));
        let square = self.apply("Mul", &[&x, &x]);
        let scaled = self.apply("Mul", &[&square, &cubic]);
        let factor = self.apply("Add", &[&scaled, &linear]);
        let inner = self.apply("Mul", &[&x, &factor]);
        let tanh = self.apply("Tanh", &[&inner]);
        let gate = self.apply("Add", &[&tanh, &one]);
        let product = self.apply("Mul", &[&x, &gate]);
        let y = self.apply("Mul", &[&product, &half]);
        self.finish(y, node)
    }

    /// Inputs (x, skip, γ, β?, bias?), outputs (y, mean?, inverse deviation?, x + skip + bias?).
    fn skip_layer_normalization(&mut self, node: &Node) -> Result<()> {
        let sum = self.skip_sum(node, 4)?;
        let mut inputs = vec![sum, required(node, 2)?.to_owned()];
        inputs.extend(node.input(3).map(str::to_owned));
        let mut norm = Node::new("LayerNormalization", inputs, "")
            .with("axis", -1i64)
            .with("epsilon", node.float("epsilon").unwrap_or(1e-12));
        norm.outputs = node.outputs.iter().take(3).cloned().collect();
        self.nodes.push(norm);
        Ok(())
    }

    /// `x + skip (+ bias)`, which is also output 3.
    fn skip_sum(&mut self, node: &Node, bias: usize) -> Result<String> {
        let mut sum = self.apply("Add", &[required(node, 0)?, required(node, 1)?]);
        if let Some(bias) = node.input(bias) {
            sum = self.apply("Add", &[&sum, bias]);
        }
        if let Some(output) = node.output(3) {
            self.nodes.push(Node::new("Identity", [sum.as_str()], output));
        }
        Ok(sum)
    }

    /// `γ x / √(mean(x²) + ε)`
    fn simplified_layer_normalization(&mut self, node: &Node, x: &str, scale: &str) -> Result<()> {
        if node.output(1).is_some() || (node.domain == "com.microsoft" && node.output(2).is_some())
        {
            bail!(Unsupported, "hone does not compute its statistics");
        }
        let epsilon = self.scalar(x, node.float("epsilon").unwrap_or(1e-5));
        let last = self.constant(Tensor::i64([1], vec![-1]));
        let square = self.apply("Mul", &[x, x]);
        let mean = self.apply("ReduceMean", &[&square, &last]);
        let shifted = self.apply("Add", &[&mean, &epsilon]);
        let root = self.apply("Sqrt", &[&shifted]);
        let normal = self.apply("Div", &[x, &root]);
        let y = self.apply("Mul", &[&normal, scale]);
        self.finish(y, node)
    }

    fn fused_matmul(&mut self, node: &Node) -> Result<()> {
        if ["transBatchA", "transBatchB"].iter().any(|name| node.int(name).unwrap_or(0) != 0) {
            bail!(Unsupported, "hone does not know it with transposed batch axes");
        }
        let (mut a, mut b) = (required(node, 0)?.to_owned(), required(node, 1)?.to_owned());
        for (flag, operand) in [("transA", &mut a), ("transB", &mut b)] {
            if node.int(flag).unwrap_or(0) != 0 {
                *operand = self.transposed(operand)?;
            }
        }
        let mut y = self.apply("MatMul", &[&a, &b]);
        if let Some(alpha) = node.float("alpha").filter(|&alpha| alpha != 1.0) {
            let alpha = self.scalar(&a, alpha);
            y = self.apply("Mul", &[&y, &alpha]);
        }
        self.finish(y, node)
    }

    /// `x` with its last two axes exchanged.
    fn transposed(&mut self, x: &str) -> Result<String> {
        let rank = (self.rank)(x).filter(|&rank| rank >= 2).ok_or_else(|| {
            error!(Unsupported, "the shape of its input {x:?} is not known; run shape inference")
        })?;
        let mut order: Vec<i64> = (0..rank as i64).collect();
        order.swap(rank - 2, rank - 1);
        let y = self.apply("Transpose", &[x]);
        let node = self.nodes.last_mut().expect("just added");
        node.attributes.insert("perm".into(), order.into());
        Ok(y)
    }

    /// The activation that `node` fuses, applied to `x`.
    fn activation(&mut self, node: &Node, x: String) -> Result<String> {
        let list = match node.attributes.get("activation_params") {
            Some(Attribute::Floats(values)) => values.as_slice(),
            _ => &[],
        };
        let named = [node.float("activation_alpha"), node.float("activation_beta")];
        let parameter = |i: usize| list.get(i).copied().or(named[i]);
        let op = node.string("activation").unwrap_or("");
        match op {
            "" => return Ok(x),
            "Relu" | "Sigmoid" | "Tanh" | "HardSwish" => return Ok(self.apply(op, &[&x])),
            "Clip" => {
                let [min, max] = [parameter(0), parameter(1)]
                    .map(|p| p.map_or_else(String::new, |value| self.scalar(&x, value)));
                return Ok(self.apply(op, &[&x, &min, &max]));
            }
            "LeakyRelu" | "HardSigmoid" | "Elu" => {}
            _ => bail!(Unsupported, "hone does not know the activation {op:?} fused into it"),
        }
        let y = self.apply(op, &[&x]);
        let fused = self.nodes.last_mut().expect("just added");
        for (name, value) in [("alpha", parameter(0)), ("beta", parameter(1))] {
            if let Some(value) = value.filter(|_| name == "alpha" || op == "HardSigmoid") {
                fused.attributes.insert(name.into(), value.into());
            }
        }
        Ok(y)
    }

    /// The operator inside a fused one: the first inputs and all attributes but `without`.
    fn take(&mut self, op: &str, node: &Node, inputs: usize, without: &[&str]) -> String {
        let inputs: Vec<&str> = node.inputs.iter().take(inputs).map(String::as_str).collect();
        let y = self.apply(op, &inputs);
        let mut attributes = node.attributes.clone();
        attributes.retain(|name, _| !without.contains(&name.as_str()));
        self.nodes.last_mut().expect("just added").attributes = attributes;
        y
    }

    /// A standard operator with one output, which is returned.
    fn apply(&mut self, op: &str, inputs: &[&str]) -> String {
        let output = self.names.fresh(&format!("{}/{op}", self.base));
        let node = Node::new(op, inputs.iter().copied(), &output);
        self.types.note(&node);
        self.nodes.push(node);
        output
    }

    fn scalar(&mut self, like: &str, value: f32) -> String {
        let tensor = self.types.scalar(like, value);
        self.constant(tensor)
    }

    fn constant(&mut self, tensor: Tensor) -> String {
        let name = self.names.fresh(&format!("{}/constant", self.base));
        self.constants.push((name.clone(), tensor));
        name
    }

    /// The last value takes the name of the node's output.
    fn finish(&mut self, value: String, node: &Node) -> Result<()> {
        let output = node.output(0).ok_or_else(|| error!(Model, "it has no output"))?;
        let last = self.nodes.last_mut().expect("an expansion has nodes");
        debug_assert_eq!(last.outputs, [value], "the last node makes the result");
        last.outputs = vec![output.to_owned()];
        Ok(())
    }
}

/// The attributes that say which activation is fused.
const ACTIVATION: [&str; 4] =
    ["activation", "activation_params", "activation_alpha", "activation_beta"];

fn required(node: &Node, index: usize) -> Result<&str> {
    node.input(index).ok_or_else(|| error!(Model, "it lacks input {index}"))
}
