//! What scores of a marginalization model cost: θ against chains of φ, sequential and in batches
//! of prefixes, and what a call adds to ONNX Runtime's own time.
//!
//! `cargo bench --bench mam [model.onnx [rows.npy]]`, the shipped example by default. One thread,
//! medians in microseconds. A chain here is along one order; `split` is what running both halves
//! costs as a multiple of θ alone, `threads` the time of two threads with a batch each, which share
//! one model, as a multiple of one thread's. `benches/mam_peers.py` sets the same against ONNX
//! Runtime called from Python.

use std::path::{Path, PathBuf};
use std::time::Instant;

use hone::cancel::Cancel;
use hone::mam::{LoadOptions, Mam, Method, Orders, Rows, ScoreOptions, read_rows};
use hone::onnx::{Graph, Model};
use hone::runtime::{Session, SessionOptions};
use hone::tensor::Tensor;

const BATCHES: [usize; 3] = [1, 16, 256];

fn main() {
    let mut files = std::env::args().skip(1).filter(|a| !a.starts_with('-')).map(PathBuf::from);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mam");
    let path = files.next().unwrap_or_else(|| example.join("digits.onnx"));
    let data = files.next().unwrap_or_else(|| example.join("test.npy"));
    let options = LoadOptions { batch: 256, ..LoadOptions::default() };
    let mam = Mam::load(&[&path], options, &Cancel::new()).expect("a joint model");
    let rows = read_rows(&data, mam.contract(), None, Some(256)).expect("rows").rows;
    let model = Model::load(&path).expect("a model");
    let graph = Graph::from_model(&model).expect("a graph");
    let mut theta = half(&graph, "log_p");
    let mut phi = half(&graph, "logits");
    let mut both = Session::of_graph(&graph, &SessionOptions::default()).expect("a session");
    println!(
        "{:>5} {:>10} {:>10} {:>10} {:>12} {:>12} {:>8} {:>8} {:>8} {:>6} {:>7}",
        "batch",
        "theta",
        "ort theta",
        "ort both",
        "phi batched",
        "phi sequent.",
        "overhead",
        "x batch",
        "x seq.",
        "split",
        "threads"
    );
    for batch in BATCHES {
        let cycle = (0..batch).flat_map(|i| rows.row(i % rows.len()).to_vec()).collect();
        let rows = Rows::new(rows.length(), cycle).expect("whole rows");
        let by_theta = micros(|| score(&mam, &rows, Method::Theta));
        let x = tensor(&mam, &rows);
        let direct = micros(|| run(&mut theta, &x));
        let joint = micros(|| run(&mut both, &x));
        let batched = micros(|| score(&mam, &rows, Method::Phi));
        let one_step = micros(|| run(&mut phi, &x));
        let sequential = one_step * rows.length() as f64;
        let beside = side_by_side(&mam, &rows, by_theta);
        println!(
            "{batch:>5} {by_theta:>10.1} {direct:>10.1} {joint:>10.1} {batched:>12.1} \
             {sequential:>12.1} {:>8.1} {:>8.1} {:>8.1} {:>6.2} {:>7.2}",
            by_theta - direct,
            batched / by_theta,
            sequential / by_theta,
            joint / by_theta,
            beside / by_theta
        );
    }
}

fn score(mam: &Mam, rows: &Rows, method: Method) {
    let options = ScoreOptions {
        method,
        orders: Orders::Random { count: 1, seed: 0 },
        log_normaliser: None,
        conflict: false,
        surprise: false,
    };
    let scores = mam.score(rows, &options, &Cancel::new()).expect("scores");
    assert!(scores.iter().all(Result::is_ok));
}

/// Microseconds per batch and thread of two threads that score on one model at once.
fn side_by_side(mam: &Mam, rows: &Rows, once: f64) -> f64 {
    let calls = (20_000.0 / once).ceil() as usize;
    let work = || (0..calls).for_each(|_| score(mam, rows, Method::Theta));
    let both = || {
        std::thread::scope(|scope| {
            scope.spawn(work);
            scope.spawn(work);
        });
    };
    micros(both) / calls as f64
}

/// The part of the graph behind one output, as ONNX Runtime runs it.
fn half(graph: &Graph, output: &str) -> Session {
    let mut part = graph.clone();
    part.outputs.retain(|o| o.name == output);
    part.remove_unused();
    Session::of_graph(&part, &SessionOptions::default()).expect("a session")
}

fn tensor(mam: &Mam, rows: &Rows) -> Tensor {
    let offset = mam.contract().value_offset;
    Tensor::i64([rows.len(), rows.length()], rows.cells().iter().map(|v| v + offset).collect())
}

fn run(session: &mut Session, x: &Tensor) {
    session.run([("x", x)], &Cancel::new()).expect("a run");
}

/// The median time of a call.
fn micros(mut call: impl FnMut()) -> f64 {
    const RUNS: usize = 31;
    call();
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}
