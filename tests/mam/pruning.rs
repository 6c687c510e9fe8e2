//! Pruned models: as many zeros as asked for, the contract kept, better than by magnitude, and no
//! weight judged by logits that mean nothing.

use std::fs;
use std::sync::Arc;

use hone::cancel::Cancel;
use hone::mam::contract::{Contract, Kind};
use hone::mam::prune::{Comparison, Loss, PruneOptions, Reference, prune};
use hone::mam::{LoadOptions, Mam, Rows, read_rows};
use hone::onnx::{Graph, Model, Node};
use hone::prune::{Method, Options};
use hone::random::Stream;
use hone::tensor::{ElementType, Tensor};

use crate::cli::{mam as command, text};
use crate::rows::perceptron;
use crate::tables::{save, symbolic};

const LENGTH: usize = 12;
const VALUES: usize = 3;

fn options(sparsity: f64, loss: Loss) -> PruneOptions {
    let prune =
        Options { sparsity, stages: 2, gradients: 64, block: 48, threads: 2, ..Options::default() };
    PruneOptions { prune, loss }
}

fn model(graph: &Graph, contract: &Contract) -> Model {
    let (_folder, path) = save(graph, contract, "model.onnx");
    Model::load(path).unwrap()
}

fn load(models: &[Model]) -> Mam {
    Mam::from_models(models, LoadOptions::default(), &Cancel::new()).unwrap()
}

/// Rows of three values, some missing.
fn some_rows(count: usize) -> Rows {
    let mut random = Stream::new(4, 1);
    let mut cell = || if random.below(20) == 0 { -1 } else { random.below(VALUES) as i64 };
    Rows::new(LENGTH, (0..count * LENGTH).map(|_| cell()).collect()).unwrap()
}

fn pruned(models: &[Model], options: &PruneOptions) -> hone::Result<Vec<Model>> {
    let (rows, cancel) = (some_rows(80), Cancel::new());
    prune(models, &load(models), &rows, options, &(), &cancel).map(|(models, _)| models)
}

#[test]
fn a_pruned_file_differs_in_weights_and_what_it_says_of_them() {
    let mut contract = Contract::new(Kind::Joint, LENGTH, VALUES);
    contract.log_z = Some(0.0);
    for (key, value) in [("nll_bits", "1.2"), ("dataset", "made up")] {
        contract.notes.insert(key.into(), value.into());
    }
    let dense = model(&perceptron(&contract), &contract);
    let (rows, cancel) = (some_rows(80), Cancel::new());
    let mam = load(std::slice::from_ref(&dense));
    let options = options(0.75, Loss::Outputs);
    let (models, halves) =
        prune(std::slice::from_ref(&dense), &mam, &rows, &options, &(), &cancel).unwrap();
    let outputs: Vec<&str> = halves.iter().map(|h| h.output.as_str()).collect();
    assert_eq!(outputs, ["log_p", "logits"]);
    let graph = Graph::from_model(&models[0]).unwrap();
    for half in &halves {
        assert_eq!(half.zeros, (half.weights as f64 * 0.75).round() as u64, "{half:?}");
        assert!(half.predicted_loss.unwrap() > 0.0);
    }
    let zeros =
        |name: &str| graph.initializers[name].to_f32().iter().filter(|w| **w == 0.0).count();
    let theta: usize = ["theta.1", "theta.2", "theta.3"].iter().map(|n| zeros(n)).sum();
    assert_eq!(theta as u64, halves[0].zeros);
    let told = Contract::read(&models[0]).unwrap();
    let again = load(&models);
    assert!((told.log_z.unwrap() - again.log_z().unwrap()).abs() < 1e-9);
    assert_ne!(told.log_z, Some(0.0));
    assert!(again.warnings().is_empty(), "{:?}", again.warnings());
    let notes: Vec<_> = told.notes.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(notes, [("dataset", "made up")], "what was measured on the dense model is gone");
    assert_eq!(pruned(&[dense], &options).unwrap()[0].to_bytes().unwrap(), {
        let one =
            PruneOptions { prune: Options { threads: 1, ..options.prune.clone() }, ..options };
        let dense = model(&perceptron(&contract), &contract);
        pruned(&[dense], &one).unwrap()[0].to_bytes().unwrap()
    });
}

#[test]
fn logits_of_known_sites_have_no_say() {
    let contract = Contract::new(Kind::Conditional, LENGTH, VALUES);
    let plain = perceptron(&contract);
    // Ten times as large where x is known, where logits mean nothing.
    let mut loud = plain.clone();
    loud.nodes.iter_mut().filter(|n| n.outputs == ["logits"]).for_each(|n| {
        n.outputs = vec!["quiet".into()];
    });
    loud.outputs = vec![symbolic("logits", ElementType::F32, &[LENGTH, VALUES])];
    loud.initializers.insert("none".into(), Arc::new(Tensor::i64([], vec![0])));
    loud.initializers.insert("last".into(), Arc::new(Tensor::i64([1], vec![2])));
    loud.initializers.insert("nine".into(), Arc::new(Tensor::f32([], vec![9.0])));
    loud.initializers.insert("unit".into(), Arc::new(Tensor::f32([], vec![1.0])));
    loud.nodes.extend([
        Node::new("Greater", ["x", "none"], "is_known"),
        Node::new("Cast", ["is_known"], "known_float").with("to", 1i64),
        Node::new("Mul", ["known_float", "nine"], "known_nine"),
        Node::new("Add", ["known_nine", "unit"], "factor"),
        Node::new("Unsqueeze", ["factor", "last"], "factors"),
        Node::new("Mul", ["quiet", "factors"], "logits"),
    ]);
    loud.remove_unused();
    let mut quiet = plain;
    quiet.outputs.retain(|o| o.name == "logits");
    quiet.remove_unused();
    for loss in [Loss::Outputs, Loss::Sampled, Loss::Training] {
        let weights = |graph: &Graph| -> Vec<f32> {
            let models = pruned(&[model(graph, &contract)], &options(0.5, loss)).unwrap();
            let graph = Graph::from_model(&models[0]).unwrap();
            let of = |name: &str| graph.initializers[name].to_f32();
            ["phi.1", "phi.2", "phi.3"].iter().flat_map(|n| of(n)).collect()
        };
        let (a, b) = (weights(&quiet), weights(&loud));
        let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-5, "{loss:?}: {apart}");
    }
}

#[test]
fn values_that_a_site_lacks_are_left_out() {
    let mut contract = Contract::new(Kind::Joint, LENGTH, VALUES + 1);
    contract.cardinalities = (0..LENGTH).map(|i| VALUES + i % 2).collect();
    let dense = [model(&perceptron(&contract), &contract)];
    for loss in [Loss::Outputs, Loss::Sampled, Loss::Training] {
        let models = pruned(&dense, &options(0.5, loss)).unwrap();
        assert_eq!(Contract::read(&models[0]).unwrap().cardinalities, contract.cardinalities);
    }
}

#[test]
fn the_two_files_of_a_pair_are_pruned_as_the_one_of_both() {
    let joint = Contract::new(Kind::Joint, LENGTH, VALUES);
    let graph = perceptron(&joint);
    let half = |kind: Kind| {
        let mut half = graph.clone();
        half.outputs.retain(|o| kind.outputs().contains(&o.name.as_str()));
        half.remove_unused();
        model(&half, &Contract::new(kind, LENGTH, VALUES))
    };
    let options = options(0.5, Loss::Training);
    let pair = pruned(&[half(Kind::Conditional), half(Kind::Marginal)], &options).unwrap();
    let whole = pruned(&[model(&graph, &joint)], &options).unwrap();
    let whole = Graph::from_model(&whole[0]).unwrap();
    for (file, name) in [(0, "phi.2"), (1, "theta.1"), (1, "theta.3")] {
        let own = Graph::from_model(&pair[file]).unwrap();
        assert_eq!(own.initializers[name], whole.initializers[name], "{name}");
    }
    let error = pruned(&[half(Kind::Marginal)], &options).unwrap_err().to_string();
    assert!(error.contains("needs φ"), "{error}");
}

#[test]
fn halves_that_share_weights_are_pruned_together() {
    let contract = Contract::new(Kind::Joint, LENGTH, VALUES);
    let mut graph = perceptron(&contract);
    for node in &mut graph.nodes {
        node.inputs.iter_mut().filter(|i| *i == "phi.v2").for_each(|i| *i = "theta.v2".into());
    }
    graph.remove_unused();
    let dense = [model(&graph, &contract)];
    let (rows, cancel) = (some_rows(80), Cancel::new());
    let found =
        prune(&dense, &load(&dense), &rows, &options(0.5, Loss::Outputs), &(), &cancel).unwrap();
    assert_eq!(found.1.len(), 1);
    assert_eq!(
        (found.1[0].output.as_str(), found.1[0].zeros * 2),
        ("log_p + logits", found.1[0].weights)
    );
    let error = pruned(&dense, &options(0.5, Loss::Training)).unwrap_err();
    assert!(error.to_string().contains("share weights"), "{error}");
}

#[test]
fn the_digits_survive_what_magnitude_does_not() {
    let example = |name: &str| {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mam").join(name)
    };
    let cancel = Cancel::new();
    let models = [Model::load(example("digits.onnx")).unwrap()];
    let dense = load(&models);
    let rows = |name, limit| read_rows(&example(name), dense.contract(), None, limit).unwrap().rows;
    let (train, test) = (rows("train.npy", None), rows("test.npy", Some(24)));
    let reference = Reference::new(&dense, &test, 4, 1, 0, &cancel).unwrap();
    let compare = |method, statistics| -> Comparison {
        let prune_options = Options {
            sparsity: 0.7,
            method,
            match_statistics: statistics,
            stages: 2,
            gradients: 256,
            threads: 2,
            ..Options::default()
        };
        let options = PruneOptions { prune: prune_options, loss: Loss::Outputs };
        let (models, _) = prune(&models, &dense, &train, &options, &(), &cancel).unwrap();
        reference.compare(&load(&models), &cancel).unwrap()
    };
    let (mfac, magnitude) = (compare(Method::MFac, true), compare(Method::Magnitude, false));
    let error = |c: &Comparison| c.theta_against_theta.unwrap().rms;
    assert!(error(&mfac) < 0.4 * error(&magnitude), "{mfac:?} {magnitude:?}");
    let [dense_bits, bits] = mfac.phi_bits.unwrap();
    let [_, bits_by_magnitude] = magnitude.phi_bits.unwrap();
    assert!(bits - dense_bits < 0.3 * (bits_by_magnitude - dense_bits), "{mfac:?} {magnitude:?}");
    assert_eq!(mfac.sizes.iter().map(|s| s.subsets).sum::<usize>(), 4 * 24);
    // Unpruned, nothing moves.
    let same = reference.compare(&dense, &cancel).unwrap();
    assert_eq!((error(&same), same.phi_bits.map(|[a, b]| a - b)), (0.0, Some(0.0)));
}

#[test]
fn the_command_names_its_files_by_sparsity() {
    let contract = Contract::new(Kind::Joint, LENGTH, VALUES);
    let (folder, path) = save(&perceptron(&contract), &contract, "dense.onnx");
    let rows = folder.path().join("rows.csv");
    let lines: Vec<String> = (0..40)
        .map(|r| (0..LENGTH).map(|i| ((r * i + r) % 3).to_string()).collect::<Vec<_>>().join(","))
        .collect();
    fs::write(&rows, lines.join("\n")).unwrap();
    let (output, report) = (folder.path().join("small.onnx"), folder.path().join("report.json"));
    let start = ["prune", text(&path), "--data", text(&rows), "--stages", "1", "--gradients", "32"];
    let end = ["--evaluation", text(&rows), "--output", text(&output), "--report", text(&report)];
    let two = ["--sparsity", "0.5", "--sparsity", "0.25"];
    let run = command(&[&start[..], &end, &two].concat());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("phi bits per dim"), "{}", run.stdout);
    for sparsity in ["0.5", "0.25"] {
        let file = folder.path().join(format!("small-{sparsity}.onnx"));
        let told = Contract::read(&Model::load(file).unwrap()).unwrap();
        assert!(told.notes["nll_bits"].parse::<f64>().unwrap() > 0.0);
    }
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(report["schema"], "hone.mam.prune/1");
    let halves = &report["runs"][1]["halves"];
    assert_eq!((&halves[0]["sparsity"], &halves[1]["output"]), (&0.25.into(), &"logits".into()));
    let run = |more: &[&str]| command(&[&start[..], more].concat());
    run(&["--sparsity", "1", "--output", text(&output)]).fails(2, &["--sparsity 1"]);
    run(&["--sparsity", "0.5", "--output", text(&path)]).fails(2, &["is the model itself"]);
    let twice = ["--sparsity", "0.5", "--output", "a.onnx", "--output", "b.onnx"];
    run(&twice).fails(2, &["1 files of the model and 2 --output"]);
    fs::write(&rows, "0,1,9,0,0,0,0,0,0,0,0,0\n").unwrap();
    run(&["--sparsity", "0.5", "--output", text(&output)]).fails(6, &["row 0: site 2: 9"]);
}
