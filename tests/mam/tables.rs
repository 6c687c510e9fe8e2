//! Models that are tables over the base-(K+1) code of a masked row, as ONNX graphs.

use std::path::PathBuf;
use std::sync::Arc;

use hone::cancel::Cancel;
use hone::mam::contract::{Contract, Kind};
use hone::mam::{LoadOptions, Mam};
use hone::onnx::{Dimension, Graph, Node, Value};
use hone::random::Stream;
use hone::tensor::{ElementType, Tensor};

/// A distribution over K^L states, and nets that are exact or off by `noise`.
#[derive(Clone, Debug)]
pub struct Table {
    pub length: usize,
    pub values: usize,
    /// p of each state; site 0 is the lowest digit.
    pub p: Vec<f64>,
    /// f_θ of each masked row.
    pub theta: Vec<f64>,
    /// Logits of each masked row, `[(K+1)^L, L, K]`.
    pub phi: Vec<f64>,
}

pub const MISSING: i64 = -1;

impl Table {
    /// θ's and φ's tables with normal noise of these sizes on the exact values; log Z is 1.7.
    pub fn new(length: usize, values: usize, theta_noise: f64, phi_noise: f64) -> Table {
        let mut random = Stream::new(7, (length * values) as u64);
        let states = values.pow(length as u32);
        let mut p: Vec<f64> = (0..states).map(|_| f64::from(random.normal()).exp()).collect();
        let total: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
        let mut table = Table { length, values, p, theta: Vec::new(), phi: Vec::new() };
        for code in 0..(values + 1).pow(length as u32) {
            let mut row = table.row_of(code);
            let log = table.log_marginal(&row);
            let empty = row.iter().all(|&v| v == MISSING);
            let noise = if empty { 0.0 } else { theta_noise * f64::from(random.normal()) };
            table.theta.push(f64::from((log + 1.7 + noise) as f32));
            for site in 0..length {
                let before = row[site];
                let shift = f64::from(random.normal());
                for value in 0..values {
                    row[site] = value as i64;
                    let noise = phi_noise * f64::from(random.normal());
                    let logit = table.log_marginal(&row) - log + shift + noise;
                    table.phi.push(f64::from(logit as f32));
                }
                row[site] = before;
            }
        }
        table
    }

    /// The masked row with this code.
    pub fn row_of(&self, mut code: usize) -> Vec<i64> {
        let digit = |_| {
            let value = code % (self.values + 1);
            code /= self.values + 1;
            value as i64 - 1
        };
        (0..self.length).map(digit).collect()
    }

    /// The code of a masked row.
    pub fn code(&self, row: &[i64]) -> usize {
        row.iter().rev().fold(0, |code, &v| code * (self.values + 1) + (v + 1) as usize)
    }

    /// All complete rows, in the order of `p`.
    pub fn states(&self) -> Vec<Vec<i64>> {
        let state = |mut s: usize| {
            let digit = |_| {
                let value = s % self.values;
                s /= self.values;
                value as i64
            };
            (0..self.length).map(digit).collect()
        };
        (0..self.p.len()).map(state).collect()
    }

    /// log p(x_S), added up.
    pub fn log_marginal(&self, row: &[i64]) -> f64 {
        let fits = |s: &Vec<i64>| s.iter().zip(row).all(|(a, b)| *b == MISSING || a == b);
        let states = self.states_cached();
        states.iter().zip(&self.p).filter(|(s, _)| fits(s)).map(|(_, p)| p).sum::<f64>().ln()
    }

    fn states_cached(&self) -> Arc<Vec<Vec<i64>>> {
        use std::collections::HashMap;
        use std::sync::Mutex;
        type Cache = HashMap<(usize, usize), Arc<Vec<Vec<i64>>>>;
        static CACHE: Mutex<Option<Cache>> = Mutex::new(None);
        let mut cache = CACHE.lock().unwrap();
        let map = cache.get_or_insert_with(HashMap::new);
        map.entry((self.length, self.values)).or_insert_with(|| Arc::new(self.states())).clone()
    }

    /// f_θ(x_S) − f_θ(∅) by the table.
    pub fn theta_of(&self, row: &[i64]) -> f64 {
        self.theta[self.code(row)] - self.theta[0]
    }

    /// log p_φ(x_i = v | row) by the table.
    pub fn phi_of(&self, row: &[i64], site: usize, value: i64) -> f64 {
        let start = (self.code(row) * self.length + site) * self.values;
        let logits = &self.phi[start..start + self.values];
        logits[value as usize] - log_sum_exp(logits)
    }

    /// log p_φ of `row`'s values at the sites of `order`, starting from `given`.
    pub fn chain(&self, given: &[i64], row: &[i64], order: &[usize]) -> f64 {
        let mut current = given.to_vec();
        let mut total = 0.0;
        for &site in order {
            total += self.phi_of(&current, site, row[site]);
            current[site] = row[site];
        }
        total
    }

    pub fn contract(&self, kind: Kind) -> Contract {
        Contract::new(kind, self.length, self.values)
    }

    /// The graph of a model of this kind under `contract`'s encoding.
    pub fn graph(&self, contract: &Contract) -> Graph {
        let base = self.values + 1;
        let codes = base.pow(self.length as u32);
        let mut graph = Graph { name: "table".into(), opset: 18, ..Graph::default() };
        let mut hold = |name: &str, tensor: Tensor| {
            graph.initializers.insert(name.into(), Arc::new(tensor));
        };
        hold("mask_id", Tensor::i64([], vec![contract.mask_id]));
        hold("offset", Tensor::i64([], vec![contract.value_offset - 1]));
        hold("zero", Tensor::i64([], vec![0]));
        let powers = (0..self.length).map(|i| base.pow(i as u32) as i64).collect();
        hold("powers", Tensor::i64([self.length], powers));
        hold("axis", Tensor::i64([1], vec![1]));
        let theta = self.theta.iter().map(|&v| v as f32).collect();
        hold("theta", Tensor::f32([codes], theta));
        let phi = self.phi.iter().map(|&v| v as f32).collect();
        hold("phi", Tensor::f32([codes, self.length, self.values], phi));
        graph.nodes = vec![
            Node::new("Equal", ["x", "mask_id"], "missing"),
            Node::new("Sub", ["x", "offset"], "plus_one"),
            Node::new("Where", ["missing", "zero", "plus_one"], "digits"),
            Node::new("Mul", ["digits", "powers"], "parts"),
            Node::new("ReduceSum", ["parts", "axis"], "code").with("keepdims", 0i64),
        ];
        graph.inputs = vec![symbolic("x", ElementType::I64, &[self.length])];
        for &output in contract.kind.outputs() {
            let table = if output == "log_p" { "theta" } else { "phi" };
            graph.nodes.push(Node::new("Gather", [table, "code"], output));
            let rest = contract.row_shape(output);
            graph.outputs.push(symbolic(output, ElementType::F32, &rest));
        }
        graph.remove_unused();
        graph
    }

    /// The model in memory.
    pub fn mam(&self, kind: Kind) -> Mam {
        let contract = self.contract(kind);
        load(&self.graph(&contract), &contract).unwrap()
    }
}

/// A value of shape `[B, rest...]`.
pub fn symbolic(name: &str, element: ElementType, rest: &[usize]) -> Value {
    let mut value = Value::fixed(name, element, rest);
    value.shape.as_mut().unwrap().insert(0, Dimension::Symbol("B".into()));
    value
}

/// Saves the graph under the contract.
pub fn save(graph: &Graph, contract: &Contract, name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let metadata = contract.metadata();
    let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    graph.save(&path, &metadata).unwrap();
    (folder, path)
}

pub fn load(graph: &Graph, contract: &Contract) -> hone::Result<Mam> {
    load_with(graph, contract, LoadOptions::default())
}

pub fn load_with(graph: &Graph, contract: &Contract, options: LoadOptions) -> hone::Result<Mam> {
    let (_folder, path) = save(graph, contract, "model.onnx");
    Mam::load(&[path], options, &Cancel::new())
}

pub fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// Rows in one piece.
pub fn rows(rows: &[Vec<i64>]) -> hone::mam::Rows {
    hone::mam::Rows::new(rows[0].len(), rows.concat()).unwrap()
}

pub fn close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance, "{what}: {a} is not {b}");
}
