//! Running a model over samples: accuracy, and how far two models' outputs are apart.
//!
//! Batches are spread over worker threads with a session each; figures are summed in batch order,
//! so they do not depend on the number of threads.

use std::sync::Mutex;
use std::time::Instant;

use crate::calibration::{Accuracy, Labels, Samples, metrics};
use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::onnx::{Dimension, Graph, Value};
use crate::runtime::{Device, Program, Session, SessionOptions};
use crate::tensor::{ElementType, Tensor};

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Where.
    pub device: Device,
    /// Worker threads on the processor.
    pub threads: usize,
}

/// Samples per run where the model leaves the choice: few enough that activations stay in cache.
pub const BATCH: usize = 8;

/// The batch the model declares for its inputs, if it declares one.
pub fn fixed_batch(graph: &Graph) -> Option<usize> {
    graph.inputs.iter().find_map(|input| match input.shape.as_ref()?.first()? {
        Dimension::Fixed(n) => Some(*n),
        Dimension::Symbol(_) => None,
    })
}

/// Loaded graphs, a set per worker thread.
#[derive(Debug)]
pub struct Runner {
    workers: Vec<Vec<Session>>,
    values: Vec<String>,
    batch: usize,
    /// What becomes of the rows that do not fill a batch.
    rest: Rest,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rest {
    /// A smaller batch.
    Run,
    /// A batch filled up with copies, whose values are cut off.
    Fill,
    /// Nothing.
    Drop,
}

impl Runner {
    /// Loads `graphs`, which take the same inputs; `values` names the outputs or inner values to
    /// compute of each.
    pub fn new(graphs: &[&Graph], values: &[String], options: RunOptions) -> Result<Runner> {
        match graphs.first().and_then(|g| fixed_batch(g)) {
            Some(batch) => Runner::load(graphs, values, options, batch.max(1), Rest::Fill),
            None => Runner::load(graphs, values, options, BATCH, Rest::Run),
        }
    }

    /// Loads `graph` for batches of `batch`; rows that do not fill one are left out.
    pub fn with_batch(
        graph: &Graph,
        values: &[String],
        options: RunOptions,
        batch: usize,
    ) -> Result<Runner> {
        Runner::load(&[graph], values, options, batch, Rest::Drop)
    }

    fn load(
        graphs: &[&Graph],
        values: &[String],
        options: RunOptions,
        batch: usize,
        rest: Rest,
    ) -> Result<Runner> {
        let program = |graph: &&Graph| {
            let mut graph = Graph::clone(graph);
            graph.outputs = values.iter().map(Value::named).collect();
            graph.remove_unused();
            Program::of_graph(&graph)
        };
        let programs = graphs.iter().map(program).collect::<Result<Vec<_>>>()?;
        let (workers, threads) = match options.device.settled() {
            Device::Cpu => (options.threads.max(1), 1),
            _ => (1, options.threads),
        };
        let session_options = SessionOptions { device: options.device, threads, optimize: true };
        let load = |program: &Program| Session::new(program, &session_options);
        let worker = |_| programs.iter().map(load).collect::<Result<Vec<_>>>();
        let workers = (0..workers).map(worker).collect::<Result<Vec<_>>>()?;
        Ok(Runner { workers, values: values.to_vec(), batch, rest })
    }

    /// Calls `each(rows, values)` for batches of all samples and returns its results in order; the
    /// values of the first graph come first.
    ///
    /// Values of a short last batch of a model with a fixed batch are cut to the rows that exist.
    pub fn run<T: Send>(
        &mut self,
        samples: &Samples,
        cancel: &Cancel,
        each: impl Fn(&[usize], Vec<Tensor>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let (values, batch, rest) = (&self.values, self.batch, self.rest);
        let all = samples.rows();
        let end = if rest == Rest::Drop { all / batch * batch } else { all };
        let starts = (0..end).step_by(batch);
        let results: Mutex<Vec<Option<T>>> = Mutex::new(starts.clone().map(|_| None).collect());
        let next = Mutex::new(starts.enumerate());
        let work = |sessions: &mut Vec<Session>| -> Result<()> {
            loop {
                let item = next.lock().expect("nothing panics while holding it").next();
                let Some((index, start)) = item else { return Ok(()) };
                let rows: Vec<usize> = (start..(start + batch).min(end)).collect();
                let mut padded = rows.clone();
                if rest == Rest::Fill {
                    padded.resize(batch, rows[rows.len() - 1]);
                }
                let inputs = samples.batch(&padded);
                let mut tensors = Vec::with_capacity(sessions.len() * values.len());
                for session in sessions.iter_mut() {
                    let inputs = inputs.iter().map(|(n, t)| (n.as_str(), t));
                    let outputs = session.run(inputs, cancel)?;
                    for value in values {
                        let tensor = outputs.tensor(value)?;
                        tensors.push(first_rows(tensor, padded.len(), rows.len())?);
                    }
                }
                let result = each(&rows, tensors)?;
                results.lock().expect("nothing panics while holding it")[index] = Some(result);
            }
        };
        std::thread::scope(|scope| {
            let start = |sessions| scope.spawn(|| work(sessions));
            let threads: Vec<_> = self.workers.iter_mut().map(start).collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect::<Vec<_>>().into_iter().collect::<Result<()>>()
        })?;
        let results = results.into_inner().expect("nothing panics while holding it");
        Ok(results.into_iter().map(|r| r.expect("every batch was run")).collect())
    }
}

/// Seconds that the forward passes of all samples take, with sessions loaded and warm.
pub fn forward_s(
    graph: &Graph,
    output: &str,
    samples: &Samples,
    options: RunOptions,
    cancel: &Cancel,
) -> Result<f64> {
    let mut runner = Runner::new(&[graph], &[output.into()], options)?;
    let mut time = || {
        let start = Instant::now();
        runner.run(samples, cancel, |_, _| Ok(()))?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The first pass warms caches; the better of two more is less of other work's noise.
    time()?;
    Ok(f64::min(time()?, time()?))
}

/// The part of a batch's output that belongs to rows that exist.
fn first_rows(tensor: Tensor, batch: usize, rows: usize) -> Result<Tensor> {
    if batch == rows || tensor.shape().first() != Some(&batch) {
        return Ok(tensor);
    }
    let mut shape = tensor.shape().to_vec();
    shape[0] = rows;
    let each = tensor.len() / batch;
    let data = tensor.to_f32()[..rows * each].to_vec();
    Ok(Tensor::f32(shape, data))
}

/// How far the outputs of two models are apart on the same samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// ‖y′ − y‖ / ‖y‖ over all samples.
    pub relative: f64,
    /// The fraction of samples with the same highest output, where there are classes.
    pub agreement: Option<f64>,
    /// Mean over samples of ½ ‖C(z′ − z)‖², C centring over the classes: what ½ δᵀFδ predicts for
    /// `--fisher outputs`.
    pub half_squared: f64,
}

/// Fraction of predictions that agree with the labels, from logits or probabilities.
pub fn accuracy(
    graph: &Graph,
    output: &str,
    samples: &Samples,
    options: RunOptions,
    cancel: &Cancel,
) -> Result<Accuracy> {
    let Some(labels @ Labels::Classes(_)) = samples.labels() else {
        bail!(Data, "accuracy needs integer `labels` beside the samples");
    };
    let mut runner = Runner::new(&[graph], &[output.into()], options)?;
    let parts = runner.run(samples, cancel, |rows, outputs| {
        metrics::accuracy(&outputs[0], labels, rows).context(|| format!("output {output:?}"))
    })?;
    let mut sum = Accuracy::default();
    parts.into_iter().for_each(|part| sum.add(part));
    Ok(sum)
}

/// Two models on the same samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Each model against the labels, where there are class labels.
    pub accuracy: Option<[Accuracy; 2]>,
    /// The second model against the first.
    pub divergence: Divergence,
}

/// Compares `b` with `a` in the value `name`, which both compute.
pub fn compare(
    a: &Graph,
    b: &Graph,
    name: &str,
    samples: &Samples,
    options: RunOptions,
    cancel: &Cancel,
) -> Result<Comparison> {
    let labels = samples.labels().filter(|l| matches!(l, Labels::Classes(_)));
    let mut runner = Runner::new(&[a, b], &[name.into()], options)?;
    let parts = runner.run(samples, cancel, |rows, outputs| {
        let [a, b] = outputs.as_slice() else { unreachable!("one value of two graphs") };
        let mut divergence = metrics::Divergence::default();
        divergence.add(a, b)?;
        let right = |output| labels.map(|l| metrics::accuracy(output, l, rows)).transpose();
        Ok((right(a)?.zip(right(b)?), divergence, half_squared(a, b)))
    });
    let parts = parts.context(|| format!("output {name:?}"))?;
    let (mut sums, mut half) = (metrics::Divergence::default(), 0.0);
    let mut accuracy: Option<[Accuracy; 2]> = None;
    for (right, divergence, squared) in parts {
        sums.merge(&divergence);
        half += squared;
        if let Some((a, b)) = right {
            let total = accuracy.get_or_insert_default();
            total[0].add(a);
            total[1].add(b);
        }
    }
    let divergence = Divergence {
        relative: sums.relative_error(),
        agreement: sums.agreement(),
        half_squared: half / samples.rows() as f64,
    };
    Ok(Comparison { accuracy, divergence })
}

/// Σ over positions of ½ ‖C(b − a)‖², C centring over the classes; the shapes must agree.
pub fn half_squared(a: &Tensor, b: &Tensor) -> f64 {
    let (a_shape, a, b) = (a.shape(), a.to_f64(), b.to_f64());
    let axis = class_axis(a_shape);
    let classes = if axis == 0 { 1 } else { a_shape.get(axis).copied().unwrap_or(1) };
    let stride = a_shape.iter().skip(axis + 1).product::<usize>().max(1);
    let difference: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
    if classes < 2 {
        return 0.5 * difference.iter().map(|d| d * d).sum::<f64>();
    }
    let starts = (0..difference.len()).filter(|i| i / stride % classes == 0);
    starts
        .map(|start| {
            let position = || (0..classes).map(|c| difference[start + c * stride]);
            let mean = position().sum::<f64>() / classes as f64;
            0.5 * position().map(|d| (d - mean).powi(2)).sum::<f64>()
        })
        .sum()
}

/// [N, K] and [N, K, H, W] have their classes at axis 1, sequences [N, T, K] at the last.
pub fn class_axis(shape: &[usize]) -> usize {
    if shape.len() == 3 { 2 } else { 1.min(shape.len().saturating_sub(1)) }
}

/// Runs per model in [`latencies_ms`]: enough for a median.
pub const LATENCY_RUNS: usize = 31;

/// Median time of one run of `batch` samples in ONNX Runtime, in milliseconds, of each graph. The
/// graphs take turns, so that whatever else the machine does hits them alike.
pub fn latencies_ms<const N: usize>(
    graphs: [&Graph; N],
    samples: &Samples,
    batch: usize,
    options: RunOptions,
    cancel: &Cancel,
) -> Result<[f64; N]> {
    /// The first runs warm caches and are not counted.
    const WARM_UP: usize = 5;
    let session_options =
        SessionOptions { device: options.device, threads: options.threads, optimize: true };
    let rows: Vec<usize> = (0..batch).map(|i| i % samples.rows()).collect();
    let inputs = samples.batch(&rows);
    let mut sessions = graphs
        .into_iter()
        .map(|graph| Ok((Session::of_graph(graph, &session_options)?, Vec::new())))
        .collect::<Result<Vec<_>>>()?;
    for run in 0..LATENCY_RUNS + WARM_UP {
        for (session, times) in &mut sessions {
            let start = Instant::now();
            session.run(inputs.iter().map(|(n, t)| (n.as_str(), t)), cancel)?;
            if run >= WARM_UP {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let mut medians = sessions.into_iter().map(|(_, mut times)| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    Ok(std::array::from_fn(|_| medians.next().expect("one session per graph")))
}

/// The first float output of the graph: what accuracy is measured on unless another is named.
pub fn main_output(graph: &Graph) -> Result<String> {
    let is_float = |v: &&Value| v.element.is_none_or(ElementType::is_float);
    match graph.outputs.iter().find(is_float) {
        Some(output) => Ok(output.name.clone()),
        None => bail!(Unsupported, "the model has no float output"),
    }
}
