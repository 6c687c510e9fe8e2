//! The losses of φ and θ as a graph and samples for [`crate::prune`].
//!
//! A sample is a row of data of which a random subset S of random size is known. φ's graph returns
//! z_i · w_i with w_i = 1/√|not S| at the sites that were erased and 0 at all others, so that the
//! gradients of known sites, where logits mean nothing, vanish and each size of S counts the same:
//! Σ_i w_i² Jᵢᵀ Jᵢ is the Gauss-Newton matrix of the loss that is a mean over the erased sites.

use std::sync::Arc;

use crate::calibration::{Labels, Samples};
use crate::cancel::Cancel;
use crate::error::{Context, Result, bail, error};
use crate::gradient::seed::Fisher;
use crate::mam::adapt::symbolic;
use crate::mam::chain::{Orders, Split};
use crate::mam::contract::{Contract, INPUT, KNOWN, LOGITS};
use crate::mam::model::Mam;
use crate::mam::prune::{PruneOptions, is_theta};
use crate::mam::rows::{Rows, known_sites};
use crate::onnx::graph::Names;
use crate::onnx::{Graph, Node};
use crate::prune;
use crate::random::Stream;
use crate::tensor::{Data, ElementType, Tensor};

/// Which gradients the Fisher is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// Random cotangents on f_θ and on the logits of erased sites, there centred over the values:
    /// how far the outputs move.
    #[default]
    Outputs,
    /// φ: cross-entropy with values drawn from φ itself. θ: as [`Loss::Outputs`], which is the
    /// Fisher of a regression with normal errors.
    Sampled,
    /// The losses of training: φ: cross-entropy with the values that were erased; θ: the squared
    /// distance to what φ says of the row.
    Training,
}

/// The most masked rows, and the most of their cells.
const MOST_ROWS: usize = 1 << 14;
const MOST_CELLS: usize = 1 << 25;

/// The streams of masks, away from those of draws.
const STREAM: u64 = 4 << 40;

/// The logit of a value that a site does not have.
const IMPOSSIBLE: f32 = -1e4;

/// What samples are made of.
pub(super) struct Task<'a> {
    pub contract: &'a Contract,
    pub dense: &'a Mam,
    pub options: &'a PruneOptions,
    pub cancel: &'a Cancel,
}

/// A masked row.
struct Masked {
    row: Vec<i32>,
    /// Sites that were erased, and their values.
    erased: Vec<(usize, i32)>,
}

impl Task<'_> {
    /// The graph of the losses of `outputs`, its samples, and how to prune it.
    pub fn prepare(
        &self,
        half: &Graph,
        outputs: &[&str],
        rows: &Rows,
    ) -> Result<(Graph, Samples, prune::Options)> {
        let loss = self.options.loss;
        if outputs.len() > 1 && loss != Loss::Outputs {
            bail!(
                Usage,
                "θ and φ share weights, so they are pruned together, which goes with random \
                 cotangents (outputs) only"
            );
        }
        let theta_only = outputs.iter().all(|o| is_theta(o));
        let fisher = match (loss, theta_only, outputs.len()) {
            (Loss::Training, true, _) => Fisher::Mse,
            (_, true, _) | (_, _, 2) => Fisher::Gaussian,
            (Loss::Outputs, ..) => Fisher::Outputs,
            (Loss::Sampled, ..) => Fisher::Sampled,
            (Loss::Training, ..) => Fisher::Labels,
        };
        let masked = self.masked(rows, theta_only)?;
        let mut graph = half.clone();
        let mut inputs = vec![(INPUT.to_string(), self.x(&masked)?)];
        if half.inputs.iter().any(|i| i.name == KNOWN) {
            let known = masked.iter().flat_map(|m| m.row.iter().map(|&v| v >= 0)).collect();
            let shape = [masked.len(), self.contract.length];
            inputs.push((KNOWN.to_string(), Tensor::new(shape, Data::Bool(known))?));
        }
        if !theta_only {
            inputs.push(self.weigh(&mut graph, &masked, fisher));
        }
        let labels = match fisher {
            Fisher::Labels => Some(self.erased(&masked)?),
            Fisher::Mse => Some(self.targets(&masked)?),
            _ => None,
        };
        let prune = prune::Options { fisher, outputs: Vec::new(), ..self.options.prune.clone() };
        Ok((graph, Samples::from_tensors(inputs, labels)?, prune))
    }

    /// As many masked rows as gradients are taken.
    fn masked(&self, rows: &Rows, may_be_whole: bool) -> Result<Vec<Masked>> {
        let o = &self.options.prune;
        let length = self.contract.length;
        let whole: Vec<Vec<i32>> = rows
            .checked(self.contract)?
            .into_iter()
            .enumerate()
            .map(|(r, row)| row.context(|| format!("row {r}")))
            .collect::<Result<_>>()?;
        let whole: Vec<_> = whole.iter().filter(|r| known_sites(r).next().is_some()).collect();
        if whole.is_empty() {
            bail!(Data, "no row has a known site, so there is nothing to learn from them");
        }
        let wanted = o.gradients.saturating_mul(o.fisher_batch).saturating_mul(o.stages);
        let count = wanted.clamp(1, MOST_ROWS).min((MOST_CELLS / length).max(1));
        let mask = |j: usize| {
            let mut random = Stream::new(o.seed, STREAM + j as u64);
            let full = whole[random.below(whole.len())];
            let known: Vec<usize> = known_sites(full).collect();
            let keep = random.below(known.len() + usize::from(may_be_whole));
            let order = random.permutation(known.len());
            let mut row = full.clone();
            let erase = |&i: &u32| {
                let site = known[i as usize];
                (site, std::mem::replace(&mut row[site], -1))
            };
            let erased = order[keep..].iter().map(erase).collect();
            Masked { row, erased }
        };
        Ok((0..count).map(mask).collect())
    }

    fn x(&self, masked: &[Masked]) -> Result<Tensor> {
        let c = self.contract;
        let encode = |&v: &i32| if v < 0 { c.mask_id } else { i64::from(v) + c.value_offset };
        let cells = masked.iter().flat_map(|m| m.row.iter().map(encode)).collect();
        Tensor::new([masked.len(), c.length], Data::I64(cells))
    }

    /// Puts weighted logits in the place of the logits; returns the weights as an input.
    fn weigh(&self, graph: &mut Graph, masked: &[Masked], fisher: Fisher) -> (String, Tensor) {
        let c = self.contract;
        let mut names = Names::of(graph);
        let mut name = |text: &str| names.fresh(text);
        let (weight, weighted) = (name("mam_weight"), name("mam_weighted"));
        // A softmax takes the logits as they are.
        let softmax = matches!(fisher, Fisher::Labels | Fisher::Sampled);
        let mut logits = LOGITS.to_string();
        let mut then = |graph: &mut Graph, op: &str, other: Option<String>, to: String| {
            let inputs = std::iter::once(logits.clone()).chain(other);
            graph.nodes.push(Node::new(op, inputs, &to));
            logits = to;
        };
        if fisher == Fisher::Gaussian {
            let (mean, axis) = (name("mam_mean"), name("mam_axis"));
            graph.initializers.insert(axis.clone(), Arc::new(Tensor::i64([1], vec![2])));
            graph.nodes.push(Node::new("ReduceMean", [LOGITS, &axis], &mean));
            then(graph, "Sub", Some(mean), name("mam_centred"));
        }
        if c.cardinalities.iter().any(|&k| k != c.vocab) {
            let has = |k: usize| (0..c.vocab).map(move |v| v < k);
            let each = c.cardinalities.iter().flat_map(|&k| has(k));
            let shape = [1, c.length, c.vocab];
            let (exists, shift) = (name("mam_exists"), name("mam_impossible"));
            let ones = each.clone().map(|has| f32::from(u8::from(has))).collect();
            graph.initializers.insert(exists.clone(), Arc::new(Tensor::f32(shape, ones)));
            then(graph, "Mul", Some(exists), name("mam_existing"));
            if softmax {
                let far = each.map(|has| if has { 0.0 } else { IMPOSSIBLE }).collect();
                graph.initializers.insert(shift.clone(), Arc::new(Tensor::f32(shape, far)));
                then(graph, "Add", Some(shift), name("mam_possible"));
            }
        }
        then(graph, "Mul", Some(weight.clone()), weighted.clone());
        let output = graph.outputs.iter_mut().find(|o| o.name == LOGITS).expect("φ has logits");
        *output = symbolic(&weighted, ElementType::F32, &[c.length, c.vocab]);
        graph.inputs.push(symbolic(&weight, ElementType::F32, &[c.length, 1]));
        let mut weights = vec![0.0f32; masked.len() * c.length];
        for (m, weights) in masked.iter().zip(weights.chunks_exact_mut(c.length)) {
            let w = if softmax { 1.0 } else { 1.0 / (m.erased.len() as f32).sqrt() };
            m.erased.iter().for_each(|&(site, _)| weights[site] = w);
        }
        (weight, Tensor::f32([masked.len(), c.length, 1], weights))
    }

    /// The values that were erased; 0 elsewhere, where the weight is 0.
    fn erased(&self, masked: &[Masked]) -> Result<Labels> {
        let length = self.contract.length;
        let mut cells = vec![0i64; masked.len() * length];
        for (m, cells) in masked.iter().zip(cells.chunks_exact_mut(length)) {
            m.erased.iter().for_each(|&(site, value)| cells[site] = i64::from(value));
        }
        Labels::new(Tensor::i64([masked.len(), length], cells))
    }

    /// What θ should say: log Z and a chain of φ.
    fn targets(&self, masked: &[Masked]) -> Result<Labels> {
        let (orders, dense) =
            (Orders::Random { count: 1, seed: self.options.prune.seed }, self.dense);
        let log_z = dense.log_z().ok_or_else(|| error!(Model, "the model has no θ"))?;
        let splits: Vec<_> = masked.iter().map(|m| Ok(Split::unconditional(&m.row))).collect();
        let found = dense.chain_scores(&splits, &orders, self.cancel)?;
        let target = |(score, _): (crate::mam::ChainScore, _)| (log_z + score.log_p) as f32;
        let targets = found.into_iter().map(|f| f.map(target)).collect::<Result<Vec<f32>>>()?;
        Labels::new(Tensor::f32([masked.len()], targets))
    }
}
