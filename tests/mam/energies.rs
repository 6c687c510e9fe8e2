//! Training by an energy against sums over all states; runs that are repeated, spread and resumed.

use std::sync::Arc;

use hone::ErrorKind;
use hone::cancel::Cancel;
use hone::mam::train::{
    Energy, EnergyGraph, EnergyOptions, Figures, Method, Objective, TrainOptions, TrainReport,
    TrainedByEnergy, train_by_energy,
};
use hone::mam::{Rows, Size};
use hone::onnx::{Dimension, Graph, Node, Value};
use hone::tensor::{ElementType, Tensor};

use crate::tables::load;

const MISSING: i64 = -1;

fn options() -> TrainOptions {
    TrainOptions {
        size: Size { hidden: 48, layers: 2 },
        batch: 24,
        learning_rate: 5e-3,
        weight_decay: 0.0,
        average: 0.95,
        report_every: 10,
        ..TrainOptions::default()
    }
}

fn ising(text: &str) -> Energy {
    Energy::Ising(text.parse().unwrap())
}

fn run(energy: &Energy, learning: EnergyOptions, options: &TrainOptions) -> TrainedByEnergy {
    let (contract, cancel) = (energy.contract(), Cancel::new());
    train_by_energy(energy, &contract, &learning, options, None, &mut |_| {}, &cancel).unwrap()
}

fn bytes(trained: &TrainedByEnergy) -> Vec<u8> {
    trained.graph.to_bytes().unwrap()
}

/// log f of a torus of 2 × 3 spins by its own sum: opposite rows have two edges.
fn log_f(row: &[i64]) -> f64 {
    let s = |r: usize, c: usize| (2 * row[r * 3 + c % 3] - 1) as f64;
    let mut edges = 0.0;
    for c in 0..3 {
        edges += s(0, c) * s(0, c + 1) + s(1, c) * s(1, c + 1) + 2.0 * s(0, c) * s(1, c);
    }
    0.3 * edges + 0.2 * row.iter().map(|&v| (2 * v - 1) as f64).sum::<f64>()
}

#[test]
fn both_objectives_learn_the_marginals_and_log_z() {
    let energy = ising("2x3,coupling=0.3,field=0.2");
    let states: Vec<Vec<i64>> =
        (0..64i64).map(|code| (0..6).map(|i| code >> i & 1).collect()).collect();
    let log_sum = |keep: &dyn Fn(&[i64]) -> bool| {
        let kept = states.iter().filter(|row| keep(row));
        kept.map(|row| log_f(row).exp()).sum::<f64>().ln()
    };
    let log_z = log_sum(&|_| true);
    assert!((energy.log_z(&Cancel::new()).unwrap().unwrap() - log_z).abs() < 1e-10);
    for (objective, steps, most) in
        [(Objective::Balance, 1500, 0.02), (Objective::Reinforce, 1500, 0.1)]
    {
        let batch = if objective == Objective::Reinforce { 64 } else { 24 };
        let options = TrainOptions { batch, ..options() };
        let trained = run(&energy, EnergyOptions { objective, steps }, &options);
        let found = trained.figures;
        assert!((found.exact.unwrap() - log_z).abs() < 1e-10);
        assert!(found.gap.unwrap() < most, "{objective:?}: {found:?}");
        assert!((found.estimate - log_z).abs() < 0.05, "{objective:?}: {found:?}");
        assert!(found.effective > 0.8 * found.draws as f64, "{objective:?}: {found:?}");
        let mam = load(&trained.graph, &trained.contract).unwrap();
        assert!(mam.warnings().is_empty(), "{:?}", mam.warnings());
        // All marginals: 3^6 masked rows.
        let masked: Vec<Vec<i64>> = (0..729i64)
            .map(|code| (0..6).map(|i| code / 3i64.pow(i) % 3 + MISSING).collect())
            .collect();
        let rows = Rows::new(6, masked.concat()).unwrap();
        let theta = mam.log_marginal(&rows, &Cancel::new()).unwrap();
        let mut square = 0.0;
        for (row, theta) in masked.iter().zip(theta) {
            let fits = |x: &[i64]| row.iter().zip(x).all(|(m, v)| *m == MISSING || m == v);
            square += (theta.unwrap() - (log_sum(&fits) - log_z)).powi(2);
        }
        let rms = (square / 729.0).sqrt();
        assert!(rms < 0.15, "{objective:?}: {rms}");
        if objective == Objective::Balance {
            assert!((found.log_z - log_z).abs() < 0.05, "{found:?}");
        }
    }
}

#[test]
fn mfac_learns_an_energy_too() {
    let energy = ising("2x3,coupling=0.3,field=0.2");
    let method = Method::Mfac { window: 32, damping: 100.0 };
    let learning_rate = method.usual_learning_rate(true);
    let options = TrainOptions { method, learning_rate, report_every: 100, ..options() };
    let learning = EnergyOptions { objective: Objective::Balance, steps: 300 };
    let (c, cancel, mut losses) = (energy.contract(), Cancel::new(), Vec::new());
    let mut watch = |r: &TrainReport| losses.push(r.loss);
    let found = train_by_energy(&energy, &c, &learning, &options, None, &mut watch, &cancel);
    let figures = found.unwrap().figures;
    assert!(losses[2] < 0.2 * losses[0], "{losses:?}");
    // It began with uniform rows, whose gap is log Z − log 2^6, above 1.
    assert!(figures.gap.unwrap() < 0.1, "{figures:?}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads_and_when_resumed() {
    let energy = ising("2x3,coupling=0.3,field=0.2");
    // A pool of 128 rows lasts 2 steps of 48: the run stops within one.
    for (objective, batch) in [(Objective::Balance, 48), (Objective::Reinforce, 200)] {
        let learning = EnergyOptions { objective, steps: 31 };
        let options = TrainOptions { batch, report_every: 7, ..options() };
        let whole = run(&energy, learning, &options);
        let three = TrainOptions { threads: 3, report_every: 4, ..options.clone() };
        assert!(bytes(&whole) == bytes(&run(&energy, learning, &three)));
        let other = TrainOptions { seed: 1, ..options.clone() };
        assert!(bytes(&whole) != bytes(&run(&energy, learning, &other)));

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        let cancel = Cancel::new();
        let mut watch = |r: &TrainReport| {
            assert!(matches!(r.figures, Figures::Energy(_)));
            if r.step == 7 {
                cancel.cancel();
            }
        };
        let (c, new) = (energy.contract(), Cancel::new());
        let stopped =
            train_by_energy(&energy, &c, &learning, &options, Some(&file), &mut watch, &cancel);
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
        let mut steps = Vec::new();
        let mut watch = |r: &TrainReport| steps.push(r.step);
        let resumed =
            train_by_energy(&energy, &c, &learning, &options, Some(&file), &mut watch, &new);
        assert!(bytes(&resumed.unwrap()) == bytes(&whole));
        assert_eq!(steps[0], 14, "what was done is not done again");
        let another = ising("2x3,coupling=0.3,field=0.1");
        let error =
            train_by_energy(&another, &c, &learning, &options, Some(&file), &mut |_| {}, &new);
        assert!(error.unwrap_err().to_string().contains("other options or data"));
    }
}

/// x → Σ w_i x_i + log(1 + shift · x_0) over 4 sites: not finite where the shift is −1 and x_0 = 1.
fn graph(shift: f32) -> Graph {
    let shape = vec![Dimension::Symbol("B".into()), Dimension::Fixed(4)];
    let x = Value { name: "x".into(), element: Some(ElementType::I64), shape: Some(shape) };
    let mut graph = Graph {
        name: "energy".into(),
        opset: 18,
        inputs: vec![x],
        outputs: vec![Value::named("log_f")],
        nodes: vec![
            Node::new("Cast", ["x"], "values").with("to", 1i64),
            Node::new("MatMul", ["values", "w"], "sum"),
            Node::new("MatMul", ["values", "first"], "shifted"),
            Node::new("Add", ["shifted", "one"], "inner"),
            Node::new("Log", ["inner"], "log"),
            Node::new("Add", ["sum", "log"], "column"),
            Node::new("Reshape", ["column", "flat"], "log_f"),
        ],
        ..Graph::default()
    };
    let mut hold =
        |name: &str, t: Tensor| drop(graph.initializers.insert(name.into(), Arc::new(t)));
    hold("w", Tensor::f32([4, 1], vec![0.5, -0.3, 0.2, 0.9]));
    hold("first", Tensor::f32([4, 1], vec![shift, 0.0, 0.0, 0.0]));
    hold("one", Tensor::f32([1], vec![1.0]));
    hold("flat", Tensor::i64([1], vec![-1]));
    graph
}

#[test]
fn an_energy_graph_is_learnt_and_a_bad_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("energy.onnx");
    let cancel = Cancel::new();
    let saved = |graph: &Graph, metadata: &[(&str, String)], values: &[usize]| {
        graph.save(&file, metadata).unwrap();
        EnergyGraph::load(&file, values, &cancel)
    };
    let energy = saved(&graph(0.5), &[("mam.vocab", "3".into())], &[]).map(Box::new);
    let energy = Energy::Graph(energy.unwrap());
    assert_eq!(energy.contract().cardinalities, [3; 4]);
    // Independent sites.
    let w = [0.5f64, -0.3, 0.2, 0.9];
    let term = |i: usize, v: f64| (w[i] * v).exp() * if i == 0 { 1.0 + 0.5 * v } else { 1.0 };
    let site = |i: usize| (0..3).map(|v| term(i, f64::from(v))).sum::<f64>().ln();
    let log_z: f64 = (0..4).map(site).sum();
    assert!((energy.log_z(&cancel).unwrap().unwrap() - log_z).abs() < 1e-5);
    let learning = EnergyOptions { objective: Objective::Balance, steps: 300 };
    let figures = run(&energy, learning, &options()).figures;
    assert!(figures.gap.unwrap() < 0.01, "{figures:?}");
    assert!((figures.log_z - log_z).abs() < 0.05, "{figures:?}");

    let refused = |graph: &Graph, values: &[usize], what: &str| {
        let error = saved(graph, &[], values).unwrap_err().to_string();
        assert!(error.contains("energy.onnx") && error.contains(what), "{error}");
    };
    refused(&graph(0.5), &[], "how many values has a site");
    refused(&graph(0.5), &[2, 2], "do not fit 4 sites");
    refused(&graph(-1.0), &[2], "row [1, 1, 1, 1] is -inf");
    let mut other = graph(0.5);
    other.inputs[0].name = "y".into();
    other.nodes[0].inputs[0] = "y".into();
    refused(&other, &[2], "\"x\", int64 [B, L]");
    let mut other = graph(0.5);
    other.outputs = vec![Value::named("sum"), Value::named("log_f")];
    refused(&other, &[2], "one output");
    let mut other = graph(0.5);
    other.nodes.truncate(6);
    other.nodes.push(Node::new("ReduceSum", ["column"], "log_f").with("keepdims", 0i64));
    refused(&other, &[2], "shape []");
}
