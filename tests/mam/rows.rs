//! One row's answer, whatever is beside it and however many threads there are; and nets that are
//! not tables.

use std::sync::Arc;

use hone::cancel::Cancel;
use hone::mam::contract::{Contract, Kind};
use hone::mam::{
    BatchEffect, FillOrder, LoadOptions, Mam, Method, Orders, Rows, SampleOptions, Score,
    ScoreOptions,
};
use hone::onnx::{Graph, Node};
use hone::random::Stream;
use hone::tensor::{ElementType, Tensor};

use crate::tables::{Table, load_with, rows, symbolic};

const LENGTH: usize = 12;
const VALUES: usize = 3;

/// Two perceptrons over the one-hot masked row.
pub fn perceptron(contract: &Contract) -> Graph {
    let (length, values, hidden) = (contract.length, contract.vocab, 48);
    let mut random = Stream::new(3, 0);
    let mut graph = Graph { name: "mlp".into(), opset: 18, ..Graph::default() };
    let mut hold = |name: &str, tensor| {
        graph.initializers.insert(name.into(), Arc::new(tensor));
    };
    let mut weights = |shape: [usize; 2]| {
        let scale = 1.0 / (shape[0] as f32).sqrt();
        let data = (0..shape[0] * shape[1]).map(|_| scale * random.normal()).collect();
        Tensor::f32(shape, data)
    };
    let width = length * (values + 1);
    for (name, outputs) in [("theta", 1), ("phi", length * values)] {
        hold(&format!("{name}.1"), weights([width, hidden]));
        hold(&format!("{name}.2"), weights([hidden, hidden]));
        hold(&format!("{name}.3"), weights([hidden, outputs]));
    }
    hold("depth", Tensor::i64([1], vec![values as i64 + 1]));
    hold("on_off", Tensor::f32([2], vec![0.0, 1.0]));
    hold("flat", Tensor::i64([2], vec![-1, width as i64]));
    hold("one", Tensor::i64([1], vec![-1]));
    hold("cube", Tensor::i64([3], vec![-1, length as i64, values as i64]));
    graph.nodes = vec![
        Node::new("OneHot", ["x", "depth", "on_off"], "hot"),
        Node::new("Reshape", ["hot", "flat"], "row"),
    ];
    for (name, shape, output) in [("theta", "one", "log_p"), ("phi", "cube", "logits")] {
        let value = |i: usize| format!("{name}.v{i}");
        let weight = |i: usize| format!("{name}.{i}");
        graph.nodes.extend([
            Node::new("Gemm", ["row".to_string(), weight(1)], value(1)),
            Node::new("LeakyRelu", [value(1)], value(2)),
            Node::new("Gemm", [value(2), weight(2)], value(3)),
            Node::new("LeakyRelu", [value(3)], value(4)),
            Node::new("Gemm", [value(4), weight(3)], value(5)),
            Node::new("Reshape", [value(5), shape.into()], output),
        ]);
    }
    graph.inputs = vec![symbolic("x", ElementType::I64, &[length])];
    for output in ["log_p", "logits"] {
        let rest = contract.row_shape(output);
        graph.outputs.push(symbolic(output, ElementType::F32, &rest));
    }
    graph
}

fn mam(threads: usize, batch: usize) -> Mam {
    let contract = Contract::new(Kind::Joint, LENGTH, VALUES);
    let options = LoadOptions { threads, batch, ..LoadOptions::default() };
    load_with(&perceptron(&contract), &contract, options).unwrap()
}

fn some_rows(count: usize) -> Vec<Vec<i64>> {
    let mut random = Stream::new(1, 1);
    let mut cell = || random.below(VALUES + 1) as i64 - 1;
    (0..count).map(|_| (0..LENGTH).map(|_| cell()).collect()).collect()
}

fn options() -> ScoreOptions {
    ScoreOptions {
        method: Method::Bracket,
        orders: Orders::Random { count: 2, seed: 0 },
        log_normaliser: None,
        conflict: true,
        surprise: true,
    }
}

fn scores(mam: &Mam, rows: &Rows) -> Vec<Score> {
    let scores = mam.score(rows, &options(), &Cancel::new()).unwrap();
    scores.into_iter().map(Result::unwrap).collect()
}

#[test]
fn batch_mates_and_threads_do_not_show() {
    let all = some_rows(70);
    let reference = mam(1, 64);
    let effects: Vec<BatchEffect> = reference.halves().iter().map(|h| h.3).collect();
    assert!(effects.iter().all(|e| !matches!(e, BatchEffect::Rounding(_))), "{effects:?}");
    let together = scores(&reference, &rows(&all));
    for (row, score) in all.iter().zip(&together) {
        assert_eq!(scores(&reference, &rows(std::slice::from_ref(row)))[0], *score);
    }
    let mut reversed = all.clone();
    reversed.reverse();
    let mut backwards = scores(&reference, &rows(&reversed));
    backwards.reverse();
    assert_eq!(backwards, together);
    for (threads, batch) in [(3, 64), (2, 5), (4, 1)] {
        assert_eq!(scores(&mam(threads, batch), &rows(&all)), together, "{threads} {batch}");
    }
    let sample = |mam: &Mam| -> Vec<_> {
        let options = SampleOptions { seed: 2, ..SampleOptions::default() };
        let samples = mam.impute(&rows(&all), &options, 1, 3, &Cancel::new()).unwrap();
        samples.into_iter().map(Result::unwrap).collect()
    };
    assert_eq!(sample(&reference), sample(&mam(3, 7)));
}

#[test]
fn a_request_larger_than_what_is_held_at_once_equals_its_parts() {
    let table = Table::new(3, 2, 0.3, 0.3);
    let mam = table.mam(Kind::Joint);
    let (part, count) = (rows(&table.states()), 20_000 / 8);
    let whole = Rows::new(3, part.cells().repeat(count)).unwrap();
    let expected = scores(&mam, &part);
    let found = scores(&mam, &whole);
    assert_eq!(found.len(), 8 * count);
    assert!(found.chunks(8).all(|scores| scores == expected));
    let theta = mam.log_marginal(&whole, &Cancel::new()).unwrap().into_iter().map(Result::unwrap);
    assert!(theta.zip(&found).all(|(theta, score)| score.theta == Some(theta)));
}

/// log p_φ of rows in memory that is kept, NaN for a row that has none.
fn kept(mam: &Mam, rows: &Rows, known: Option<&[u8]>, orders: &Orders) -> Vec<f64> {
    let mut found = Vec::new();
    let each = |score: hone::Result<hone::mam::ChainScore>| {
        found.push(score.map_or(f64::NAN, |score| score.log_p))
    };
    mam.each_chain_score(rows.cells(), known, orders, &Cancel::never(), each).unwrap();
    found
}

#[test]
fn memory_that_is_kept_does_not_show() {
    let all = rows(&some_rows(90));
    let reference = mam(1, 64);
    for orders in [Orders::Random { count: 3, seed: 4 }, Orders::Forward] {
        let how = ScoreOptions {
            method: Method::Phi,
            orders: orders.clone(),
            conflict: false,
            surprise: false,
            ..options()
        };
        let by_phi = |rows: &Rows| -> Vec<f64> {
            let scores = reference.score(rows, &how, &Cancel::new()).unwrap();
            scores.into_iter().map(|s| s.unwrap().phi.unwrap().log_p).collect()
        };
        let (whole, part) = (by_phi(&all), by_phi(&all.slice(7..9)));
        assert_eq!(whole[7..9], part);
        for (threads, batch) in [(1, 64), (3, 64), (2, 5), (4, 1)] {
            let mam = mam(threads, batch);
            // Memory of a larger, of a smaller and of another call goes from one to the next.
            for _ in 0..2 {
                assert_eq!(kept(&mam, &all, None, &orders), whole, "{threads} {batch}");
                assert_eq!(kept(&mam, &all.slice(7..9), None, &orders), part);
                let theta = mam.log_marginal(&all, &Cancel::new()).unwrap();
                assert!(theta.iter().all(Result::is_ok));
            }
        }
        // A mask is as good as values that are missing.
        let known: Vec<u8> = (0..all.cells().len()).map(|i| u8::from(i % 3 != 0)).collect();
        let flags: Vec<bool> = known.iter().map(|&k| k != 0).collect();
        let masked = all.clone().masked(&flags).unwrap();
        let by_mask = kept(&reference, &all, Some(&known), &orders);
        assert_eq!(by_mask, by_phi(&masked));
        // A row that does not fit leaves the others alone.
        let mut cells = all.cells().to_vec();
        cells[2 * LENGTH + 1] = 9;
        let found = kept(&reference, &Rows::new(LENGTH, cells).unwrap(), None, &orders);
        assert!(found[2].is_nan() && found[..2] == whole[..2] && found[3..] == whole[3..]);
    }
    let none = Orders::Random { count: 0, seed: 0 };
    let asked = reference.each_chain_score(all.cells(), None, &none, &Cancel::never(), |_| {});
    assert_eq!(asked.unwrap_err().kind(), hone::ErrorKind::Usage);
}

#[test]
fn many_threads_ask_one_model() {
    let mam = mam(2, 64);
    let all = rows(&some_rows(20));
    let expected = scores(&mam, &all);
    std::thread::scope(|scope| {
        let ask = |_| scope.spawn(|| scores(&mam, &all));
        let answers: Vec<_> = (0..6).map(ask).collect();
        answers.into_iter().for_each(|a| assert_eq!(a.join().unwrap(), expected));
    });
}

#[test]
fn a_bad_row_does_not_sink_its_batch() {
    let mut table = Table::new(6, 2, 0.0, 0.0);
    // θ and φ have no number for one state.
    let state = [1, 0, 1, 1, 0, 1];
    let code = table.code(&state);
    table.theta[code] = f64::NAN;
    let prefix = [1, 0, 1, -1, -1, -1];
    let code = table.code(&prefix);
    table.phi[(code * 6 + 3) * 2] = f64::NAN;
    let mam = table.mam(Kind::Joint);
    let fine = vec![0, 1, 0, 1, 1, 1];
    let all = [fine.clone(), vec![0, 2, 0, 1, 1, 1], state.to_vec(), vec![1, 1, -7, 0, 1, 1]];
    let all = rows(&all);
    let mut options = ScoreOptions { surprise: false, conflict: false, ..options() };
    options.orders = Orders::Forward;
    let scores = mam.score(&all, &options, &Cancel::new()).unwrap();
    let good = scores[0].as_ref().unwrap();
    assert!((good.theta.unwrap() - table.log_marginal(&fine)).abs() < 2e-5);
    let message = |i: usize| scores[i].as_ref().unwrap_err().to_string();
    assert!(message(1).contains("site 1: 2 is no value"), "{}", message(1));
    assert!(message(2).contains("NaN"), "{}", message(2));
    assert!(message(3).contains("site 2: -7"), "{}", message(3));
    options.method = Method::Phi;
    let scores = mam.score(&all, &options, &Cancel::new()).unwrap();
    let error = scores[2].as_ref().unwrap_err().to_string();
    assert!(error.contains("site 3: the net's conditional is NaN"), "{error}");
    assert!(scores[0].is_ok());
    let evidence = rows(&[state.to_vec(), prefix.to_vec(), vec![0, 3, 0, 0, 0, 0]]);
    let forward = SampleOptions { order: FillOrder::Forward, ..SampleOptions::default() };
    let samples = mam.sample(&evidence, &forward, &Cancel::new()).unwrap();
    assert!(samples[0].is_ok() && samples[2].is_err());
    let error = samples[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("site 3: the net's logits"), "{error}");
}

#[test]
fn a_request_can_be_stopped() {
    let cancel = Cancel::new();
    let mam = mam(2, 64);
    cancel.cancel();
    let error = mam.score(&rows(&some_rows(5)), &options(), &cancel).unwrap_err();
    assert_eq!(error.kind(), hone::ErrorKind::Cancelled);
    assert_eq!(scores(&mam, &rows(&some_rows(5))).len(), 5, "and the model used again");
}
