//! The walk itself: sums over uses, captures, what is left out, and errors.

use std::sync::Arc;

use hone::ErrorKind;
use hone::autodiff::{Backward, Facts, Slot, Support, backward, support};
use hone::cancel::Cancel;
use hone::onnx::{Graph, Node, Value};
use hone::runtime::SessionOptions;
use hone::tensor::{ElementType, Tensor};

use crate::harness::{Random, fact, session};

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product();
    Tensor::f32(shape, Random(seed).values(n).iter().map(|&v| v as f32).collect())
}

/// Two convolutions with a residual connection, a head, and an index output nobody differentiates.
fn network() -> Graph {
    let mut graph = Graph { opset: 18, ..Graph::default() };
    graph.inputs.push(Value::fixed("x", ElementType::F32, &[2, 3, 6, 6]));
    for (name, shape) in
        [("w1", &[4, 3, 3, 3][..]), ("w2", &[4, 4, 3, 3]), ("b2", &[4]), ("w3", &[5, 4])]
    {
        graph.initializers.insert(name.into(), Arc::new(tensor(shape, name.len() as u64)));
    }
    let pads = vec![1i64; 4];
    graph.nodes = vec![
        Node::new("Conv", ["x", "w1"], "c1").with("pads", pads.clone()),
        Node::new("Relu", ["c1"], "r1"),
        Node::new("Conv", ["r1", "w2", "b2"], "c2").with("pads", pads),
        Node::new("Add", ["c2", "r1"], "s"),
        Node::new("GlobalAveragePool", ["s"], "p"),
        Node::new("Flatten", ["p"], "f"),
        Node::new("Gemm", ["f", "w3"], "z").with("transB", 1i64),
        Node::new("ArgMax", ["z"], "label").with("axis", 1i64),
    ];
    graph.outputs = vec![Value::named("z"), Value::named("label")];
    graph
}

/// Runs the graph with every value as an output.
fn facts(graph: &Graph) -> Facts {
    let mut all = graph.clone();
    let outputs = graph.nodes.iter().flat_map(|n| &n.outputs).filter(|o| !o.is_empty());
    all.outputs = outputs.map(Value::named).collect();
    let options = SessionOptions { optimize: false, ..SessionOptions::default() };
    let mut session = session(&all, &options);
    let x = tensor(&[2, 3, 6, 6], 9);
    let values = session.run([("x", &x)], &Cancel::new()).unwrap();
    let mut facts = Facts::from([("x".into(), fact(&x, false))]);
    facts.extend(graph.initializers.iter().map(|(n, t)| (n.clone(), fact(t, true))));
    facts.extend(all.outputs.iter().map(|v| {
        let value = values.tensor(&v.name).unwrap();
        (v.name.clone(), fact(&value, false))
    }));
    facts
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| s.to_string()).collect()
}

fn run(result: &Backward, outputs: &[&str]) -> Vec<Tensor> {
    let mut session = session(&result.graph, &SessionOptions::default());
    let (x, seed) = (tensor(&[2, 3, 6, 6], 9), tensor(&[2, 5], 10));
    let feed = [("x", &x), (result.seeds[0].1.as_str(), &seed)];
    let values = session.run(feed, &Cancel::new()).unwrap();
    outputs.iter().map(|name| values.tensor(name).unwrap()).collect()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn captured_cotangents_give_the_weight_gradients() {
    let graph = network();
    let facts = facts(&graph);
    let weights = names(&["w1", "w2", "w3", "b2"]);
    let whole = backward(&graph, &facts, &names(&["z"]), &weights, &[]).unwrap();
    let slots =
        [Slot { node: 0, input: 1 }, Slot { node: 2, input: 1 }, Slot { node: 6, input: 1 }];
    let captured = backward(&graph, &facts, &names(&["z"]), &[], &slots).unwrap();

    let gradient = |w: &str| run(&whole, &[&whole.gradients[w]]).remove(0);
    let wanted: Vec<&str> = captured.captures.iter().map(|c| c.gradient.as_str()).collect();
    let cotangents = run(&captured, &wanted);
    assert_eq!(cotangents[0].shape(), facts["c1"].shape);

    // The head: Ẇ = Ȳᵀ A from the cotangent and the captured data input.
    let a = run(&captured, &["f"]).remove(0).to_f64();
    let g = cotangents[2].to_f64();
    let by_hand: Vec<f32> = (0..5 * 4)
        .map(|i| (0..2).map(|n| g[n * 5 + i / 4] * a[n * 4 + i % 4]).sum::<f64>() as f32)
        .collect();
    assert!(largest_difference(&gradient("w3"), &Tensor::f32([5, 4], by_hand)) < 1e-5);

    // The bias: the sum of the cotangent over everything but the channels.
    let g = cotangents[1].to_f64();
    let by_hand: Vec<f32> = (0..4)
        .map(|c| {
            let place = |i: &usize| i / 36 % 4 == c;
            (0..g.len()).filter(place).map(|i| g[i]).sum::<f64>() as f32
        })
        .collect();
    assert!(largest_difference(&gradient("b2"), &Tensor::f32([4], by_hand)) < 1e-5);
}

#[test]
fn captures_hand_out_data_inputs_but_not_graph_inputs() {
    let graph = network();
    let slots = [Slot { node: 0, input: 1 }, Slot { node: 2, input: 1 }];
    let result = backward(&graph, &facts(&graph), &names(&["z"]), &[], &slots).unwrap();
    let outputs: Vec<&str> = result.graph.outputs.iter().map(|v| v.name.as_str()).collect();
    assert!(outputs.contains(&"r1") && !outputs.contains(&"x"));
    assert_eq!(outputs[..2], ["z", "label"]);
    assert!(result.gradients.is_empty());
    // Nothing below the first convolution is differentiated: no gradient of x, no kernel gradient.
    let convolutions = result.graph.nodes.iter().filter(|n| n.op == "Conv").count();
    assert_eq!(convolutions, 3);
}

#[test]
fn a_value_used_twice_gets_the_sum() {
    let mut graph = network();
    graph.nodes[4].inputs[0] = "t".into();
    graph.nodes.insert(4, Node::new("Mul", ["s", "s"], "t"));
    let all = names(&["s", "t", "z"]);
    let result = backward(&graph, &facts(&graph), &names(&["z"]), &all, &[]).unwrap();
    let outputs: Vec<&str> = all.iter().map(|v| result.gradients[v].as_str()).collect();
    assert_eq!(result.gradients["s"], "hone/grad/s");
    let values = run(&result, &[outputs[0], outputs[1], outputs[2], "z"]);
    let forward = {
        let mut graph = graph.clone();
        graph.outputs.push(Value::named("s"));
        let mut session = session(&graph, &SessionOptions::default());
        let x = tensor(&[2, 3, 6, 6], 9);
        session.run([("x", &x)], &Cancel::new()).unwrap().tensor("s").unwrap()
    };
    let expected: Vec<f32> =
        forward.to_f32().iter().zip(values[1].to_f32()).map(|(s, t)| 2.0 * s * t).collect();
    assert!(largest_difference(&values[0], &Tensor::f32(forward.shape(), expected)) < 1e-5);
    assert_eq!(values[2].to_f32(), tensor(&[2, 5], 10).to_f32(), "the seed itself");
}

#[test]
fn a_value_that_nothing_depends_on_gets_zeros() {
    let mut graph = network();
    graph.initializers.insert("idle".into(), Arc::new(tensor(&[3, 2], 1)));
    graph.nodes.push(Node::new("Neg", ["idle"], "unused"));
    let facts = facts(&graph);
    let wanted = names(&["idle"]);
    let result = backward(&graph, &facts, &names(&["z"]), &wanted, &[]).unwrap();
    assert_eq!(run(&result, &["hone/grad/idle"]).remove(0), Tensor::f32([3, 2], vec![0.0; 6]));
}

#[test]
fn an_operator_without_a_rule_is_named_with_what_it_hides() {
    let mut graph = network();
    graph.nodes[1].op = "Hardly".into();
    graph.nodes[1].name = "act".into();
    let mut known = network();
    known.outputs = graph.outputs.clone();
    let facts = facts(&known);
    let e = backward(&graph, &facts, &names(&["z"]), &names(&["w1", "w2"]), &[]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    let message = e.to_string();
    assert!(message.contains("Hardly") && message.contains("\"act\""), "{message}");
    assert!(message.contains("\"w1\"") && !message.contains("\"w2\""), "{message}");
    // A gradient that does not pass through it is formed all the same.
    backward(&graph, &facts, &names(&["z"]), &names(&["w2", "w3"]), &[]).unwrap();
    let slot = Slot { node: 0, input: 1 };
    let e = backward(&graph, &facts, &names(&["z"]), &[], &[slot]).unwrap_err();
    assert!(e.to_string().contains("\"w1\""), "{e}");
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let graph = network();
    let facts = facts(&graph);
    let kind = |outputs: &[&str], wanted: &[&str], slots: &[Slot]| {
        backward(&graph, &facts, &names(outputs), &names(wanted), slots).unwrap_err().kind()
    };
    assert_eq!(kind(&["label"], &["w1"], &[]), ErrorKind::Usage);
    assert_eq!(kind(&["nowhere"], &["w1"], &[]), ErrorKind::Usage);
    assert_eq!(kind(&["z", "z"], &["w1"], &[]), ErrorKind::Usage);
    assert_eq!(kind(&["z"], &["nothing"], &[]), ErrorKind::Usage);
    assert_eq!(kind(&["z"], &["label"], &[]), ErrorKind::Usage);
    assert_eq!(kind(&["z"], &[], &[Slot { node: 1, input: 0 }]), ErrorKind::Usage);
    assert_eq!(kind(&["z"], &[], &[Slot { node: 99, input: 1 }]), ErrorKind::Usage);
    let mut old = graph.clone();
    old.opset = 13;
    let e = backward(&old, &facts, &names(&["z"]), &names(&["w1"]), &[]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    let e = backward(&graph, &Facts::new(), &names(&["z"]), &names(&["w1"]), &[]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Usage);
}

#[test]
fn facts_that_contradict_the_graph_are_an_error() {
    let graph = network();
    for (value, shape) in [("c1", &[2, 4, 9, 9][..]), ("w1", &[4, 3]), ("c2", &[2, 4]), ("x", &[])]
    {
        let mut facts = facts(&graph);
        facts.get_mut(value).unwrap().shape = shape.to_vec();
        let wanted = names(&["w1", "w2", "x"]);
        let e = backward(&graph, &facts, &names(&["z"]), &wanted, &[]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Model, "{value}: {e}");
    }
}

#[test]
fn training_mode_is_refused() {
    let mut graph = network();
    for name in ["g", "b", "m", "v"] {
        graph.initializers.insert(name.into(), Arc::new(tensor(&[4], 3)));
    }
    graph.nodes[1] = Node::new("BatchNormalization", ["c1", "g", "b", "m", "v"], "r1");
    let facts = facts(&graph);
    backward(&graph, &facts, &names(&["z"]), &names(&["w1"]), &[]).unwrap();
    graph.nodes[1] = graph.nodes[1].clone().with("training_mode", 1i64);
    let e = backward(&graph, &facts, &names(&["z"]), &names(&["w1"]), &[]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.to_string().contains("training mode"), "{e}");
}

#[test]
fn support_tells_rules_from_dead_ends() {
    assert_eq!(support("Conv", ""), Support::Rule);
    assert_eq!(support("Conv", "ai.onnx"), Support::Rule);
    assert_eq!(support("ArgMax", ""), Support::Zero);
    assert_eq!(support("If", ""), Support::None);
    assert_eq!(support("Conv", "org.example"), Support::None);
}
