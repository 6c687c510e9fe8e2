//! What a model consists of and what hone can do with it, as a JSON document.
//!
//! It says which tensors can be pruned, which are left alone and why, and for each operator whether
//! gradients pass through it, so that a user knows before hours of work what a run will do.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value as Json, json};

use crate::autodiff::{Support, support};
use crate::error::{Context, Result};
use crate::gradient::parameters::weights;
use crate::gradient::unroll::unroll;
use crate::onnx::{Dimension, Graph, Model, Value, import};

/// Describes `model` in the schema `hone.inspect/1`.
///
/// Errors as [`import`]: what hone cannot bring into its working form.
pub fn inspect(model: &Model) -> Result<Json> {
    let name = || model.name().to_string();
    let source = Graph::from_model(model).context(name)?;
    let mut graph = import(model).context(name)?;
    // As a run will have them; what matters here is what reads what, not for how many steps.
    let held = graph.initializers.clone();
    let shape = |name: &str| held.get(name).map_or(Some(vec![2, 1, 1]), |t| Some(t.shape().into()));
    unroll(&mut graph, &shape);
    Ok(describe(model.name(), &source, &graph))
}

fn describe(name: &str, source: &Graph, graph: &Graph) -> Json {
    let (prunable, skipped) = weights(graph);
    let mut operators: BTreeMap<(String, String), usize> = BTreeMap::new();
    for node in &source.nodes {
        *operators.entry((node.domain.clone(), node.op.clone())).or_default() += 1;
    }
    // An operator that import expands or upgrades counts as what it becomes.
    let operators: Vec<Json> = operators
        .into_iter()
        .map(|((domain, op), count)| {
            let expanded = !graph.nodes.iter().any(|n| n.op == op && n.domain == domain);
            let gradient = match support(&op, &domain) {
                Support::Rule => "rule",
                Support::Zero => "zero",
                Support::None if expanded => "expanded",
                Support::None => "none",
            };
            json!({ "domain": domain, "operator": op, "nodes": count, "gradient": gradient })
        })
        .collect();
    let count = |shape: &[usize]| shape.iter().product::<usize>();
    let barriers = barriers(graph);
    let total: usize = prunable.iter().map(|w| count(&w.shape)).sum();
    json!({
        "schema": "hone.inspect/1",
        "model": name,
        "opset": source.opset,
        "nodes": source.nodes.len(),
        "inputs": source.inputs.iter().map(value).collect::<Vec<_>>(),
        "outputs": source.outputs.iter().map(value).collect::<Vec<_>>(),
        "prunable_weights": total,
        "prunable": prunable.iter()
            .map(|w| json!({
                "name": w.name,
                "shape": w.shape,
                "weights": count(&w.shape),
                "behind": w.readers().find_map(|i| barriers.get(&i)),
            }))
            .collect::<Vec<_>>(),
        "skipped": skipped.iter()
            .map(|s| json!({ "name": s.name, "shape": s.shape, "reason": s.reason }))
            .collect::<Vec<_>>(),
        "operators": operators,
    })
}

/// For each node whose gradient would have to pass through an operator without a rule: that
/// operator's node.
fn barriers(graph: &Graph) -> HashMap<usize, String> {
    let uses = graph.uses();
    let mut barriers: HashMap<usize, String> = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        let readers = node.outputs.iter().filter_map(|o| uses.get(o.as_str())).flatten();
        let barrier = readers.into_iter().find_map(|&(reader, _)| {
            let next = &graph.nodes[reader];
            match support(&next.op, &next.domain) {
                Support::None => Some(next.describe()),
                Support::Rule => barriers.get(&reader).cloned(),
                Support::Zero => None,
            }
        });
        barriers.extend(barrier.map(|b| (i, b)));
    }
    barriers
}

fn value(v: &Value) -> Json {
    let shape = v.shape.as_ref().map(|shape| {
        let axis = |d: &Dimension| match d {
            Dimension::Fixed(n) => json!(n),
            Dimension::Symbol(s) => json!(s),
        };
        shape.iter().map(axis).collect::<Vec<_>>()
    });
    json!({ "name": v.name, "element_type": v.element.map(|e| e.to_string()), "shape": shape })
}
