//! Every kind of Fisher prunes the example, and the gradients behind it are what its name says.

use std::path::Path;

use hone::calibration::{ReadOptions, Samples};
use hone::cancel::Cancel;
use hone::gradient::seed::Fisher;
use hone::onnx::{Graph, Model, import};
use hone::prune::{Options, Pruned, compress};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/fashion");

fn example() -> (Graph, Samples) {
    let graph = import(&Model::load(format!("{FOLDER}/model.onnx")).unwrap()).unwrap();
    let path = format!("{FOLDER}/calibration.npz");
    let options = ReadOptions { limit: Some(64), ..ReadOptions::default() };
    let samples = Samples::read(Path::new(&path), &graph.inputs, &options).unwrap();
    (graph, samples)
}

fn pruned(graph: &Graph, samples: &Samples, options: &Options) -> hone::Result<Pruned> {
    compress(graph, |_| true, samples, options, &(), &Cancel::new())
}

/// Few gradients: what is checked here does not need a good Fisher.
fn few(fisher: Fisher) -> Options {
    Options { sparsity: 0.5, stages: 1, gradients: 32, fisher, threads: 2, ..Options::default() }
}

#[test]
fn every_kind_of_fisher_prunes_the_example() {
    let (graph, samples) = example();
    let kinds =
        [Fisher::Outputs, Fisher::Gaussian, Fisher::Labels, Fisher::Sampled, Fisher::Scalar];
    let mut losses = Vec::new();
    for fisher in kinds {
        let result = pruned(&graph, &samples, &few(fisher)).unwrap();
        let weights = result.tensors.iter().flat_map(|(_, t)| t.to_f32());
        let zeros = weights.clone().filter(|w| *w == 0.0).count();
        assert_eq!(zeros, weights.count() / 2, "{fisher}");
        let loss = result.predicted_loss[0];
        assert!(loss.is_finite() && loss > 0.0, "{fisher}: {loss}");
        losses.push(loss);
    }
    // Different gradients, different predictions: no kind is another one in disguise.
    losses.sort_by(f64::total_cmp);
    assert!(losses.windows(2).all(|w| w[1] > w[0] * 1.001), "{losses:?}");
}

#[test]
fn labels_that_are_missing_or_not_classes_are_named() {
    let (graph, samples) = example();
    let inputs = || samples.inputs().to_vec();
    let unlabelled = Samples::from_tensors(inputs(), None).unwrap();
    for (fisher, word) in [(Fisher::Labels, "labels"), (Fisher::Mse, "targets")] {
        let error = pruned(&graph, &unlabelled, &few(fisher)).unwrap_err();
        assert_eq!(error.kind(), hone::ErrorKind::Data);
        assert!(error.to_string().contains(word), "{error}");
    }
    let wrong = hone::tensor::Tensor::i64([64], vec![10; 64]);
    let labels = hone::calibration::Labels::new(wrong).unwrap();
    let mislabelled = Samples::from_tensors(inputs(), Some(labels)).unwrap();
    let error = pruned(&graph, &mislabelled, &few(Fisher::Labels)).unwrap_err();
    assert!(error.to_string().contains("label 10 of row 0"), "{error}");
}

#[test]
fn a_sparsity_that_the_pattern_forbids_is_refused_before_any_gradient() {
    let (graph, samples) = example();
    let pattern = "2:4".parse().unwrap();
    // So many gradients would take hours.
    let options = Options { sparsity: 0.9, pattern, gradients: 1 << 30, ..few(Fisher::Outputs) };
    let error = pruned(&graph, &samples, &options).unwrap_err();
    assert_eq!(error.kind(), hone::ErrorKind::Usage);
}

#[test]
fn threads_and_memory_do_not_change_the_result() {
    let (graph, samples) = example();
    // Statistics are measured in batches as large as the limit allows: another limit, other bits.
    let plain = Options { match_statistics: false, ..few(Fisher::Outputs) };
    let tensors = |options: &Options| pruned(&graph, &samples, options).unwrap().tensors;
    // Blocks of 128 are matrices of some 80 MB, whole layers are kept as 20 MB of gradients: under
    // the lower limits they are collected in groups and put on disk.
    for (block, limit_mib) in [(128, 48), (usize::MAX, 26)] {
        let plain = Options { block, ..plain.clone() };
        let reference = tensors(&plain);
        assert!(reference == tensors(&Options { threads: 3, ..plain.clone() }), "more threads");
        let tight = Options { memory_limit_bytes: limit_mib << 20, ..plain.clone() };
        assert!(reference == tensors(&tight), "spilled");
        assert!(reference != tensors(&Options { seed: 1, ..plain.clone() }), "another seed");
    }
    // So much memory holds the activations of a part of the samples at a time.
    let part = Options { match_statistics: true, memory_limit_bytes: 512 << 20, ..plain.clone() };
    let [one, three] = [1, 3].map(|threads| tensors(&Options { threads, ..part.clone() }));
    assert!(one == three, "statistics by more threads");
    let hopeless = Options { memory_limit_bytes: 1 << 20, ..plain };
    let error = pruned(&graph, &samples, &hopeless).unwrap_err();
    assert_eq!(error.kind(), hone::ErrorKind::Memory);
    assert!(error.to_string().contains("--memory-limit"), "{error}");
}
