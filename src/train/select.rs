//! Which tensors of a model are trained when the user names none.
//!
//! An initializer is a learned parameter when of what reads it one can tell: weights of products,
//! their biases, scales and shifts of norms, slopes, embeddings. Constants of the computation
//! (statistics of BatchNorm, means of the input, bounds, positions, masks) are not.

use std::collections::HashSet;

use crate::error::{Result, bail};
use crate::gradient::parameters::weights;
use crate::onnx::{Graph, Node, Value};
use crate::tensor::Tensor;

/// The tensors to train.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trained {
    /// All learned parameters that can be told from constants.
    #[default]
    All,
    /// The prunable weights.
    Weights,
    /// These; `*` stands for any characters.
    Named(Vec<String>),
}

impl Trained {
    /// The names, in the graph's order of initializers, among those that `value` depends on and
    /// for which `stored(name)`.
    ///
    /// Error of kind `Usage` for a pattern that fits none.
    pub fn choose(
        &self,
        graph: &Graph,
        value: &str,
        stored: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let mut needed = graph.clone();
        needed.outputs = vec![Value::named(value)];
        needed.remove_unused();
        let can = |name: &str, tensor: &Tensor| tensor.as_f32().is_some() && stored(name);
        needed.initializers.retain(|name, tensor| can(name, tensor));
        let candidates = needed.initializers.keys().cloned();
        let weights = || weights(&needed).0.into_iter().map(|w| w.name);
        let chosen: HashSet<String> = match self {
            Trained::All => learned(&needed).into_iter().chain(weights()).collect(),
            Trained::Weights => weights().collect(),
            Trained::Named(patterns) => {
                let mut chosen = HashSet::new();
                for pattern in patterns {
                    let fits: Vec<String> =
                        candidates.clone().filter(|name| matches(pattern, name)).collect();
                    if fits.is_empty() {
                        bail!(
                            Usage,
                            "to train: {pattern:?} names no float32 tensor that the loss needs; \
                             `hone inspect` lists what the model holds"
                        );
                    }
                    chosen.extend(fits);
                }
                chosen
            }
        };
        let names: Vec<String> = candidates.filter(|name| chosen.contains(name)).collect();
        if names.is_empty() {
            bail!(Unsupported, "the model has no tensor that could be trained");
        }
        Ok(names)
    }
}

/// The initializers that some node reads as a learned parameter.
fn learned(graph: &Graph) -> HashSet<String> {
    let mut found = HashSet::new();
    // What comes after a first layer: sums and products with constants before it scale the input.
    let mut inner: HashSet<&str> = HashSet::new();
    for node in &graph.nodes {
        let reads = |i: usize| node.input(i).filter(|name| graph.initializers.contains_key(*name));
        for i in 0..node.inputs.len() {
            if let Some(name) = reads(i)
                && (is_parameter(node, i) || is_shift_or_scale(node, i, graph, &inner))
            {
                found.insert(name.to_owned());
            }
        }
        let starts = matches!(node.op.as_str(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul")
            || (node.op == "Gather" && reads(0).is_some());
        if starts || node.inputs.iter().any(|i| inner.contains(i.as_str())) {
            inner.extend(node.outputs.iter().map(String::as_str));
        }
    }
    found
}

/// Whether input `i` of the node is a parameter by the definition of the operator.
fn is_parameter(node: &Node, i: usize) -> bool {
    if !node.domain.is_empty() {
        return false;
    }
    match node.op.as_str() {
        "Conv" | "ConvTranspose" | "Gemm" => i == 1 || i == 2,
        "BatchNormalization"
        | "GroupNormalization"
        | "InstanceNormalization"
        | "LayerNormalization" => i == 1 || i == 2,
        "PRelu" | "RMSNormalization" => i == 1,
        "Gather" => i == 0,
        _ => false,
    }
}

/// Whether it is a vector that a sum or product with an inner value spreads over the channels.
fn is_shift_or_scale(node: &Node, i: usize, graph: &Graph, inner: &HashSet<&str>) -> bool {
    let other = node.inputs.get(1 - i.min(1)).map_or("", String::as_str);
    let tensor = &graph.initializers[&node.inputs[i]];
    let long_axes = tensor.shape().iter().filter(|n| **n > 1).count();
    matches!(node.op.as_str(), "Add" | "Mul")
        && node.domain.is_empty()
        && long_axes == 1
        && inner.contains(other)
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> Graph {
        let mut graph = Graph {
            opset: 18,
            nodes: vec![
                Node::new("Add", ["x", "shift"], "centred"),
                Node::new("MatMul", ["centred", "w"], "h"),
                Node::new("Add", ["bias", "h"], "hb"),
                Node::new("Mul", ["hb", "half"], "small"),
                Node::new("LayerNormalization", ["small", "gamma", "beta"], "n"),
                Node::new("MatMul", ["n", "v"], "y"),
                Node::new("MatMul", ["n", "head"], "other"),
            ],
            inputs: vec![Value::named("x")],
            outputs: vec![Value::named("y"), Value::named("other")],
            ..Graph::default()
        };
        for name in ["shift", "bias", "gamma", "beta"] {
            graph.initializers.insert(name.into(), Tensor::f32([2], vec![1.0, 2.0]).into());
        }
        for name in ["w", "v", "head"] {
            graph.initializers.insert(name.into(), Tensor::f32([2, 2], vec![1.0; 4]).into());
        }
        graph.initializers.insert("half".into(), Tensor::scalar(0.5).into());
        graph
    }

    #[test]
    fn parameters_are_told_from_constants() {
        let graph = graph();
        let chosen = |trained: Trained| trained.choose(&graph, "y", |name| name != "beta").unwrap();
        assert_eq!(chosen(Trained::All), ["bias", "gamma", "v", "w"]);
        assert_eq!(chosen(Trained::Weights), ["v", "w"]);
        assert_eq!(chosen(Trained::Named(vec!["s*t".into(), "v".into()])), ["shift", "v"]);
        for nothing in ["head", "beta", "b*x"] {
            let named = Trained::Named(vec![nothing.into()]);
            let error = named.choose(&graph, "y", |name| name != "beta").unwrap_err();
            assert!(error.to_string().contains(nothing), "{error}");
        }
    }
}
