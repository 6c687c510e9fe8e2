//! Pruning a marginalization model by its own losses, and what that does to its answers.
//!
//! φ is trained on the any-order loss E_S Σ_{i∉S} −log p_φ(x_i | x_S) / |not S|, θ on the squares
//! ½ (f_θ(x_S) − log p_φ(x_S))² of subsets of every size. [`loss`] makes both into a graph and
//! samples, masked rows; [`crate::prune`] does the rest as for any model. A pruned file differs
//! from the dense one in the pruned tensors, what moved with them, and what its metadata say of
//! log Z and of quality. [`compare`] measures bits per dimension by φ and the error of θ's
//! marginals.

mod compare;
mod loss;

use std::collections::HashMap;
use std::sync::Arc;

use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::mam::contract::{Contract, Kind, LOG_P, LOGITS};
use crate::mam::half::{LoadOptions, part};
use crate::mam::model::Mam;
use crate::mam::rows::Rows;
use crate::onnx::{Graph, Model, import};
use crate::progress::Progress;
use crate::prune::{self, Method, Pruned, compress};
use crate::tensor::Tensor;

pub use compare::{Comparison, Reference, SUBSETS, SizeClass};
pub use loss::Loss;

/// What a file says of its quality, which pruning changes.
const STALE: [&str; 4] = ["nll_bits", "marginal_rms", "consistency_rms", "consistency_n"];

/// How to prune a model.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// How each half is pruned; `fisher` and `outputs` are chosen by `loss`.
    pub prune: prune::Options,
    /// Which gradients.
    pub loss: Loss,
}

/// A pruned half.
#[derive(Clone, Debug, PartialEq)]
pub struct PrunedHalf {
    /// Its output; of halves that share weights, both.
    pub output: String,
    /// Weights that could be pruned.
    pub weights: u64,
    /// How many of them are zero.
    pub zeros: u64,
    /// ½ δᵀFδ over all stages, without damping; none for magnitude.
    pub predicted_loss: Option<f64>,
}

/// Prunes each half of a model, given as one file or the two of a pair, to `options`' sparsity.
/// `dense` is the same model, loaded; `rows` are what it was trained on or like it, of which the
/// masked rows are made.
///
/// Errors: `Unsupported` for kind `ordered`, `Data` for rows that do not fit the model, and those
/// of [`compress`].
pub fn prune(
    models: &[Model],
    dense: &Mam,
    rows: &Rows,
    options: &PruneOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(Vec<Model>, Vec<PrunedHalf>)> {
    let (mut pruned, mut halves) = (Vec::new(), Vec::new());
    for model in models {
        let job = Job { dense, rows, options, progress, cancel };
        let (model, own) = job.run(model).context(|| model.name())?;
        pruned.push(model);
        halves.extend(own);
    }
    let load = LoadOptions { threads: options.prune.threads, ..LoadOptions::default() };
    let mam = Mam::from_models(&pruned, load, cancel)?;
    for model in &mut pruned {
        set(model, "log_z", Contract::read(model)?.log_z.and(mam.log_z()));
        STALE.iter().for_each(|key| set(model, key, None));
    }
    Ok((pruned, halves))
}

/// Sets an entry `mam.key` of the metadata, or removes it.
pub fn set(model: &mut Model, key: &str, value: Option<f64>) {
    let (key, props) = (format!("mam.{key}"), &mut model.proto.metadata_props);
    let at = props.iter().position(|p| p.key.as_deref() == Some(&key));
    match (at, value) {
        (Some(at), None) => drop(props.remove(at)),
        (Some(at), Some(value)) => props[at].value = Some(value.to_string()),
        (None, Some(value)) => {
            let mut entry = crate::onnx::proto::StringStringEntryProto::default();
            (entry.key, entry.value) = (Some(key), Some(value.to_string()));
            props.push(entry);
        }
        (None, None) => {}
    }
}

/// The pruning of one file.
struct Job<'a> {
    dense: &'a Mam,
    rows: &'a Rows,
    options: &'a PruneOptions,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Job<'_> {
    fn run(&self, model: &Model) -> Result<(Model, Vec<PrunedHalf>)> {
        let contract = Contract::read(model)?;
        let graph = import(model)?;
        contract.check_graph(&graph)?;
        if contract.kind == Kind::Ordered {
            bail!(
                Unsupported,
                "a model of kind ordered has no any-order loss; `hone prune` prunes its file as \
                 any other's, which keeps the metadata"
            );
        }
        let source = Graph::from_model(model)?;
        let readers = source.uses();
        let adjustable = |name: &str| {
            source.initializers.contains_key(name)
                && readers.get(name).is_some_and(|u| u.len() == 1)
        };
        let mut result = model.clone();
        let mut halves = Vec::new();
        for outputs in separable(&graph, &contract) {
            let label = outputs.join(" + ");
            let half = part(&graph, &outputs);
            let task = loss::Task {
                contract: &contract,
                dense: self.dense,
                options: self.options,
                cancel: self.cancel,
            };
            let (lossy, samples, options) = task.prepare(&half, &outputs, self.rows)?;
            let named = Named { name: &label, progress: self.progress };
            let pruned = compress(&lossy, adjustable, &samples, &options, &named, self.cancel)
                .context(|| label.clone())?;
            for (name, tensor) in pruned.tensors.iter().chain(&pruned.biases) {
                let file = source.initializers.get(name).unwrap_or(&graph.initializers[name]);
                result.replace_tensor(name, &tensor.to_floats(file.element_type())?)?;
            }
            halves.push(of_half(label, &pruned, options.method));
        }
        Ok((result, halves))
    }
}

/// Which outputs are pruned together: each for itself, unless they share weights.
fn separable(graph: &Graph, contract: &Contract) -> Vec<Vec<&'static str>> {
    let outputs = contract.kind.outputs();
    let weights = |output: &'static str| -> HashMap<String, Arc<Tensor>> {
        let half = part(graph, &[output]);
        let large = |t: &Tensor| t.element_type().is_float() && t.shape().len() > 1;
        half.initializers.into_iter().filter(|(_, t)| large(t)).collect()
    };
    match outputs {
        [a, b] if weights(a).keys().any(|name| weights(b).contains_key(name)) => {
            vec![outputs.to_vec()]
        }
        _ => outputs.iter().map(|&o| vec![o]).collect(),
    }
}

fn of_half(output: String, pruned: &Pruned, method: Method) -> PrunedHalf {
    let zeros = |t: &Tensor| t.to_f32().iter().filter(|w| **w == 0.0).count() as u64;
    PrunedHalf {
        output,
        weights: pruned.tensors.iter().map(|(_, t)| t.len() as u64).sum(),
        zeros: pruned.tensors.iter().map(|(_, t)| zeros(t)).sum(),
        predicted_loss: (method == Method::MFac).then(|| pruned.predicted_loss.iter().sum()),
    }
}

/// Progress with the name of the half in front of what is done.
struct Named<'a> {
    name: &'a str,
    progress: &'a dyn Progress,
}

impl Progress for Named<'_> {
    fn begin(&self, phase: &str, total: u64) {
        self.progress.begin(&format!("{}: {phase}", self.name), total);
    }

    fn advance(&self, done: u64) {
        self.progress.advance(done);
    }

    fn say(&self, line: &str) {
        self.progress.say(line);
    }
}

/// Whether an output is θ's.
fn is_theta(output: &str) -> bool {
    debug_assert!([LOG_P, LOGITS].contains(&output));
    output == LOG_P
}
