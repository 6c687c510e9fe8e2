//! Nets with other inputs and outputs, brought under the contract.

use std::sync::Arc;

use hone::cancel::Cancel;
use hone::mam::contract::{Contract, Kind};
use hone::mam::{Foreign, Method, Orders, ScoreOptions, adapt};
use hone::onnx::{Graph, Node};
use hone::tensor::{ElementType, Tensor};

use crate::tables::{MISSING, close, load, log_sum_exp, rows, symbolic};

/// An image net of 2 × 2 pixels: values −1 and +1 with 0 for missing, a mask of what is known, the
/// number of known pixels. f = Σ pixel · weight + 0.5 Σ mask + 0.25 step; logits `[B, K, 2, 2]` are
/// pixel · weight for value 0 and step for value 1. It uses a name of the contract for its own.
fn image_net() -> Graph {
    let mut graph = Graph { name: "image".into(), opset: 18, ..Graph::default() };
    let mut hold = |name: &str, tensor| {
        graph.initializers.insert(name.into(), Arc::new(tensor));
    };
    hold("weight", Tensor::f32([1, 2, 2], vec![1.0, 2.0, 4.0, 8.0]));
    hold("half", Tensor::f32([], vec![0.5]));
    hold("quarter", Tensor::f32([], vec![0.25]));
    hold("axes", Tensor::i64([3], vec![1, 2, 3]));
    hold("cube", Tensor::i64([4], vec![-1, 1, 1, 1]));
    graph.nodes = vec![
        Node::new("Mul", ["image", "weight"], "x"),
        Node::new("ReduceSum", ["x", "axes"], "pixels").with("keepdims", 0i64),
        Node::new("Mul", ["mask", "half"], "halves"),
        Node::new("ReduceSum", ["halves", "axes"], "known").with("keepdims", 0i64),
        Node::new("Mul", ["t", "quarter"], "steps"),
        Node::new("Sum", ["pixels", "known", "steps"], "f"),
        Node::new("Reshape", ["t", "cube"], "t_cube"),
        Node::new("Sub", ["x", "x"], "zero"),
        Node::new("Add", ["zero", "t_cube"], "t_image"),
        Node::new("Concat", ["x", "t_image"], "logits").with("axis", 1i64),
    ];
    graph.inputs = vec![
        symbolic("image", ElementType::F32, &[1, 2, 2]),
        symbolic("mask", ElementType::F32, &[1, 2, 2]),
        symbolic("t", ElementType::F32, &[]),
    ];
    graph.outputs = vec![
        symbolic("f", ElementType::F32, &[]),
        symbolic("logits", ElementType::F32, &[2, 2, 2]),
    ];
    graph
}

fn foreign() -> Foreign {
    Foreign {
        values: vec![-1.0, 1.0],
        missing: 0.0,
        mask_input: Some("mask".into()),
        step_input: Some("t".into()),
        log_p: Some("f".into()),
        logits: Some("logits".into()),
        logits_values_first: true,
        ..Foreign::default()
    }
}

#[test]
fn an_image_net_with_mask_and_step_keeps_the_contract_afterwards() {
    let contract = Contract::new(Kind::Joint, 4, 2);
    let adapted = adapt(image_net(), &foreign(), &contract).unwrap();
    let mam = load(&adapted, &contract).unwrap();
    let row = vec![1, MISSING, 0, 1];
    let options = ScoreOptions {
        method: Method::Bracket,
        orders: Orders::Given(vec![vec![3, 2, 1, 0]]),
        log_normaliser: None,
        conflict: false,
        surprise: false,
    };
    let score = mam.score(&rows(&[row]), &options, &Cancel::new()).unwrap().remove(0).unwrap();
    close(score.theta.unwrap(), 1.0 - 4.0 + 8.0 + 0.5 * 3.0 + 0.25 * 3.0, 1e-5, "θ");
    // At an unknown pixel the logits are 0 and the number of known pixels.
    let log = |value: usize, step: f64| [0.0, step][value] - log_sum_exp(&[0.0, step]);
    let chain = log(1, 0.0) + log(0, 1.0) + log(1, 2.0);
    close(score.phi.unwrap().log_p, chain, 1e-5, "φ");
}

#[test]
fn what_is_unclear_is_asked_for() {
    let contract = Contract::new(Kind::Joint, 4, 2);
    let refused = |foreign: Foreign, contract: &Contract, expected: &str| {
        let error = adapt(image_net(), &foreign, contract).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error}");
    };
    refused(Foreign { mask_input: None, ..foreign() }, &contract, "which of the inputs");
    refused(Foreign { step_input: Some("s".into()), ..foreign() }, &contract, "no input \"s\"");
    refused(Foreign { log_p: Some("g".into()), ..foreign() }, &contract, "no output \"g\"");
    refused(Foreign { log_p: None, logits: None, ..foreign() }, &contract, "name the output");
    refused(Foreign { values: vec![0.0], ..foreign() }, &contract, "1 inputs of values for 2");
    let long = Contract::new(Kind::Joint, 5, 2);
    refused(foreign(), &long, "does not take 5 sites");
    let two = Foreign { values_input: Some("image".into()), mask_input: None, ..foreign() };
    refused(two, &contract, "what is input \"mask\"");
}
