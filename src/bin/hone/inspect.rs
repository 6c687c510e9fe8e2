//! `hone inspect`: what a model consists of and what hone can do with it.

use hone::error::Result;
use hone::inspect::inspect;
use hone::onnx::Model;
use serde_json::Value as Json;

use crate::arguments::Inspect;

pub fn run(a: &Inspect) -> Result<()> {
    let report = inspect(&Model::load(&a.model)?)?;
    if a.json {
        println!("{report:#}");
    } else {
        print!("{}", text(&report));
    }
    Ok(())
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
