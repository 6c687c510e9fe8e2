//! Gradients as graphs: an ONNX graph in, the same graph with its vector-Jacobian product out.
//!
//! M-FAC needs the gradients g of a scalar for every sample, F = λI + 1/m Σ g gᵀ. This module
//! forms them symbolically: [`backward`] appends to a forward graph the nodes that carry the
//! cotangents v̄ = ∂L/∂v from chosen outputs back to chosen values, in standard ONNX operators of
//! opset 18 and newer, so that the runtime of the forward pass also runs the backward pass and
//! any ONNX tool can look at it. The loss is not part of it: the cotangents of the outputs (the
//! seeds) are inputs of the new graph, and every loss is a choice of seeds.
//!
//! All shapes are static. They come as [`Facts`], found once at a fixed batch size; a rule never
//! emits nodes that compute a shape.

mod builder;
mod rules;
mod walk;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::error::Result;
use crate::onnx::Graph;
use crate::tensor::{ElementType, Tensor};

/// The opset from which on every operator that the backward pass emits exists in the form used.
pub const MINIMUM_OPSET: i64 = 18;

/// What is known of a value at a fixed batch size.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// The element type.
    pub element: ElementType,
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// The value itself where it is the same in every run.
    pub constant: Option<Arc<Tensor>>,
}

/// What is known of every named value of a graph: inputs, initializers and node outputs.
pub type Facts = HashMap<String, Fact>;

/// One input of one node, such as the weight of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The index of the node in the forward graph.
    pub node: usize,
    /// The index among the inputs of the node.
    pub input: usize,
}

/// What [`backward`] hands out for a captured weight slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    /// The slot, in terms of the forward graph.
    pub slot: Slot,
    /// The cotangent of output 0 of the node; its type and shape are those of that output.
    pub gradient: String,
}

/// A forward graph with its backward pass.
#[derive(Clone, Debug)]
pub struct Backward {
    /// Computes the outputs of the forward graph, then everything named below.
    pub graph: Graph,
    /// For each seeded output: its name and the graph input that takes its cotangent.
    pub seeds: Vec<(String, String)>,
    /// For each wanted value: the graph output that holds ∂L/∂value. Two values share an output
    /// where their gradients are the same by construction, as the terms of a sum.
    pub gradients: BTreeMap<String, String>,
    /// For each captured slot, in the order asked for, the graph output to form the gradient
    /// from. The data input of the node is a graph output as well unless it is a graph input.
    pub captures: Vec<Capture>,
}

/// What the rule table says of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Gradients pass through it.
    Rule,
    /// Its derivative is zero or its outputs are not numbers to differentiate: gradients stop.
    Zero,
    /// There is no rule; an error where a wanted gradient would have to pass through it.
    None,
}

/// Whether gradients pass through operator `op` of `domain` (empty for `ai.onnx`).
pub fn support(op: &str, domain: &str) -> Support {
    match rules::derivative(op, domain) {
        rules::Derivative::Rule(_) => Support::Rule,
        rules::Derivative::Zero => Support::Zero,
        rules::Derivative::None => Support::None,
    }
}

/// Appends the reverse walk from `outputs` to a copy of `graph`:
/// v̄ = Σ over the uses y = f(…, v, …) of v of (∂f/∂v)ᵀ ȳ.
///
/// - `outputs` are the float values to seed; each gets a graph input of its type and shape that
///   takes its cotangent.
/// - `wanted` are the values (graph inputs, initializers, intermediate results) whose gradient
///   becomes a graph output, summed over the batch and over all their uses. A value that no seed
///   depends on gets zeros.
/// - `captured` are weight slots of `Conv`, `ConvTranspose`, `Gemm` and `MatMul` nodes for which
///   no weight gradient is formed in the graph: the graph hands out the cotangent of the node's
///   output and the node's data input, and the caller forms the gradient of each sample itself.
///
/// Only nodes on a path from a wanted or captured value to a seeded output are walked. An error
/// of kind `Unsupported` names the operator on such a path that has no rule and the values whose
/// gradients it hides; kind `Usage` is a request that does not fit the graph, kind `Model` a
/// graph that contradicts `facts`.
pub fn backward(
    graph: &Graph,
    facts: &Facts,
    outputs: &[String],
    wanted: &[String],
    captured: &[Slot],
) -> Result<Backward> {
    walk::backward(graph, facts, outputs, wanted, captured)
}
