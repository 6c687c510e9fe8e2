//! One training step as a graph: the loss and its gradient, with the trained tensors as inputs.
//!
//! The forward graph is fixed to the shapes of one shard, the backward pass of its scalar value L
//! is appended with the cotangent L̄ = 1, and the trained initializers become inputs. A session on
//! it therefore serves all steps; everything else of the model (BatchNorm statistics, constants)
//! stays as it is.

use std::collections::HashSet;
use std::sync::Arc;

use crate::autodiff;
use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::gradient::prepare::prepare_for;
use crate::onnx::graph::outer_names;
use crate::onnx::{Graph, Value};
use crate::tensor::{ElementType, Tensor};

/// The graph of a loss and its gradient in some initializers.
#[derive(Clone, Debug)]
pub struct StepGraph {
    graph: Graph,
    loss: String,
    trained: Vec<String>,
    gradients: Vec<String>,
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
        let (graph, facts) = (&prepared.graph, &prepared.facts);
        let backward = autodiff::backward(graph, facts, &[loss.into()], trained, &[])
            .context(|| "the gradient of the loss")?;
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
        let gradients: Vec<String> =
            trained.iter().map(|n| backward.gradients[n].clone()).collect();
        let wanted: HashSet<&String> = gradients.iter().collect();
        graph.outputs.retain(|o| o.name == loss || wanted.contains(&o.name));
        graph.remove_unused();
        Ok(StepGraph { graph, loss: loss.into(), trained: trained.to_vec(), gradients })
    }

    /// The graph: inputs of a shard and the trained tensors in, the loss and gradients out.
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

    /// The outputs that hold ∂L/∂w of each trained tensor, in the same order.
    pub fn gradients(&self) -> &[String] {
        &self.gradients
    }
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
