//! One half of a model, ready to run on any number of threads at once: θ, φ, or an ordered net.
//!
//! Rows go through in batches and are handed out one at a time, so that `[B, L, K]` exists only
//! inside a batch. A net whose rows depend on their batch mates beyond rounding is refused when it
//! is loaded; most give the same bits whatever they are batched with, some only if no row is alone.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::{Context, Error, ErrorKind, Result, bail};
use crate::mam::contract::{Contract, INPUT, KNOWN, Kind, LOGITS, ORDER, SITE_LOG_P};
use crate::mam::rows::Distinct;
use crate::onnx::graph::{Names, outer_names};
use crate::onnx::{Graph, Node, Value};
use crate::runtime::{Device, Numbers, Prepared, Program, Session, SessionOptions};
use crate::sys::{Crew, SignalsBlocked};
use crate::tensor::{Data, ElementType, Tensor};

/// The element code of float32 in ONNX, as `Cast` takes it.
const FLOAT: i64 = 1;

/// Rows that differ more than this, relative to the larger of 1 and the value, depend on their
/// batch mates.
const BATCH_TOLERANCE: f64 = 1e-5;

/// The logits of a batch take no more than this.
const BATCH_BYTES: usize = 64 << 20;

/// Work that is worth waking threads for, and waiting for the last of them.
const WORTH_A_THREAD: Duration = Duration::from_micros(500);

/// How to run a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Where.
    pub device: Device,
    /// Threads that one query uses; answers do not depend on it. Threads that ask at the same time
    /// run beside each other, up to so many or as many as there are processors; more wait.
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
    crew: Arc<Crew>,
    options: LoadOptions,
    /// What a row took when several ran together on loading.
    row_cost: Duration,
    pub effect: BatchEffect,
    pub parameters: usize,
    pub nodes: usize,
}

#[derive(Debug, Default)]
struct Sessions {
    idle: Vec<Worker>,
    made: usize,
    /// Threads that wait for one.
    waiting: usize,
}

/// A session and the memory of its inputs and its output.
#[derive(Debug)]
struct Worker {
    session: Session,
    prepared: Prepared,
}

impl Half {
    /// The part of `graph` that computes `output`, checked by a few runs. The crew helps with
    /// queries of many rows.
    pub fn load(
        graph: &Graph,
        contract: &Contract,
        output: &'static str,
        options: LoadOptions,
        crew: Arc<Crew>,
        cancel: &Cancel,
    ) -> Result<Half> {
        let graph = part(graph, &[output]);
        let mut half = Half {
            contract: contract.clone(),
            output,
            takes_known: graph.inputs.iter().any(|i| i.name == KNOWN),
            model: Program::of_graph(&graph)?,
            sessions: Mutex::default(),
            freed: Condvar::new(),
            crew,
            options: LoadOptions { threads: options.threads.max(1), ..options },
            row_cost: Duration::ZERO,
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

    /// Threads that can be served at the same time.
    pub fn most_at_once(&self) -> usize {
        self.options.threads.max(processors())
    }

    /// Numbers per row of the output.
    fn row_len(&self) -> usize {
        match self.output {
            LOGITS => self.contract.length * self.contract.vocab,
            SITE_LOG_P => self.contract.length,
            _ => 1,
        }
    }

    /// The most rows in one run.
    fn most_rows(&self) -> usize {
        let bytes = 4 * self.row_len().max(self.width() * 2);
        self.options.batch.clamp(1, (BATCH_BYTES / bytes).max(1))
    }

    /// Runs all rows; `each(number, output row)` is called once for each of them, in no order and
    /// by several threads at once. It allocates nothing here, once there was a call as large for
    /// each thread that asks at the same time, given a `cancel` that is never raised.
    pub fn run(
        &self,
        rows: &Distinct,
        cancel: &Cancel,
        each: impl Fn(usize, &[f32]) + Sync,
    ) -> Result<()> {
        let batch = self.batch(rows.len());
        let batches = rows.len().div_ceil(batch);
        let threads = self.options.threads.min(batches);
        if threads > 1 {
            self.reserve(threads)?;
        }
        let next = AtomicUsize::new(0);
        // Of the first batch that failed.
        let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let fail = |item: usize, e: Error| {
            next.store(batches, Ordering::Relaxed);
            let mut failed = failed.lock().expect("no holder panics");
            if failed.as_ref().is_none_or(|(first, _)| item < *first) {
                *failed = Some((item, e));
            }
        };
        self.crew.run(threads.saturating_sub(1), &|| {
            // A helper that comes late.
            if threads > 1 && next.load(Ordering::Relaxed) >= batches {
                return;
            }
            let mut worker = match self.take() {
                Ok(worker) => worker,
                Err(e) => return fail(usize::MAX, e),
            };
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= batches {
                    break;
                }
                let range = item * batch..((item + 1) * batch).min(rows.len());
                if let Err(e) = self.run_batch(&mut worker, rows, range, cancel, &each) {
                    fail(item, e);
                }
            }
            self.give_back(worker);
        });
        failed.into_inner().expect("no holder panics").map_or(Ok(()), |(_, e)| Err(e))
    }

    /// Rows per run when there are `rows` of them: spread over the threads if that saves more than
    /// waking them costs, and unless the answers would show it.
    fn batch(&self, rows: usize) -> usize {
        let most = self.most_rows();
        let work = self.row_cost * u32::try_from(rows).unwrap_or(u32::MAX);
        match self.effect {
            BatchEffect::Rounding(_) => most,
            _ if work < WORTH_A_THREAD => most,
            _ => rows.div_ceil(self.options.threads).clamp(1, most),
        }
    }

    fn run_batch(
        &self,
        worker: &mut Worker,
        rows: &Distinct,
        range: Range<usize>,
        cancel: &Cancel,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let count = range.len();
        let padded = if self.effect == BatchEffect::Alone { count.max(2) } else { count };
        let last = range.end - 1;
        let numbers = range.clone().chain(std::iter::repeat_n(last, padded - count));
        self.fill(&mut worker.prepared, rows, numbers);
        let row_len = self.row_len();
        let done = worker.session.run_prepared(&mut worker.prepared, padded, cancel);
        let found = match done {
            Ok(()) => None,
            Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
            Err(_) => Some(self.run_freely(worker, padded, cancel)?),
        };
        let values = found.as_deref().unwrap_or(worker.prepared.output());
        for (id, row) in range.zip(values.chunks_exact(row_len.max(1))) {
            each(id, row);
        }
        Ok(())
    }

    /// The inputs of a run.
    fn fill(
        &self,
        prepared: &mut Prepared,
        rows: &Distinct,
        numbers: impl Iterator<Item = usize> + Clone,
    ) {
        let (c, length) = (&self.contract, self.contract.length);
        let encode = |&v: &i32| match v {
            0.. => i64::from(v) + c.value_offset,
            _ => c.mask_id,
        };
        for (x, id) in prepared.i64s(0).chunks_exact_mut(length).zip(numbers.clone()) {
            x.iter_mut().zip(rows.row(id)).for_each(|(x, v)| *x = encode(v));
        }
        if self.takes_known {
            for (known, id) in prepared.bools(1).chunks_exact_mut(length).zip(numbers.clone()) {
                known.iter_mut().zip(rows.row(id)).for_each(|(known, &v)| *known = v >= 0);
            }
        }
        if c.kind == Kind::Ordered {
            let order = prepared.i64s(1 + usize::from(self.takes_known));
            for (order, id) in order.chunks_exact_mut(length).zip(numbers) {
                let sites = &rows.row(id)[length..];
                order.iter_mut().zip(sites).for_each(|(o, &s)| *o = i64::from(s));
            }
        }
    }

    /// The inputs a net takes, in the order they are prepared in.
    fn ports(&self) -> impl Iterator<Item = (&'static str, Numbers)> {
        let known = self.takes_known.then_some((KNOWN, Numbers::Bool));
        let order = (self.contract.kind == Kind::Ordered).then_some((ORDER, Numbers::I64));
        [Some((INPUT, Numbers::I64)), known, order].into_iter().flatten()
    }

    /// The run that has failed once more, with a net that is free to return what it wants: says
    /// what is wrong with it.
    fn run_freely(&self, worker: &mut Worker, count: usize, cancel: &Cancel) -> Result<Vec<f32>> {
        let length = self.contract.length;
        let Worker { session, prepared } = worker;
        let input = |(port, (name, numbers)): (usize, (&'static str, Numbers))| {
            let data = match numbers {
                Numbers::I64 => Data::I64(prepared.i64s(port)[..count * length].to_vec()),
                Numbers::Bool => Data::Bool(prepared.bools(port)[..count * length].to_vec()),
            };
            Ok((name, Tensor::new([count, length], data)?))
        };
        let inputs: Vec<_> = self.ports().enumerate().map(input).collect::<Result<_>>()?;
        let outputs = session.run(inputs.iter().map(|(n, t)| (*n, t)), cancel)?;
        let (shape, values) = outputs.f32(self.output)?;
        let row_shape = self.contract.row_shape(self.output);
        if shape.first() != Some(&count) || shape[1..] != row_shape {
            bail!(
                Model,
                "output {:?} has the shape {shape:?}, not [{count}, {row_shape:?}], for {count} \
                 rows",
                self.output
            );
        }
        Ok(values.to_vec())
    }

    /// A session for the caller alone; waits while as many are taken as the processor can run.
    fn take(&self) -> Result<Worker> {
        let most = self.most_at_once();
        let mut sessions = self.sessions.lock().expect("no holder panics");
        loop {
            if let Some(worker) = sessions.idle.pop() {
                return Ok(worker);
            }
            if sessions.made < most {
                sessions.made += 1;
                drop(sessions);
                return self.worker().inspect_err(|_| self.forget_one());
            }
            sessions.waiting += 1;
            sessions = self.freed.wait(sessions).expect("no holder panics");
            sessions.waiting -= 1;
        }
    }

    /// Sees to it that there are so many sessions: which helper comes first must not decide when
    /// they are made.
    fn reserve(&self, wanted: usize) -> Result<()> {
        let mut sessions = self.sessions.lock().expect("no holder panics");
        let missing = wanted.saturating_sub(sessions.made);
        if missing == 0 {
            return Ok(());
        }
        sessions.made += missing;
        drop(sessions);
        let _blocked = SignalsBlocked::new();
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..missing).map(|_| scope.spawn(|| self.worker())).collect();
            let join = |maker: std::thread::ScopedJoinHandle<'_, Result<Worker>>| {
                let made = maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                made.map(|worker| self.give_back(worker)).inspect_err(|_| self.forget_one())
            };
            // All of them, as each is counted.
            let made: Vec<Result<()>> = makers.into_iter().map(join).collect();
            made.into_iter().collect()
        })
    }

    /// A session that was counted is not there.
    fn forget_one(&self) {
        self.sessions.lock().expect("no holder panics").made -= 1;
        self.freed.notify_one();
    }

    fn worker(&self) -> Result<Worker> {
        let _blocked = SignalsBlocked::new();
        let options = SessionOptions { device: self.options.device, threads: 1, optimize: true };
        let session = Session::new(&self.model, &options)?;
        let row = [self.contract.length];
        let inputs: Vec<_> =
            self.ports().map(|(name, numbers)| (name, numbers, &row[..])).collect();
        let output = (self.output, &self.contract.row_shape(self.output)[..]);
        let rows = self.most_rows().max(PROBE_ROWS);
        let prepared = Prepared::new(&inputs, output, rows)
            .map_err(|e| Error::new(ErrorKind::Runtime, format!("ONNX Runtime: {e}")))?;
        Ok(Worker { session, prepared })
    }

    fn give_back(&self, worker: Worker) {
        let mut sessions = self.sessions.lock().expect("no holder panics");
        sessions.idle.push(worker);
        // To wake nobody is a system call, too.
        let waited_for = sessions.waiting > 0;
        drop(sessions);
        if waited_for {
            self.freed.notify_one();
        }
    }

    /// Runs rows together and alone: do the shapes hold, and do rows depend on each other?
    fn probe(&mut self, cancel: &Cancel) -> Result<()> {
        let rows = self.probe_rows();
        let mut worker = self.take()?;
        let mut run = |half: &Half, range| -> Result<Vec<Vec<f32>>> {
            let mut found = Vec::new();
            half.run_batch(&mut worker, &rows, range, cancel, |_, v| found.push(v.to_vec()))?;
            Ok(found)
        };
        let together = run(self, 0..PROBE_ROWS)?;
        let start = Instant::now();
        run(self, 0..PROBE_ROWS)?;
        self.row_cost = start.elapsed() / PROBE_ROWS as u32;
        let alone = run(self, 1..2)?;
        let two = run(self, 1..3)?;
        self.effect = BatchEffect::Alone;
        let padded = run(self, 1..2)?;
        for (i, found) in together.iter().enumerate() {
            let site = self.bad_site(rows.row(i), found);
            let what = if i == 0 { "all sites missing" } else { "some sites missing" };
            match site {
                Some(Some(site)) => {
                    bail!(Numerics, "is NaN or infinite at site {site} of a row with {what}")
                }
                Some(None) => bail!(Numerics, "is NaN or infinite for a row with {what}"),
                None => {}
            }
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
        self.give_back(worker);
        Ok(())
    }

    /// Whether an output holds NaN or +∞ where it has a meaning, and at which site if at one.
    fn bad_site(&self, row: &[i32], found: &[f32]) -> Option<Option<usize>> {
        let c = &self.contract;
        let bad = |v: &f32| v.is_nan() || *v == f32::INFINITY;
        match self.output {
            LOGITS => {
                let means = |site: &usize| {
                    row[*site] < 0
                        && found[site * c.vocab..][..c.cardinalities[*site]].iter().any(bad)
                };
                (0..c.length).find(means).map(Some)
            }
            SITE_LOG_P => (0..c.length).find(|&s| row[s] >= 0 && bad(&found[s])).map(Some),
            _ => found.iter().any(bad).then_some(None),
        }
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

/// Numbers that are found in any order, by any thread; a place is written once.
#[derive(Debug, Default)]
pub(crate) struct Found(Vec<AtomicU64>);

impl Found {
    /// Places for so many.
    pub fn reset(&mut self, len: usize) {
        self.0.truncate(len);
        self.0.resize_with(len, AtomicU64::default);
    }

    /// Writes a place.
    pub fn set(&self, place: usize, value: f64) {
        self.0[place].store(value.to_bits(), Ordering::Relaxed);
    }

    /// Reads a place, which the end of [`Half::run`] has made visible.
    pub fn at(&self, place: usize) -> f64 {
        f64::from_bits(self.0[place].load(Ordering::Relaxed))
    }
}

/// How many threads the machine runs at once.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Rows of a probe.
const PROBE_ROWS: usize = 5;

fn gap((a, b): (&f32, &f32)) -> f64 {
    let (a, b) = (f64::from(*a), f64::from(*b));
    if a == b { 0.0 } else { (a - b).abs() / a.abs().max(b.abs()).max(1.0) }
}

/// The part of `graph` that `outputs` depend on, and only the inputs it reads; the outputs float32.
pub(super) fn part(graph: &Graph, outputs: &[&str]) -> Graph {
    let mut part = graph.clone();
    let named = |output: &&str| graph.outputs.iter().find(|o| o.name == **output).cloned();
    part.outputs = outputs.iter().filter_map(named).collect();
    for i in 0..part.outputs.len() {
        if part.outputs[i].element.is_some_and(|e| e != ElementType::F32) {
            let output = part.outputs[i].name.clone();
            let inner = Names::of(&part).fresh(&format!("{output}_inner"));
            rename_result(&mut part, &output, &inner);
            part.nodes.push(Node::new("Cast", [&inner], &output).with("to", FLOAT));
            part.outputs[i] = Value::named(&output);
        }
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
