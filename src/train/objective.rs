//! The usual losses as nodes of the graph that end in one number L, the mean over a shard.
//!
//! | loss             | L                                                                       |
//! |------------------|-------------------------------------------------------------------------|
//! | cross-entropy    | −1/n Σ t·log softmax(z), t one-hot, n positions                          |
//! | squared error    | 1/n Σ (y − t)², n elements                                               |
//! | distillation     | (1 − a)·L_labels + a·L_teacher, with                                     |
//! | … of classes     | L_teacher = T²/n Σ q·(log q − log softmax(z/T)), q = softmax(z_teacher/T) |
//! | … of regressions | L_teacher = 1/n Σ (y − y_teacher)²                                       |
//!
//! z are the logits: what a final softmax of the model reads. Targets and the teacher's outputs
//! come in through inputs of their own.

use std::sync::Arc;

use crate::autodiff::Facts;
use crate::calibration::{Labels, Samples};
use crate::error::{Result, bail, error};
use crate::gradient::seed::{Fisher, Place};
use crate::onnx::graph::Names;
use crate::onnx::{Graph, Node, Value};
use crate::tensor::{Data, ElementType, Tensor};

/// How far outputs are from what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Cross-entropy over classes.
    CrossEntropy,
    /// Mean squared error.
    SquaredError,
}

/// Learning from the outputs of another model, the teacher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// T, by which the logits of both are divided.
    pub temperature: f64,
    /// a, the share of the teacher in the loss, in 0..=1; with 1 no labels are needed.
    pub weight: f64,
}

impl Distillation {
    /// An error of kind `Usage` for a temperature or weight out of its range.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            bail!(Usage, "the temperature must be positive, not {}", self.temperature);
        }
        if !(0.0..=1.0).contains(&self.weight) {
            bail!(Usage, "the teacher's share must be from 0 to 1, not {}", self.weight);
        }
        Ok(())
    }
}

/// A loss in a graph, and what it wants to be fed.
#[derive(Clone, Debug)]
pub struct Objective {
    kind: Loss,
    place: Place,
    loss: String,
    /// The input for one-hot labels or targets.
    target: Option<String>,
    /// The input for the teacher's logits or outputs.
    teacher: Option<String>,
}

impl Objective {
    /// Appends the loss of `output` (the only float output when `None`) to `graph`, whose shapes
    /// `facts` knows at the size of a shard.
    ///
    /// Errors: `Usage` for an output that is not there or not named among several.
    pub fn attach(
        graph: &mut Graph,
        facts: &Facts,
        output: Option<&str>,
        loss: Loss,
        distillation: Option<Distillation>,
    ) -> Result<Objective> {
        let place = judged(graph, facts, output, loss)?;
        if let Some(d) = &distillation {
            d.check()?;
        }
        let mut build = Build { names: Names::of(graph), graph };
        let share = distillation.map_or(0.0, |d| d.weight);
        let mut terms = Vec::new();
        let input = |build: &mut Build, name: &str| {
            let name = build.names.fresh(name);
            build.graph.inputs.push(Value::fixed(&name, ElementType::F32, place.shape()));
            name
        };
        let target = (share < 1.0).then(|| input(&mut build, "hone/target"));
        if let Some(target) = &target {
            let term = match loss {
                Loss::CrossEntropy => build.cross_entropy(&place, target),
                Loss::SquaredError => build.squared_error(&place, target),
            };
            terms.push(build.scale(&term, 1.0 - share));
        }
        let teacher = (share > 0.0).then(|| input(&mut build, "hone/teacher"));
        if let (Some(teacher), Some(d)) = (&teacher, distillation) {
            let term = match loss {
                Loss::CrossEntropy => build.divergence(&place, teacher, d.temperature),
                Loss::SquaredError => build.squared_error(&place, teacher),
            };
            terms.push(build.scale(&term, share));
        }
        let sum = match terms.as_slice() {
            [one] => one.clone(),
            [a, b] => build.node("Add", &[a, b]),
            _ => unreachable!("labels, teacher or both have a share"),
        };
        graph.outputs.push(Value::named(&sum));
        Ok(Objective { kind: loss, place, loss: sum, target, teacher })
    }

    /// The value that is the loss, for [`super::StepGraph::new`].
    pub fn loss(&self) -> &str {
        &self.loss
    }

    /// The value that the loss judges: logits or outputs.
    pub fn judged(&self) -> &str {
        self.place.value()
    }

    /// Its shape at the size of a shard.
    pub fn judged_shape(&self) -> &[usize] {
        self.place.shape()
    }

    /// An error of kind `Data` when the samples lack the labels or targets that the loss needs, or
    /// when these do not fit.
    pub fn check(&self, samples: &Samples) -> Result<()> {
        let (shape, value) = (self.place.shape(), self.place.value());
        let rows = shape.first().copied().unwrap_or(1).max(1);
        let want = match (&self.target, self.kind) {
            (None, _) => return Ok(()),
            (_, Loss::CrossEntropy) => self.place.positions() / rows,
            (_, Loss::SquaredError) => shape.iter().product::<usize>() / rows,
        };
        let Some(labels) = samples.labels() else {
            bail!(
                Data,
                "the samples have no `labels` (or `targets`) to learn from; learn from another \
                 model alone by distillation with a weight of 1"
            );
        };
        let have = labels.tensor().len() / labels.rows();
        match (self.kind, labels) {
            (Loss::CrossEntropy, Labels::Targets(_)) => {
                bail!(Data, "cross-entropy needs integer `labels`, but these are float targets")
            }
            (Loss::SquaredError, Labels::Classes(_)) => {
                bail!(Data, "the squared error needs float `targets`, but these are class labels")
            }
            _ if have != want => {
                bail!(Data, "there are {have} labels per sample, but {value:?} calls for {want}")
            }
            (Loss::CrossEntropy, _) => labels.check(self.place.classes()),
            (Loss::SquaredError, _) => Ok(()),
        }
    }

    /// Whether labels or targets of the samples are needed.
    pub fn needs_labels(&self) -> bool {
        self.target.is_some()
    }

    /// The inputs of the loss for some rows of the samples, whose labels fit (see
    /// [`Objective::check`]); `teacher` holds what the teacher says of these
    /// rows, if it has a share.
    pub fn feeds(
        &self,
        rows: &[usize],
        samples: &Samples,
        teacher: Option<Tensor>,
    ) -> Result<Vec<(String, Tensor)>> {
        let mut feeds = Vec::new();
        if let Some(target) = &self.target {
            let data = match samples.labels() {
                Some(labels @ Labels::Classes(_)) => self.place.one_hot_rows(rows, labels),
                Some(Labels::Targets(targets)) => targets.take_rows(rows).to_f32(),
                None => bail!(Data, "the loss needs labels, but the samples have none"),
            };
            feeds.push((target.clone(), Tensor::new(self.place.shape(), Data::F32(data))?));
        }
        if let Some(name) = &self.teacher {
            let teacher = teacher.ok_or_else(|| error!(Usage, "the teacher's outputs are missing"));
            feeds.push((name.clone(), teacher?.reshaped(self.place.shape())?));
        }
        Ok(feeds)
    }
}

/// The value that a loss of `output` judges: its logits for classes, else itself.
pub fn judged(graph: &Graph, facts: &Facts, output: Option<&str>, loss: Loss) -> Result<Place> {
    let float = |name: &str| facts.get(name).is_some_and(|f| f.element.is_float());
    let name = match output {
        Some(name) if !graph.outputs.iter().any(|o| o.name == name) => {
            bail!(Usage, "the model has no output {name:?}")
        }
        Some(name) if !float(name) => bail!(Usage, "output {name:?} is not a float tensor"),
        Some(name) => name,
        None => {
            let mut floats = graph.outputs.iter().map(|o| o.name.as_str()).filter(|o| float(o));
            match (floats.next(), floats.next()) {
                (Some(only), None) => only,
                (None, _) => bail!(Unsupported, "the model has no float output to train on"),
                (Some(a), Some(b)) => bail!(
                    Usage,
                    "the model has several float outputs ({a:?}, {b:?}, ...): name the one to \
                     train on"
                ),
            }
        }
    };
    let fisher = match loss {
        Loss::CrossEntropy => Fisher::Labels,
        Loss::SquaredError => Fisher::Mse,
    };
    Ok(Place::of(name, fisher, graph, facts))
}

/// Appends nodes under fresh names.
struct Build<'a> {
    names: Names,
    graph: &'a mut Graph,
}

impl Build<'_> {
    fn node(&mut self, op: &str, inputs: &[&str]) -> String {
        self.add(Node::new(op, inputs.iter().copied(), ""))
    }

    fn add(&mut self, mut node: Node) -> String {
        let name = self.names.fresh(&format!("hone/loss/{}", node.op));
        node.outputs = vec![name.clone()];
        self.graph.nodes.push(node);
        name
    }

    fn constant(&mut self, value: f64) -> String {
        let name = self.names.fresh("hone/loss/constant");
        self.graph.initializers.insert(name.clone(), Arc::new(Tensor::scalar(value as f32)));
        name
    }

    fn scale(&mut self, x: &str, factor: f64) -> String {
        if factor == 1.0 {
            return x.into();
        }
        let factor = self.constant(factor);
        self.node("Mul", &[x, &factor])
    }

    fn sum(&mut self, x: &str) -> String {
        self.add(Node::new("ReduceSum", [x], "").with("keepdims", 0))
    }

    /// −1/n Σ t·log softmax(z).
    fn cross_entropy(&mut self, place: &Place, target: &str) -> String {
        let log = Node::new("LogSoftmax", [place.value()], "").with("axis", place.axis() as i64);
        let log = self.add(log);
        let terms = self.node("Mul", &[target, &log]);
        let sum = self.sum(&terms);
        self.scale(&sum, -1.0 / place.positions() as f64)
    }

    /// 1/n Σ (y − t)².
    fn squared_error(&mut self, place: &Place, target: &str) -> String {
        let difference = self.node("Sub", &[place.value(), target]);
        let square = self.node("Mul", &[&difference, &difference]);
        let sum = self.sum(&square);
        self.scale(&sum, 1.0 / place.shape().iter().product::<usize>().max(1) as f64)
    }

    /// T²/n Σ q·(log q − log softmax(z/T)).
    fn divergence(&mut self, place: &Place, teacher: &str, temperature: f64) -> String {
        let axis = place.axis() as i64;
        let mut log = |z: &str| {
            let tempered = self.scale(z, 1.0 / temperature);
            self.add(Node::new("LogSoftmax", [tempered], "").with("axis", axis))
        };
        let (log_q, log_p) = (log(teacher), log(place.value()));
        let q = self.node("Exp", &[&log_q]);
        let difference = self.node("Sub", &[&log_q, &log_p]);
        let terms = self.node("Mul", &[&q, &difference]);
        let sum = self.sum(&terms);
        self.scale(&sum, temperature * temperature / place.positions() as f64)
    }
}
