//! A model in the form that gradients are built on: one operator set, standard operators, each
//! weight under the name it has in the file.
//!
//! After the import a constant that several nodes read is a tied weight. Exporters also make one
//! constant of equal ones (the zero biases and unit scales of fresh layers); those are split, as
//! they only look tied. Half precision becomes float32: gradients and sums of squares need it.

use std::collections::{HashMap, HashSet};

use crate::error::{Context, Result};
use crate::onnx::convert::value;
use crate::onnx::graph::{Graph, Names, outer_names};
use crate::onnx::model::Model;
use crate::onnx::{contrib, inline, upgrade, widen};
use crate::tensor::{Data, Tensor};

/// The working graph of `model`: functions inlined, operator set 18 or newer, fused operators
/// expanded, half precision widened, aliases of constants resolved, accidental sharing undone. A
/// constant that also exists in the model has the same name in both.
pub fn import(model: &Model) -> Result<Graph> {
    let mut graph = Graph::from_model(model)?;
    let ranks = declared_ranks(model);
    standardize(&mut graph, &|name| ranks.get(name).copied()).context(|| model.name())?;
    widen::widen(&mut graph);
    resolve_aliases(&mut graph);
    split_look_alikes(&mut graph);
    drop_unused_domains(&mut graph);
    graph.remove_unused();
    Ok(graph)
}

/// Leaves operators of one standard set only.
fn standardize(graph: &mut Graph, rank: &dyn Fn(&str) -> Option<usize>) -> Result<()> {
    inline::inline(graph)?;
    constant_nodes_to_initializers(graph);
    upgrade::upgrade(graph, rank)?;
    contrib::expand(graph, rank)
}

/// The number of axes of the values that the model declares.
fn declared_ranks(model: &Model) -> HashMap<&str, usize> {
    let Some(graph) = model.proto.graph.as_option() else { return HashMap::new() };
    let values = graph.value_info.iter().chain(&graph.input).chain(&graph.output);
    let declared = values.filter_map(|v| Some((v.name.as_deref()?, value(v).shape?.len())));
    let held = graph.initializer.iter().filter_map(|t| Some((t.name.as_deref()?, t.dims.len())));
    declared.chain(held).collect()
}

/// Constants in the bodies of functions get the home that all others have.
fn constant_nodes_to_initializers(graph: &mut Graph) {
    graph.nodes.retain(|node| {
        let Some((name, tensor)) = crate::onnx::nodes::constant_value(node) else { return true };
        graph.initializers.insert(name, tensor);
        false
    });
}

/// An Identity of a constant is another name for it; its readers take the constant itself. Where
/// the other name is a result or read by a subgraph, the Identity stays for those.
fn resolve_aliases(graph: &mut Graph) {
    let mut fixed: HashSet<String> = graph.outputs.iter().map(|v| v.name.clone()).collect();
    graph.nodes.iter().for_each(|node| fixed.extend(outer_names(node)));
    let mut aliases: HashMap<String, String> = HashMap::new();
    let mut nodes = std::mem::take(&mut graph.nodes);
    nodes.retain_mut(|node| {
        for input in &mut node.inputs {
            if let Some(constant) = aliases.get(input) {
                input.clone_from(constant);
            }
        }
        let is_alias = node.op == "Identity"
            && node.domain.is_empty()
            && node.input(0).is_some_and(|i| graph.initializers.contains_key(i));
        if is_alias && let Some(output) = node.output(0) {
            aliases.insert(output.to_owned(), node.inputs[0].clone());
            return fixed.contains(output);
        }
        true
    });
    graph.nodes = nodes;
}

/// Gives each reader its own copy of a float constant whose elements are all equal: such constants
/// are shared because exporters merge equal tensors, not because the model ties weights.
fn split_look_alikes(graph: &mut Graph) {
    let mut names = Names::of(graph);
    let mut seen: HashSet<String> = HashSet::new();
    for input in graph.nodes.iter_mut().flat_map(|node| &mut node.inputs) {
        let Some(tensor) = graph.initializers.get(input) else { continue };
        if !is_uniform(tensor) || seen.insert(input.clone()) {
            continue;
        }
        let tensor = tensor.clone();
        let copy = names.fresh(input);
        graph.initializers.insert(copy.clone(), tensor);
        *input = copy;
    }
}

/// Whether the tensor has several float elements that are all the same.
fn is_uniform(tensor: &Tensor) -> bool {
    fn same<T: PartialEq>(values: &[T]) -> bool {
        values.len() > 1 && values.iter().all(|v| *v == values[0])
    }
    match tensor.data() {
        Data::F32(v) => same(v),
        Data::F64(v) => same(v),
        Data::F16(v) => same(v),
        Data::BF16(v) => same(v),
        _ => false,
    }
}

fn drop_unused_domains(graph: &mut Graph) {
    if graph.nodes.iter().any(|node| node.has_subgraph()) {
        return; // Subgraphs may use any of them.
    }
    let used: HashSet<&str> = graph.nodes.iter().map(|node| node.domain.as_str()).collect();
    graph.domains.retain(|domain, _| used.contains(domain.as_str()));
}
