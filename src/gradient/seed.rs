//! What is differentiated: the cotangents that are put on the model's outputs.
//!
//! The backward graph is a vector-Jacobian product Jᵀs; the Fisher's gradients come from the
//! choice of the seed s on the outputs z (before a final softmax):
//!
//! | `--fisher`  | s                                   | F is                                     |
//! |-------------|-------------------------------------|------------------------------------------|
//! | `outputs`   | ε − mean(ε), ε ~ N(0, I)            | Gauss-Newton of the outputs, no labels   |
//! | `gaussian`  | ε ~ N(0, I)                         | the same, for outputs without a softmax  |
//! | `labels`    | softmax(z) − onehot(label)          | the paper's empirical Fisher             |
//! | `sampled`   | softmax(z) − onehot(y), y ~ softmax | the true Fisher, no labels               |
//! | `mse`       | (z − target) / n                    | empirical Fisher of the squared error    |
//! | `scalar`    | 1                                   | that of a loss the model itself computes |

use std::str::FromStr;

use crate::autodiff::{Backward, Facts};
use crate::calibration::{Labels, Samples};
use crate::error::{Error, Result, bail, error};
use crate::onnx::{Graph, Node, Value};
use crate::random::Stream;
use crate::tensor::{ElementType, Tensor, element_count};

/// The kind of gradients that the Fisher is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fisher {
    /// Random cotangents, centred over the classes.
    #[default]
    Outputs,
    /// Random cotangents, as they come.
    Gaussian,
    /// Cross-entropy with the given labels.
    Labels,
    /// Cross-entropy with labels drawn from the model.
    Sampled,
    /// Half the mean squared distance to given targets.
    Mse,
    /// The output itself is the loss.
    Scalar,
}

impl FromStr for Fisher {
    type Err = Error;

    fn from_str(s: &str) -> Result<Fisher> {
        Ok(match s {
            "outputs" => Fisher::Outputs,
            "gaussian" => Fisher::Gaussian,
            "labels" => Fisher::Labels,
            "sampled" => Fisher::Sampled,
            "mse" => Fisher::Mse,
            "scalar" => Fisher::Scalar,
            _ => bail!(
                Usage,
                "unknown kind of Fisher {s:?}: use outputs, gaussian, labels, sampled, mse \
                 or scalar"
            ),
        })
    }
}

impl std::fmt::Display for Fisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fisher::Outputs => "outputs",
            Fisher::Gaussian => "gaussian",
            Fisher::Labels => "labels",
            Fisher::Sampled => "sampled",
            Fisher::Mse => "mse",
            Fisher::Scalar => "scalar",
        })
    }
}

/// The seeds of a graph: where they go and what they are made of.
#[derive(Clone, Debug)]
pub struct Seeding {
    fisher: Fisher,
    places: Vec<Place>,
}

/// A seeded value: logits or outputs.
#[derive(Clone, Debug)]
pub struct Place {
    value: String,
    shape: Vec<usize>,
    /// The class axis.
    axis: usize,
}

/// One sample of a batch: its row among the samples and the number of the draw.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Row of the calibration samples.
    pub row: usize,
    /// Counts the draws of a run; the random numbers of a seed depend on it alone.
    pub number: u64,
}

const NOISE: &str = "hone/noise";
const TARGET: &str = "hone/target";

impl Seeding {
    /// Decides what is seeded. `outputs` names some of the model's outputs, all float ones
    /// if empty.
    pub fn new(
        fisher: Fisher,
        outputs: &[String],
        graph: &Graph,
        facts: &Facts,
    ) -> Result<Seeding> {
        let mut places = Vec::new();
        let is_float = |name: &str| facts.get(name).is_some_and(|f| f.element.is_float());
        for name in outputs {
            if !graph.outputs.iter().any(|o| o.name == *name) {
                bail!(Usage, "the model has no output {name:?}");
            }
            if !is_float(name) {
                bail!(Usage, "output {name:?} is not a float tensor, so it has no gradient");
            }
        }
        let chosen = graph.outputs.iter().map(|o| &o.name);
        let chosen =
            chosen.filter(|n| if outputs.is_empty() { is_float(n) } else { outputs.contains(n) });
        for name in chosen {
            let place = Place::of(name, fisher, graph, facts);
            // Two outputs may be the same logits before and after a softmax.
            if !places.iter().any(|p: &Place| p.value == place.value) {
                places.push(place);
            }
        }
        if places.is_empty() {
            bail!(Unsupported, "the model has no float output to differentiate");
        }
        if matches!(fisher, Fisher::Labels | Fisher::Sampled | Fisher::Mse) && places.len() > 1 {
            bail!(
                Usage,
                "the Fisher of {fisher} needs one output, but the model has {}: name one",
                places.iter().map(|p| format!("{:?}", p.value)).collect::<Vec<_>>().join(", ")
            );
        }
        Ok(Seeding { fisher, places })
    }

    /// The values that receive a seed.
    pub fn values(&self) -> Vec<String> {
        self.places.iter().map(|p| p.value.clone()).collect()
    }

    /// An error when the samples lack the labels or targets that the seeds need.
    pub fn check(&self, samples: &Samples) -> Result<()> {
        let place = &self.places[0];
        match (self.fisher, samples.labels()) {
            (Fisher::Labels, Some(labels @ Labels::Classes(_))) => {
                let positions: usize = place.positions();
                let batch = place.shape[0].max(1);
                let count = labels.tensor().len();
                if count != samples.rows() * positions / batch {
                    bail!(
                        Data,
                        "there are {} labels for {} samples, but output {:?} has {} positions each",
                        count,
                        samples.rows(),
                        place.value,
                        positions / batch
                    );
                }
                labels.check(place.classes())
            }
            (Fisher::Labels, _) => bail!(
                Data,
                "the Fisher of labels needs integer `labels` in the calibration data; that of \
                 outputs (the default) needs none"
            ),
            (Fisher::Mse, Some(Labels::Targets(targets))) => {
                let (have, want) = (&targets.shape()[1..], &place.shape[1..]);
                if element_count(have) != element_count(want) {
                    bail!(Data, "targets have shape {have:?} per sample, the output has {want:?}");
                }
                Ok(())
            }
            (Fisher::Mse, _) => {
                bail!(Data, "the Fisher of mse needs float `targets` in the calibration data")
            }
            _ => Ok(()),
        }
    }

    /// Puts the seeds into the graph; what they need from outside become inputs of it.
    pub fn attach(&self, backward: &mut Backward) -> Result<()> {
        for (value, seed) in backward.seeds.clone() {
            let place = self.places.iter().find(|p| p.value == value);
            let place = place.ok_or_else(|| error!(Model, "nothing seeds {value:?}"))?;
            let graph = &mut backward.graph;
            if !graph.inputs.iter().any(|i| i.name == seed) {
                continue;
            }
            let mut input = |name: &str, shape: &[usize]| {
                let name = format!("{name}/{value}");
                graph.inputs.push(Value::fixed(&name, ElementType::F32, shape));
                name
            };
            let nodes = match self.fisher {
                Fisher::Outputs | Fisher::Gaussian | Fisher::Scalar => continue,
                Fisher::Labels => {
                    let target = input(TARGET, &place.shape);
                    let p = format!("{seed}/softmax");
                    vec![place.softmax(&p), Node::new("Sub", [&p, &target], &seed)]
                }
                Fisher::Sampled => {
                    let noise = input(NOISE, &place.shape);
                    place.sampled(&seed, &noise)
                }
                Fisher::Mse => {
                    let target = input(TARGET, &place.shape);
                    vec![Node::new("Sub", [&value, &target], &seed)]
                }
            };
            graph.inputs.retain(|i| i.name != seed);
            let after = graph.nodes.iter().position(|n| n.outputs.contains(&value));
            let at = after.map_or(0, |i| i + 1);
            graph.nodes.splice(at..at, nodes);
            if let Fisher::Sampled = self.fisher {
                let axes = Tensor::i64([1], vec![place.axis as i64]);
                graph.initializers.insert(format!("{seed}/axes"), axes.into());
            }
        }
        Ok(())
    }

    /// The tensors to feed to the inputs that `attach` left or made, for a batch of draws.
    pub fn feeds(
        &self,
        backward: &Backward,
        draws: &[Draw],
        samples: &Samples,
        seed: u64,
    ) -> Vec<(String, Tensor)> {
        let mut feeds = Vec::new();
        for (number, (value, input)) in backward.seeds.iter().enumerate() {
            let Some(place) = self.places.iter().find(|p| p.value == *value) else { continue };
            let stream = |d: &Draw| Stream::new(seed, (d.number << 8) | number as u64);
            let (name, data) = match self.fisher {
                Fisher::Outputs => (input.clone(), place.normal(draws, stream, true)),
                Fisher::Gaussian => (input.clone(), place.normal(draws, stream, false)),
                Fisher::Scalar => (input.clone(), place.each(draws, |_, out| out.fill(1.0))),
                Fisher::Labels => {
                    (format!("{TARGET}/{value}"), place.one_hot(draws, samples.labels()))
                }
                Fisher::Sampled => {
                    let data = place.each(draws, |d, out| {
                        let mut stream = stream(d);
                        out.iter_mut().for_each(|x| *x = stream.gumbel());
                    });
                    (format!("{NOISE}/{value}"), data)
                }
                Fisher::Mse => {
                    (format!("{TARGET}/{value}"), place.targets(draws, samples.labels()))
                }
            };
            feeds.push((name, Tensor::f32(place.shape.clone(), data)));
        }
        feeds
    }

    /// Feeds that are zero except for sample `sample`: for finding out which gradients are whose.
    pub fn probe(&self, backward: &Backward, sample: usize) -> Vec<(String, Tensor)> {
        let mut feeds = Vec::new();
        for (value, input) in &backward.seeds {
            let Some(place) = self.places.iter().find(|p| p.value == *value) else { continue };
            let mut data = vec![0.0; place.shape.iter().product()];
            let each = data.len() / place.shape.first().copied().unwrap_or(1).max(1);
            let mut stream = Stream::new(0, sample as u64);
            if let Some(part) = data.get_mut(sample * each..(sample + 1) * each) {
                part.iter_mut().for_each(|x| *x = stream.normal());
            }
            feeds.push((input.clone(), Tensor::f32(place.shape.clone(), data)));
        }
        feeds
    }
}

impl Place {
    /// What gradients of this kind seed for `output`: the logits that make its probabilities, or
    /// the output itself.
    pub fn of(output: &str, fisher: Fisher, graph: &Graph, facts: &Facts) -> Place {
        before_softmax(output, fisher, graph, facts)
    }

    /// The name of the value.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Its shape, the batch included.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The axis along which classes lie.
    pub fn axis(&self) -> usize {
        self.axis
    }

    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.shape.get(self.axis).copied().unwrap_or(1)
    }

    /// How many predictions of a class there are, over the whole batch.
    pub fn positions(&self) -> usize {
        self.shape.iter().product::<usize>() / self.classes().max(1)
    }

    /// The class labels of some rows as ones among zeros, in the shape of the value.
    pub fn one_hot_rows(&self, rows: &[usize], labels: &Labels) -> Vec<f32> {
        let draws: Vec<Draw> = rows.iter().map(|&row| Draw { row, number: 0 }).collect();
        self.one_hot(&draws, Some(labels))
    }

    /// Elements of one sample's part, and the distance between two classes within it.
    fn strides(&self) -> (usize, usize) {
        let each = self.shape.iter().skip(1).product();
        (each, self.shape.iter().skip(self.axis + 1).product())
    }

    fn each(&self, draws: &[Draw], mut fill: impl FnMut(&Draw, &mut [f32])) -> Vec<f32> {
        let mut data = vec![0.0; self.shape.iter().product()];
        let (each, _) = self.strides();
        for (draw, out) in draws.iter().zip(data.chunks_mut(each.max(1))) {
            fill(draw, out);
        }
        data
    }

    fn normal(&self, draws: &[Draw], stream: impl Fn(&Draw) -> Stream, centred: bool) -> Vec<f32> {
        let (classes, (_, stride)) = (self.classes(), self.strides());
        self.each(draws, |d, out| {
            let mut stream = stream(d);
            out.iter_mut().for_each(|x| *x = stream.normal());
            if !centred || classes < 2 || self.axis == 0 {
                return;
            }
            for start in (0..out.len()).filter(|i| i / stride % classes == 0) {
                let at = |c: usize| start + c * stride;
                let mean = (0..classes).map(|c| out[at(c)]).sum::<f32>() / classes as f32;
                (0..classes).for_each(|c| out[at(c)] -= mean);
            }
        })
    }

    fn one_hot(&self, draws: &[Draw], labels: Option<&Labels>) -> Vec<f32> {
        let Some(labels) = labels.and_then(Labels::classes) else {
            return self.each(draws, |_, _| ());
        };
        let (classes, (_, stride)) = (self.classes(), self.strides());
        self.each(draws, |d, out| {
            let positions = out.len() / classes;
            for (p, &label) in labels[d.row * positions..][..positions].iter().enumerate() {
                let start = p / stride * stride * classes + p % stride;
                out[start + label as usize * stride] = 1.0;
            }
        })
    }

    fn targets(&self, draws: &[Draw], labels: Option<&Labels>) -> Vec<f32> {
        let Some(Labels::Targets(targets)) = labels else { return self.each(draws, |_, _| ()) };
        let targets = targets.as_f32().unwrap_or_default();
        self.each(draws, |d, out| {
            let each = out.len();
            out.copy_from_slice(&targets[d.row * each..][..each]);
        })
    }

    fn softmax(&self, output: &str) -> Node {
        Node::new("Softmax", [&self.value], output).with("axis", self.axis as i64)
    }

    /// softmax(z) − onehot(argmax(z + Gumbel noise)): the argmax is a sample of the softmax.
    fn sampled(&self, seed: &str, noise: &str) -> Vec<Node> {
        let name = |part: &str| format!("{seed}/{part}");
        let (p, noisy, most) = (name("softmax"), name("noisy"), name("most"));
        let (is, drawn) = (name("is"), name("drawn"));
        vec![
            self.softmax(&p),
            Node::new("Add", [self.value.as_str(), noise], &noisy),
            Node::new("ReduceMax", [&noisy, &name("axes")], &most).with("keepdims", 1),
            Node::new("Equal", [&noisy, &most], &is),
            Node::new("Cast", [&is], &drawn).with("to", i64::from(ElementType::F32.to_onnx())),
            Node::new("Sub", [&p, &drawn], seed),
        ]
    }
}

/// Walks from an output back over the softmax that makes probabilities of its logits.
fn before_softmax(output: &str, fisher: Fisher, graph: &Graph, facts: &Facts) -> Place {
    let producers = graph.producers();
    let (mut value, mut axis) = (output, None);
    while let Some(&i) =
        producers.get(value).filter(|_| fisher != Fisher::Scalar && fisher != Fisher::Mse)
    {
        let node = &graph.nodes[i];
        let Some(input) = node.input(0).filter(|_| node.domain.is_empty()) else { break };
        let float = facts.get(input).is_some_and(|f| f.element.is_float());
        match node.op.as_str() {
            "Identity" | "Cast" if float => (),
            "Softmax" | "LogSoftmax" if axis.is_none() => {
                axis = Some(node.int("axis").unwrap_or(-1))
            }
            // A saturated sigmoid hides the gradient just as a saturated softmax does.
            "Sigmoid" if matches!(fisher, Fisher::Outputs | Fisher::Gaussian) => (),
            _ => break,
        }
        value = input;
    }
    let shape = facts.get(value).map(|f| f.shape.clone()).unwrap_or_default();
    let rank = shape.len();
    let axis = match axis {
        Some(a) if a < 0 => rank.saturating_sub(a.unsigned_abs() as usize),
        Some(a) => (a as usize).min(rank.saturating_sub(1)),
        // [N, K] and [N, K, H, W] have their classes at 1, sequences [N, T, K] last.
        None if rank == 3 => 2,
        None => 1.min(rank.saturating_sub(1)),
    };
    Place { value: value.into(), shape, axis }
}
