//! The loss and gradient of a batch, its shards spread over worker threads.
//!
//! L = 1/S Σ L_s and ∂L/∂w = 1/S Σ ∂L_s/∂w over S shards. Shards run in any order but are added in
//! theirs, each in its turn, into one f64 sum: memory does not grow with the number of shards, and
//! the result does not depend on the number of threads.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::gradient::product::Scratch;
use crate::runtime::{Outputs, Session, SessionOptions};
use crate::tensor::Tensor;
use crate::train::graph::{Capture, Gradient};
use crate::train::{Parameters, StepGraph};

/// Sessions on a [`StepGraph`], one per thread.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    /// The inputs that are not trained tensors.
    fed: HashSet<String>,
    loss: String,
    gradients: Vec<Gradient>,
    /// The sum of the gradients.
    sums: Vec<f64>,
}

impl Workers {
    /// Loads the graph `threads` times.
    pub fn new(step: &StepGraph, threads: usize) -> Result<Workers> {
        let load = |_| {
            let session = Session::of_graph(step.graph(), &SessionOptions::default())?;
            Ok(Worker {
                session,
                scratch: Scratch::default(),
                rows: Vec::new(),
                formed: Vec::new(),
            })
        };
        let workers = (0..threads.max(1))
            .map(load)
            .collect::<Result<Vec<_>>>()
            .context(|| "loading the graph of a training step")?;
        let fed = step.graph().inputs.iter().map(|i| i.name.clone());
        Ok(Workers {
            workers,
            fed: fed.filter(|name| !step.trained().contains(name)).collect(),
            loss: step.loss().into(),
            gradients: step.gradients().to_vec(),
            sums: Vec::new(),
        })
    }

    /// The mean loss over `shards` shards and, in `gradient` (d numbers), the mean of its gradient
    /// in the free weights of `parameters`, which are those the step graph was made for.
    ///
    /// `feed` gives the inputs of a shard, by number; inputs that the loss does not need are passed
    /// over. Errors: those of `feed` and of the runtime; `Numerics` for a loss that is not finite.
    pub fn gradient(
        &mut self,
        parameters: &Parameters,
        shards: usize,
        feed: &(dyn Fn(usize) -> Result<Vec<(String, Tensor)>> + Sync),
        gradient: &mut [f32],
        cancel: &Cancel,
    ) -> Result<f64> {
        assert!(shards > 0 && gradient.len() == parameters.len());
        self.sums.clear();
        self.sums.resize(parameters.len(), 0.0);
        let total = Total { turn: 0, stopped: false, loss: 0.0, sums: &mut self.sums };
        let turns = Turns { total: Mutex::new(total), changed: Condvar::new() };
        let (next, fed) = (AtomicUsize::new(0), &self.fed);
        let (loss, gradients) = (&self.loss, &self.gradients);
        let work = |worker: &mut Worker| -> Result<()> {
            let stopper = Stopper(&turns);
            loop {
                let shard = next.fetch_add(1, Ordering::Relaxed);
                if shard >= shards {
                    std::mem::forget(stopper);
                    return Ok(());
                }
                let mut inputs = feed(shard)?;
                inputs.retain(|(name, _)| fed.contains(name));
                let fed = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor));
                let outputs = worker.session.run(fed.chain(parameters.tensors()), cancel)?;
                worker.form(gradients, parameters, &outputs, &inputs)?;
                let Some(mut total) = turns.take(shard) else { return Ok(()) };
                total.loss += f64::from(outputs.f32(loss)?.1[0]);
                let mut formed = worker.formed.iter();
                for (i, gradient) in gradients.iter().enumerate() {
                    let gradient = match gradient {
                        Gradient::Output(name) => outputs.f32(name)?.1,
                        Gradient::Products(_) => formed.next().expect("one was formed for each"),
                    };
                    parameters.add_gradient(i, gradient, total.sums);
                }
                total.turn += 1;
                turns.changed.notify_all();
            }
        };
        std::thread::scope(|scope| {
            let start = |worker| scope.spawn(|| work(worker));
            let threads: Vec<_> = self.workers.iter_mut().map(start).collect();
            let results = threads.into_iter().map(|t| match t.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            results.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
        })?;
        let loss = turns.take(shards).map_or(f64::NAN, |total| total.loss) / shards as f64;
        if !loss.is_finite() {
            bail!(Numerics, "the loss is {loss}; lower the learning rate or look at the samples");
        }
        for (out, sum) in gradient.iter_mut().zip(&self.sums) {
            *out = (sum / shards as f64) as f32;
        }
        Ok(loss)
    }
}

/// A session of one thread and its buffers.
#[derive(Debug)]
struct Worker {
    session: Session,
    scratch: Scratch,
    /// A gradient in the order of a product's rows.
    rows: Vec<f32>,
    /// The gradients of the captured tensors, in order.
    formed: Vec<Vec<f32>>,
}

impl Worker {
    /// Forms the gradients of captured tensors from what the graph handed out.
    fn form(
        &mut self,
        gradients: &[Gradient],
        parameters: &Parameters,
        outputs: &Outputs,
        inputs: &[(String, Tensor)],
    ) -> Result<()> {
        let lengths = parameters.tensors().map(|(_, tensor)| tensor.len());
        let captured = gradients.iter().zip(lengths).filter_map(|(gradient, n)| match gradient {
            Gradient::Products(captures) => Some((captures, n)),
            Gradient::Output(_) => None,
        });
        for (i, (captures, n)) in captured.enumerate() {
            if i == self.formed.len() {
                self.formed.push(vec![0.0; n]);
            }
            let out = &mut self.formed[i];
            out.fill(0.0);
            for capture in captures {
                let x = match inputs.iter().find(|(name, _)| *name == capture.x) {
                    Some((_, tensor)) => tensor.as_f32().expect("captured data is float32"),
                    None => outputs.f32(&capture.x)?.1,
                };
                let g = outputs.f32(&capture.g)?.1;
                add_product(capture, x, g, out, &mut self.rows, &mut self.scratch);
            }
        }
        Ok(())
    }
}

/// Adds W̄ of one product to `out`, in the order of the tensor.
fn add_product(
    capture: &Capture,
    x: &[f32],
    g: &[f32],
    out: &mut [f32],
    rows: &mut Vec<f32>,
    scratch: &mut Scratch,
) {
    let parts = capture.parts;
    let mut add = |out: &mut [f32]| {
        (0..parts).for_each(|part| capture.product.add_gradient(x, g, part, parts, out, scratch));
    };
    let Some(stored) = &capture.stored else { return add(out) };
    rows.clear();
    rows.resize(out.len(), 0.0);
    add(rows);
    stored.iter().zip(rows).for_each(|(&i, &mut v)| out[i as usize] += v);
}

/// What the shards add to, one after the other.
struct Turns<'a> {
    total: Mutex<Total<'a>>,
    changed: Condvar,
}

struct Total<'a> {
    /// The shard that may add now.
    turn: usize,
    /// A worker failed: the turn will not come.
    stopped: bool,
    loss: f64,
    sums: &'a mut [f64],
}

impl<'a> Turns<'a> {
    /// Waits for the turn of `shard`; `None` when it will not come.
    fn take(&self, shard: usize) -> Option<MutexGuard<'_, Total<'a>>> {
        let total = self.total.lock().ok()?;
        let waits = |total: &mut Total| total.turn != shard && !total.stopped;
        self.changed.wait_while(total, waits).ok().filter(|total| !total.stopped)
    }
}

/// Stops the others when its worker ends before the shards do, by an error or a panic.
struct Stopper<'t, 'a>(&'t Turns<'a>);

impl Drop for Stopper<'_, '_> {
    fn drop(&mut self) {
        let mut total = self.0.total.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        total.stopped = true;
        self.0.changed.notify_all();
    }
}
