//! Giving the outputs of pruned layers their old mean and variance back.
//!
//! A quadratic model of the loss with a block-diagonal Fisher cannot see that thousands of small
//! errors add up along the depth of a net: signals fade layer by layer and the next layers see
//! inputs they were not trained on. So every output channel y of a pruned layer is mapped to
//! s·y + t with s = σ/σ′ and t = μ − s·μ′, where μ, σ are the channel's mean and deviation in the
//! dense model and μ′, σ′ those in the pruned one (what re-estimating BatchNorm would do). The map
//! goes into the weights (s) and the bias (t): no node and no weight is added.
//!
//! One pass suffices whatever the depth: the graph that measures normalises each channel with the
//! statistics of its own batch before it goes on, so every layer is measured behind corrected
//! ones.

use std::collections::HashMap;

use crate::calibration::Samples;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::evaluate::{RunOptions, Runner};
use crate::gradient::parameters::Parameter;
use crate::gradient::prepare::Prepared;
use crate::onnx::{Dimension, Graph, Node};
use crate::tensor::{ElementType, Tensor};

/// Samples per batch: the statistics of a batch stand for those of all samples.
pub const BATCH: usize = 128;
/// As many samples as are measured: four batches of them.
pub const SAMPLES: usize = 512;
/// Batches measured at the same time at most. A constant, because the memory limit divided by it
/// bounds the batch, and results may not depend on the number of threads.
pub const AT_ONCE: usize = SAMPLES / BATCH;
/// Fewer samples than this say too little about a variance.
const FEWEST: usize = 32;
/// A channel is not amplified by more than this: what has faded that far is noise.
const LARGEST_SCALE: f64 = 8.0;

/// Channels whose statistics can be set: the output of a pruned product and where its bias is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The index of the parameter.
    pub parameter: usize,
    /// The value whose channels are measured.
    value: String,
    /// Its number of axes and the one that counts channels.
    rank: usize,
    axis: usize,
    channels: usize,
    bias: Bias,
}

/// Where a constant can be added to each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Bias {
    /// The initializer.
    pub name: String,
    /// What adding t to the output adds to the initializer, as a multiple of t.
    factor: f64,
    /// Whether the initializer is inside the map (a bias) or behind it (the mean of a BatchNorm).
    inside: bool,
}

/// The new scale and shift of each channel of each place.
pub type Maps = Vec<Vec<(f64, f64)>>;

/// Mean and variance of each channel of each place.
pub type Moments = Vec<Vec<(f64, f64)>>;

/// The places of `graph` where statistics can be set; `adjustable` says which initializers may be
/// changed.
pub fn places(
    graph: &Graph,
    prepared: &Prepared,
    parameters: &[Parameter],
    adjustable: impl Fn(&str) -> bool,
) -> Vec<Place> {
    let (uses, producers) = (graph.uses(), graph.producers());
    let mut places = Vec::new();
    for (number, parameter) in parameters.iter().enumerate() {
        // A weight that several products share cannot be scaled for one of them.
        let [only] = parameter.uses.as_slice() else { continue };
        let Some(output) = prepared.graph.nodes[only.slot.node].output(0) else { continue };
        let Some(&index) = producers.get(output) else { continue };
        let channels = parameter.range.len() / parameter.row;
        let node = &graph.nodes[index];
        let only_reader = match uses.get(output).map(Vec::as_slice) {
            Some(&[(reader, slot)]) if graph.outputs.iter().all(|o| o.name != output) => {
                Some((&graph.nodes[reader], slot))
            }
            _ => None,
        };
        let free = |name: &str| {
            let held = graph.initializers.get(name);
            adjustable(name)
                && uses.get(name).is_some_and(|u| u.len() == 1)
                && held.is_some_and(|t| t.len() == channels && t.element_type() == ElementType::F32)
        };
        let Some((value, bias)) = bias_of(node, only_reader, free) else { continue };
        let Some(rank) = prepared.facts.get(&value).map(|f| f.shape.len()) else { continue };
        let axis = if node.op == "MatMul" { rank - 1 } else { 1 };
        if prepared.facts[&value].shape.get(axis) == Some(&channels) {
            places.push(Place { parameter: number, value, rank, axis, channels, bias });
        }
    }
    places
}

/// The value behind a product's bias, and the bias.
fn bias_of(
    node: &Node,
    only_reader: Option<(&Node, usize)>,
    free: impl Fn(&str) -> bool,
) -> Option<(String, Bias)> {
    let bias = |name: &str, factor: f64, inside: bool| {
        free(name).then(|| Bias { name: name.into(), factor, inside })
    };
    let output = node.output(0)?.to_string();
    match (node.op.as_str(), node.input(2)) {
        ("Conv" | "ConvTranspose", Some(b)) => Some((output, bias(b, 1.0, true)?)),
        ("Conv" | "ConvTranspose", None) => {
            let (reader, slot) = only_reader?;
            let batch_norm = reader.op == "BatchNormalization" && slot == 0;
            let mean = reader.input(3).filter(|_| batch_norm)?;
            Some((output, bias(mean, -1.0, false)?))
        }
        ("Gemm", Some(c)) => {
            let beta = f64::from(node.float("beta").unwrap_or(1.0));
            Some((output, bias(c, 1.0 / beta, true).filter(|_| beta != 0.0)?))
        }
        ("MatMul", None) => {
            let (reader, slot) =
                only_reader.filter(|(r, _)| r.op == "Add" && r.domain.is_empty())?;
            let value = reader.output(0)?.to_string();
            Some((value, bias(reader.input(1 - slot)?, 1.0, true)?))
        }
        _ => None,
    }
}

/// Mean and variance of the channels of the dense model.
pub fn dense(
    graph: &Graph,
    places: &[Place],
    samples: &Samples,
    batch: usize,
    options: RunOptions,
    cancel: &Cancel,
) -> Result<Moments> {
    measure(graph, places, None, samples, batch, options, cancel)
}

/// The maps that give the channels of `graph` the moments `target`.
pub fn maps(
    graph: &Graph,
    places: &[Place],
    target: &Moments,
    samples: &Samples,
    batch: usize,
    options: RunOptions,
    cancel: &Cancel,
) -> Result<Maps> {
    let now = measure(graph, places, Some(target), samples, batch, options, cancel)?;
    let map = |(&(mean, variance), &(old_mean, old_variance)): (&(f64, f64), &(f64, f64))| {
        let (deviation, old) = (variance.max(0.0).sqrt(), old_variance.max(0.0).sqrt());
        // A channel that is constant has no scale to restore.
        let scale = if deviation > f64::EPSILON * old { old / deviation } else { 1.0 };
        let scale = scale.min(LARGEST_SCALE);
        (scale, old_mean - scale * mean)
    };
    Ok(now.iter().zip(target).map(|(now, old)| now.iter().zip(old).map(map).collect()).collect())
}

/// Applies maps to weights in canonical order and to biases by name.
pub fn apply(
    maps: &Maps,
    places: &[Place],
    parameters: &[Parameter],
    weights: &mut [f32],
    biases: &mut HashMap<String, Vec<f32>>,
) {
    for (map, place) in maps.iter().zip(places) {
        let p = &parameters[place.parameter];
        for (row, &(scale, _)) in weights[p.range.clone()].chunks_mut(p.row).zip(map) {
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
        }
        let bias = biases.get_mut(&place.bias.name).expect("every place's bias was read");
        for (b, &(scale, shift)) in bias.iter_mut().zip(map) {
            let old = f64::from(*b) * if place.bias.inside { scale } else { 1.0 };
            *b = (old + shift * place.bias.factor) as f32;
        }
    }
}

impl Place {
    /// The bias that moves.
    pub fn bias(&self) -> &str {
        &self.bias.name
    }
}

/// How many samples to measure at once: none where the model is fixed to few.
pub fn batch(samples: &Samples, most: usize) -> Option<usize> {
    let batch = BATCH.min(samples.rows()).min(most);
    (batch >= FEWEST).then_some(batch)
}

/// Mean and variance of every place; with a `target`, each place is brought to it within the batch
/// before the graph goes on.
fn measure(
    graph: &Graph,
    places: &[Place],
    target: Option<&Moments>,
    samples: &Samples,
    batch: usize,
    options: RunOptions,
    cancel: &Cancel,
) -> Result<Moments> {
    let mut graph = graph.clone();
    for input in &mut graph.inputs {
        // A declared batch is only a promise of the exporter; where the graph depends on it, the
        // run fails and the caller leaves the statistics alone.
        if let Some(axis) = input.shape.as_mut().and_then(|s| s.first_mut()) {
            *axis = Dimension::Symbol(String::new());
        }
    }
    let mut values = Vec::new();
    for (i, place) in places.iter().enumerate() {
        values.extend(instrument(&mut graph, i, place, target.map(|t| t[i].as_slice())));
    }
    let options = RunOptions { threads: options.threads.min(AT_ONCE), ..options };
    let mut runner = Runner::with_batch(&graph, &values, options, batch)?;
    let batches = runner.run(samples, cancel, |_, outputs| {
        Ok(outputs.iter().map(Tensor::to_f64).collect::<Vec<_>>())
    })?;
    let count = batches.len() as f64;
    let mut moments = Vec::new();
    for i in 0..places.len() {
        let channels = batches[0][2 * i].len();
        let mean_of =
            |f: &dyn Fn(&[Vec<f64>]) -> f64| batches.iter().map(|b| f(b)).sum::<f64>() / count;
        let channel = |c: usize| {
            let mean = mean_of(&|b| b[2 * i][c]);
            // Within the batches and between them.
            let variance = mean_of(&|b| b[2 * i + 1][c] + (b[2 * i][c] - mean).powi(2));
            (mean, variance)
        };
        moments.push((0..channels).map(channel).collect());
    }
    Ok(moments)
}

/// Inserts nodes behind a place that measure its channels and, given a target, give them the
/// target's moments: value = raw · s + t. Returns the names of mean and variance.
fn instrument(
    graph: &mut Graph,
    number: usize,
    place: &Place,
    target: Option<&[(f64, f64)]>,
) -> [String; 2] {
    let name = |part: &str| format!("hone/statistics/{number}/{part}");
    let at = graph.nodes.iter().position(|n| n.outputs.contains(&place.value));
    let at = at.expect("a place is the output of a node");
    let outputs = graph.nodes[at].outputs.iter_mut();
    outputs.filter(|o| **o == place.value).for_each(|o| *o = name("raw"));
    let mut nodes = Vec::new();
    let mut add = |op: &str, inputs: &[&str], output: &str| {
        let inputs: Vec<String> = inputs.iter().map(|i| name(i)).collect();
        let node = Node::new(op, inputs, name(output));
        nodes.push(if op == "ReduceMean" { node.with("keepdims", 1) } else { node });
    };
    add("ReduceMean", &["raw", "axes"], "mean");
    add("Sub", &["raw", "mean"], "centred");
    add("Mul", &["centred", "centred"], "square");
    add("ReduceMean", &["square", "axes"], "variance");
    if target.is_some() {
        add("Max", &["variance", "least"], "positive");
        add("Sqrt", &["positive"], "deviation");
        add("Div", &["old deviation", "deviation"], "ratio");
        add("Min", &["ratio", "most"], "scale");
        add("Mul", &["centred", "scale"], "scaled");
        add("Add", &["scaled", "old mean"], "value");
    }
    let value = name(if target.is_some() { "value" } else { "raw" });
    nodes.push(Node::new("Identity", [value], &place.value));
    graph.nodes.splice(at + 1..at + 1, nodes);
    let others: Vec<i64> = (0..place.rank as i64).filter(|&a| a != place.axis as i64).collect();
    let mut constants = vec![("axes", Tensor::i64([others.len()], others))];
    if let Some(target) = target {
        let mut shape = vec![1; place.rank];
        shape[place.axis] = place.channels;
        let column = |f: &dyn Fn(&(f64, f64)) -> f64| {
            Tensor::f32(shape.clone(), target.iter().map(|t| f(t) as f32).collect())
        };
        constants.push(("old mean", column(&|t| t.0)));
        constants.push(("old deviation", column(&|t| t.1.max(0.0).sqrt())));
        constants.push(("least", Tensor::f32([], vec![f32::MIN_POSITIVE])));
        constants.push(("most", Tensor::f32([], vec![LARGEST_SCALE as f32])));
    }
    graph.initializers.extend(constants.into_iter().map(|(n, t)| (name(n), t.into())));
    [name("mean"), name("variance")]
}
