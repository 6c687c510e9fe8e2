//! Stage 1: φ learns the conditionals of every subset.

use crate::cancel::Cancel;
use crate::error::Result;
use crate::mam::adapt::symbolic;
use crate::mam::contract::{Contract, INPUT, Kind, LOGITS};
use crate::mam::model::Mam;
use crate::mam::rows::known_sites;
use crate::mam::train::checkpoint::Checkpoint;
use crate::mam::train::objective::LOSS;
use crate::mam::train::{Figures, REPORT_ROWS, Stage, Task, TrainReport, model, stored};
use crate::onnx::{Graph, Node};
use crate::tensor::{ElementType, Tensor};
use crate::train::{Parameters, Trainer};

/// −weight at the value that is to be predicted, 0 elsewhere, `[B, L, K]`.
const TARGET: &str = "target";

/// The net with the weights that `task.run.options.conditional_steps` steps lead to.
pub fn train(
    task: &Task,
    net: Graph,
    state: &mut Checkpoint,
    report: &mut dyn FnMut(&TrainReport),
    cancel: &Cancel,
) -> Result<Graph> {
    let (shard, shards) = task.run.shards();
    let graph = with_loss(&net, &task.run.contract);
    let stage = Stage { number: 1, steps: task.run.options.conditional_steps };
    let example = feed(task, shard, 0);
    let mut trainer = task.run.trainer(&graph, LOSS, &example, stage.steps, cancel)?;
    state.restore(1, &mut trainer)?;
    let contract = Contract { kind: Kind::Conditional, ..task.run.contract.clone() };
    let look = |parameters: &Parameters| {
        let models = [model(&stored(net.clone(), parameters), &contract)?];
        let mam = Mam::from_models(&models, task.run.load_options(), cancel)?;
        Ok(Figures::Bits(task.bits(&mam, REPORT_ROWS, 1, cancel)?))
    };
    let step = |trainer: &mut Trainer, number: u64, _: &mut Checkpoint| {
        let feed = |s: usize| Ok(feed(task, shard, number * shards as u64 + s as u64));
        Ok(trainer.step(shards, &feed, cancel)?.loss)
    };
    task.run.take(stage, &mut trainer, step, look, state, report)?;
    let result = trainer.result();
    state.keep_phi(&result);
    Ok(stored(net, &result))
}

/// Σ target · log softmax(logits).
pub fn with_loss(net: &Graph, contract: &Contract) -> Graph {
    let mut graph = net.clone();
    graph.inputs.push(symbolic(TARGET, ElementType::F32, &[contract.length, contract.vocab]));
    graph.nodes.extend([
        Node::new("LogSoftmax", [LOGITS], "log_softmax").with("axis", -1i64),
        Node::new("Mul", ["log_softmax", TARGET], "terms"),
        Node::new("ReduceSum", ["terms"], LOSS).with("keepdims", 0i64),
    ]);
    graph
}

/// Rows with a random part hidden, and what is hidden.
pub fn feed(task: &Task, shard: usize, number: u64) -> Vec<(String, Tensor)> {
    let (c, mut random) = (&task.run.contract, task.run.stream(1, number));
    let mut x = Vec::with_capacity(shard * c.length);
    let mut target = vec![0.0; shard * c.length * c.vocab];
    for i in 0..shard {
        let row = &task.rows[random.below(task.rows.len())];
        let sites: Vec<usize> = known_sites(row).collect();
        let order = random.permutation(sites.len());
        let known = random.below(sites.len());
        let mut cells = vec![c.mask_id; c.length];
        for (d, &s) in order.iter().enumerate() {
            let site = sites[s as usize];
            if d < known {
                cells[site] = i64::from(row[site]) + c.value_offset;
            } else {
                let weight = 1.0 / (shard * (sites.len() - known)) as f32;
                target[(i * c.length + site) * c.vocab + row[site] as usize] = -weight;
            }
        }
        x.extend(cells);
    }
    vec![
        (INPUT.into(), Tensor::i64([shard, c.length], x)),
        (TARGET.into(), Tensor::f32([shard, c.length, c.vocab], target)),
    ]
}
