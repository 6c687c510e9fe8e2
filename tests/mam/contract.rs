//! What keeps the contract, in all its kinds and encodings, and what does not.

use std::sync::Arc;

use hone::cancel::Cancel;
use hone::mam::contract::{Contract, Kind, Trained, ZKind};
use hone::mam::{LoadOptions, Mam, Method, Orders, Rows, SampleOptions, ScoreOptions};
use hone::onnx::{Dimension, Graph, Node, Value};
use hone::tensor::{ElementType, Tensor};

use crate::tables::{MISSING, Table, close, load, rows, save, symbolic};

fn score(mam: &Mam, row: &[i64], method: Method) -> hone::mam::Score {
    let options = ScoreOptions {
        method,
        orders: Orders::Random { count: 2, seed: 0 },
        log_normaliser: None,
        conflict: false,
        surprise: false,
    };
    mam.score(&rows(&[row.to_vec()]), &options, &Cancel::new()).unwrap().remove(0).unwrap()
}

#[test]
fn a_joint_graph_is_split_and_a_pair_of_files_joined() {
    let table = Table::new(4, 2, 0.0, 0.0);
    let joint = table.mam(Kind::Joint);
    let halves = joint.halves();
    let nodes = |name: &str| halves.iter().find(|h| h.0 == name).unwrap();
    // Each half has its own table and not the other's.
    assert!(nodes("log_p").1 < 81 + 20 && nodes("logits").1 >= 81 * 8);
    assert_eq!((nodes("log_p").2, nodes("logits").2), (6, 6));

    // The halves of a pair may be encoded differently.
    let mut theta = table.contract(Kind::Marginal);
    (theta.mask_id, theta.value_offset) = (2, 0);
    let mut phi = table.contract(Kind::Conditional);
    (phi.mask_id, phi.value_offset) = (-5, 10);
    phi.shape = Some(vec![2, 2]);
    let (_a, first) = save(&table.graph(&theta), &theta, "theta.onnx");
    let (_b, second) = save(&table.graph(&phi), &phi, "phi.onnx");
    for files in [[&first, &second], [&second, &first]] {
        let pair = Mam::load(&files, LoadOptions::default(), &Cancel::new()).unwrap();
        assert_eq!((pair.contract().kind, &pair.contract().shape), (Kind::Joint, &phi.shape));
        for row in [[1, 0, MISSING, 1], [MISSING; 4], [1, 1, 0, 0]] {
            let (a, b) =
                (score(&pair, &row, Method::Bracket), score(&joint, &row, Method::Bracket));
            assert_eq!(a, b);
        }
    }
    let twice = Mam::load(&[&first, &first], LoadOptions::default(), &Cancel::new()).unwrap_err();
    assert!(twice.to_string().contains("one of each half"), "{twice}");
    let other = Table::new(3, 2, 0.0, 0.0);
    let foreign = other.contract(Kind::Conditional);
    let (_c, third) = save(&other.graph(&foreign), &foreign, "other.onnx");
    let error = Mam::load(&[&first, &third], LoadOptions::default(), &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("no pair: one has 4 sites"), "{error}");
}

#[test]
fn sites_may_have_fewer_values_than_the_logits() {
    // The last value of site 1 does not exist: its probability is that of the others.
    let table = Table::new(3, 3, 0.0, 0.0);
    let mut contract = table.contract(Kind::Conditional);
    contract.cardinalities = vec![3, 2, 3];
    let mam = load(&table.graph(&contract), &contract).unwrap();
    let empty = rows(&[vec![MISSING; 3]]);
    let found = mam.distributions(&empty, hone::mam::Source::Phi, &Cancel::new()).unwrap();
    let site = &found[0].as_ref().unwrap()[1];
    assert_eq!(site.log_p.len(), 2);
    close(site.log_p.iter().map(|l| l.exp()).sum(), 1.0, 1e-6, "two values");
    let marginal = |v: i64| table.log_marginal(&[MISSING, v, MISSING]).exp();
    let truth = marginal(0) / (marginal(0) + marginal(1));
    close(site.log_p[0].exp(), truth, 1e-5, "renormalised");
    let samples =
        mam.sample(&Rows::all_missing(3, 200), &SampleOptions::default(), &Cancel::new()).unwrap();
    assert!(samples.into_iter().all(|s| s.unwrap().values[1] < 2));
    let third = rows(&[vec![0, 2, 0]]);
    let error = mam.distributions(&third, hone::mam::Source::Phi, &Cancel::new()).unwrap();
    assert!(error[0].as_ref().unwrap_err().to_string().contains("0 to 1"));
}

#[test]
fn the_known_mask_is_derived_from_the_row() {
    // f = 10 · known sites + sum of x.
    let contract = Contract::new(Kind::Marginal, 3, 2);
    let mut graph = Graph { name: "known".into(), opset: 18, ..Graph::default() };
    graph.initializers.insert("axis".into(), Arc::new(Tensor::i64([1], vec![1])));
    graph.initializers.insert("ten".into(), Arc::new(Tensor::f32([], vec![10.0])));
    graph.nodes = vec![
        Node::new("Cast", ["known"], "k").with("to", 1i64),
        Node::new("Mul", ["k", "ten"], "tens"),
        Node::new("Cast", ["x"], "values").with("to", 1i64),
        Node::new("Add", ["tens", "values"], "both"),
        Node::new("ReduceSum", ["both", "axis"], "log_p").with("keepdims", 0i64),
    ];
    graph.inputs =
        vec![symbolic("x", ElementType::I64, &[3]), symbolic("known", ElementType::Bool, &[3])];
    graph.outputs = vec![symbolic("log_p", ElementType::F32, &[])];
    let mam = load(&graph, &contract).unwrap();
    // Values are stored with 1 added.
    close(score(&mam, &[0, MISSING, 1], Method::Theta).theta.unwrap(), 23.0, 1e-6, "f");
}

/// Chain terms of a fully factorised model whose later sites also count the order.
fn ordered() -> (Graph, Contract) {
    let contract = Contract::new(Kind::Ordered, 3, 2);
    let mut graph = Graph { name: "ordered".into(), opset: 18, ..Graph::default() };
    graph.initializers.insert("scale".into(), Arc::new(Tensor::f32([], vec![-0.125])));
    graph.initializers.insert("first".into(), Arc::new(Tensor::i64([1], vec![0])));
    graph.initializers.insert("axis".into(), Arc::new(Tensor::i64([1], vec![1])));
    graph.initializers.insert("end".into(), Arc::new(Tensor::i64([1], vec![1])));
    graph.nodes = vec![
        Node::new("Slice", ["order", "first", "end", "axis"], "leader"),
        Node::new("Add", ["x", "leader"], "sum"),
        Node::new("Cast", ["sum"], "float").with("to", 1i64),
        Node::new("Mul", ["float", "scale"], "site_log_p"),
    ];
    graph.inputs =
        vec![symbolic("x", ElementType::I64, &[3]), symbolic("order", ElementType::I64, &[3])];
    graph.outputs = vec![symbolic("site_log_p", ElementType::F32, &[3])];
    (graph, contract)
}

#[test]
fn an_ordered_net_gives_whole_chains() {
    let (graph, contract) = ordered();
    let mam = load(&graph, &contract).unwrap();
    let given = ScoreOptions {
        method: Method::Phi,
        orders: Orders::Given(vec![vec![2, 0, 1], vec![1, 0, 2]]),
        log_normaliser: None,
        conflict: false,
        surprise: false,
    };
    let all = rows(&[vec![1, 0, MISSING], vec![1, 1, 1]]);
    let scores = mam.score(&all, &given, &Cancel::new()).unwrap();
    // Site 2 is missing and comes last, so the first order of row 0 is 0, 1, 2.
    let term = |x: f64, leader: f64| -0.125 * (x + 1.0 + leader);
    let chain = |row: &[f64], leader: f64| row.iter().map(|x| term(*x, leader)).sum::<f64>();
    let expect = |a: f64, b: f64| crate::tables::log_sum_exp(&[a, b]) - 2f64.ln();
    let phi = |i: usize| scores[i].as_ref().unwrap().phi.unwrap().log_p;
    close(phi(0), expect(chain(&[1.0, 0.0], 0.0), chain(&[1.0, 0.0], 1.0)), 1e-6, "row 0");
    let full = [1.0, 1.0, 1.0];
    close(phi(1), expect(chain(&full, 2.0), chain(&full, 1.0)), 1e-6, "row 1");
    // Each value by itself leads its own order.
    let forward = ScoreOptions { orders: Orders::Forward, conflict: true, ..given };
    let scores = mam.score(&all, &forward, &Cancel::new()).unwrap();
    let apart: f64 = (0..3).map(|site| term(1.0, site as f64)).sum();
    let conflict = scores[1].as_ref().unwrap().conflict.unwrap();
    close(conflict, apart - chain(&full, 0.0), 1e-6, "conflict");
    // Evidence leads.
    let evidence = [false, true, false, false, false, false];
    let conditional =
        mam.log_conditional(&all, &evidence, &Orders::Forward, &Cancel::new()).unwrap();
    let chain = conditional[0].as_ref().unwrap().chain.unwrap();
    close(chain.log_p, term(1.0, 1.0), 1e-6, "p(x_0 | x_1)");
    let error = mam.sample(&all, &SampleOptions::default(), &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("needs φ"), "{error}");
}

#[test]
fn logits_of_known_sites_may_be_anything() {
    let table = Table::new(3, 2, 0.0, 0.0);
    let contract = table.contract(Kind::Conditional);
    let mut nowhere = table.clone();
    for code in 0..27 {
        let row = nowhere.row_of(code);
        for site in (0..3).filter(|&site| row[site] != MISSING) {
            nowhere.phi[(code * 3 + site) * 2] = f64::NAN;
        }
    }
    let mam = load(&nowhere.graph(&contract), &contract).unwrap();
    let row = [1, 0, 1];
    let found = score(&mam, &row, Method::Phi).phi.unwrap().log_p;
    close(found, table.log_marginal(&row), 1e-5, "phi");
    let bad = [MISSING; 3];
    let code = nowhere.code(&bad);
    nowhere.phi[(code * 3 + 1) * 2] = f64::INFINITY;
    let error = load(&nowhere.graph(&contract), &contract).unwrap_err().to_string();
    assert!(error.contains("infinite at site 1 of a row with all sites missing"), "{error}");
}

#[test]
fn log_z_is_recomputed_and_exact_models_are_likelihoods() {
    let table = Table::new(3, 2, 0.0, 0.0);
    let mut contract = table.contract(Kind::Joint);
    (contract.log_z, contract.z_kind) = (Some(1.7), ZKind::Exact);
    let mam = load(&table.graph(&contract), &contract).unwrap();
    assert!(mam.warnings().is_empty() && mam.is_normalised(), "{:?}", mam.warnings());
    let found = score(&mam, &[1, 0, MISSING], Method::Theta);
    assert_eq!(found.theta_normalised, found.theta);
    contract.log_z = Some(1.9);
    let mam = load(&table.graph(&contract), &contract).unwrap();
    assert!(mam.warnings()[0].contains("mam.log_z is 1.9"), "{:?}", mam.warnings());
    close(mam.log_z().unwrap(), 1.7, 1e-6, "its own");
}

#[test]
fn a_model_of_forward_order_is_asked_in_it() {
    let table = Table::new(3, 2, 0.0, 0.0);
    let mut contract = table.contract(Kind::Conditional);
    contract.orders = Trained::Forward;
    let mam = load(&table.graph(&contract), &contract).unwrap();
    let mut options = ScoreOptions {
        method: Method::Phi,
        orders: Orders::Random { count: 1, seed: 0 },
        log_normaliser: None,
        conflict: false,
        surprise: false,
    };
    let row = rows(&[vec![0, 1, 1]]);
    let error = mam.score(&row, &options, &Cancel::new()).unwrap_err().to_string();
    assert!(error.contains("use forward orders"), "{error}");
    options.orders = Orders::Forward;
    assert!(mam.score(&row, &options, &Cancel::new()).unwrap()[0].is_ok());
    let drawn = mam.sample(&row, &SampleOptions::default(), &Cancel::new());
    assert!(drawn.unwrap()[0].is_ok());
    let error = mam.impute(&row, &SampleOptions::default(), 1, 1, &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("forward"), "{error}");
}

#[test]
fn violations_are_named() {
    let table = Table::new(3, 2, 0.0, 0.0);
    let contract = table.contract(Kind::Joint);
    let good = table.graph(&contract);
    let refused = |change: &dyn Fn(&mut Graph), expected: &[&str]| {
        let mut graph = good.clone();
        change(&mut graph);
        let error = load(&graph, &contract).unwrap_err().to_string();
        assert!(error.contains("model.onnx"), "{error}");
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    };
    let axis = |g: &mut Graph, i: usize, d| g.inputs[0].shape.as_mut().unwrap()[i] = d;
    refused(&|g| axis(g, 0, Dimension::Fixed(4)), &["input \"x\"", "fixed to 4", "symbolic"]);
    refused(&|g| axis(g, 1, Dimension::Fixed(5)), &["input \"x\"", "[B, [3]]"]);
    refused(&|g| g.inputs[0].element = Some(ElementType::I32), &["must be int64", "int32"]);
    let extra = |g: &mut Graph| g.inputs.push(symbolic("t", ElementType::F32, &[]));
    refused(&extra, &["input \"t\"", "hone mam adapt"]);
    refused(&|g| g.inputs.push(g.inputs[0].clone()), &["\"x\""]);
    refused(&|g| drop(g.outputs.remove(0)), &["kind joint", "\"log_p\""]);
    let cut = |g: &mut Graph| {
        let logits = g.outputs.iter_mut().find(|o| o.name == "logits").unwrap();
        logits.shape.as_mut().unwrap()[2] = Dimension::Fixed(3);
    };
    refused(&cut, &["output \"logits\"", "[3, 2]"]);
    // The declared shapes are silent, and the real ones wrong.
    let longer = |g: &mut Graph| {
        g.outputs.iter_mut().for_each(|o| *o = Value::named(o.name.clone()));
        let gather = g.nodes.iter_mut().find(|n| n.outputs[0] == "logits").unwrap();
        gather.inputs[0] = "theta".into();
    };
    refused(&longer, &["\"logits\"", "has the shape [5]"]);
    let nan = |g: &mut Graph| {
        let theta = Tensor::f32([27], vec![f32::NAN; 27]);
        g.initializers.insert("theta".into(), Arc::new(theta));
    };
    refused(&nan, &["output \"log_p\"", "NaN", "all sites missing"]);
    // Rows that are compared with the mean of their batch.
    let mixed = |g: &mut Graph| {
        g.initializers.insert("rows".into(), Arc::new(Tensor::i64([1], vec![0])));
        let gather = g.nodes.iter_mut().find(|n| n.outputs[0] == "log_p").unwrap();
        gather.outputs[0] = "raw".into();
        g.nodes.push(Node::new("ReduceMean", ["raw", "rows"], "mean"));
        g.nodes.push(Node::new("Sub", ["raw", "mean"], "log_p"));
    };
    refused(&mixed, &["output \"log_p\"", "rows it is batched with"]);
    let (_folder, path) = save(&good, &contract, "plain.onnx");
    good.save(&path, &[]).unwrap();
    let error = Mam::load(&[&path], LoadOptions::default(), &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("lacks mam.version"), "{error}");
}
