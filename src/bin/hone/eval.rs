//! `hone eval`: accuracy of a model on labelled samples.

use hone::calibration::Samples;
use hone::cancel::Cancel;
use hone::error::{Context, Result};
use hone::evaluate;
use hone::gradient::prepare::declare_baked_batch;
use hone::onnx::{Graph, Model};

use crate::arguments::Eval;

pub fn run(a: &Eval, cancel: &Cancel) -> Result<()> {
    let model = Model::load(&a.model)?;
    let mut graph = Graph::from_model(&model)?;
    let samples = Samples::read(&a.data, &graph.inputs, &a.reading.options()?)?;
    declare_baked_batch(&mut graph, &samples, evaluate::BATCH, cancel)?;
    let output = a.output.clone().map_or_else(|| evaluate::main_output(&graph), Ok)?;
    let options = evaluate::RunOptions { device: a.running.device, threads: a.running.threads() };
    let accuracy = evaluate::accuracy(&graph, &output, &samples, options, cancel)
        .context(|| a.model.display().to_string())?;
    if a.json {
        let json = serde_json::json!({
            "schema": "hone.eval/1",
            "model": a.model,
            "data": a.data,
            "output": output,
            "predictions": accuracy.total,
            "correct": accuracy.correct,
            "accuracy": accuracy.value(),
            "loss": accuracy.mean_loss(),
        });
        println!("{json:#}");
    } else {
        println!(
            "accuracy {:.4}, loss {:.4} ({} of {} right, output {output:?})",
            accuracy.value(),
            accuracy.mean_loss(),
            accuracy.correct,
            accuracy.total
        );
    }
    Ok(())
}
