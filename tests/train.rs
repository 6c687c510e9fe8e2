//! Training: gradients against finite differences and against the per-sample gradients that pruning
//! uses, the same bits for any number of threads, and states that go on where they stopped.

use std::path::Path;

use hone::ErrorKind;
use hone::calibration::{Labels, ReadOptions, Samples};
use hone::cancel::Cancel;
use hone::gradient::collect::{Collector, Panel, Plan};
use hone::gradient::parameters::{RowOrder, discover};
use hone::gradient::prepare::prepare;
use hone::gradient::seed::{Fisher, Seeding};
use hone::mfac::optimizer::{Decay, Method, Schedule, Settings};
use hone::mfac::{Optimizer, Sliding, Storage};
use hone::onnx::{Graph, Model, Node, Value, import};
use hone::runtime::Device;
use hone::tensor::{ElementType, Tensor};
use hone::train::{
    Distillation, Loss, Objective, Parameters, StepGraph, TrainOptions, Trainer, Workers,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/fashion");
const ROWS: usize = 16;
const SHARD: usize = 8;

/// The example with a loss, ready to be trained in all of its float tensors.
struct Example {
    graph: Graph,
    samples: Samples,
    objective: Objective,
    step: StepGraph,
    parameters: Parameters,
    /// What a teacher says of each row.
    teacher: Tensor,
}

impl Example {
    fn new(distillation: Option<Distillation>) -> Example {
        let mut graph = import(&Model::load(format!("{FOLDER}/model.onnx")).unwrap()).unwrap();
        let path = format!("{FOLDER}/calibration.npz");
        let options = ReadOptions { limit: Some(ROWS), ..ReadOptions::default() };
        let samples = Samples::read(Path::new(&path), &graph.inputs, &options).unwrap();
        let names: Vec<String> = graph
            .initializers
            .iter()
            .filter(|(_, t)| t.as_f32().is_some() && t.len() > 1)
            .map(|(name, _)| name.clone())
            .collect();
        let shard: Vec<usize> = (0..SHARD).collect();
        let cancel = Cancel::new();
        let prepared = prepare(&graph, &samples.batch(&shard), &cancel).unwrap();
        let loss = Loss::CrossEntropy;
        let objective =
            Objective::attach(&mut graph, &prepared.facts, None, loss, distillation).unwrap();
        let logits = (0..ROWS * 10).map(|i| ((i * 37) % 23) as f32 / 5.0).collect();
        let teacher = Tensor::f32([ROWS, 10], logits);
        let feeds = feeds(&objective, &samples, &teacher, 0);
        let step = StepGraph::new(&graph, objective.loss(), &names, &feeds, &cancel).unwrap();
        let parameters = Parameters::new(&graph, &names, |_| false).unwrap();
        Example { graph, samples, objective, step, parameters, teacher }
    }

    fn workers(&self, threads: usize) -> Workers {
        Workers::new(&self.step, threads).unwrap()
    }

    fn gradient(&self, workers: &mut Workers, parameters: &Parameters) -> (f64, Vec<f32>) {
        let mut gradient = vec![f32::NAN; parameters.len()];
        let feed = |shard| Ok(feeds(&self.objective, &self.samples, &self.teacher, shard));
        let shards = ROWS / SHARD;
        let loss = workers.gradient(parameters, shards, &feed, &mut gradient, &Cancel::new());
        (loss.unwrap(), gradient)
    }

    /// The derivative along `direction` by central differences, and as the gradient has it.
    fn derivatives(&self, direction: &[f32]) -> (f64, f64) {
        let mut workers = self.workers(2);
        let (_, gradient) = self.gradient(&mut workers, &self.parameters);
        let length = 2e-3 / norm(direction);
        let mut at = |sign: f64| {
            let mut moved = self.parameters.clone();
            let shift = |w: &mut [f32]| {
                for (w, d) in w.iter_mut().zip(direction) {
                    *w = (f64::from(*w) + sign * length * f64::from(*d)) as f32;
                }
            };
            moved.update(shift);
            self.gradient(&mut workers, &moved).0
        };
        let difference = (at(1.0) - at(-1.0)) / (2.0 * length);
        (difference, dot(&gradient, direction))
    }
}

fn feeds(
    objective: &Objective,
    samples: &Samples,
    teacher: &Tensor,
    shard: usize,
) -> Vec<(String, Tensor)> {
    let rows: Vec<usize> = (shard * SHARD..(shard + 1) * SHARD).collect();
    let mut feeds = samples.batch(&rows);
    feeds.extend(objective.feeds(&rows, samples, Some(teacher.take_rows(&rows))).unwrap());
    feeds
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn norm(a: &[f32]) -> f64 {
    dot(a, a).sqrt()
}

/// Numbers that look random, between -1 and 1.
fn wild(n: usize) -> Vec<f32> {
    let mut x = 1u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn gradients_agree_with_finite_differences() {
    let distillation = Distillation { temperature: 3.0, weight: 0.7 };
    for distillation in [None, Some(distillation)] {
        let example = Example::new(distillation);
        let (_, gradient) = example.gradient(&mut example.workers(1), &example.parameters);
        for direction in [gradient, wild(example.parameters.len())] {
            let (difference, derivative) = example.derivatives(&direction);
            let tolerance = 0.02 * derivative.abs() + 2e-4 * norm(&direction);
            assert!((difference - derivative).abs() < tolerance, "{difference} {derivative}");
        }
    }
}

#[test]
fn gradients_are_the_mean_of_the_per_sample_ones() {
    let example = Example::new(None);
    let (_, gradient) = example.gradient(&mut example.workers(2), &example.parameters);
    let mut found = example.parameters.clone();
    found.update(|w| w.copy_from_slice(&gradient));

    let (graph, samples) = (&example.graph, &example.samples);
    let mut plain = graph.clone();
    plain.outputs.retain(|o| o.name != example.objective.loss());
    plain.inputs.truncate(1);
    plain.remove_unused();
    let rows: Vec<usize> = (0..SHARD).collect();
    let prepared = prepare(&plain, &samples.batch(&rows), &Cancel::new()).unwrap();
    let (parameters, _) = discover(&prepared, RowOrder::Taps);
    let seeding = Seeding::new(Fisher::Labels, &[], &prepared.graph, &prepared.facts).unwrap();
    let plan = Plan { gradients: 1, fisher_batch: ROWS, seed: 0, threads: 1, device: Device::Cpu };
    let collector = Collector::new(&prepared, &parameters, samples, &seeding, &plan, SHARD);
    let all = 0..parameters.last().unwrap().range.end;
    let mut row = Vec::new();
    let sink = |panel: Panel<'_>| {
        row.extend_from_slice(panel.rows);
        Ok(())
    };
    collector.collect(all, &Cancel::new(), sink).unwrap();
    assert!(parameters.len() > 10);
    for p in &parameters {
        let (_, tensor) = found.tensors().find(|(name, _)| *name == p.name).unwrap();
        let mut want = vec![0.0; p.range.len()];
        for (i, &g) in row[p.range.clone()].iter().enumerate() {
            want[p.order.as_ref().map_or(i, |o| o[i] as usize)] = g;
        }
        let have = tensor.as_f32().unwrap();
        let apart: Vec<f32> = have.iter().zip(&want).map(|(a, b)| a - b).collect();
        assert!(norm(&apart) < 1e-4 * norm(&want), "{}: {}", p.name, norm(&apart) / norm(&want));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let example = Example::new(None);
    let one = example.gradient(&mut example.workers(1), &example.parameters);
    for threads in [2, 5] {
        let more = example.gradient(&mut example.workers(threads), &example.parameters);
        assert!(one == more, "{threads} threads");
    }
}

#[test]
fn a_student_that_says_what_its_teacher_says_has_nothing_to_learn() {
    let mut example = Example::new(Some(Distillation { temperature: 2.0, weight: 1.0 }));
    let (loss, gradient) = example.gradient(&mut example.workers(1), &example.parameters);
    assert!(!example.objective.needs_labels() && loss > 0.1 && norm(&gradient) > 0.1);
    let output = example.graph.outputs[0].name.clone();
    let options = hone::evaluate::RunOptions { device: Device::Cpu, threads: 1 };
    let mut plain = example.graph.clone();
    plain.inputs.truncate(1);
    let mut runner = hone::evaluate::Runner::new(&[&plain], &[output], options).unwrap();
    let logits = runner.run(&example.samples, &Cancel::new(), |_, o| Ok(o[0].to_f32())).unwrap();
    example.teacher = Tensor::f32([ROWS, 10], logits.concat());
    let (loss, gradient) = example.gradient(&mut example.workers(1), &example.parameters);
    assert!(loss.abs() < 1e-5 && norm(&gradient) < 1e-3, "{loss} {}", norm(&gradient));
}

/// L = mean over rows of m·(x·w + b − t)², everything but w and b fed from outside.
fn regression() -> Graph {
    let value = |name: &str, shape: &[usize]| Value::fixed(name, ElementType::F32, shape);
    let mut graph = Graph {
        opset: 18,
        nodes: vec![
            Node::new("MatMul", ["x", "w"], "xw"),
            Node::new("Add", ["xw", "b"], "y"),
            Node::new("Sub", ["y", "t"], "e"),
            Node::new("Mul", ["e", "e"], "ee"),
            Node::new("Mul", ["ee", "m"], "mee"),
            Node::new("ReduceMean", ["mee"], "loss").with("keepdims", 0),
            Node::new("Relu", ["other"], "unrelated"),
        ],
        inputs: vec![
            value("x", &[2, 3]),
            value("t", &[2, 1]),
            value("m", &[2, 1]),
            value("unused", &[2, 5]),
        ],
        outputs: vec![value("y", &[2, 1]), value("unrelated", &[2])],
        ..Graph::default()
    };
    let tensors = [
        ("w", Tensor::f32([3, 1], vec![0.5, 0.0, -0.5])),
        ("b", Tensor::f32([1], vec![0.0])),
        ("other", Tensor::f32([2], vec![1.0, 2.0])),
    ];
    for (name, tensor) in tensors {
        graph.initializers.insert(name.into(), tensor.into());
    }
    graph
}

fn shard(number: usize) -> Vec<(String, Tensor)> {
    let x = wild(600)[number % 100 * 6..][..6].to_vec();
    let t = x.chunks(3).map(|x| 2.0 * x[0] - x[2] + 0.25).collect();
    vec![
        ("x".into(), Tensor::f32([2, 3], x)),
        ("t".into(), Tensor::f32([2, 1], t)),
        ("m".into(), Tensor::f32([2, 1], vec![1.0, 0.0])),
    ]
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| n.to_string()).collect()
}

fn trainer(method: Method, threads: usize, average: Option<f64>) -> Trainer {
    let (graph, names) = (regression(), names(&["w", "b"]));
    let step = StepGraph::new(&graph, "loss", &names, &shard(0), &Cancel::new()).unwrap();
    let parameters = Parameters::new(&graph, &names, |name| name == "w").unwrap();
    let settings = Settings {
        learning_rate: 0.1,
        schedule: Schedule::Cosine { steps: 300 },
        warmup_steps: 3,
        weight_decay: 0.0,
        decay: Decay::Decoupled,
    };
    let optimizer = Optimizer::new(method, settings, parameters.len(), vec![]).unwrap();
    let options = TrainOptions { threads, clip_norm: Some(10.0), average };
    Trainer::new(&step, parameters, optimizer, options).unwrap()
}

fn methods() -> [Method; 3] {
    let window = Sliding::new(4, 3, 0.1, Storage::F32, None).unwrap();
    [
        Method::Mfac { window, momentum: 0.5, relative_damping: Some(1.0), diagonal: None },
        Method::Adam { first: 0.9, second: 0.99, epsilon: 1e-8 },
        Method::Sgd { momentum: 0.5 },
    ]
}

fn run(trainer: &mut Trainer, steps: std::ops::Range<usize>) -> f64 {
    let mut loss = 0.0;
    for number in steps {
        let feed = |i| Ok(shard(number * 4 + i));
        loss = trainer.step(4, &feed, &Cancel::new()).unwrap().loss;
    }
    loss
}

#[test]
fn every_optimizer_learns_a_loss_of_the_graphs_own() {
    for (kind, method) in methods().into_iter().enumerate() {
        let mut trainer = trainer(method, 2, None);
        let before = run(&mut trainer, 0..1);
        let after = run(&mut trainer, 1..300);
        assert!(after < 0.05 * before, "optimizer {kind}: {before} -> {after}");
        let (_, w) = trainer.parameters().tensors().next().unwrap();
        let w = w.as_f32().unwrap();
        assert!(w[1] == 0.0, "the zero stays");
        assert!((w[0] - 2.0).abs() < 0.3 && (w[2] + 1.0).abs() < 0.3, "optimizer {kind}: {w:?}");
    }
}

#[test]
fn a_restored_run_goes_on_with_the_same_bits() {
    for (a, b) in methods().into_iter().zip(methods()) {
        let mut through = trainer(a, 1, Some(0.9));
        run(&mut through, 0..7);
        let mut saved = Vec::new();
        through.save(&mut saved).unwrap();
        run(&mut through, 7..20);
        let mut resumed = trainer(b, 3, Some(0.9));
        resumed.restore(&mut &saved[..]).unwrap();
        assert_eq!(resumed.steps(), 7);
        run(&mut resumed, 7..20);
        assert_eq!(through.parameters().flat(), resumed.parameters().flat());
        assert_eq!(through.result().flat(), resumed.result().flat());
        assert_ne!(through.result().flat(), through.parameters().flat());
        let error = resumed.restore(&mut &saved[..saved.len() - 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}

#[test]
fn a_loss_that_makes_no_sense_is_refused() {
    let graph = regression();
    let fails = |loss: &str, trained: &[&str], shard: &[(String, Tensor)]| {
        StepGraph::new(&graph, loss, &names(trained), shard, &Cancel::new()).unwrap_err()
    };
    for (error, words) in [
        (fails("nothing", &["w"], &shard(0)), "\"nothing\""),
        (fails("loss", &["other"], &shard(0)), "does not depend on \"other\""),
        (fails("loss", &["v"], &shard(0)), "no initializer \"v\""),
        (fails("e", &["w"], &shard(0)), "one float32 number"),
        (fails("loss", &["w"], &shard(0)[..2]), "\"m\" of the graph is not fed"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn failures_in_a_worker_stop_the_step() {
    let mut trainer = trainer(Method::Sgd { momentum: 0.0 }, 3, None);
    let before = trainer.parameters().flat().to_vec();
    let broken = |i: usize| {
        let mut shard = shard(i);
        if i == 5 {
            shard[1].1 = Tensor::f32([2, 1], vec![f32::INFINITY; 2]);
        }
        Ok(shard)
    };
    let error = trainer.step(8, &broken, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerics);
    let missing = |i: usize| Ok(shard(i)[..if i == 2 { 1 } else { 3 }].to_vec());
    let error = trainer.step(8, &missing, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Runtime);
    let cancel = Cancel::new();
    cancel.cancel();
    let error = trainer.step(8, &|i| Ok(shard(i)), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(before, trainer.parameters().flat());
}

#[test]
fn targets_of_a_regression_are_fed_as_they_are() {
    let mut graph = regression();
    graph.outputs.truncate(1);
    graph.nodes.truncate(2);
    graph.inputs.truncate(1);
    graph.initializers.remove("other");
    let x = vec![("x".to_string(), Tensor::f32([2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))];
    let prepared = prepare(&graph, &x, &Cancel::new()).unwrap();
    let loss = Loss::SquaredError;
    let objective = Objective::attach(&mut graph, &prepared.facts, Some("y"), loss, None).unwrap();
    let targets = Labels::new(Tensor::f32([2, 1], vec![0.0, 1.0])).unwrap();
    let samples = Samples::from_tensors(x.clone(), Some(targets)).unwrap();
    let mut feeds = x;
    feeds.extend(objective.feeds(&[0, 1], &samples, None).unwrap());
    let names = names(&["w"]);
    let step = StepGraph::new(&graph, objective.loss(), &names, &feeds, &Cancel::new()).unwrap();
    let parameters = Parameters::new(&graph, &names, |_| false).unwrap();
    let mut gradient = vec![0.0; 3];
    let mut workers = Workers::new(&step, 1).unwrap();
    let feed = |_| Ok(feeds.clone());
    let loss = workers.gradient(&parameters, 1, &feed, &mut gradient, &Cancel::new()).unwrap();
    // y = (−1, −1), so the errors are −1 and −2.
    assert_eq!((loss, gradient), (2.5, vec![-9.0, -12.0, -15.0]));
}
