//! What is minimised when a model learns from an energy f, as graphs over both nets.
//!
//! Balance: along a trajectory (x, σ) drawn from φ let F_d = f_θ(x_σ(<d)) for d < L, F_L = log f(x)
//! and G_d = F_d − Σ_{e<d} log p_φ(x_σ(e) | x_σ(<e)). The model is exact where every G is log Z.
//! Loss: 2 Var_w(G) + (f_θ(x) − log f(x))² with the weights w_L = ½ and w_d = 1/(2L); the first
//! term is Σ w_a w_b (G_a − G_b)² over all pairs, the sub-trajectory balance of every part of the
//! trajectory. f_θ(∅) learns log Z. The end is all that is known of f: with equal weights a shift
//! of all F_d alike costs next to nothing, so θ follows φ late, and log Z with it; the torus of
//! 10×10 then took twice the steps to the same gap.
//!
//! Reinforce, as published: with A the standardised f_θ(x) − log f(x) of the batch,
//! A f_θ(x) + α [L (f_θ(x_σ(<d)) + log p_φ(x_σ(d) | x_σ(<d)) − f_θ(x_σ(≤d)))² + (f_θ(∅) − c)²]
//! for one random d, with α = 4 and c = Σ log K_i: the score of θ moves it towards f, and one-step
//! consistency hands that on to φ.

use std::sync::Arc;

use crate::mam::adapt::symbolic;
use crate::mam::contract::{Contract, INPUT, LOG_P, LOGITS};
use crate::mam::train::draw::cell;
use crate::onnx::{Graph, Node, Value};
use crate::tensor::{ElementType, Tensor};

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Sub-trajectory balance of all pairs.
    Balance,
    /// REINFORCE through θ, and one-step consistency.
    Reinforce,
}

pub const LOSS: &str = "loss";
/// 1 at the value whose log p_φ is taken, `[R, L, K]`.
const TARGET: &str = "target";
/// log f of the rows, `[T, 1]`.
const LOG_F: &str = "log_f";
/// The weight of each row's f_θ in the loss, `[1, R]`.
const WEIGHT: &str = "weight";

/// Rows of one run of the balance graph, about.
const ROWS: usize = 512;

/// The published α.
const ALPHA: f32 = 4.0;

/// A row, the order in which it was filled, and what is known of it.
#[derive(Debug)]
pub struct Sample<'a> {
    pub row: &'a [i32],
    pub order: &'a [u32],
    /// log f.
    pub log_f: f64,
    /// A of the row; Reinforce alone looks at it.
    pub advantage: f64,
    /// d of the row; Reinforce alone looks at it.
    pub step: usize,
}

impl Objective {
    /// How many of a batch's rows make a shard.
    pub fn shard(self, batch: usize, length: usize) -> usize {
        let most = match self {
            Objective::Balance => ROWS / (length + 1),
            Objective::Reinforce => ROWS / 4,
        };
        (1..=most.clamp(1, batch)).rev().find(|n| batch.is_multiple_of(*n)).unwrap_or(1)
    }

    /// The loss of a shard of `samples` rows, behind the two nets.
    pub fn with_loss(self, nets: &Graph, c: &Contract, samples: usize) -> Graph {
        let mut b = Builder { graph: nets.clone() };
        b.graph.inputs.push(symbolic(TARGET, ElementType::F32, &[c.length, c.vocab]));
        b.node(Node::new("LogSoftmax", [LOGITS], "log_softmax").with("axis", -1i64));
        b.node(Node::new("Mul", ["log_softmax", TARGET], "terms"));
        let axes = b.hold("site_axes", Tensor::i64([2], vec![1, 2]));
        b.node(Node::new("ReduceSum", ["terms", &axes], "step_log_p").with("keepdims", 0i64));
        match self {
            Objective::Balance => b.balance(samples, c.length),
            Objective::Reinforce => b.reinforce(samples, c),
        }
        b.graph
    }

    /// The inputs of a shard.
    pub fn feed(self, samples: &[Sample], c: &Contract) -> Vec<(String, Tensor)> {
        let (mut x, mut targets) = (Vec::new(), Vec::new());
        // The site after a prefix, if it is asked for.
        let mut prefix = |s: &Sample, known: usize, ask: bool| {
            let mut cells = vec![c.mask_id; c.length];
            for &site in &s.order[..known] {
                cells[site as usize] = cell(s.row[site as usize], c);
            }
            let next = s.order.get(known).filter(|_| ask).map(|&site| site as usize);
            targets.push(next.map(|site| site * c.vocab + s.row[site] as usize));
            x.extend(cells);
        };
        let count = samples.len();
        let mut log_f = Vec::new();
        match self {
            Objective::Balance => {
                for s in samples {
                    (0..=c.length).for_each(|known| prefix(s, known, true));
                    log_f.push(s.log_f as f32);
                }
            }
            Objective::Reinforce => {
                samples.iter().for_each(|s| prefix(s, s.step, true));
                samples.iter().for_each(|s| prefix(s, s.step + 1, false));
                samples.iter().for_each(|s| prefix(s, c.length, false));
                prefix(&samples[0], 0, false);
            }
        }
        let (rows, per_row) = (targets.len(), c.length * c.vocab);
        let mut target = vec![0.0; rows * per_row];
        for (i, place) in targets.iter().enumerate() {
            place.iter().for_each(|place| target[i * per_row + place] = 1.0);
        }
        let mut feed = vec![
            (INPUT.into(), Tensor::i64([rows, c.length], x)),
            (TARGET.into(), Tensor::f32([rows, c.length, c.vocab], target)),
        ];
        feed.push(match self {
            Objective::Balance => (LOG_F.into(), Tensor::f32([count, 1], log_f)),
            Objective::Reinforce => {
                let mut weight = vec![0.0; rows];
                for (w, s) in weight[2 * count..].iter_mut().zip(samples) {
                    *w = s.advantage as f32 / count as f32;
                }
                (WEIGHT.into(), Tensor::f32([1, rows], weight))
            }
        });
        feed
    }
}

/// A graph that grows.
struct Builder {
    graph: Graph,
}

impl Builder {
    fn balance(&mut self, samples: usize, length: usize) {
        let n = length + 1;
        self.graph.inputs.push(Value::fixed(LOG_F, ElementType::F32, &[samples, 1]));
        let shape = self.hold("by_sample", Tensor::i64([2], vec![samples as i64, n as i64]));
        self.node(Node::new("Reshape", ["step_log_p", &shape], "steps"));
        self.node(Node::new("Reshape", [LOG_P, &shape], "flows"));
        // Sums over the steps before; the last flow is replaced by log f.
        let matrix = |cell: &dyn Fn(usize, usize) -> f32| {
            Tensor::f32([n, n], (0..n * n).map(|i| cell(i / n, i % n)).collect())
        };
        let before = self.hold("before", matrix(&|e, d| if e < d { 1.0 } else { 0.0 }));
        let row = |last: f32, others: f32| {
            let mut cells = vec![others; n];
            cells[length] = last;
            cells
        };
        let open = self.hold("open", Tensor::f32([1, n], row(0.0, 1.0)));
        let last_row = self.hold("last_row", Tensor::f32([1, n], row(1.0, 0.0)));
        let last_column = self.hold("last_column", Tensor::f32([n, 1], row(1.0, 0.0)));
        self.node(Node::new("MatMul", ["steps", &before], "sums"));
        self.node(Node::new("Mul", ["flows", &open], "open_flows"));
        self.node(Node::new("Mul", [LOG_F, &last_row], "pinned"));
        self.node(Node::new("Add", ["open_flows", "pinned"], "all_flows"));
        self.node(Node::new("Sub", ["all_flows", "sums"], "levels"));
        // Centred by a product: no difference of large squares.
        let weight = |d: usize| if d == length { 0.5 } else { 0.5 / length as f32 };
        let centre = matrix(&|e, d| {
            let own = if e == d { 1.0 } else { 0.0 };
            (own - weight(e)) * weight(d).sqrt()
        });
        let centre = self.hold("centre", centre);
        self.node(Node::new("MatMul", ["levels", &centre], "deviations"));
        self.square("deviations", 2.0 / samples as f32, "balance");
        self.node(Node::new("MatMul", ["flows", &last_column], "ends"));
        self.node(Node::new("Sub", ["ends", LOG_F], "end_errors"));
        self.square("end_errors", 1.0 / samples as f32, "end");
        self.node(Node::new("Add", ["balance", "end"], LOSS));
    }

    fn reinforce(&mut self, samples: usize, c: &Contract) {
        let rows = 3 * samples + 1;
        self.graph.inputs.push(Value::fixed(WEIGHT, ElementType::F32, &[1, rows]));
        let column = self.hold("column", Tensor::i64([2], vec![-1, 1]));
        self.node(Node::new("Reshape", [LOG_P, &column], "f"));
        self.node(Node::new("Reshape", ["step_log_p", &column], "steps"));
        // Residuals of the steps, and that of the empty row.
        let scale = (ALPHA * c.length as f32 / samples as f32).sqrt();
        let (mut f, mut p) = (vec![0.0; (samples + 1) * rows], vec![0.0; (samples + 1) * rows]);
        for i in 0..samples {
            (f[i * rows + i], f[i * rows + samples + i]) = (scale, -scale);
            p[i * rows + i] = scale;
        }
        f[(samples + 1) * rows - 1] = ALPHA.sqrt();
        let mut offset = vec![0.0; samples + 1];
        offset[samples] = -ALPHA.sqrt() * uniform_log_z(c) as f32;
        let f = self.hold("of_flows", Tensor::f32([samples + 1, rows], f));
        let p = self.hold("of_steps", Tensor::f32([samples + 1, rows], p));
        let offset = self.hold("offset", Tensor::f32([samples + 1, 1], offset));
        self.node(Node::new("MatMul", [f.as_str(), "f"], "from_flows"));
        self.node(Node::new("MatMul", [p.as_str(), "steps"], "from_steps"));
        self.node(Node::new("Add", ["from_flows", "from_steps"], "uncentred"));
        self.node(Node::new("Add", ["uncentred", &offset], "residuals"));
        self.square("residuals", 1.0, "penalty");
        self.node(Node::new("MatMul", [WEIGHT, "f"], "weighted"));
        self.node(Node::new("ReduceSum", ["weighted"], "score").with("keepdims", 0i64));
        self.node(Node::new("Add", ["penalty", "score"], LOSS));
    }

    /// scale · Σ value².
    fn square(&mut self, value: &str, scale: f32, output: &str) {
        let scale = self.hold(&format!("{output}_scale"), Tensor::f32([], vec![scale]));
        let names = ["squares", "sum"].map(|what| format!("{output}_{what}"));
        self.node(Node::new("Mul", [value, value], &names[0]));
        self.node(Node::new("ReduceSum", [&names[0]], &names[1]).with("keepdims", 0i64));
        self.node(Node::new("Mul", [&names[1], &scale], output));
    }

    fn node(&mut self, node: Node) {
        self.graph.nodes.push(node);
    }

    fn hold(&mut self, name: &str, tensor: Tensor) -> String {
        let name = format!("loss.{name}");
        self.graph.initializers.insert(name.clone(), Arc::new(tensor));
        name
    }
}

/// log Σ_x 1, what log Z starts from.
pub fn uniform_log_z(c: &Contract) -> f64 {
    c.cardinalities.iter().map(|&k| (k as f64).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::mam::contract::Kind;
    use crate::random::Stream;
    use crate::runtime::{Session, SessionOptions};

    /// Against the sum over pairs, from any logits and flows.
    #[test]
    fn the_end_weighs_as_much_in_balance_as_all_other_places() {
        let (length, vocab) = (3, 2);
        let c = Contract::new(Kind::Joint, length, vocab);
        let mut nets = Graph { opset: 18, ..Graph::default() };
        nets.inputs.push(Value::fixed(LOG_P, ElementType::F32, &[8]));
        nets.inputs.push(Value::fixed(LOGITS, ElementType::F32, &[8, length, vocab]));
        let graph = Objective::Balance.with_loss(&nets, &c, 2);
        let graph = Graph { outputs: vec![Value::named(LOSS)], ..graph };
        let (rows, orders) = ([[0, 1, 1], [1, 0, 1]], [[2, 0, 1], [1, 2, 0]]);
        let log_f = [0.7, -1.3];
        let sample = |i: usize| Sample {
            row: &rows[i],
            order: &orders[i],
            log_f: log_f[i],
            advantage: 0.0,
            step: 0,
        };
        let mut feed = Objective::Balance.feed(&[sample(0), sample(1)], &c);
        feed.retain(|(name, _)| name != INPUT);
        let mut random = Stream::new(3, 0);
        let mut normal = |n: usize| (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
        let (flows, logits) = (normal(8), normal(8 * length * vocab));
        feed.push((LOG_P.into(), Tensor::f32([8], flows.clone())));
        feed.push((LOGITS.into(), Tensor::f32([8, length, vocab], logits.clone())));
        let mut session = Session::of_graph(&graph, &SessionOptions::default()).unwrap();
        let inputs = feed.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let outputs = session.run(inputs, &Cancel::new()).unwrap();
        let found = f64::from(outputs.f32(LOSS).unwrap().1[0]);

        let mut loss = 0.0;
        for i in 0..2 {
            let (mut levels, mut sum) = (Vec::new(), 0.0);
            for d in 0..=length {
                let flow = if d < length { f64::from(flows[4 * i + d]) } else { log_f[i] };
                levels.push(flow - sum);
                if d < length {
                    let site = orders[i][d] as usize;
                    let at = ((4 * i + d) * length + site) * vocab;
                    let [a, b] = [logits[at], logits[at + 1]].map(|l| f64::from(l).exp());
                    sum += ([a, b][rows[i][site] as usize] / (a + b)).ln();
                }
            }
            let weight = |d: usize| if d == length { 0.5 } else { 1.0 / 6.0 };
            for a in 0..=length {
                for b in 0..=length {
                    loss += 0.5 * weight(a) * weight(b) * (levels[a] - levels[b]).powi(2);
                }
            }
            loss += 0.5 * (f64::from(flows[4 * i + length]) - log_f[i]).powi(2);
        }
        assert!((found - loss).abs() < 1e-5 * loss, "{found}, not {loss}");
    }
}
