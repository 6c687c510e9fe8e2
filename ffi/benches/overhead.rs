//! What a call through C costs beside the call of Rust that it makes: a step of an optimizer of few
//! weights, and the score of one row by θ and by φ.
//!
//! `cargo bench --package hone --package hone-ffi --bench overhead [model.onnx]`, the digits by
//! default. Both calls are made in turn, in batches, in one process and on one thread; a column is
//! the median over the batches of the time of a call, in nanoseconds, and the last the median of
//! the differences within a pair of batches, with the middle half of them.
//!
//! libhone has outputs for C only (see `Cargo.toml`), so its modules are compiled into this program
//! once more: what runs is what a C program calls, but without optimisation across the boundary.
#![allow(non_camel_case_types, dead_code, missing_docs, reason = "as in the library")]

#[path = "../src/arguments.rs"]
mod arguments;
#[path = "../src/callback.rs"]
mod callback;
#[path = "../src/engine.rs"]
mod engine;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/evaluate.rs"]
mod evaluate;
#[path = "../src/finetune.rs"]
mod finetune;
#[path = "../src/gradients.rs"]
mod gradients;
#[path = "../src/job.rs"]
mod job;
#[path = "../src/model.rs"]
mod model;
#[path = "../src/optimizer.rs"]
mod optimizer;
#[path = "../src/options.rs"]
mod options;
#[path = "../src/process.rs"]
mod process;
#[path = "../src/prune.rs"]
mod prune;
#[path = "../src/report.rs"]
mod report;
#[path = "../src/samples.rs"]
mod samples;
#[path = "../src/scorer.rs"]
mod scorer;
#[path = "../src/tensor.rs"]
mod tensor;
#[path = "../src/version.rs"]
mod version;

use std::ffi::CString;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::time::Instant;

use hone_core::cancel::Cancel;
use hone_core::mam::{LoadOptions, Mam, Orders};
use hone_core::mfac::optimizer::{Decay, Method, Schedule, Settings};
use hone_core::mfac::{Optimizer, Sliding, Storage};

use error::hone_error;
use optimizer::{hone_optimizer, hone_optimizer_options};
use scorer::{hone_score_options, hone_scorer};

/// Pairs of batches, which are short so that what disturbs a batch spoils few of them.
const PAIRS: usize = 2000;

fn main() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mam/digits.onnx");
    let path = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let path = path.unwrap_or_else(|| example.into());
    println!("{:<44} {:>9} {:>9} {:>24}", "", "C", "Rust", "C - Rust, ns");
    for dimension in [1, 16] {
        step(&format!("step of SGD, weights: {dimension}"), 1, None, dimension);
    }
    step("step of M-FAC, window 8, weights: 16", 0, Some(8), 16);
    scores(&path);
}

/// An optimizer of either side, at the same settings.
fn step(what: &str, method: u32, window: Option<usize>, dimension: usize) {
    // SAFETY: plain data of C, for which all zeros is valid.
    let mut how: hone_optimizer_options = unsafe { std::mem::zeroed() };
    (how.size, how.method, how.threads) = (size_of_val(&how), method, 1);
    how.window = window.unwrap_or(0) as u32;
    how.learning_rate = 1e-6;
    let by_c: Box<hone_optimizer> = made(|out| {
        // SAFETY: the options have their size, and nothing in them points anywhere.
        unsafe { optimizer::hone_optimizer_new(dimension, &how, Some(out)) }
    });
    let settings = Settings {
        learning_rate: 1e-6,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        weight_decay: 0.0,
        decay: Decay::Coupled,
    };
    let method = match window {
        Some(m) => Method::Mfac {
            window: Sliding::new(m, dimension, 1e-5, Storage::F32, None).expect("a window"),
            momentum: 0.0,
            relative_damping: None,
            diagonal: None,
        },
        None => Method::Sgd { momentum: 0.0 },
    };
    let mut by_rust = Optimizer::new(method, settings, dimension, Vec::new()).expect("options");
    let gradient = vec![0.5f32; dimension];
    let (mut ours, mut theirs) = (vec![1.0f32; dimension], vec![1.0f32; dimension]);
    compare(
        what,
        300,
        || {
            let (w, g) = (theirs.as_mut_ptr(), gradient.as_ptr());
            // SAFETY: both have so many numbers, and do not overlap.
            done(unsafe { optimizer::hone_optimizer_step(Some(&by_c), w, g, dimension) });
        },
        || by_rust.step(&mut ours, &gradient, 1).expect("a step"),
    );
    assert_eq!(ours, theirs);
    optimizer::hone_optimizer_free(Some(by_c));
}

/// One row by either half.
fn scores(path: &str) {
    let load = LoadOptions::default();
    let mam = Mam::load(&[path], load, &Cancel::never()).expect("a marginalization model");
    let file = CString::new(path).expect("a path");
    let none = std::ptr::null();
    let engine: Box<engine::hone_engine> =
        // SAFETY: NULL stands for defaults.
        made(|out| unsafe { engine::hone_engine_open(none, std::ptr::null(), Some(out)) });
    let model: Box<model::hone_model> =
        // SAFETY: the path ends in NUL.
        made(|out| unsafe { model::hone_model_load(Some(&engine), file.as_ptr(), Some(out)) });
    // SAFETY: plain data of C, for which all zeros is valid.
    let mut how: scorer::hone_scorer_options = unsafe { std::mem::zeroed() };
    (how.size, how.threads) = (size_of_val(&how), 1);
    let scorer: Box<hone_scorer> =
        // SAFETY: the options have their size.
        made(|out| unsafe { scorer::hone_scorer_new(Some(&model), None, &how, Some(out)) });
    let length = mam.contract().length;
    for (half, rows, name) in
        [(1, 0, "no row by theta"), (1, 1, "one row by theta"), (2, 1, "one row by phi")]
    {
        let cells: Vec<i64> = (0..(rows * length) as i64).map(|site| site % 2).collect();
        // SAFETY: plain data of C, for which all zeros is valid.
        let mut how: hone_score_options = unsafe { std::mem::zeroed() };
        (how.size, how.half) = (size_of_val(&how), half);
        let (mut theirs, mut ours) = (0.0, 0.0);
        compare(
            &format!("score of {name}"),
            [100, 5, 1][rows + half as usize - 1],
            || {
                let (cells, out) = (cells.as_ptr(), &raw mut theirs);
                // SAFETY: there are so many rows, at most one, and there is room for one number.
                done(unsafe { scorer::hone_scorer_score(Some(&scorer), cells, rows, &how, out) });
            },
            || {
                let never = Cancel::never();
                let orders = Orders::Random { count: 1, seed: 0 };
                let all = match half {
                    1 => {
                        mam.each_log_marginal(&cells, None, &never, |v| ours = v.expect("a score"))
                    }
                    _ => mam.each_chain_score(&cells, None, &orders, &never, |v| {
                        ours = v.expect("a score").log_p;
                    }),
                };
                all.expect("scores");
            },
        );
        assert_eq!(theirs, ours);
    }
    scorer::hone_scorer_free(Some(scorer));
    model::hone_model_free(Some(model));
    engine::hone_engine_free(Some(engine));
}

/// A handle that a call makes.
fn made<T>(call: impl FnOnce(&mut MaybeUninit<*mut T>) -> Option<Box<hone_error>>) -> Box<T> {
    let mut out = MaybeUninit::uninit();
    done(call(&mut out));
    // SAFETY: the call succeeded, so it has written a handle that is the caller's, made by a box.
    unsafe { Box::from_raw(out.assume_init()) }
}

fn done(error: Option<Box<hone_error>>) {
    assert!(error.is_none(), "the call failed");
}

/// Prints what both calls take, in turn, `batch` of them at a time.
fn compare(what: &str, batch: usize, mut c: impl FnMut(), mut rust: impl FnMut()) {
    let each = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..batch).for_each(|_| black_box(&mut *call)());
        start.elapsed().as_nanos() as f64 / batch as f64
    };
    for _ in 0..PAIRS / 10 {
        each(&mut c);
        each(&mut rust);
    }
    let (mut by_c, mut by_rust, mut more) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // Neither is always the first.
        let (a, b) = match pair % 2 {
            0 => (each(&mut c), each(&mut rust)),
            _ => {
                let b = each(&mut rust);
                (each(&mut c), b)
            }
        };
        by_c.push(a);
        by_rust.push(b);
        more.push(a - b);
    }
    let at = |values: &mut Vec<f64>, share: f64| {
        values.sort_by(f64::total_cmp);
        values[(share * values.len() as f64) as usize]
    };
    let (low, middle, high) = (at(&mut more, 0.25), at(&mut more, 0.5), at(&mut more, 0.75));
    println!(
        "{what:<44} {:>9.0} {:>9.0} {middle:>8.0} ({low:.0} to {high:.0})",
        at(&mut by_c, 0.5),
        at(&mut by_rust, 0.5)
    );
}
