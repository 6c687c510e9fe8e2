//! Draws against the distribution they should have.

use hone::cancel::Cancel;
use hone::mam::contract::Kind;
use hone::mam::{FillOrder, Mam, Rows, SampleOptions};

use crate::tables::{MISSING, Table, close, rows};

const DRAWS: usize = 20_000;

/// How often each state came.
fn frequencies(table: &Table, draws: &[Vec<i64>]) -> Vec<f64> {
    let index = |row: &Vec<i64>| {
        row.iter().rev().fold(0, |s, &v| s * table.values + usize::try_from(v).unwrap())
    };
    let mut counts = vec![0.0; table.p.len()];
    draws.iter().for_each(|row| counts[index(row)] += 1.0 / draws.len() as f64);
    counts
}

/// p(state | evidence).
fn posterior(table: &Table, evidence: &[i64]) -> Vec<f64> {
    let fits = |s: &Vec<i64>| s.iter().zip(evidence).all(|(a, b)| *b == MISSING || a == b);
    let states = table.states();
    let p = states.iter().zip(&table.p).map(|(s, p)| if fits(s) { *p } else { 0.0 });
    let total: f64 = p.clone().sum();
    p.map(|p| p / total).collect()
}

#[track_caller]
fn same_distribution(found: &[f64], expected: &[f64]) {
    // Five standard deviations of a binomial fraction.
    for (f, e) in found.iter().zip(expected) {
        let deviation = (e * (1.0 - e) / DRAWS as f64).sqrt();
        assert!((f - e).abs() <= 5.0 * deviation, "{f} is not {e}\n{found:?}\n{expected:?}");
    }
}

fn draw(mam: &Mam, evidence: &[i64], options: &SampleOptions) -> Vec<Vec<i64>> {
    let rows = rows(&vec![evidence.to_vec(); DRAWS]);
    let samples = mam.sample(&rows, options, &Cancel::new()).unwrap();
    samples.into_iter().map(|s| s.unwrap().values).collect()
}

#[test]
fn samples_are_distributed_as_the_model_says_in_any_order() {
    let table = Table::new(4, 2, 0.0, 0.0);
    let mam = table.mam(Kind::Conditional);
    let orders = [FillOrder::Random, FillOrder::Forward, FillOrder::Given(vec![3, 1, 0, 2])];
    for (i, order) in orders.into_iter().enumerate() {
        let options = SampleOptions { order, seed: i as u64, ..SampleOptions::default() };
        for evidence in [[MISSING; 4], [MISSING, 1, 0, MISSING]] {
            let draws = draw(&mam, &evidence, &options);
            let kept =
                |row: &Vec<i64>| row.iter().zip(&evidence).all(|(v, e)| *e == MISSING || v == e);
            assert!(draws.iter().all(kept));
            same_distribution(&frequencies(&table, &draws), &posterior(&table, &evidence));
        }
    }
}

#[test]
fn log_q_is_that_of_the_path() {
    let table = Table::new(4, 3, 0.0, 0.6);
    let mam = table.mam(Kind::Conditional);
    let order = vec![2u32, 0, 3, 1];
    let options =
        SampleOptions { order: FillOrder::Given(order), seed: 4, ..SampleOptions::default() };
    let evidence = [MISSING, MISSING, 1, MISSING];
    let samples = mam.sample(&rows(&vec![evidence.to_vec(); 50]), &options, &Cancel::new());
    for sample in samples.unwrap() {
        let sample = sample.unwrap();
        let truth = table.chain(&evidence, &sample.values, &[0, 3, 1]);
        close(sample.log_q, truth, 2e-5, "log q");
        close(sample.log_p, truth, 2e-5, "log p");
    }
    let greedy = SampleOptions { top_k: Some(1), ..options };
    let samples = mam.sample(&rows(&vec![evidence.to_vec(); 3]), &greedy, &Cancel::new()).unwrap();
    let samples: Vec<_> = samples.into_iter().map(Result::unwrap).collect();
    assert!(samples.iter().all(|s| s.log_q == 0.0 && s.log_p < 0.0 && *s == samples[0]));
}

#[test]
fn sweeps_keep_the_distribution_and_the_evidence() {
    let table = Table::new(4, 2, 0.0, 0.0);
    let mam = table.mam(Kind::Conditional);
    let evidence = [MISSING, 0, MISSING, MISSING];
    let many = rows(&vec![evidence.to_vec(); DRAWS]);
    let options = SampleOptions { seed: 3, ..SampleOptions::default() };
    let samples = mam.impute(&many, &options, 2, 2, &Cancel::new()).unwrap();
    let draws: Vec<Vec<i64>> = samples.into_iter().map(|s| s.unwrap().values).collect();
    assert!(draws.iter().all(|row| row[1] == 0));
    same_distribution(&frequencies(&table, &draws), &posterior(&table, &evidence));
    let error = mam.impute(&many, &options, 1, 0, &Cancel::new()).unwrap_err().to_string();
    assert!(error.contains("block of 0"), "{error}");
}

#[test]
fn a_run_in_parts_is_the_run_in_one() {
    let table = Table::new(5, 2, 0.0, 0.3);
    let mam = table.mam(Kind::Conditional);
    let sample = |count, options: &SampleOptions| -> Vec<_> {
        let samples = mam.sample(&Rows::all_missing(5, count), options, &Cancel::new()).unwrap();
        samples.into_iter().map(Result::unwrap).collect()
    };
    let options = SampleOptions { seed: 9, ..SampleOptions::default() };
    let whole = sample(40, &options);
    let mut parts = sample(25, &options);
    parts.extend(sample(15, &SampleOptions { first_draw: 25, ..options.clone() }));
    assert_eq!(whole, parts);
    assert_ne!(whole, sample(40, &SampleOptions { seed: 10, ..options }));
}

#[test]
fn options_out_of_range_are_refused() {
    let mam = Table::new(3, 2, 0.0, 0.0).mam(Kind::Conditional);
    let refused = |options: SampleOptions, what: &str| {
        let error = mam.sample(&Rows::all_missing(3, 1), &options, &Cancel::new()).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    };
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(SampleOptions { temperature, ..SampleOptions::default() }, "temperature");
    }
    refused(SampleOptions { top_k: Some(0), ..SampleOptions::default() }, "likeliest 0");
    let order = FillOrder::Given(vec![0, 1, 3]);
    refused(SampleOptions { order, ..SampleOptions::default() }, "no permutation");
}
