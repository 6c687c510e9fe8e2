//! A model against labels or against another model, as a job.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;

use hone_core::calibration::{Accuracy, Labels, Samples};
use hone_core::cancel::Cancel;
use hone_core::engine::Outcome;
use hone_core::evaluate::{self, Divergence, RunOptions};
use hone_core::gradient::prepare::declare_baked_batch;
use hone_core::onnx::Graph;
use serde_json::json;

use crate::arguments::{given, optional_text, threads_or_all};
use crate::error::{guard, hone_error};
use crate::job::{hone_job, hone_observer, submit};
use crate::model::hone_model;
use crate::options::{self, Extensible};
use crate::samples::hone_samples;

/// How to evaluate. Zero means default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hone_evaluate_options {
    /// sizeof(hone_evaluate_options)
    pub size: usize,
    /// The output to judge; NULL means the first float one.
    pub output: *const c_char,
    /// Threads; 0 means the engine's number. The result does not depend on it.
    pub threads: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Who hears of the progress.
    pub observer: hone_observer,
}

// SAFETY: plain data of C without padding that starts with its size.
unsafe impl Extensible for hone_evaluate_options {}

/// Submits the evaluation of `model` on `samples`: its accuracy and cross-entropy where these have
/// class labels, and how far its outputs are from those of `reference` unless that is NULL. The job
/// makes a report (schema "hone.evaluation/1"). Models are computed in float32.
///
/// Errors are of options only, and INVALID_DATA when there are neither labels nor a reference.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn hone_evaluate(
    model: Option<&hone_model>,
    reference: Option<&hone_model>,
    samples: Option<&hone_samples>,
    options: *const hone_evaluate_options,
    out: Option<&mut MaybeUninit<*mut hone_job>>,
) -> Option<Box<hone_error>> {
    guard(|| {
        let (model, out) = (given(model, "model")?, given(out, "out")?);
        let samples = given(samples, "samples")?.0.clone();
        // SAFETY: the header asks for a struct of its size or NULL.
        let o = unsafe { options::read(options, "options") }?;
        options::check_reserved(o.reserved)?;
        // SAFETY: the header asks for a string or NULL.
        let output = unsafe { optional_text(o.output, "output") }?;
        let graph = model.graph()?;
        let output = output.map_or_else(|| evaluate::main_output(&graph), |o| Ok(o.to_owned()))?;
        if !graph.outputs.iter().any(|v| v.name == output) {
            let names: Vec<&str> = graph.outputs.iter().map(|v| v.name.as_str()).collect();
            let message = format!("the model has no output {output:?}; it has {names:?}");
            return Err(hone_error::argument(message));
        }
        let reference = reference.map(hone_model::graph).transpose()?;
        if reference.is_none() && !matches!(samples.labels(), Some(Labels::Classes(_))) {
            let message = "there is nothing to judge by: the samples have no class labels, and \
                           there is no reference model";
            return Err(hone_error::new(crate::error::hone_code::InvalidData, message));
        }
        let home = &model.home;
        let threads = if o.threads == 0 { home.threads } else { threads_or_all(o.threads) };
        let work = Work {
            graph,
            reference,
            samples,
            output,
            run: RunOptions { device: home.device, threads },
        };
        submit(home, o.observer, out, move |progress, cancel| {
            progress.begin("evaluating", 1);
            let report = work.report(cancel)?;
            progress.advance(1);
            Ok(Outcome { report: format!("{report:#}\n"), model: None })
        })
    })
}

struct Work {
    graph: Arc<Graph>,
    reference: Option<Arc<Graph>>,
    samples: Arc<Samples>,
    output: String,
    run: RunOptions,
}

impl Work {
    fn report(&self, cancel: &Cancel) -> hone_core::Result<serde_json::Value> {
        let graph = self.prepared(&self.graph, cancel)?;
        let (samples, output, run) = (&self.samples, &self.output, self.run);
        let (accuracy, reference, divergence) = match &self.reference {
            None => {
                let accuracy = evaluate::accuracy(&graph, output, samples, run, cancel)?;
                (Some(accuracy), None, None)
            }
            Some(other) => {
                let other = self.prepared(other, cancel)?;
                let both = evaluate::compare(&other, &graph, output, samples, run, cancel)?;
                let [reference, own] = both.accuracy.map_or([None; 2], |both| both.map(Some));
                (own, reference, Some(both.divergence))
            }
        };
        Ok(json!({
            "schema": "hone.evaluation/1",
            "samples": samples.rows(),
            "output": output,
            "model": accuracy.map(quality),
            "reference": reference.map(quality),
            "divergence": divergence.map(apart),
        }))
    }

    fn prepared(&self, graph: &Graph, cancel: &Cancel) -> hone_core::Result<Graph> {
        let mut graph = graph.clone();
        declare_baked_batch(&mut graph, &self.samples, evaluate::BATCH, cancel)?;
        Ok(graph)
    }
}

fn quality(a: Accuracy) -> serde_json::Value {
    json!({
        "predictions": a.total,
        "correct": a.correct,
        "accuracy": a.value(),
        "loss": a.mean_loss(),
    })
}

fn apart(d: Divergence) -> serde_json::Value {
    json!({ "relative_error": d.relative, "agreement": d.agreement })
}
