//! Recurrent layers: unrolled they compute what ONNX Runtime's own kernels do, and pass gradients on
//! to what feeds them and, in layers of one direction, to their weights.

use hone::autodiff::{Slot, backward};
use hone::cancel::Cancel;
use hone::gradient::parameters::{RowOrder, discover};
use hone::gradient::prepare::prepare;
use hone::onnx::{Dimension, Graph, Node, Value};
use hone::runtime::{Session, SessionOptions};
use hone::tensor::{ElementType, Tensor};

use crate::harness::Random;

const BATCH: usize = 3;
const INPUTS: usize = 4;
const HIDDEN: usize = 5;

struct Layer {
    op: &'static str,
    steps: usize,
    direction: &'static str,
    bias: bool,
    states: bool,
    linear_before_reset: bool,
}

impl Layer {
    fn directions(&self) -> usize {
        if self.direction == "bidirectional" { 2 } else { 1 }
    }

    fn outputs(&self) -> usize {
        if self.op == "LSTM" { 3 } else { 2 }
    }

    fn graph(&self, r: &mut Random) -> Graph {
        let gates =
            [("LSTM", 4), ("GRU", 3), ("RNN", 1)].iter().find(|k| k.0 == self.op).unwrap().1;
        let d = self.directions();
        let mut tensors =
            vec![("W", vec![d, gates * HIDDEN, INPUTS]), ("R", vec![d, gates * HIDDEN, HIDDEN])];
        let mut inputs = ["X", "W", "R", "", "", "", ""];
        if self.bias {
            inputs[3] = "B";
            tensors.push(("B", vec![d, 2 * gates * HIDDEN]));
        }
        if self.states {
            inputs[5] = "h";
            tensors.push(("h", vec![d, BATCH, HIDDEN]));
            if self.op == "LSTM" {
                inputs[6] = "c";
                tensors.push(("c", vec![d, BATCH, HIDDEN]));
            }
        }
        let inputs = &inputs[..if self.op == "LSTM" { 7 } else { 6 }];
        let mut node = Node::new(self.op, inputs.iter().copied(), "Y")
            .with("hidden_size", HIDDEN as i64)
            .with("direction", self.direction);
        if self.op == "GRU" {
            node = node.with("linear_before_reset", self.linear_before_reset as i64);
        }
        node.outputs =
            ["Y", "Y_h", "Y_c"][..self.outputs()].iter().map(|s| s.to_string()).collect();
        let mut graph = Graph { opset: 18, nodes: vec![node], ..Graph::default() };
        let shape = [self.steps, BATCH, INPUTS];
        graph.inputs = vec![Value::fixed("X", ElementType::F32, &shape)];
        let is_state = |name: &str| name == "h" || name == "c";
        for (name, shape) in tensors.iter().filter(|(name, _)| is_state(name)) {
            graph.inputs.push(Value::fixed(*name, ElementType::F32, shape));
        }
        graph.outputs = graph.nodes[0].outputs.iter().map(Value::named).collect();
        for (name, shape) in tensors.into_iter().filter(|(name, _)| !is_state(name)) {
            let count = shape.iter().product();
            let values = r.values(count).iter().map(|v| 0.5 * *v as f32).collect();
            graph.initializers.insert(name.into(), Tensor::f32(shape, values).into());
        }
        graph
    }
}

/// Values for everything the graph takes.
fn inputs(graph: &Graph, r: &mut Random) -> Vec<(String, Tensor)> {
    let value = |v: &Value| {
        let Some(shape) = &v.shape else { unreachable!("inputs have shapes") };
        let length = |d: &Dimension| match d {
            Dimension::Fixed(n) => *n,
            Dimension::Symbol(s) => unreachable!("{s} is not fixed"),
        };
        let shape: Vec<usize> = shape.iter().map(length).collect();
        let values = r.values(shape.iter().product()).iter().map(|v| *v as f32).collect();
        (v.name.clone(), Tensor::f32(shape, values))
    };
    graph.inputs.iter().map(value).collect()
}

fn layers() -> Vec<Layer> {
    let mut all = Vec::new();
    for op in ["LSTM", "GRU", "RNN"] {
        for direction in ["forward", "reverse", "bidirectional"] {
            for (steps, bias, states) in [(1, true, true), (4, true, false), (5, false, true)] {
                for linear_before_reset in [false, true] {
                    if op == "GRU" || !linear_before_reset {
                        let linear = linear_before_reset;
                        let layer = Layer {
                            op,
                            steps,
                            direction,
                            bias,
                            states,
                            linear_before_reset: linear,
                        };
                        all.push(layer);
                    }
                }
            }
        }
    }
    all
}

fn run(graph: &Graph, inputs: &[(String, Tensor)]) -> hone::runtime::Outputs {
    let options = SessionOptions { optimize: false, ..SessionOptions::default() };
    let inputs = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor));
    Session::of_graph(graph, &options).unwrap().run(inputs, &Cancel::new()).unwrap()
}

#[test]
fn unrolled_layers_compute_the_same() {
    let mut r = Random(101);
    for layer in layers() {
        let graph = layer.graph(&mut r);
        let inputs = inputs(&graph, &mut r);
        let prepared = prepare(&graph, &inputs, &Cancel::new()).unwrap();
        let what = format!("{} {} {} steps", layer.op, layer.direction, layer.steps);
        assert!(prepared.graph.nodes.iter().all(|n| n.op != layer.op), "{what}: still there");
        let (want, have) = (run(&graph, &inputs), run(&prepared.graph, &inputs));
        for output in &graph.outputs {
            let (want, have) = (want.f32(&output.name).unwrap(), have.f32(&output.name).unwrap());
            assert_eq!(want.0, have.0, "{what}: shape of {}", output.name);
            for (w, h) in want.1.iter().zip(have.1) {
                assert!((w - h).abs() < 1e-5, "{what}: {} is {h}, not {w}", output.name);
            }
        }
        // A state of zero leaves R without a product in the only step.
        let (found, _) = discover(&prepared, RowOrder::Taps);
        let names: Vec<&str> = found.iter().map(|p| p.name.as_str()).collect();
        let early = layer.op == "GRU" && !layer.linear_before_reset;
        let expected: &[&str] = match layer.direction {
            "bidirectional" => &[],
            _ if early => &["W"],
            _ => &["W", "R"],
        };
        assert_eq!(names, expected, "{what}");
    }
}

#[test]
fn weight_gradients_of_all_steps_add_up() {
    let mut r = Random(102);
    let layer = Layer {
        op: "LSTM",
        steps: 4,
        direction: "forward",
        bias: true,
        states: true,
        linear_before_reset: false,
    };
    let graph = layer.graph(&mut r);
    let inputs = inputs(&graph, &mut r);
    let prepared = prepare(&graph, &inputs, &Cancel::new()).unwrap();
    let (found, _) = discover(&prepared, RowOrder::Taps);
    let seed: Vec<f32> = r.values(4 * BATCH * HIDDEN).iter().map(|v| *v as f32).collect();
    let loss = |graph: &Graph| -> f64 {
        let outputs = run(graph, &inputs);
        let (_, y) = outputs.f32("Y").unwrap();
        y.iter().zip(&seed).map(|(y, s)| f64::from(*y) * f64::from(*s)).sum()
    };
    for parameter in &found {
        let slots: Vec<Slot> = parameter.uses.iter().map(|u| u.slot).collect();
        let seeded = ["Y".to_string()];
        let result = backward(&prepared.graph, &prepared.facts, &seeded, &[], &slots).unwrap();
        let seed_tensor = Tensor::f32([4, 1, BATCH, HIDDEN], seed.clone());
        let mut feed = inputs.clone();
        feed.push((result.seeds[0].1.clone(), seed_tensor));
        let values = run(&result.graph, &feed);
        let mut gradient = vec![0.0f32; parameter.range.len()];
        for used in &parameter.uses {
            let node = &prepared.graph.nodes[used.slot.node];
            let capture = result.captures.iter().find(|c| c.slot == used.slot).unwrap();
            let (_, data) = values.f32(&node.inputs[0]).unwrap();
            let (_, g) = values.f32(&capture.gradient).unwrap();
            let mut part = vec![0.0; gradient.len()];
            for sample in 0..BATCH {
                used.product.add_gradient(
                    data,
                    g,
                    sample,
                    BATCH,
                    &mut part,
                    &mut Default::default(),
                );
            }
            let place = |i: usize| used.place.as_ref().map_or(i, |p| p[i] as usize);
            part.iter().enumerate().for_each(|(i, v)| gradient[place(i)] += v);
        }
        for i in (0..gradient.len()).step_by(7) {
            let stored = parameter.order.as_ref().map_or(i, |o| o[i] as usize);
            let moved = |h: f32| {
                let mut graph = graph.clone();
                let tensor = &graph.initializers[&parameter.name];
                let mut values = tensor.to_f32();
                values[stored] += h;
                let tensor = Tensor::f32(tensor.shape(), values);
                graph.initializers.insert(parameter.name.clone(), tensor.into());
                loss(&graph)
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let error = (slope - f64::from(gradient[i])).abs();
            assert!(
                error < 2e-3 * (1.0 + slope.abs()),
                "{}[{stored}]: {} and {slope}",
                parameter.name,
                gradient[i]
            );
        }
    }
}
