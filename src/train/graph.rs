//! One training step as a graph: the loss and what its gradient is made of, with the trained
//! tensors as inputs.
//!
//! The forward graph is fixed to the shapes of one shard, the backward pass of its scalar value L
//! is appended with the cotangent L̄ = 1, and the trained initializers become inputs. A session on
//! it therefore serves all steps; everything else of the model (BatchNorm statistics, constants)
//! stays as it is. Weights of products are captured: the graph hands out the data x and the
//! cotangent ȳ of each product, and [`crate::gradient::product`] forms W̄ = Σ ȳ xᵀ faster than the
//! runtime would. Other tensors have their gradient as an output.

use std::collections::HashSet;
use std::sync::Arc;

use crate::autodiff::{self, Slot};
use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::gradient::parameters::{Parameter, RowOrder, discover};
use crate::gradient::prepare::{Prepared, prepare_for};
use crate::gradient::product::Product;
use crate::onnx::graph::outer_names;
use crate::onnx::{Graph, Value};
use crate::tensor::{ElementType, Tensor};

/// The graph of a loss and its gradient in some initializers.
#[derive(Clone, Debug)]
pub struct StepGraph {
    graph: Graph,
    loss: String,
    trained: Vec<String>,
    gradients: Vec<Gradient>,
}

/// Where the gradient of one trained tensor comes from.
#[derive(Clone, Debug)]
pub(super) enum Gradient {
    /// An output of the graph.
    Output(String),
    /// The sum over these products.
    Products(Vec<Capture>),
}

/// A product with a trained tensor as its weight.
#[derive(Clone, Debug)]
pub(super) struct Capture {
    /// The product, whose weights are in row order.
    pub product: Product,
    /// The value with its data: an output or an input of the graph.
    pub x: String,
    /// The output with the cotangent of its result.
    pub g: String,
    /// Where in the tensor each weight of the product is stored; `None` when in the same order.
    pub stored: Option<Vec<u32>>,
    /// In how many parts its batch is to be gone through.
    pub parts: usize,
}

impl StepGraph {
    /// The step of `graph` (a working graph, see [`crate::onnx::import`]) whose loss is its scalar
    /// float32 value `loss`, in the float32 initializers `trained`. `shard` holds one tensor per
    /// input of the graph and fixes all shapes: every shard that is run has the same.
    ///
    /// Errors: `Usage` when `loss` is no scalar of the graph or does not depend on a tensor that is
    /// to be trained; `Unsupported` names an operator without a gradient rule and what it hides.
    pub fn new(
        graph: &Graph,
        loss: &str,
        trained: &[String],
        shard: &[(String, Tensor)],
        cancel: &Cancel,
    ) -> Result<StepGraph> {
        let mut forward = graph.clone();
        forward.outputs = vec![Value::named(loss)];
        if !graph.producers().contains_key(loss) {
            bail!(Usage, "the graph computes no value {loss:?} that could be the loss");
        }
        forward.remove_unused();
        keep_used_inputs(&mut forward);
        for name in trained {
            if !graph.initializers.contains_key(name) {
                bail!(Usage, "the graph has no initializer {name:?} to train");
            }
            if !forward.initializers.contains_key(name) {
                bail!(Usage, "the loss does not depend on {name:?}, so it cannot be trained");
            }
        }
        let used = |name: &str| forward.inputs.iter().any(|i| i.name == name);
        let shard: Vec<(String, Tensor)> = shard.iter().filter(|(n, _)| used(n)).cloned().collect();
        if let Some(missing) =
            forward.inputs.iter().find(|i| !shard.iter().any(|(name, _)| *name == i.name))
        {
            bail!(Usage, "input {:?} of the graph is not fed", missing.name);
        }
        let mut prepared = prepare_for(&forward, &shard, trained, cancel)?;
        match prepared.facts.get(loss) {
            Some(f) if f.element == ElementType::F32 && f.shape.iter().all(|&n| n == 1) => (),
            Some(f) => bail!(
                Usage,
                "the loss {loss:?} must be one float32 number, but it is {} of shape {:?}; \
                 reduce it in the graph",
                f.element,
                f.shape
            ),
            None => bail!(Usage, "the loss {loss:?} is not a tensor"),
        }
        // They change from step to step, so no rule may build on their values.
        for name in trained {
            if let Some(fact) = prepared.facts.get_mut(name) {
                fact.constant = None;
            }
        }
        let captured = captured(&prepared, trained);
        let slots: Vec<Slot> =
            captured.iter().flat_map(|p| p.uses.iter().map(|u| u.slot)).collect();
        let is_captured = |name: &String| captured.iter().any(|p| p.name == *name);
        let wanted: Vec<String> = trained.iter().filter(|n| !is_captured(n)).cloned().collect();
        let (graph, facts) = (&prepared.graph, &prepared.facts);
        let backward = autodiff::backward(graph, facts, &[loss.into()], &wanted, &slots)
            .context(|| "the gradient of the loss")?;
        let mut gradients = Vec::new();
        for name in trained {
            gradients.push(match captured.iter().find(|p| p.name == *name) {
                Some(p) => Gradient::Products(captures(p, &prepared, &backward.captures)?),
                None => Gradient::Output(backward.gradients[name].clone()),
            });
        }
        let mut graph = backward.graph;
        for (value, seed) in &backward.seeds {
            let one = Tensor::f32(facts[value].shape.clone(), vec![1.0]);
            graph.inputs.retain(|i| i.name != *seed);
            graph.initializers.insert(seed.clone(), Arc::new(one));
        }
        for name in trained {
            let Some(tensor) = graph.initializers.remove(name) else { continue };
            graph.inputs.push(Value::fixed(name, tensor.element_type(), tensor.shape()));
        }
        let wanted: HashSet<&str> = gradients.iter().flat_map(Gradient::values).collect();
        graph.outputs.retain(|o| o.name == loss || wanted.contains(o.name.as_str()));
        graph.remove_unused();
        Ok(StepGraph { graph, loss: loss.into(), trained: trained.to_vec(), gradients })
    }

    /// The graph: inputs of a shard and the trained tensors in, the loss and what the gradient is
    /// made of out.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The output that holds the loss.
    pub fn loss(&self) -> &str {
        &self.loss
    }

    /// The names of the trained tensors, which are inputs.
    pub fn trained(&self) -> &[String] {
        &self.trained
    }

    /// Where the gradient of each trained tensor comes from, in the same order.
    pub(super) fn gradients(&self) -> &[Gradient] {
        &self.gradients
    }
}

impl Gradient {
    /// The values it is made of.
    fn values(&self) -> impl Iterator<Item = &str> {
        let (output, products) = match self {
            Gradient::Output(name) => (Some(name.as_str()), &[][..]),
            Gradient::Products(products) => (None, products.as_slice()),
        };
        output.into_iter().chain(products.iter().flat_map(|c| [c.x.as_str(), c.g.as_str()]))
    }
}

/// The trained tensors that products alone read, as their weights.
fn captured(prepared: &Prepared, trained: &[String]) -> Vec<Parameter> {
    let (mut parameters, _) = discover(prepared, RowOrder::Taps);
    let float = |p: &Parameter| {
        let element = |name: &str| prepared.facts.get(name).map(|f| f.element);
        p.uses.iter().all(|u| {
            let node = &prepared.graph.nodes[u.slot.node];
            let x = &node.inputs[Product::data_input(u.slot.input)];
            element(x) == Some(ElementType::F32) && element(&node.outputs[0]) == element(x)
        })
    };
    parameters.retain(|p| trained.contains(&p.name) && float(p));
    parameters
}

/// The products of a captured tensor with the values that the backward graph has for them.
fn captures(
    parameter: &Parameter,
    prepared: &Prepared,
    found: &[autodiff::Capture],
) -> Result<Vec<Capture>> {
    let mut captures = Vec::new();
    for u in &parameter.uses {
        let node = &prepared.graph.nodes[u.slot.node];
        let Some(capture) = found.iter().find(|c| c.slot == u.slot) else {
            bail!(Model, "no gradient reaches {}", node.describe())
        };
        let x = node.inputs[Product::data_input(u.slot.input)].clone();
        // Weights in row order go to the canonical order, and that to the order of the tensor.
        let stored = (u.place.is_some() || parameter.order.is_some()).then(|| {
            let canonical = |i: usize| u.place.as_ref().map_or(i, |place| place[i] as usize);
            let order = parameter.order.as_ref();
            let stored = |i: usize| order.map_or(i as u32, |order| order[i]);
            (0..parameter.range.len()).map(|i| stored(canonical(i))).collect()
        });
        // A matrix product is one over all samples; windows stay within a sample.
        let parts = match u.product {
            Product::Linear(_) => 1,
            _ => prepared.facts[&x].shape[0],
        };
        let (product, g) = (u.product.clone(), capture.gradient.clone());
        captures.push(Capture { product, x, g, stored, parts });
    }
    Ok(captures)
}

/// Drops the inputs that nothing reads.
fn keep_used_inputs(graph: &mut Graph) {
    let mut used: HashSet<String> = graph.outputs.iter().map(|o| o.name.clone()).collect();
    for node in &graph.nodes {
        used.extend(node.inputs.iter().cloned());
        used.extend(outer_names(node));
    }
    graph.inputs.retain(|i| used.contains(&i.name));
}
