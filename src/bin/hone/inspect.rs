//! `hone inspect`: what a model consists of and what hone can do with it.

use std::collections::{BTreeMap, HashMap};

use hone::autodiff::{Support, support};
use hone::error::{Context, Result};
use hone::gradient::parameters::weights;
use hone::onnx::{Dimension, Graph, Model, Value, import};
use serde_json::{Value as Json, json};

use crate::arguments::Inspect;

pub fn run(a: &Inspect) -> Result<()> {
    let model = Model::load(&a.model)?;
    let in_file = || a.model.display().to_string();
    let source = Graph::from_model(&model).context(in_file)?;
    let graph = import(&model).context(in_file)?;
    let report = report(a, &source, &graph);
    if a.json {
        println!("{report:#}");
    } else {
        print!("{}", text(&report));
    }
    Ok(())
}

fn report(a: &Inspect, source: &Graph, graph: &Graph) -> Json {
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
        "model": a.model,
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

/// The same report for people.
fn text(report: &Json) -> String {
    let list = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    let string = |v: &Json| v.as_str().map_or_else(|| v.to_string(), String::from);
    let shape = |v: &Json| match v.as_array() {
        Some(axes) => format!("[{}]", axes.iter().map(string).collect::<Vec<_>>().join(", ")),
        None => "of unknown shape".into(),
    };
    let mut out = format!(
        "{}: opset {}, {} nodes\n",
        string(&report["model"]),
        report["opset"],
        report["nodes"]
    );
    for (key, word) in [("inputs", "input"), ("outputs", "output")] {
        for v in list(key) {
            let element = v["element_type"].as_str().unwrap_or("unknown type");
            out += &format!("  {word} {} {element} {}\n", v["name"], shape(&v["shape"]));
        }
    }
    out += &format!("\nprunable: {} weights\n", report["prunable_weights"]);
    for v in list("prunable") {
        let behind = match v["behind"].as_str() {
            Some(node) => format!(", behind {node}: --skip it, or --method magnitude"),
            None => String::new(),
        };
        out += &format!(
            "  {:>10}  {} {}{behind}\n",
            v["weights"].to_string(),
            string(&v["name"]),
            shape(&v["shape"])
        );
    }
    if !list("skipped").is_empty() {
        out += "\nleft alone:\n";
    }
    for v in list("skipped") {
        out +=
            &format!("  {} {}: {}\n", string(&v["name"]), shape(&v["shape"]), string(&v["reason"]));
    }
    out += "\noperators (nodes, gradient):\n";
    for v in list("operators") {
        let domain = string(&v["domain"]);
        let domain = if domain.is_empty() { domain } else { format!("{domain}.") };
        let gradient = match v["gradient"].as_str() {
            Some("rule") => "yes",
            Some("zero") => "zero everywhere",
            Some("expanded") => "yes, expanded into standard operators",
            _ => "no rule: weights before it cannot be pruned by M-FAC",
        };
        out += &format!(
            "  {:>6}  {domain}{}: {gradient}\n",
            v["nodes"].to_string(),
            string(&v["operator"])
        );
    }
    out
}
