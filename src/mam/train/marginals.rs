//! Stage 2: θ learns what φ says of every prefix of trajectories.

use std::ops::Range;
use std::sync::Arc;

use crate::cancel::Cancel;
use crate::error::{Result, bail};
use crate::mam::contract::{Contract, INPUT, Kind, LOG_P};
use crate::mam::model::{Mam, Want};
use crate::mam::networks;
use crate::mam::rows::{Distinct, known_sites};
use crate::mam::sample::{SampleOptions, draw_value};
use crate::mam::train::checkpoint::Checkpoint;
use crate::mam::train::objective::LOSS;
use crate::mam::train::{
    Figures, REPORT_ROWS, Regression, Stage, Task, TrainReport, model, stored,
};
use crate::onnx::{Graph, Node};
use crate::random::Stream;
use crate::tensor::{ElementType, Tensor};
use crate::train::{Parameters, Trainer};

/// What is added to the combinations of f_θ, `[R, 1]`.
const OFFSET: &str = "offset";

/// Most prefixes in a pool of trajectories; a new pool is drawn when all have been learnt from.
/// Those of a trajectory share their errors, so they must be far apart: with pools of 2^13 θ
/// followed the trajectories of the moment. Held-out error on the digits: 1.74 nats rms (half the
/// batch); 1.50 with 2^16, 1.55 with 2^18.
const POOL: usize = 1 << 16;

/// A run has at least so many pools.
const LEAST_POOLS: u64 = 4;

/// A row and an order: log p_φ summed up to each prefix.
struct Trajectory {
    row: Vec<i32>,
    order: Vec<u32>,
    /// One more than the order has sites.
    sums: Vec<f64>,
}

/// Trajectories and the order in which their prefixes are learnt from.
pub struct Pool {
    number: u64,
    trajectories: Vec<Trajectory>,
    /// Trajectory and length of a prefix.
    prefixes: Vec<(u32, u32)>,
}

/// The net with the weights that `task.run.options.marginal_steps` steps lead to.
pub fn train(
    task: &Task,
    phi: &Graph,
    net: Graph,
    state: &mut Checkpoint,
    report: &mut dyn FnMut(&TrainReport),
    cancel: &Cancel,
) -> Result<Graph> {
    let contract = Contract { kind: Kind::Conditional, ..task.run.contract.clone() };
    let teacher = Mam::from_models(&[model(phi, &contract)?], task.run.load_options(), cancel)?;
    let (shard, shards) = task.run.shards();
    let per_step = shard * shards;
    let graph = with_loss(&net, task, shard);
    let stage = Stage { number: 2, steps: task.run.options.marginal_steps };
    let mut pool = Pool::draw(task, &teacher, 0, cancel)?;
    let example = pool.feed(task, 0..shard)?;
    let mut trainer = task.run.trainer(&graph, LOSS, &example, stage.steps, cancel)?;
    state.restore(2, &mut trainer)?;
    let look = |parameters: &Parameters| {
        let both = networks::joint(phi, &stored(net.clone(), parameters));
        let models = [model(&both, &task.run.contract)?];
        let mam = Mam::from_models(&models, task.run.load_options(), cancel)?;
        Ok(Figures::ThetaError(task.theta_error(&mam, REPORT_ROWS, 1, cancel)?.rms))
    };
    let steps_per_pool = pool_steps(task, per_step);
    let step = |trainer: &mut Trainer, number: u64, _: &mut Checkpoint| {
        if number / steps_per_pool != pool.number {
            pool = Pool::draw(task, &teacher, number / steps_per_pool, cancel)?;
        }
        let start = (number % steps_per_pool) as usize * per_step;
        let feed = |s: usize| pool.feed(task, start + s * shard..start + (s + 1) * shard);
        Ok(trainer.step(shards, &feed, cancel)?.loss)
    };
    task.run.take(stage, &mut trainer, step, look, state, report)?;
    Ok(stored(net, &trainer.result()))
}

/// Trajectories in a pool: a multiple of three.
fn pool_size(task: &Task) -> usize {
    let wanted = task.run.options.marginal_steps.saturating_mul(task.run.options.batch as u64);
    let prefixes = POOL.min(usize::try_from(wanted / LEAST_POOLS).unwrap_or(POOL));
    (prefixes / (task.run.contract.length + 1)).max(3).next_multiple_of(3)
}

/// Steps that a pool is good for, by the prefixes that complete rows have.
fn pool_steps(task: &Task, per_step: usize) -> u64 {
    (pool_size(task) * (task.run.contract.length + 1)).div_ceil(per_step) as u64
}

/// Σ (C f + offset)²: C picks f of a row, or the difference of the two rows of a step.
pub fn with_loss(net: &Graph, task: &Task, shard: usize) -> Graph {
    let mut graph = net.clone();
    let combine = combination(task, shard);
    let rows = combine.shape()[0];
    let mut offset = crate::onnx::Value::fixed(OFFSET, ElementType::F32, &[rows, 1]);
    offset.name = OFFSET.into();
    graph.inputs.push(offset);
    graph.initializers.insert("combine".into(), Arc::new(combine));
    graph.initializers.insert("column".into(), Arc::new(Tensor::i64([2], vec![-1, 1])));
    graph.nodes.extend([
        Node::new("Reshape", [LOG_P, "column"], "f"),
        Node::new("MatMul", ["combine", "f"], "combined"),
        Node::new("Add", ["combined", OFFSET], "residuals"),
        Node::new("Mul", ["residuals", "residuals"], "squares"),
        Node::new("ReduceSum", ["squares"], LOSS).with("keepdims", 0i64),
    ]);
    graph
}

/// √ of the weight of a residual in the loss, which is per site.
fn scale(task: &Task, shard: usize) -> f32 {
    let (length, shard) = (task.run.contract.length as f32, shard as f32);
    match task.run.options.regression {
        Regression::Trajectory => (1.0 / (length * shard)).sqrt(),
        Regression::OneStep => (1.0 / shard).sqrt(),
    }
}

/// C, `[R, N]`.
fn combination(task: &Task, shard: usize) -> Tensor {
    let scale = scale(task, shard);
    match task.run.options.regression {
        Regression::Trajectory => {
            let cell = |i: usize| if i / shard == i % shard { scale } else { 0.0 };
            Tensor::f32([shard, shard], (0..shard * shard).map(cell).collect())
        }
        Regression::OneStep => {
            // The rows before the steps, the rows after them, and the empty row.
            let (rows, columns) = (shard + 1, 2 * shard + 1);
            let mut cells = vec![0.0; rows * columns];
            for i in 0..shard {
                cells[i * columns + i] = scale;
                cells[i * columns + shard + i] = -scale;
            }
            cells[rows * columns - 1] = (1.0 / task.run.contract.length as f32).sqrt();
            Tensor::f32([rows, columns], cells)
        }
    }
}

impl Pool {
    /// A third of the trajectories from the data, a third that φ goes on with from somewhere on, a
    /// third from φ alone; and their prefixes in random order. Where data are used some values are
    /// replaced.
    pub fn draw(task: &Task, teacher: &Mam, number: u64, cancel: &Cancel) -> Result<Pool> {
        let size = pool_size(task);
        let mut trajectories = Vec::with_capacity(size);
        let mut randoms = Vec::with_capacity(size);
        for i in 0..size {
            let mut random = task.run.stream(2, number * size as u64 + i as u64);
            let length = task.run.contract.length;
            let (mut row, sites): (Vec<i32>, Vec<usize>) = if i % 3 < 2 {
                let mut row = task.rows[random.below(task.rows.len())].clone();
                let noise = task.run.options.noise * random.uniform();
                disturb(&mut row, noise, &task.run.contract.cardinalities, &mut random);
                let sites = known_sites(&row).collect();
                (row, sites)
            } else {
                (vec![-1; length], (0..length).collect())
            };
            let order = random.permutation(sites.len());
            let order: Vec<u32> = order.into_iter().map(|s| sites[s as usize] as u32).collect();
            if i % 3 == 1 {
                let kept = random.below(order.len().max(1));
                order[kept..].iter().for_each(|&site| row[site as usize] = -1);
            }
            trajectories.push(Trajectory { row, order, sums: vec![0.0] });
            randoms.push(random);
        }
        follow(&mut trajectories, &mut randoms, teacher, cancel)?;
        let mut random = task.run.stream(4, number);
        let last = match task.run.options.regression {
            Regression::Trajectory => 1,
            Regression::OneStep => 0,
        };
        let all: Vec<(u32, u32)> = trajectories
            .iter()
            .enumerate()
            .flat_map(|(i, t)| (0..t.order.len() as u32 + last).map(move |d| (i as u32, d)))
            .collect();
        let order = random.permutation(all.len());
        let prefixes = order.into_iter().map(|i| all[i as usize]).collect();
        Ok(Pool { number, trajectories, prefixes })
    }

    /// The rows and targets of some prefixes; beyond the last the first follow again.
    pub fn feed(&self, task: &Task, range: Range<usize>) -> Result<Vec<(String, Tensor)>> {
        let (c, shard) = (&task.run.contract, range.len());
        let scale = scale(task, shard);
        let chosen: Vec<(&Trajectory, usize)> = range
            .map(|i| self.prefixes[i % self.prefixes.len()])
            .map(|(t, d)| (&self.trajectories[t as usize], d as usize))
            .collect();
        let mut x = Vec::new();
        let mut offset: Vec<f32> = Vec::new();
        match task.run.options.regression {
            Regression::Trajectory => {
                for (t, d) in &chosen {
                    x.extend(t.prefix(*d, c));
                    offset.push(-scale * t.sums[*d] as f32);
                }
            }
            Regression::OneStep => {
                chosen.iter().for_each(|(t, d)| x.extend(t.prefix(*d, c)));
                chosen.iter().for_each(|(t, d)| x.extend(t.prefix(d + 1, c)));
                x.extend(vec![c.mask_id; c.length]);
                let step = |(t, d): &(&Trajectory, usize)| (t.sums[d + 1] - t.sums[*d]) as f32;
                offset.extend(chosen.iter().map(|pair| scale * step(pair)));
                offset.push(0.0);
            }
        }
        let (rows, combined) = (x.len() / c.length, offset.len());
        Ok(vec![
            (INPUT.into(), Tensor::i64([rows, c.length], x)),
            (OFFSET.into(), Tensor::f32([combined, 1], offset)),
        ])
    }
}

impl Trajectory {
    /// The first `count` sites of the order as the net takes them.
    fn prefix(&self, count: usize, c: &Contract) -> Vec<i64> {
        let mut cells = vec![c.mask_id; c.length];
        for &site in &self.order[..count] {
            cells[site as usize] = i64::from(self.row[site as usize]) + c.value_offset;
        }
        cells
    }
}

/// Replaces each value with this probability by any other value of its site. φ says what such rows
/// are worth as well, and to φ the rows that θ meets later are as unlikely as they are.
fn disturb(row: &mut [i32], probability: f64, cardinalities: &[usize], random: &mut Stream) {
    for (value, &values) in row.iter_mut().zip(cardinalities) {
        if random.uniform() < probability && *value >= 0 && values > 1 {
            *value = (*value + 1 + random.below(values - 1) as i32) % values as i32;
        }
    }
}

/// Follows all trajectories site by site: sums up log p_φ, and draws the values that are not there.
fn follow(
    trajectories: &mut [Trajectory],
    randoms: &mut [Stream],
    teacher: &Mam,
    cancel: &Cancel,
) -> Result<()> {
    let length = teacher.contract().length;
    let plain = SampleOptions::default();
    let mut current = vec![vec![-1; length]; trajectories.len()];
    for d in 0..length {
        let mut rows = Distinct::new(length);
        let (mut wants, mut moving) = (Vec::new(), Vec::new());
        for (i, t) in trajectories.iter().enumerate().filter(|(_, t)| d < t.order.len()) {
            wants.push(Want { row: rows.insert(&current[i]), site: t.order[d] });
            moving.push((i, t.row[t.order[d] as usize], randoms[i].uniform()));
        }
        let value = |w: usize, logits: &[f32]| {
            let (_, value, uniform) = moving[w];
            match usize::try_from(value) {
                Ok(value) => {
                    let log = crate::mam::model::log_softmax_at(logits, value);
                    (!log.is_nan()).then_some((value, log))
                }
                Err(_) => draw_value(logits, uniform, &plain).map(|(v, _, log)| (v, log)),
            }
        };
        let found = teacher.phi_at(&rows, &wants, cancel, value)?;
        for ((i, ..), found) in moving.iter().zip(found) {
            let Some((value, log)) = found else {
                bail!(Numerics, "the conditionals of stage 1 are not finite");
            };
            let t = &mut trajectories[*i];
            let site = t.order[d] as usize;
            t.row[site] = value as i32;
            current[*i][site] = value as i32;
            let sum = t.sums[d] + log;
            t.sums.push(sum);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_replaces_values_by_others_of_their_sites_and_nothing_that_is_missing() {
        let (row, cardinalities) = ([2, -1, 0, 1], [3, 3, 1, 2]);
        let (mut random, mut counts) = (Stream::new(1, 0), [[0usize; 3]; 4]);
        for _ in 0..4000 {
            let mut disturbed = row;
            disturb(&mut disturbed, 0.5, &cardinalities, &mut random);
            assert_eq!((disturbed[1], disturbed[2]), (-1, 0));
            for site in [0, 3] {
                counts[site][disturbed[site] as usize] += 1;
            }
        }
        // Half of the time another value, each other value as often: 4 standard deviations.
        let near = |count: usize, expected: usize| count.abs_diff(expected) < 130;
        let [first, .., last] = counts;
        assert!(near(first[0], 1000) && near(first[1], 1000) && near(first[2], 2000), "{first:?}");
        assert!(near(last[0], 2000) && near(last[1], 2000) && last[2] == 0, "{last:?}");
        let mut kept = row;
        disturb(&mut kept, 0.0, &cardinalities, &mut random);
        assert_eq!(kept, row);
    }
}
