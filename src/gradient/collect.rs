//! Rows of G: one gradient per row, streamed in panels to whoever wants them.
//!
//! Each worker thread has a session of one thread on the backward graph; it runs batches of
//! samples, forms the weight gradient of each sample from what the graph hands out
//! ([`super::product`]) and averages `fisher_batch` of them into a row. Which samples and random
//! numbers go into row i depends on the seed and on i alone, and every row is written by one
//! worker, so the rows are the same for any number of threads.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;

use crate::autodiff::{self, Backward, Slot};
use crate::calibration::Samples;
use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::gradient::parameters::Parameter;
use crate::gradient::prepare::Prepared;
use crate::gradient::product::{Product, Scratch};
use crate::gradient::seed::{Draw, Seeding};
use crate::random::Stream;
use crate::runtime::{Device, Outputs, Program, Session, SessionOptions};
use crate::sys;
use crate::tensor::Tensor;

/// Which gradients to collect, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many rows: m.
    pub gradients: usize,
    /// Samples averaged into a row.
    pub fisher_batch: usize,
    /// Seeds the choice of samples and the random cotangents.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Where the backward graph runs.
    pub device: Device,
}

/// Consecutive rows of G, restricted to a range of the flat vector.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// Row-major, `count` rows of `range.len()` elements.
    pub rows: &'a [f32],
    /// How many rows.
    pub count: usize,
}

/// Gradients of one prepared graph.
#[derive(Debug)]
pub struct Collector<'a> {
    prepared: &'a Prepared,
    parameters: &'a [Parameter],
    samples: &'a Samples,
    seeding: &'a Seeding,
    plan: &'a Plan,
    /// Samples per run of the graph.
    batch: usize,
}

/// Rows per panel, rounded to whole tasks: enough to fill the matrix kernels, few enough to stay in
/// memory. A constant, so that sums over panels have the same bits whatever the memory limit.
const PANEL_ROWS: usize = 192;

impl<'a> Collector<'a> {
    /// A collector; `batch` is the batch that `prepared` was fixed to.
    pub fn new(
        prepared: &'a Prepared,
        parameters: &'a [Parameter],
        samples: &'a Samples,
        seeding: &'a Seeding,
        plan: &'a Plan,
        batch: usize,
    ) -> Collector<'a> {
        Collector { prepared, parameters, samples, seeding, plan, batch }
    }

    /// Whether each sample's gradients can be told apart in a batch: every cotangent handed out is
    /// zero outside the part that belongs to the only sample with a seed.
    pub fn samples_are_separable(&self, cancel: &Cancel) -> Result<bool> {
        if self.batch == 1 {
            return Ok(true);
        }
        let all = 0..self.parameters.last().map_or(0, |p| p.range.end);
        let mut layers = self.layers(&all);
        if layers.iter().any(|l| !l.product.splits(self.batch)) {
            return Ok(false);
        }
        let backward = self.backward(&mut layers, false)?;
        let mut worker = self.workers(&backward, 1)?.remove(0);
        let sample = self.batch - 1;
        let rows: Vec<usize> = (0..self.batch).map(|i| i % self.samples.rows()).collect();
        let mut inputs = self.samples.batch(&rows);
        inputs.extend(self.seeding.probe(&backward, sample));
        let outputs = worker.session.run(inputs.iter().map(|(n, t)| (n.as_str(), t)), cancel)?;
        for layer in &layers {
            let (_, g) = outputs.f32(&layer.g)?;
            let stray = g
                .iter()
                .enumerate()
                .any(|(i, &v)| v != 0.0 && !layer.product.belongs(i, g.len(), sample, self.batch));
            if stray {
                log::info!("samples mix in {:?}: running them one by one", layer.g);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Rows of the largest panel.
    pub fn panel_rows(&self) -> usize {
        let whole_tasks = PANEL_ROWS / self.task() * self.task();
        whole_tasks.max(self.task()).min(self.plan.gradients)
    }

    /// Rows that a worker takes at a time.
    fn task(&self) -> usize {
        (self.batch / self.plan.fisher_batch).max(1)
    }

    /// Collects `range` of every row and calls `sink` with panels of rows, in order.
    pub fn collect(
        &self,
        range: Range<usize>,
        cancel: &Cancel,
        mut sink: impl FnMut(Panel<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut layers = self.layers(&range);
        let backward = self.backward(&mut layers, true)?;
        let mut workers = self.workers(&backward, self.plan.threads)?;
        let width = range.len();
        let task = self.task();
        let rows_per_panel = self.panel_rows();
        let mut panel = vec![0.0f32; rows_per_panel * width];
        sys::advise_huge_pages(&mut panel);
        let order = Order::new(self.samples.rows(), self.plan.seed);
        let job =
            Job { collector: self, backward: &backward, layers: &layers, order: &order, range };
        for first in (0..self.plan.gradients).step_by(rows_per_panel) {
            let count = rows_per_panel.min(self.plan.gradients - first);
            let rows = &mut panel[..count * width];
            job.fill(&mut workers, rows, first, task, cancel)?;
            cancel.check()?;
            sink(Panel { rows, count })?;
        }
        Ok(())
    }

    /// The parameters that meet `range`, with every product that reads them.
    fn layers(&self, range: &Range<usize>) -> Vec<Layer> {
        let hit = |p: &&Parameter| p.range.start < range.end && range.start < p.range.end;
        let mut layers = Vec::new();
        for p in self.parameters.iter().filter(hit) {
            let inside = range.start <= p.range.start && p.range.end <= range.end;
            layers.extend(p.uses.iter().map(|u| {
                let node = &self.prepared.graph.nodes[u.slot.node];
                let x = node.inputs[Product::data_input(u.slot.input)].clone();
                Layer {
                    slot: u.slot,
                    product: u.product.clone(),
                    place: u.place.clone(),
                    parameter: p.range.clone(),
                    alone: inside && p.uses.len() == 1 && u.place.is_none(),
                    x,
                    g: String::new(),
                }
            }));
        }
        layers
    }

    /// The backward graph for these layers; names their cotangents. With `seeded` its seeds are
    /// those of the run, else they are inputs.
    fn backward(&self, layers: &mut [Layer], seeded: bool) -> Result<Backward> {
        let slots: Vec<Slot> = layers.iter().map(|l| l.slot).collect();
        let (graph, facts) = (&self.prepared.graph, &self.prepared.facts);
        let mut backward = autodiff::backward(graph, facts, &self.seeding.values(), &[], &slots)?;
        for layer in layers.iter_mut() {
            let capture = backward.captures.iter().find(|c| c.slot == layer.slot);
            let Some(capture) = capture else {
                bail!(Model, "no gradient reaches {}", graph.nodes[layer.slot.node].describe())
            };
            layer.g = capture.gradient.clone();
        }
        // Before anything is dropped: seeds may need the logits, which gradients do not.
        if seeded {
            self.seeding.attach(&mut backward)?;
        }
        // Nobody reads the model's own outputs here.
        let wanted: BTreeSet<&str> =
            layers.iter().flat_map(|l| [l.x.as_str(), l.g.as_str()]).collect();
        backward.graph.outputs.retain(|o| wanted.contains(o.name.as_str()));
        backward.graph.remove_unused();
        Ok(backward)
    }

    /// At least one and, on the CPU, up to `most` workers. They load side by side: that takes a
    /// good part of a short run.
    fn workers(&self, backward: &Backward, most: usize) -> Result<Vec<Worker>> {
        let (count, threads) = match self.plan.device.settled() {
            Device::Cpu => (most.max(1), 1),
            _ => (1, self.plan.threads),
        };
        let options = SessionOptions { device: self.plan.device, threads, optimize: true };
        let program = Program::of_graph(&backward.graph)?;
        let load = || {
            let session =
                Session::new(&program, &options).context(|| "loading the backward graph")?;
            Ok(Worker { session, buffers: Buffers::default() })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(load)).collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, Result<Worker>>| {
                t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        })
    }
}

struct Worker {
    session: Session,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    scratch: Scratch,
    /// The gradient of a parameter that does not lie in a row as it is.
    gradient: Vec<f32>,
}

/// A product that reads a parameter, and the values of the backward graph that its gradient needs.
struct Layer {
    slot: Slot,
    product: Product,
    place: Option<Vec<u32>>,
    parameter: Range<usize>,
    /// Whether the product is its parameter's only one and writes all of it, where it lies in the
    /// range.
    alone: bool,
    x: String,
    g: String,
}

/// Which sample each draw takes: the samples in random order, again and again.
struct Order {
    rows: usize,
    seed: u64,
    epochs: Mutex<Vec<Vec<u32>>>,
}

impl Order {
    fn new(rows: usize, seed: u64) -> Order {
        Order { rows, seed, epochs: Mutex::new(Vec::new()) }
    }

    fn draw(&self, number: u64) -> Draw {
        let (epoch, place) =
            ((number / self.rows as u64) as usize, (number % self.rows as u64) as usize);
        let mut epochs = self.epochs.lock().expect("nothing panics while holding it");
        while epochs.len() <= epoch {
            // Streams from the top are those no draw uses.
            let stream = u64::MAX - epochs.len() as u64;
            epochs.push(Stream::new(self.seed, stream).permutation(self.rows));
        }
        Draw { row: epochs[epoch][place] as usize, number }
    }
}

struct Job<'a> {
    collector: &'a Collector<'a>,
    backward: &'a Backward,
    layers: &'a [Layer],
    order: &'a Order,
    range: Range<usize>,
}

impl Job<'_> {
    /// Fills rows `first..` of the panel, `task` rows at a time per worker.
    fn fill(
        &self,
        workers: &mut [Worker],
        rows: &mut [f32],
        first: usize,
        task: usize,
        cancel: &Cancel,
    ) -> Result<()> {
        let width = self.range.len();
        let tasks = Mutex::new(rows.chunks_mut(task * width).enumerate());
        let run = |worker: &mut Worker| -> Result<()> {
            loop {
                let next = tasks.lock().expect("nothing panics while holding it").next();
                let Some((i, rows)) = next else { return Ok(()) };
                self.fill_rows(worker, rows, first + i * task, cancel)?;
            }
        };
        std::thread::scope(|scope| {
            let start = |worker| scope.spawn(|| run(worker));
            let threads: Vec<_> = workers.iter_mut().map(start).collect();
            let results = threads.into_iter().map(|t| match t.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            results.collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// One task: a few whole rows, whose samples are run in batches.
    fn fill_rows(
        &self,
        worker: &mut Worker,
        rows: &mut [f32],
        first: usize,
        cancel: &Cancel,
    ) -> Result<()> {
        let c = self.collector;
        let (width, per_row) = (self.range.len(), c.plan.fisher_batch);
        let count = rows.len() / width;
        // Sums start at zero; what a single product writes needs no start.
        for range in self.layers.iter().filter(|l| !l.alone).map(|l| self.inside(&l.parameter)) {
            rows.chunks_mut(width).for_each(|row| row[range.clone()].fill(0.0));
        }
        let draws: Vec<Draw> = (first * per_row..(first + count) * per_row)
            .map(|n| self.order.draw(n as u64))
            .collect();
        for (b, live) in draws.chunks(c.batch).enumerate() {
            // A short last batch is filled up with copies whose gradients are not looked at.
            let mut padded = live.to_vec();
            padded.resize(c.batch, live[live.len() - 1]);
            let samples: Vec<usize> = padded.iter().map(|d| d.row).collect();
            let mut inputs = c.samples.batch(&samples);
            inputs.extend(c.seeding.feeds(self.backward, &padded, c.samples, c.plan.seed));
            let outputs =
                worker.session.run(inputs.iter().map(|(n, t)| (n.as_str(), t)), cancel)?;
            for layer in self.layers {
                let worker = &mut worker.buffers;
                let x = value(&outputs, &inputs, &layer.x)?;
                let g = value(&outputs, &inputs, &layer.g)?;
                for sample in 0..live.len() {
                    let number = b * c.batch + sample;
                    let row = &mut rows[number / per_row * width..][..width];
                    let first = number.is_multiple_of(per_row);
                    self.add(layer, x, g, (sample, first), row, worker);
                }
            }
        }
        if per_row > 1 {
            rows.iter_mut().for_each(|v| *v /= per_row as f32);
        }
        self.check_finite(rows, first)
    }

    /// An error that names the tensor and the gradient with the first number that is not finite.
    fn check_finite(&self, rows: &[f32], first: usize) -> Result<()> {
        // Without a branch per element, so that the loop over all rows is a vector loop.
        if !rows.iter().fold(false, |seen, v| seen | !v.is_finite()) {
            return Ok(());
        }
        let width = self.range.len();
        let Some(i) = rows.iter().position(|v| !v.is_finite()) else { return Ok(()) };
        let parameters = self.collector.parameters;
        let place = self.range.start + i % width;
        let p = &parameters[parameters.partition_point(|p| p.range.end <= place)];
        bail!(
            Numerics,
            "gradient {} of tensor {:?} is not finite: the model overflows on these samples",
            first + i / width,
            p.name
        )
    }

    /// The part of the range that belongs to a parameter, as places in a row.
    fn inside(&self, parameter: &Range<usize>) -> Range<usize> {
        let Range { start, end } = self.range;
        parameter.start.clamp(start, end) - start..parameter.end.clamp(start, end) - start
    }

    /// Adds one sample's gradient of one product to a row; to the first sample of a row where the
    /// product is alone, nothing has been written yet.
    fn add(
        &self,
        layer: &Layer,
        x: &[f32],
        g: &[f32],
        (sample, first): (usize, bool),
        row: &mut [f32],
        Buffers { scratch, gradient }: &mut Buffers,
    ) {
        let (batch, whole, range) = (self.collector.batch, &layer.parameter, &self.range);
        if layer.alone && first {
            let out = &mut row[self.inside(whole)];
            return layer.product.put_gradient(x, g, sample, batch, out, scratch);
        }
        let inside = range.start <= whole.start && whole.end <= range.end;
        if inside && layer.place.is_none() {
            let out = &mut row[self.inside(whole)];
            return layer.product.add_gradient(x, g, sample, batch, out, scratch);
        }
        gradient.resize(whole.len(), 0.0);
        layer.product.put_gradient(x, g, sample, batch, gradient, scratch);
        for (i, &v) in gradient.iter().enumerate() {
            let place = whole.start + layer.place.as_ref().map_or(i, |p| p[i] as usize);
            if range.contains(&place) {
                row[place - range.start] += v;
            }
        }
    }
}

/// A float32 value that the graph handed out or was fed.
fn value<'v>(
    outputs: &'v Outputs,
    inputs: &'v [(String, Tensor)],
    name: &str,
) -> Result<&'v [f32]> {
    match inputs.iter().find(|(n, _)| n == name) {
        Some((_, tensor)) => match tensor.as_f32() {
            Some(data) => Ok(data),
            None => {
                bail!(Unsupported, "input {name:?} feeds a product directly but is not float32")
            }
        },
        None => Ok(outputs.f32(name)?.1),
    }
}
