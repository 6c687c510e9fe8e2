//! The single-operator cases that come with onnx, against derivatives that onnx's own reference
//! implementation gives in float64 (`tests/oracle/node_cases.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hone::autodiff::{Facts, Support, backward, support};
use hone::cancel::Cancel;
use hone::gradient::unroll::unroll;
use hone::onnx::{Graph, Model, Value};
use hone::runtime::{Session, SessionOptions};
use hone::tensor::Tensor;
use hone::{Error, ErrorKind};

use crate::harness::fact;

/// How many cases agreed when this was last raised; never lower it.
const PASSED: usize = 430;

/// The largest difference allowed, relative to |c|·|J v|: the graph computes in float32.
const TOLERANCE: f64 = 2e-3;

/// What became of a case.
enum Outcome {
    Passed,
    Wrong(String),
    Skipped(String),
}

#[test]
fn cases_that_come_with_onnx() {
    let folder = cases();
    let index = fs::read(folder.join("index.json")).unwrap();
    let index: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&index).unwrap();
    let (mut passed, mut wrong) = (0, Vec::new());
    let mut skipped: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut operators = BTreeMap::<String, usize>::new();
    for (name, entry) in &index {
        let outcome = match entry["left"].as_str() {
            Some(reason) => Outcome::Skipped(format!("oracle: {reason}")),
            None => check(&folder, name),
        };
        let operator = entry["operator"].as_str().unwrap().to_string();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                *operators.entry(operator).or_default() += 1;
            }
            Outcome::Wrong(how) => wrong.push(format!("{name}: {how}")),
            Outcome::Skipped(why) => skipped.entry(why).or_default().push(operator),
        }
    }
    println!("{} cases, {passed} agree over {} operators", index.len(), operators.len());
    for (why, mut operators) in skipped {
        let count = operators.len();
        operators.sort();
        operators.dedup();
        println!("{count:4} skipped, {why}: {}", operators.join(" "));
    }
    assert!(wrong.is_empty(), "{} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(passed >= PASSED, "{passed} cases agree, {PASSED} did before");
}

/// The folder of generated cases, made anew when the script that makes them has changed.
fn cases() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = root.join("tests/oracle/node_cases.py");
    let oracles = root.join("third_party/python");
    assert!(oracles.exists(), "the oracles are missing: run scripts/setup --tests");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node_cases");
    let made_by = folder.join("made_by.py");
    let text = fs::read(&script).unwrap();
    if fs::read(&made_by).ok().as_ref() != Some(&text) {
        let run = Command::new("python3")
            .arg(&script)
            .arg(&folder)
            .env("PYTHONPATH", &oracles)
            .output()
            .expect("python3 runs");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        fs::write(&made_by, text).unwrap();
    }
    folder
}

fn check(folder: &Path, name: &str) -> Outcome {
    let load = |kind: &str| {
        let model = Model::load(folder.join(format!("{name}.{kind}.onnx")));
        model.and_then(|m| Graph::from_model(&m))
    };
    let data = match load("data") {
        Ok(data) => data.initializers,
        Err(e) => return failed(&e),
    };
    let tensor = |kind: &str, value: &str| data.get(&format!("{kind}/{value}")).map(|t| &**t);
    let mut graph = match load("model") {
        Ok(graph) => graph,
        Err(e) => return failed(&e),
    };
    let node = graph.nodes[0].clone();
    if support(&node.op, &node.domain) == Support::Zero {
        return Outcome::Skipped("the derivative is zero by definition".into());
    }
    // What is not differentiated says how: it is constant, as in the models that hone sees.
    let (varying, fixed): (Vec<Value>, Vec<Value>) =
        graph.inputs.into_iter().partition(|v| tensor("along", &v.name).is_some());
    graph.inputs = varying;
    for value in &fixed {
        if let Some(at) = data.get(&format!("at/{}", value.name)) {
            graph.initializers.insert(value.name.clone(), at.clone());
        }
    }
    let input_shape = |name: &str| {
        let constant = graph.initializers.get(name).map(|t| &**t);
        Some(tensor("at", name).or(constant)?.shape().to_vec())
    };
    let mut unrolled = graph.clone();
    unroll(&mut unrolled, &input_shape);
    match compare(&unrolled, &tensor) {
        Ok(outcome) => outcome,
        Err(e) => failed(&e),
    }
}

fn compare<'t>(
    graph: &Graph,
    tensor: &dyn Fn(&str, &str) -> Option<&'t Tensor>,
) -> hone::Result<Outcome> {
    let wanted: Vec<String> = graph.inputs.iter().map(|v| v.name.clone()).collect();
    let inputs: Vec<(&str, &Tensor)> =
        wanted.iter().map(|n| (n.as_str(), tensor("at", n).unwrap())).collect();
    let options = SessionOptions { optimize: false, ..SessionOptions::default() };
    let open = |graph: &Graph| Session::of_graph(graph, &options);
    let mut all = graph.clone();
    let inner = graph.nodes.iter().flat_map(|n| &n.outputs).filter(|o| !o.is_empty());
    all.outputs = inner.map(Value::named).collect();
    let values = open(&all)?.run(inputs.iter().copied(), &Cancel::new())?;
    let mut facts = Facts::new();
    facts.extend(inputs.iter().map(|(n, t)| (n.to_string(), fact(t, false))));
    facts.extend(graph.initializers.iter().map(|(n, t)| (n.clone(), fact(t, true))));
    for value in &all.outputs {
        facts.insert(value.name.clone(), fact(&values.tensor(&value.name)?, false));
    }
    let names = graph.outputs.iter().map(|v| &v.name);
    let seeded: Vec<String> = names.filter(|n| tensor("seed", n).is_some()).cloned().collect();
    let result = backward(graph, &facts, &seeded, &wanted, &[])?;
    let seeds = result.seeds.iter().map(|(o, i)| (i.as_str(), tensor("seed", o).unwrap()));
    let feed: Vec<_> = inputs.iter().copied().chain(seeds).collect();
    let gradients = open(&result.graph)?.run(feed, &Cancel::new())?;
    for name in &wanted {
        let gradient = gradients.tensor(&result.gradients[name])?.to_f64();
        let along = tensor("along", name).unwrap().to_f64();
        let found: f64 = gradient.iter().zip(&along).map(|(g, v)| g * v).sum();
        let slope = tensor("slope", name).unwrap().to_f64();
        let error = (found - slope[0]).abs() / (slope[1] + 1e-3);
        if error.is_nan() || error > TOLERANCE {
            return Ok(Outcome::Wrong(format!(
                "{name}: the graph says {found}, the oracle {} (error {error:.1e})",
                slope[0]
            )));
        }
    }
    Ok(Outcome::Passed)
}

/// What hone refuses is skipped with its reason; anything else that fails is wrong.
fn failed(e: &Error) -> Outcome {
    let message = e.to_string();
    let reason = message.rsplit(": ").next().unwrap_or("").to_string();
    match e.kind() {
        ErrorKind::Unsupported => Outcome::Skipped(format!("hone: {reason}")),
        _ => Outcome::Wrong(message),
    }
}
