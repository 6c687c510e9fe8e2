//! `hone gradient`: the backward graph of a model as a model of its own.

use hone::autodiff::{self, Backward};
use hone::calibration::Samples;
use hone::cancel::Cancel;
use hone::error::{Context, Result};
use hone::gradient::parameters::weights;
use hone::gradient::prepare::prepare_for;
use hone::gradient::seed::{Fisher, Seeding};
use hone::onnx::{Model, import};

use crate::arguments::Gradient;

pub fn run(a: &Gradient, cancel: &Cancel) -> Result<()> {
    let model = Model::load(&a.model)?;
    let in_file = || a.model.display().to_string();
    let imported = import(&model).context(in_file)?;
    let samples = Samples::read(&a.samples, &imported.inputs, &a.reading.options()?)?;
    let rows: Vec<usize> = (0..a.batch as usize).map(|i| i % samples.rows()).collect();
    let wanted = if a.wrt.is_empty() {
        weights(&imported).0.into_iter().map(|w| w.name).collect()
    } else {
        a.wrt.clone()
    };
    let prepared =
        prepare_for(&imported, &samples.batch(&rows), &wanted, cancel).context(in_file)?;
    // `Scalar` takes outputs as they are: a cotangent is supplied by whoever runs the graph.
    let seeding = Seeding::new(Fisher::Scalar, &a.of, &prepared.graph, &prepared.facts)?;
    let (graph, facts) = (&prepared.graph, &prepared.facts);
    let backward =
        autodiff::backward(graph, facts, &seeding.values(), &wanted, &[]).context(in_file)?;
    let Backward { graph, seeds, gradients, .. } = backward;
    let json = |pairs: Vec<(String, String)>| {
        let map: serde_json::Map<String, serde_json::Value> =
            pairs.into_iter().map(|(k, v)| (k, v.into())).collect();
        serde_json::Value::Object(map).to_string()
    };
    let metadata = [
        ("hone.seeds", json(seeds.clone())),
        ("hone.gradients", json(gradients.clone().into_iter().collect())),
    ];
    graph.save(&a.output, &metadata)?;
    for (output, seed) in &seeds {
        println!("cotangent of {output:?}: input {seed:?}");
    }
    for (value, gradient) in &gradients {
        println!("gradient of {value:?}: output {gradient:?}");
    }
    Ok(())
}
