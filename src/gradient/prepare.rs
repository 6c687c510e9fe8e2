//! From a user's graph to one the backward pass can be built on: a fixed batch, every shape known,
//! everything that does not depend on the samples folded to a constant.
//!
//! Shapes are not inferred but observed: the graph is run once on real samples with every value as
//! an output. That needs no table of operators, is right for whatever ONNX Runtime can run, and
//! yields the values of shape arithmetic with it, so that no gradient rule meets a dynamic shape.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::autodiff::{Fact, Facts};
use crate::calibration::Samples;
use crate::cancel::Cancel;
use crate::error::{Context, Result};
use crate::gradient::{parameters, unroll};
use crate::onnx::graph::outer_names;
use crate::onnx::{Dimension, Graph, Node, Value};
use crate::runtime::{Session, SessionOptions};
use crate::tensor::Tensor;

/// A graph at a fixed batch with what is known of its values.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The graph: its inputs have fixed shapes, its nodes depend on inputs or on weights.
    pub graph: Graph,
    /// Every value of the graph.
    pub facts: Facts,
    /// The initializers that are no tensors of the model but values computed from them.
    pub folded: HashSet<String>,
}

/// Fixes the shapes of `graph` to those of `batch` (one tensor per input) and folds constants.
pub fn prepare(graph: &Graph, batch: &[(String, Tensor)], cancel: &Cancel) -> Result<Prepared> {
    prepare_for(graph, batch, &[], cancel)
}

/// The same, but what follows from the values `wanted` is not folded either, so that there is a
/// path on which their gradients can be formed.
pub fn prepare_for(
    graph: &Graph,
    batch: &[(String, Tensor)],
    wanted: &[String],
    cancel: &Cancel,
) -> Result<Prepared> {
    let mut graph = graph.clone();
    for input in &mut graph.inputs {
        if let Some((_, tensor)) = batch.iter().find(|(name, _)| *name == input.name) {
            *input = Value::fixed(&input.name, tensor.element_type(), tensor.shape());
        }
    }
    let (mut facts, mut folded) = settle(&mut graph, batch, wanted, cancel)?;
    if unroll::unroll(&mut graph, &|name| facts.get(name).map(|f| f.shape.clone())) {
        let more;
        (facts, more) = settle(&mut graph, batch, wanted, cancel)?;
        folded.extend(more);
    }
    Ok(Prepared { graph, facts, folded })
}

/// Observes the graph and folds its constants; returns what is known of its values, and the names
/// of those that were folded.
fn settle(
    graph: &mut Graph,
    batch: &[(String, Tensor)],
    wanted: &[String],
    cancel: &Cancel,
) -> Result<(Facts, HashSet<String>)> {
    let mut observed = observe(graph, batch, cancel)?;
    // Weights will change, so what follows from them is no constant.
    let (weights, _) = parameters::weights(graph);
    let varying: HashSet<&str> =
        wanted.iter().map(String::as_str).chain(weights.iter().map(|w| w.name.as_str())).collect();
    let constant = constants(graph, &observed.facts, &varying);
    let folded = fold(graph, &constant, &mut observed)?;
    Ok((observed.facts, folded))
}

/// Declares a batch of one where the model takes nothing else although its inputs are declared to
/// have any length: exporters bake the batch they traced with into reshapes. `batch` is how many
/// samples are tried together. A model that runs neither way is left to those who run it.
pub fn declare_baked_batch(
    graph: &mut Graph,
    samples: &Samples,
    batch: usize,
    cancel: &Cancel,
) -> Result<()> {
    let open = |v: &Value| matches!(v.shape.as_deref(), Some([Dimension::Symbol(_), ..]));
    if batch < 2 || !graph.inputs.iter().all(open) {
        return Ok(());
    }
    let mut session = Session::of_graph(graph, &SessionOptions::default())?;
    let mut shapes = |rows: Vec<usize>| -> Result<Vec<Option<Vec<usize>>>> {
        let inputs = samples.batch(&rows);
        let outputs = session.run(inputs.iter().map(|(n, t)| (n.as_str(), t)), cancel)?;
        Ok(graph.outputs.iter().map(|o| outputs.kind(&o.name).map(|(_, shape)| shape)).collect())
    };
    let one = shapes(vec![0]);
    let many = shapes((0..batch).map(|i| i % samples.rows()).collect());
    cancel.check()?;
    let Ok(one) = one else { return Ok(()) };
    let grows = |one: &Option<Vec<usize>>, many: &Option<Vec<usize>>| match (one, many) {
        (Some(one), Some(many)) => match (one.first(), many.first()) {
            (Some(&a), Some(&b)) => b == a * batch || one == many,
            _ => true,
        },
        _ => true,
    };
    if many.is_ok_and(|many| one.iter().zip(&many).all(|(one, many)| grows(one, many))) {
        return Ok(());
    }
    log::info!("the model takes one sample at a time, whatever its inputs declare");
    for input in &mut graph.inputs {
        if let Some([batch, ..]) = input.shape.as_deref_mut() {
            *batch = Dimension::Fixed(1);
        }
    }
    Ok(())
}

struct Observed {
    facts: Facts,
    /// Values of nodes that might fold: those that are small or need no sample.
    values: crate::runtime::Outputs,
}

/// Runs the graph with every value as an output.
fn observe(graph: &Graph, batch: &[(String, Tensor)], cancel: &Cancel) -> Result<Observed> {
    let mut all = graph.clone();
    let names: Vec<&String> =
        graph.nodes.iter().flat_map(|n| &n.outputs).filter(|o| !o.is_empty()).collect();
    all.outputs = names.iter().map(|&n| Value::named(n)).collect();
    let options = SessionOptions { optimize: false, ..SessionOptions::default() };
    let mut session = Session::of_graph(&all, &options)?;
    let inputs = batch.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let values =
        session.run(inputs, cancel).context(|| "running the model on the first samples")?;
    let mut facts = Facts::new();
    for (name, tensor) in batch {
        let (element, shape) = (tensor.element_type(), tensor.shape().to_vec());
        facts.insert(name.clone(), Fact { element, shape, constant: None });
    }
    for (name, tensor) in &graph.initializers {
        facts.insert(name.clone(), fact_of(tensor));
    }
    for name in names {
        // Sequences, maps and strings have no fact; a gradient that needs one says so.
        if let Some((element, shape)) = values.kind(name) {
            facts.insert(name.clone(), Fact { element, shape, constant: None });
        }
    }
    Ok(Observed { facts, values })
}

fn fact_of(tensor: &Arc<Tensor>) -> Fact {
    Fact {
        element: tensor.element_type(),
        shape: tensor.shape().to_vec(),
        constant: Some(tensor.clone()),
    }
}

/// The values that are the same for every sample of this batch size and do not follow from any of
/// `varying`.
fn constants(graph: &Graph, facts: &Facts, varying: &HashSet<&str>) -> HashSet<String> {
    let mut constant: HashSet<String> = graph.initializers.keys().cloned().collect();
    constant.retain(|name| !varying.contains(name.as_str()));
    for node in &graph.nodes {
        let of_shape = matches!(node.op.as_str(), "Shape" | "Size") && node.domain.is_empty();
        let inputs = || node.inputs.iter().filter(|i| !i.is_empty());
        let settled = inputs().all(|i| constant.contains(i))
            && outer_names(node).iter().all(|n| constant.contains(n) || !facts.contains_key(n));
        if !is_random(node) && (of_shape || settled) {
            let named =
                node.outputs.iter().filter(|o| !o.is_empty() && !varying.contains(o.as_str()));
            constant.extend(named.cloned());
        }
    }
    constant
}

fn is_random(node: &Node) -> bool {
    node.op.starts_with("Random") || matches!(node.op.as_str(), "Bernoulli" | "Multinomial")
}

/// Replaces the producers of constants by the values observed, and drops what is then unused.
/// Returns the names of what was folded.
fn fold(
    graph: &mut Graph,
    constant: &HashSet<String>,
    observed: &mut Observed,
) -> Result<HashSet<String>> {
    let mut folded: HashMap<String, Arc<Tensor>> = HashMap::new();
    let outputs: HashSet<String> = graph.outputs.iter().map(|o| o.name.clone()).collect();
    for node in &graph.nodes {
        let named: Vec<&String> = node.outputs.iter().filter(|o| !o.is_empty()).collect();
        let stays = named.iter().any(|&o| {
            !constant.contains(o) || outputs.contains(o) || !observed.facts.contains_key(o)
        });
        if !stays {
            for name in named {
                folded.insert(name.clone(), Arc::new(observed.values.tensor(name)?));
            }
        }
    }
    graph.nodes.retain(|n| !n.outputs.iter().any(|o| folded.contains_key(o)));
    let names = folded.keys().cloned().collect();
    for (name, tensor) in folded {
        observed.facts.insert(name.clone(), fact_of(&tensor));
        graph.initializers.insert(name, tensor);
    }
    graph.remove_unused();
    Ok(names)
}
