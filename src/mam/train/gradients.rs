//! The gradients of every loss that is trained by, for every network, against finite differences.

use std::time::Instant;

use super::objective::{LOSS, Objective, Sample};
use super::{Regression, Run, Task, TrainOptions, conditionals, marginals, model};
use crate::cancel::Cancel;
use crate::mam::contract::{Contract, Kind};
use crate::mam::half::LoadOptions;
use crate::mam::model::Mam;
use crate::mam::networks::{self, Network, Size};
use crate::mam::rows::Rows;
use crate::onnx::Graph;
use crate::random::Stream;
use crate::tensor::Tensor;
use crate::train::{Parameters, StepGraph, Workers};

const NETWORKS: [Network; 4] = [
    Network::Mlp,
    Network::Transformer { heads: 2 },
    Network::Conv { torus: false },
    Network::Conv { torus: true },
];

const SIZE: Size = Size { hidden: 8, layers: 2 };

/// Rows of a shard.
const SHARD: usize = 4;

fn contract() -> Contract {
    let mut contract = Contract::new(Kind::Joint, 6, 3);
    contract.shape = Some(vec![2, 3]);
    contract
}

/// φ and θ before their first step, θ with this log Z.
fn nets(c: &Contract, network: Network, log_z: f64) -> [Graph; 2] {
    let uniform = vec![vec![-1.0; 3]; 6];
    let phi = networks::conditional(c, network, SIZE, &uniform, 1).unwrap();
    [phi, networks::marginal(c, network, SIZE, &uniform, log_z, 1).unwrap()]
}

/// Rows with a missing value among them.
fn task(options: &TrainOptions) -> Task<'_> {
    let rows = vec![vec![0, 2, 1, 1, 0, 2], vec![1, 1, -1, 0, 0, 1], vec![2, 0, 0, 2, 1, 1]];
    let held_out = Rows::new(6, vec![0; 6]).unwrap();
    Task { run: Run { contract: contract(), options, start: Instant::now() }, rows, held_out }
}

/// Moves away from the zeros that tensors start at, where gradients vanish, and then along the
/// gradient of each tensor.
fn assert_gradients(graph: &Graph, feed: &[(String, Tensor)], what: &str) {
    let (names, cancel) = (networks::trained(graph), Cancel::new());
    let step = StepGraph::new(graph, LOSS, &names, feed, &cancel).unwrap();
    let mut w = Parameters::new(graph, &names, |_| false).unwrap();
    let mut random = Stream::new(7, 0);
    w.update(|w| w.iter_mut().for_each(|w| *w += 0.05 * random.normal()));
    let mut workers = Workers::new(&step, 1).unwrap();
    let mut loss = |w: &Parameters, gradient: &mut Vec<f32>| {
        gradient.resize(w.len(), 0.0);
        workers.gradient(w, 1, &|_| Ok(feed.to_vec()), gradient, &cancel).unwrap()
    };
    let (mut gradient, mut unused) = (Vec::new(), Vec::new());
    let value = loss(&w, &mut gradient);
    let sizes: Vec<usize> = w.tensors().map(|(_, t)| t.len()).collect();
    let (mut start, mut checked) = (0, 0);
    for (name, size) in names.iter().zip(sizes) {
        let range = start..start + size;
        start += size;
        let square: f64 = gradient[range.clone()].iter().map(|&g| f64::from(g).powi(2)).sum();
        let norm = square.sqrt();
        if norm < 1e-3 * value {
            continue;
        }
        checked += 1;
        let mut at = |sign: f64| {
            let mut moved = w.clone();
            let step = (sign * 2e-3 / norm) as f32;
            moved.update(|w| range.clone().for_each(|i| w[i] += step * gradient[i]));
            loss(&moved, &mut unused)
        };
        let slope = (at(1.0) - at(-1.0)) / 4e-3;
        assert!(
            (slope - norm).abs() < 0.03 * norm + 2e-3 * value,
            "{what} {name}: {slope}, not {norm}"
        );
    }
    assert!(2 * checked > names.len(), "{what}: {checked} of {} tensors matter", names.len());
}

#[test]
fn of_conditionals() {
    for network in NETWORKS {
        let options = TrainOptions { network, size: SIZE, ..TrainOptions::default() };
        let task = task(&options);
        let [phi, _] = nets(&task.run.contract, network, 0.0);
        let graph = conditionals::with_loss(&phi, &task.run.contract);
        assert_gradients(&graph, &conditionals::feed(&task, SHARD, 0), &format!("{network:?}"));
    }
}

#[test]
fn of_marginals() {
    let cancel = Cancel::new();
    for network in NETWORKS {
        for regression in [Regression::Trajectory, Regression::OneStep] {
            // Few steps, so that few trajectories are drawn.
            let options = TrainOptions {
                network,
                size: SIZE,
                regression,
                marginal_steps: 1,
                batch: SHARD,
                ..TrainOptions::default()
            };
            let task = task(&options);
            let c = &task.run.contract;
            let [phi, theta] = nets(c, network, 0.0);
            let teacher = Contract { kind: Kind::Conditional, ..c.clone() };
            let models = [model(&phi, &teacher).unwrap()];
            let teacher = Mam::from_models(&models, LoadOptions::default(), &cancel).unwrap();
            let pool = marginals::Pool::draw(&task, &teacher, 0, &cancel).unwrap();
            let feed = pool.feed(&task, 0..SHARD).unwrap();
            let graph = marginals::with_loss(&theta, &task, SHARD);
            assert_gradients(&graph, &feed, &format!("{network:?} {regression:?}"));
        }
    }
}

#[test]
fn of_balance() {
    let c = contract();
    for network in NETWORKS {
        let [phi, theta] = nets(&c, network, 5.0);
        let graph = Objective::Balance.with_loss(&networks::joint(&phi, &theta), &c, 2);
        let rows = [[0, 2, 1, 1, 0, 2], [1, 1, 2, 0, 0, 1]];
        let orders = [[3, 1, 0, 5, 2, 4], [0, 4, 2, 3, 5, 1]];
        let sample = |i: usize| Sample {
            row: &rows[i],
            order: &orders[i],
            log_f: 0.5,
            advantage: 0.0,
            step: 0,
        };
        let feed = Objective::Balance.feed(&[sample(0), sample(1)], &c);
        assert_gradients(&graph, &feed, &format!("{network:?}"));
    }
}
