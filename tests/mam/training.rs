//! Training on a distribution that can be enumerated; runs that are repeated, spread and resumed.

use hone::ErrorKind;
use hone::cancel::Cancel;
use hone::mam::contract::{Contract, Kind};
use hone::mam::train::{Regression, TrainOptions, Trained, train};
use hone::mam::{Method, Orders, Rows, ScoreOptions, Size};
use hone::random::Stream;

use crate::tables::{MISSING, Table, load, rows};

/// Rows drawn from the table's distribution.
fn data(table: &Table, count: usize, seed: u64) -> Rows {
    let (states, mut random) = (table.states(), Stream::new(seed, 0));
    let mut draw = || {
        let mut left = random.uniform();
        let found = table.p.iter().position(|p| {
            left -= p;
            left < 0.0
        });
        states[found.unwrap_or(states.len() - 1)].clone()
    };
    rows(&(0..count).map(|_| draw()).collect::<Vec<_>>())
}

fn options() -> TrainOptions {
    TrainOptions {
        size: Size { hidden: 32, layers: 2 },
        conditional_steps: 60,
        marginal_steps: 60,
        batch: 64,
        learning_rate: 5e-3,
        average: 0.95,
        report_every: 20,
        ..TrainOptions::default()
    }
}

fn run(options: &TrainOptions, rows: &Rows) -> Trained {
    let contract = Contract::new(Kind::Joint, rows.length(), 2);
    train(rows, &rows.slice(0..50), &contract, options, None, &mut |_| {}, &Cancel::new()).unwrap()
}

fn bytes(trained: &Trained) -> Vec<u8> {
    trained.graph.to_bytes().unwrap()
}

#[test]
fn both_halves_learn_the_distribution_they_see() {
    let table = Table::new(4, 2, 0.0, 0.0);
    let rows = data(&table, 4000, 1);
    for regression in [Regression::Trajectory, Regression::OneStep] {
        let options = TrainOptions {
            conditional_steps: 600,
            marginal_steps: 800,
            average: 0.99,
            regression,
            ..options()
        };
        let trained = run(&options, &rows);
        let mam = load(&trained.graph, &trained.contract).unwrap();
        assert!(mam.warnings().is_empty(), "{:?}", mam.warnings());
        let ask = ScoreOptions {
            method: Method::Bracket,
            orders: Orders::Random { count: 2, seed: 0 },
            log_normaliser: None,
            conflict: false,
            surprise: false,
        };
        let all: Vec<Vec<i64>> = (0..81).map(|code| table.row_of(code)).collect();
        let scores = mam.score(&crate::tables::rows(&all), &ask, &Cancel::new()).unwrap();
        // Each marginal's error, weighted as rows meet it.
        let (mut theta, mut phi, mut weight) = (0.0, 0.0, 0.0);
        for (row, score) in all.iter().zip(scores) {
            let (score, truth) = (score.unwrap(), table.log_marginal(row));
            theta += truth.exp() * (score.theta.unwrap() - truth).powi(2);
            phi += truth.exp() * (score.phi.unwrap().log_p - truth).powi(2);
            weight += truth.exp();
        }
        let (theta, phi) = ((theta / weight).sqrt(), (phi / weight).sqrt());
        assert!(phi < 0.1 && theta < 0.15, "{regression:?}: φ {phi}, θ {theta}");
        let normaliser = mam.normaliser(100, 0, &Cancel::new()).unwrap();
        assert!(normaliser.exact && normaliser.log_sum.abs() < 0.15, "{normaliser:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_model_on_any_number_of_threads() {
    let rows = data(&Table::new(4, 2, 0.0, 0.0), 200, 2);
    let options = TrainOptions { batch: 128, ..options() };
    let one = run(&options, &rows);
    let three = run(&TrainOptions { threads: 3, report_every: 7, ..options.clone() }, &rows);
    assert!(bytes(&one) == bytes(&three));
    assert_eq!(one.contract, three.contract);
    let other = |options: TrainOptions| bytes(&one) != bytes(&run(&options, &rows));
    assert!(other(TrainOptions { noise: 0.0, ..options.clone() }));
    assert!(other(TrainOptions { seed: 1, ..options }));
}

#[test]
fn a_run_that_is_stopped_goes_on_where_it_was() {
    let rows = data(&Table::new(4, 2, 0.0, 0.0), 200, 3);
    let contract = Contract::new(Kind::Joint, 4, 2);
    let options = options();
    let whole = run(&options, &rows);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    // Stopped in either stage, in between two reports.
    for (stage, after) in [(1, 40), (2, 20)] {
        let cancel = Cancel::new();
        let mut watch = |r: &hone::mam::train::TrainReport| {
            if r.stage == stage && r.step == after {
                cancel.cancel();
            }
        };
        let held_out = rows.slice(0..50);
        let stopped =
            train(&rows, &held_out, &contract, &options, Some(&file), &mut watch, &cancel);
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
    }
    let mut first = None;
    let mut watch = |r: &hone::mam::train::TrainReport| {
        first.get_or_insert((r.stage, r.step));
    };
    let held_out = rows.slice(0..50);
    let go_on = |options: &TrainOptions, watch: &mut dyn FnMut(&_)| {
        train(&rows, &held_out, &contract, options, Some(&file), watch, &Cancel::new())
    };
    let resumed = go_on(&options, &mut watch).unwrap();
    assert!(bytes(&resumed) == bytes(&whole));
    assert_eq!(first, Some((2, 40)), "what was done is not done again");
    let other = TrainOptions { learning_rate: 1e-4, ..options };
    let error = go_on(&other, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("other options or data"), "{error}");
}

#[test]
fn missing_values_are_learnt_around() {
    // Two copies of a fair coin, of which each row shows one, and a third site that tells which.
    let mut cells = Vec::new();
    for i in 0..400i64 {
        let coin = i / 2 % 2;
        cells.extend(if i % 2 == 0 { [coin, MISSING, coin] } else { [MISSING, coin, coin] });
    }
    let rows = Rows::new(3, cells).unwrap();
    let options = TrainOptions { conditional_steps: 200, marginal_steps: 50, ..options() };
    let trained = run(&options, &rows);
    let mam = load(&trained.graph, &trained.contract).unwrap();
    let evidence = Rows::new(3, vec![MISSING, MISSING, 1]).unwrap();
    let found = mam.distributions(&evidence, hone::mam::Source::Phi, &Cancel::new()).unwrap();
    for site in found[0].as_ref().unwrap() {
        assert!(site.log_p[1].exp() > 0.95, "{site:?}");
    }
}

#[test]
fn what_cannot_be_trained_on_is_named() {
    let rows = data(&Table::new(3, 2, 0.0, 0.0), 20, 4);
    let contract = Contract::new(Kind::Joint, 3, 2);
    let refused = |options: TrainOptions, rows: &Rows, what: &str| {
        let held_out = rows.slice(0..1);
        let run = train(rows, &held_out, &contract, &options, None, &mut |_| {}, &Cancel::new());
        let error = run.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(TrainOptions { batch: 65, ..options() }, &rows, "multiple");
    refused(TrainOptions { marginal_steps: 0, ..options() }, &rows, "at least 1");
    refused(TrainOptions { clip_norm: 0.0, ..options() }, &rows, "clip");
    refused(TrainOptions { noise: 1.0, ..options() }, &rows, "the noise is a share");
    refused(TrainOptions { noise: f64::NAN, ..options() }, &rows, "the noise is a share");
    refused(options(), &Rows::new(3, vec![0, 1, 2]).unwrap(), "training row 0: site 2: 2");
    refused(options(), &Rows::all_missing(3, 5), "at least one row");
    refused(TrainOptions { learning_rate: 1e30, ..options() }, &rows, "step");
}
