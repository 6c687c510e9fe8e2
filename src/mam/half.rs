//! One half of a model, ready to run on any number of threads at once: θ, φ, or an ordered net.
//!
//! Rows go through in batches and are handed out one at a time, so that `[B, L, K]` exists only
//! inside a batch. A net whose rows depend on their batch mates beyond rounding is refused when it
//! is loaded; most give the same bits whatever they are batched with, some only if no row is alone.

use std::sync::{Condvar, Mutex};

use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::mam::contract::{Contract, INPUT, KNOWN, Kind, ORDER};
use crate::mam::rows::Distinct;
use crate::onnx::graph::{Names, outer_names};
use crate::onnx::{Graph, Node, Value};
use crate::runtime::{Device, Program, Session, SessionOptions};
use crate::tensor::{Data, ElementType, Tensor};

/// The element code of float32 in ONNX, as `Cast` takes it.
const FLOAT: i64 = 1;

/// Rows that differ more than this, relative to the larger of 1 and the value, depend on their
/// batch mates.
const BATCH_TOLERANCE: f64 = 1e-5;

/// The logits of a batch take no more than this.
const BATCH_BYTES: usize = 64 << 20;

/// How to run a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Where.
    pub device: Device,
    /// Sessions per half, and threads that one query uses. Answers do not depend on it.
    pub threads: usize,
    /// Most rows in one run of a net.
    pub batch: usize,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions { device: Device::Cpu, threads: 1, batch: DEFAULT_BATCH }
    }
}

/// Rows per run unless told otherwise: enough to use weights more than once while they are in
/// cache, few enough that the activations of a convolutional net stay small.
pub const DEFAULT_BATCH: usize = 64;

/// How far a row's answer depends on the size of its batch, as found on loading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BatchEffect {
    /// Not at all: the same bits.
    None,
    /// A row alone is rounded differently, so hone never runs one alone.
    Alone,
    /// Rounding, by up to so much.
    Rounding(f64),
}

/// A loaded half.
#[derive(Debug)]
pub(crate) struct Half {
    contract: Contract,
    output: &'static str,
    takes_known: bool,
    model: Program,
    sessions: Mutex<Sessions>,
    freed: Condvar,
    options: LoadOptions,
    pub effect: BatchEffect,
    pub parameters: usize,
    pub nodes: usize,
}

#[derive(Debug, Default)]
struct Sessions {
    idle: Vec<Session>,
    made: usize,
}

impl Half {
    /// The part of `graph` that computes `output`, checked by a few runs.
    pub fn load(
        graph: &Graph,
        contract: &Contract,
        output: &'static str,
        options: LoadOptions,
        cancel: &Cancel,
    ) -> Result<Half> {
        let graph = part(graph, output);
        let mut half = Half {
            contract: contract.clone(),
            output,
            takes_known: graph.inputs.iter().any(|i| i.name == KNOWN),
            model: Program::of_graph(&graph)?,
            sessions: Mutex::default(),
            freed: Condvar::new(),
            options: LoadOptions { threads: options.threads.max(1), ..options },
            effect: BatchEffect::None,
            parameters: graph.initializers.values().map(|t| t.len()).sum(),
            nodes: graph.nodes.len(),
        };
        half.probe(cancel).context(|| format!("output {output:?}"))?;
        Ok(half)
    }

    /// Cells per row: values, and for an ordered net the order.
    pub fn width(&self) -> usize {
        self.contract.length * if self.contract.kind == Kind::Ordered { 2 } else { 1 }
    }

    /// Numbers per row of the output.
    fn row_len(&self) -> usize {
        self.contract.row_shape(self.output).iter().product()
    }

    /// The most rows in one run.
    fn most_rows(&self) -> usize {
        let bytes = 4 * self.row_len().max(self.width() * 2);
        self.options.batch.clamp(1, (BATCH_BYTES / bytes).max(1))
    }

    /// Runs all rows and returns what `each(number, output row)` makes of them, in order.
    pub fn run<T: Send>(
        &self,
        rows: &Distinct,
        cancel: &Cancel,
        each: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let threads = self.options.threads;
        // Spread over the threads, unless the answers would show it.
        let batch = match self.effect {
            BatchEffect::Rounding(_) => self.most_rows(),
            _ => rows.len().div_ceil(threads).clamp(1, self.most_rows()),
        };
        let starts: Vec<usize> = (0..rows.len()).step_by(batch).collect();
        let run = |session: &mut Session, start: usize| {
            let end = (start + batch).min(rows.len());
            self.run_batch(session, rows, start..end, cancel, &each)
        };
        if threads == 1 || starts.len() == 1 {
            let mut session = self.take()?;
            let parts: Result<Vec<_>> = starts.iter().map(|&s| run(&mut session, s)).collect();
            self.give_back(session);
            return Ok(parts?.into_iter().flatten().collect());
        }
        let parts = Mutex::new(starts.iter().map(|_| None).collect::<Vec<Option<Vec<T>>>>());
        let next = Mutex::new(starts.iter().enumerate());
        let work = || -> Result<()> {
            let mut session = self.take()?;
            let result = loop {
                let item = next.lock().expect("no holder panics").next();
                let Some((index, &start)) = item else { break Ok(()) };
                match run(&mut session, start) {
                    Ok(part) => parts.lock().expect("no holder panics")[index] = Some(part),
                    Err(e) => break Err(e),
                }
            };
            self.give_back(session);
            result
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads.min(starts.len())).map(|_| scope.spawn(work)).collect();
            let join = |w: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect::<Vec<_>>().into_iter().collect::<Result<()>>()
        })?;
        let parts = parts.into_inner().expect("no holder panics");
        Ok(parts.into_iter().flat_map(|p| p.expect("every batch ran")).collect())
    }

    fn run_batch<T>(
        &self,
        session: &mut Session,
        rows: &Distinct,
        range: std::ops::Range<usize>,
        cancel: &Cancel,
        each: &impl Fn(usize, &[f32]) -> T,
    ) -> Result<Vec<T>> {
        let count = range.len();
        let padded = if self.effect == BatchEffect::Alone { count.max(2) } else { count };
        let at = |i: usize| rows.row(range.start + i.min(count - 1));
        let inputs = self.inputs(padded, at);
        let outputs = session.run(inputs.iter().map(|(n, t)| (*n, t)), cancel)?;
        let (shape, values) = outputs.f32(self.output)?;
        let row_shape = self.contract.row_shape(self.output);
        if shape.first() != Some(&padded) || shape[1..] != row_shape {
            bail!(
                Model,
                "output {:?} has the shape {shape:?}, not [{padded}, {row_shape:?}], for {padded} \
                 rows",
                self.output
            );
        }
        let row_len = self.row_len();
        Ok(range.enumerate().map(|(i, id)| each(id, &values[i * row_len..][..row_len])).collect())
    }

    fn inputs<'a>(
        &self,
        count: usize,
        at: impl Fn(usize) -> &'a [i32],
    ) -> Vec<(&'static str, Tensor)> {
        let (c, length) = (&self.contract, self.contract.length);
        let encode = |v: &i32| if *v < 0 { c.mask_id } else { *v as i64 + c.value_offset };
        let cells = |i: usize| &at(i)[..length];
        let shape = [count, length];
        let x = (0..count).flat_map(cells).map(encode).collect();
        let mut inputs = vec![(INPUT, Tensor::i64(shape, x))];
        if self.takes_known {
            let known = (0..count).flat_map(cells).map(|&v| v >= 0).collect();
            let tensor = Tensor::new(shape, Data::Bool(known)).expect("as many as the shape says");
            inputs.push((KNOWN, tensor));
        }
        if c.kind == Kind::Ordered {
            let order = (0..count).flat_map(|i| &at(i)[length..]).map(|&s| s as i64).collect();
            inputs.push((ORDER, Tensor::i64(shape, order)));
        }
        inputs
    }

    /// A session of its own for the caller; waits while all are taken.
    fn take(&self) -> Result<Session> {
        let mut sessions = self.sessions.lock().expect("no holder panics");
        loop {
            if let Some(session) = sessions.idle.pop() {
                return Ok(session);
            }
            if sessions.made < self.options.threads {
                sessions.made += 1;
                drop(sessions);
                let options =
                    SessionOptions { device: self.options.device, threads: 1, optimize: true };
                return Session::new(&self.model, &options).inspect_err(|_| {
                    self.sessions.lock().expect("no holder panics").made -= 1;
                    self.freed.notify_one();
                });
            }
            sessions = self.freed.wait(sessions).expect("no holder panics");
        }
    }

    fn give_back(&self, session: Session) {
        self.sessions.lock().expect("no holder panics").idle.push(session);
        self.freed.notify_one();
    }

    /// Runs rows together and alone: do the shapes hold, and do rows depend on each other?
    fn probe(&mut self, cancel: &Cancel) -> Result<()> {
        let rows = self.probe_rows();
        let mut session = self.take()?;
        let mut run = |half: &Half, range| {
            half.run_batch(&mut session, &rows, range, cancel, &|_, v: &[f32]| v.to_vec())
        };
        let together = run(self, 0..PROBE_ROWS)?;
        let alone = run(self, 1..2)?;
        let two = run(self, 1..3)?;
        self.effect = BatchEffect::Alone;
        let padded = run(self, 1..2)?;
        let finite = |row: &Vec<f32>| row.iter().all(|v| !v.is_nan() && *v != f32::INFINITY);
        if let Some(i) = together.iter().position(|row| !finite(row)) {
            let what = if i == 0 { "all sites missing" } else { "some sites missing" };
            bail!(Numerics, "is NaN or infinite for a row with {what}");
        }
        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        let pair = same(&together[1], &two[0]) && same(&together[2], &two[1]);
        self.effect = if pair && same(&together[1], &alone[0]) {
            BatchEffect::None
        } else if pair && same(&together[1], &padded[0]) {
            BatchEffect::Alone
        } else {
            let gap = |a: &[f32], b: &[f32]| a.iter().zip(b).map(gap).fold(0.0, f64::max);
            let worst = gap(&together[1], &alone[0])
                .max(gap(&together[1], &two[0]))
                .max(gap(&together[2], &two[1]));
            if worst > BATCH_TOLERANCE {
                bail!(
                    Model,
                    "a row's output changes by {worst:.1e} with the rows it is batched with; is \
                     something reduced or normalised over the batch?"
                );
            }
            BatchEffect::Rounding(worst)
        };
        self.give_back(session);
        Ok(())
    }

    /// Rows for probing: nothing known, then some values of small and of large numbers.
    fn probe_rows(&self) -> Distinct {
        let c = &self.contract;
        let mut random = crate::random::Stream::new(0, 0x9a0b);
        // Equal rows would be one; the number in front of each keeps them apart where it matters.
        let mut rows = Distinct::new(self.width());
        let mut tries = 0;
        while rows.len() < PROBE_ROWS {
            let known = [0.0, 0.5, 0.9, 0.2, 0.7][rows.len()];
            let mut row: Vec<i32> = c
                .cardinalities
                .iter()
                .map(|&k| if random.uniform() < known { random.below(k) as i32 } else { -1 })
                .collect();
            if self.contract.kind == Kind::Ordered {
                // Missing sites come last.
                let mut order: Vec<i32> = (0..c.length as i32).collect();
                order.sort_by_key(|&s| row[s as usize] < 0);
                row.extend(order);
            }
            tries += 1;
            // A model with a state or two has too few different rows.
            if tries > 100 {
                rows.push(&row)
            } else {
                rows.insert(&row)
            };
        }
        rows
    }
}

/// Rows of a probe.
const PROBE_ROWS: usize = 5;

fn gap((a, b): (&f32, &f32)) -> f64 {
    let (a, b) = (f64::from(*a), f64::from(*b));
    if a == b { 0.0 } else { (a - b).abs() / a.abs().max(b.abs()).max(1.0) }
}

/// The part of `graph` that `output` depends on, and only the inputs it reads; the output float32.
fn part(graph: &Graph, output: &str) -> Graph {
    let mut part = graph.clone();
    part.outputs.retain(|o| o.name == output);
    part.outputs.truncate(1);
    if part.outputs[0].element.is_some_and(|e| e != ElementType::F32) {
        let inner = Names::of(&part).fresh(&format!("{output}_inner"));
        rename_result(&mut part, output, &inner);
        part.nodes.push(Node::new("Cast", [inner.as_str()], output).with("to", FLOAT));
        part.outputs[0] = Value::named(output);
    }
    part.remove_unused();
    let mut read: Vec<String> = part.outputs.iter().map(|o| o.name.clone()).collect();
    for node in &part.nodes {
        read.extend(node.inputs.iter().cloned());
        read.extend(outer_names(node));
    }
    part.inputs.retain(|i| read.contains(&i.name));
    part
}

/// Gives the value `from` another name wherever a node writes or reads it.
pub(super) fn rename_result(graph: &mut Graph, from: &str, to: &str) {
    for node in &mut graph.nodes {
        for name in node.inputs.iter_mut().chain(&mut node.outputs).filter(|n| *n == from) {
            *name = to.into();
        }
    }
}
