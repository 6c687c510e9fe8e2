//! Builds a graph of one node, differentiates it and checks each gradient.

use std::sync::Arc;

use hone::autodiff::{Fact, Facts, backward};
use hone::cancel::Cancel;
use hone::onnx::{Graph, Node, Value};
use hone::runtime::{Outputs, Session, SessionOptions};
use hone::tensor::{Data, ElementType, Tensor};

/// How closely a gradient must agree with the finite difference, relative to |c|·|f(x+hv)−f(x−hv)|.
#[derive(Clone, Copy, Debug)]
pub enum Tolerance {
    /// Functions that ONNX Runtime computes in float64.
    Double,
    /// Functions computed in float32, limited by the cancellation in the difference.
    Single,
}

impl Tolerance {
    fn bound(self) -> f64 {
        match self {
            Tolerance::Double => 1e-6,
            Tolerance::Single => 2e-3,
        }
    }

    fn step(self) -> f64 {
        match self {
            Tolerance::Double => 1e-3,
            Tolerance::Single => 1.0 / 32.0,
        }
    }
}

/// Reproducible random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer from `low` to `high`, both possible.
    pub fn int(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub fn chance(&mut self) -> bool {
        self.next().is_multiple_of(2)
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Values in [-1, 1], none within 0.1 of zero.
    pub fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.uniform(0.1, 1.0) * if self.chance() { 1.0 } else { -1.0 }).collect()
    }

    /// Values at least 0.2 apart, in random order: no maximum changes under a small step.
    pub fn distinct(&mut self, n: usize) -> Vec<f64> {
        let mut grid: Vec<f64> = (0..n).map(|i| 0.2 * (i as f64 - n as f64 / 2.0) + 0.1).collect();
        for i in (1..n).rev() {
            grid.swap(i, self.int(0, i));
        }
        grid
    }
}

/// One node with the values of its inputs.
#[derive(Clone, Debug)]
pub struct Case {
    node: Node,
    /// `None` for an absent optional input.
    inputs: Vec<Option<Tensor>>,
    /// Inputs that vary at run time although they hold no floats.
    dynamic: Vec<usize>,
    /// Float inputs without a gradient.
    skipped: Vec<usize>,
    tolerance: Tolerance,
    opset: i64,
}

impl Case {
    /// A case in float64.
    pub fn new(op: &str) -> Case {
        let node = Node { op: op.into(), outputs: vec!["y0".into()], ..Node::default() };
        Case {
            node,
            inputs: vec![],
            dynamic: vec![],
            skipped: vec![],
            tolerance: Tolerance::Double,
            opset: 18,
        }
    }

    /// In float32, for operators without float64 kernels.
    pub fn single(mut self) -> Case {
        self.tolerance = Tolerance::Single;
        self
    }

    pub fn opset(mut self, opset: i64) -> Case {
        self.opset = opset;
        self
    }

    pub fn with(mut self, name: &str, value: impl Into<hone::onnx::Attribute>) -> Case {
        self.node = self.node.with(name, value);
        self
    }

    /// A float input.
    pub fn floats(mut self, shape: &[usize], values: Vec<f64>) -> Case {
        let data = match self.tolerance {
            Tolerance::Double => Data::F64(values),
            Tolerance::Single => Data::F32(values.iter().map(|&v| v as f32).collect()),
        };
        self.inputs.push(Some(Tensor::new(shape, data).unwrap()));
        self
    }

    /// A float input that no gradient is wanted of.
    pub fn fixed(mut self, shape: &[usize], values: Vec<f64>) -> Case {
        self.skipped.push(self.inputs.len());
        self.floats(shape, values)
    }

    /// A constant input of another type.
    pub fn tensor(mut self, tensor: Tensor) -> Case {
        self.inputs.push(Some(tensor));
        self
    }

    /// A constant list of integers.
    pub fn ints(self, values: &[i64]) -> Case {
        self.tensor(Tensor::i64([values.len()], values.to_vec()))
    }

    /// An input of another type whose value the rule must not rely on.
    pub fn varying(mut self, tensor: Tensor) -> Case {
        self.dynamic.push(self.inputs.len());
        self.tensor(tensor)
    }

    pub fn absent(mut self) -> Case {
        self.inputs.push(None);
        self
    }

    pub fn outputs(mut self, names: &[&str]) -> Case {
        self.node.outputs = names.iter().map(|s| s.to_string()).collect();
        self
    }

    /// Checks the gradient of every float input, both with all of them supplied at run time and
    /// with all but the first as initializers. Panics with the case where one is wrong.
    pub fn check(&self) {
        let inputs: Vec<usize> = (0..self.inputs.len()).filter(|&i| self.is_float(i)).collect();
        self.check_with(&inputs);
        if inputs.len() > 1 {
            self.check_with(&inputs[..1]);
        }
    }

    /// Checks the gradient of the first input, with the others as initializers.
    pub fn check_first(&self) {
        self.check_with(&[0]);
    }

    fn is_float(&self, i: usize) -> bool {
        self.inputs[i].as_ref().is_some_and(|t| t.element_type().is_float())
    }

    /// The graph of the node alone, with the inputs `supplied` at run time.
    fn graph(&self, supplied: &[usize]) -> Graph {
        let mut graph = Graph { opset: self.opset, ..Graph::default() };
        let mut node = self.node.clone();
        for (i, tensor) in self.inputs.iter().enumerate() {
            let Some(tensor) = tensor else {
                node.inputs.push(String::new());
                continue;
            };
            let name = format!("x{i}");
            if supplied.contains(&i) || self.dynamic.contains(&i) {
                let value = Value::fixed(name.as_str(), tensor.element_type(), tensor.shape());
                graph.inputs.push(value);
            } else {
                graph.initializers.insert(name.clone(), Arc::new(tensor.clone()));
            }
            node.inputs.push(name);
        }
        let outputs = node.outputs.iter().filter(|o| !o.is_empty());
        graph.outputs = outputs.map(Value::named).collect();
        graph.nodes.push(node);
        graph
    }

    fn check_with(&self, supplied: &[usize]) {
        let graph = self.graph(supplied);
        let forward = self.graph(&(0..self.inputs.len()).collect::<Vec<_>>());
        let mut forward = Forward::new(&forward);
        let at = self.inputs.clone();
        let y = forward.run(&at);
        let mut facts = Facts::new();
        for (i, tensor) in self.inputs.iter().enumerate() {
            let Some(tensor) = tensor else { continue };
            let constant = !graph.inputs.iter().any(|v| v.name == format!("x{i}"));
            facts.insert(format!("x{i}"), fact(tensor, constant));
        }
        let mut seeds = Vec::new();
        let mut random = Random(1);
        for value in &graph.outputs {
            let tensor = y.tensor(&value.name).unwrap();
            facts.insert(value.name.clone(), fact(&tensor, false));
            if tensor.element_type().is_float() {
                seeds.push((value.name.clone(), like(&tensor, random.values(tensor.len()))));
            }
        }
        let outputs: Vec<String> = seeds.iter().map(|(n, _)| n.clone()).collect();
        let wanted: Vec<usize> =
            (0..at.len()).filter(|&i| self.is_float(i) && !self.skipped.contains(&i)).collect();
        let names: Vec<String> = wanted.iter().map(|i| format!("x{i}")).collect();
        let result = backward(&graph, &facts, &outputs, &names, &[])
            .unwrap_or_else(|e| panic!("{e}\n{self:?}"));
        for optimize in [true, false] {
            let gradients = self.run_backward(&result, &seeds, optimize);
            for (&i, gradient) in wanted.iter().zip(&gradients) {
                self.compare(&mut forward, &seeds, i, gradient, &mut random);
            }
        }
    }

    fn run_backward(
        &self,
        result: &hone::autodiff::Backward,
        seeds: &[(String, Tensor)],
        optimize: bool,
    ) -> Vec<Tensor> {
        let options = SessionOptions { optimize, ..SessionOptions::default() };
        let mut session = session(&result.graph, &options);
        let mut feed: Vec<(&str, &Tensor)> = Vec::new();
        for value in &result.graph.inputs {
            let seed = result.seeds.iter().position(|(_, input)| *input == value.name);
            feed.push((
                &value.name,
                match seed {
                    Some(k) => &seeds[k].1,
                    None => {
                        self.inputs[value.name[1..].parse::<usize>().unwrap()].as_ref().unwrap()
                    }
                },
            ));
        }
        let outputs = session
            .run(feed, &Cancel::new())
            .unwrap_or_else(|e| panic!("{e}\n{self:?}\n{:#?}", result.graph.nodes));
        result.gradients.values().map(|name| outputs.tensor(name).unwrap()).collect()
    }

    /// Compares the gradient of input `i` along random directions.
    fn compare(
        &self,
        forward: &mut Forward,
        seeds: &[(String, Tensor)],
        i: usize,
        gradient: &Tensor,
        random: &mut Random,
    ) {
        let x = self.inputs[i].as_ref().unwrap();
        assert_eq!(gradient.shape(), x.shape(), "shape of the gradient of x{i}: {self:?}");
        for _ in 0..2 {
            let v: Vec<f64> = (0..x.len()).map(|_| random.uniform(-1.0, 1.0)).collect();
            let mut along = |h: f64| {
                let mut moved = |sign: f64| {
                    let at = x.to_f64().iter().zip(&v).map(|(x, v)| x + sign * h * v).collect();
                    let mut inputs = self.inputs.clone();
                    inputs[i] = Some(like(x, at));
                    let outputs = forward.run(&inputs);
                    seeds.iter().flat_map(|(n, _)| outputs.tensor(n).unwrap().to_f64()).collect()
                };
                let (up, down): (Vec<f64>, Vec<f64>) = (moved(1.0), moved(-1.0));
                up.iter().zip(&down).map(|(u, d)| (u - d) / (2.0 * h)).collect::<Vec<f64>>()
            };
            let h = self.tolerance.step();
            let (coarse, fine) = (along(h), along(h / 2.0));
            let derivative: Vec<f64> =
                coarse.iter().zip(&fine).map(|(c, f)| (4.0 * f - c) / 3.0).collect();
            let c: Vec<f64> = seeds.iter().flat_map(|(_, t)| t.to_f64()).collect();
            let expected = dot(&c, &derivative);
            let found = dot(&gradient.to_f64(), &v);
            let scale = dot(&c, &c).sqrt() * dot(&derivative, &derivative).sqrt() + 1e-3;
            let error = (found - expected).abs() / scale;
            assert!(
                error <= self.tolerance.bound(),
                "x{i}: the graph says {found}, the difference {expected} (error {error:.1e})\n{self:?}"
            );
        }
    }
}

/// The forward graph, all inputs supplied at run time.
struct Forward {
    session: Session,
    inputs: Vec<String>,
}

impl Forward {
    fn new(graph: &Graph) -> Forward {
        let session = session(graph, &SessionOptions::default());
        Forward { session, inputs: graph.inputs.iter().map(|v| v.name.clone()).collect() }
    }

    fn run(&mut self, inputs: &[Option<Tensor>]) -> Outputs {
        let feed = self.inputs.iter().map(|name| {
            let i: usize = name[1..].parse().unwrap();
            (name.as_str(), inputs[i].as_ref().unwrap())
        });
        self.session.run(feed, &Cancel::new()).unwrap_or_else(|e| panic!("{e}\n{inputs:?}"))
    }
}

pub fn session(graph: &Graph, options: &SessionOptions) -> Session {
    Session::of_graph(graph, options).unwrap_or_else(|e| panic!("{e}\n{:#?}", graph.nodes))
}

pub fn fact(tensor: &Tensor, constant: bool) -> Fact {
    Fact {
        element: tensor.element_type(),
        shape: tensor.shape().to_vec(),
        constant: constant.then(|| Arc::new(tensor.clone())),
    }
}

/// `values` with the type and shape of `tensor`.
fn like(tensor: &Tensor, values: Vec<f64>) -> Tensor {
    let data = match tensor.element_type() {
        ElementType::F64 => Data::F64(values),
        ElementType::F32 => Data::F32(values.iter().map(|&v| v as f32).collect()),
        other => panic!("{other} is not checked"),
    };
    Tensor::new(tensor.shape(), data).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
