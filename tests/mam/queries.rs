//! Scores, conditionals and reports against what the tables add up to.

use hone::ErrorKind;
use hone::cancel::Cancel;
use hone::mam::contract::Kind;
use hone::mam::{CheckOptions, Method, Orders, ScoreOptions, Source};

use crate::tables::{MISSING, Table, close, log_sum_exp, rows};

/// Tables are float32.
const F32: f64 = 2e-5;

fn options(method: Method) -> ScoreOptions {
    ScoreOptions {
        method,
        orders: Orders::Random { count: 3, seed: 11 },
        log_normaliser: None,
        conflict: true,
        surprise: method != Method::Theta,
    }
}

#[test]
fn a_consistent_model_gives_every_marginal_both_ways() {
    let table = Table::new(4, 3, 0.0, 0.0);
    let mam = table.mam(Kind::Joint);
    close(mam.log_z().unwrap(), 1.7, 1e-6, "log Z");
    let all: Vec<Vec<i64>> = (0..256).map(|code| table.row_of(code)).collect();
    let cancel = Cancel::new();
    let scores = mam.score(&rows(&all), &options(Method::Bracket), &cancel).unwrap();
    let empty = vec![MISSING; 4];
    for (row, score) in all.iter().zip(scores) {
        let (score, truth) = (score.unwrap(), table.log_marginal(row));
        close(score.theta.unwrap(), truth, F32, "θ");
        let phi = score.phi.unwrap();
        close(phi.log_p, truth, F32, "φ");
        close(phi.spread, 0.0, F32, "the spread over orders");
        let bracket = score.bracket.unwrap();
        close(bracket.lower, truth, F32, "lower");
        close(bracket.upper, truth, F32, "upper");
        assert_eq!(score.known, row.iter().filter(|v| **v >= 0).count());
        assert_eq!(score.theta_normalised, None, "nothing says that θ sums to one");
        let alone = |i: usize| {
            let mut single = empty.clone();
            single[i] = row[i];
            table.log_marginal(&single)
        };
        let known = (0..4).filter(|&i| row[i] >= 0);
        let apart: f64 = known.clone().map(alone).sum();
        close(score.conflict.unwrap(), apart - truth, 5.0 * F32, "conflict");
        let surprise = score.surprise.unwrap();
        assert!(surprise.iter().map(|s| s.0).eq(known));
        for (site, surprise) in surprise {
            let mut rest = row.clone();
            rest[site] = MISSING;
            close(surprise, table.log_marginal(&rest) - truth, F32, "surprise");
        }
    }
}

#[test]
fn an_inconsistent_model_is_reported_as_it_is() {
    let table = Table::new(4, 2, 0.5, 0.5);
    let mam = table.mam(Kind::Joint);
    let cancel = Cancel::new();
    let states = table.states();
    let given: Vec<Vec<u32>> = vec![vec![2, 0, 3, 1], vec![1, 3, 0, 2], vec![0, 1, 2, 3]];
    let mut options = options(Method::Bracket);
    options.orders = Orders::Given(given.clone());
    options.surprise = false;
    let normaliser = mam.normaliser(100, 0, &cancel).unwrap();
    let thetas: Vec<f64> = states.iter().map(|s| table.theta_of(s)).collect();
    assert!(normaliser.exact && normaliser.draws == 16);
    close(normaliser.log_sum, log_sum_exp(&thetas), F32, "the sum over states");
    options.log_normaliser = Some(normaliser.log_sum);
    let mut total = 0.0;
    let scores = mam.score(&rows(&states), &options, &cancel).unwrap();
    for (row, score) in states.iter().zip(scores) {
        let score = score.unwrap();
        close(score.theta.unwrap(), table.theta_of(row), F32, "θ");
        let chains: Vec<f64> = given
            .iter()
            .map(|order| {
                let order: Vec<usize> = order.iter().map(|&s| s as usize).collect();
                table.chain(&[MISSING; 4], row, &order)
            })
            .collect();
        let mean = chains.iter().sum::<f64>() / 3.0;
        let phi = score.phi.unwrap();
        close(phi.log_p, log_sum_exp(&chains) - 3f64.ln(), F32, "log-mean-exp");
        close(phi.mean, mean, F32, "mean of logs");
        let spread = chains.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 2.0;
        close(phi.spread, spread.sqrt(), F32, "spread");
        let bracket = score.bracket.unwrap();
        let ratio = chains.iter().map(|c| (c - table.theta_of(row)).exp()).sum::<f64>() / 3.0;
        let upper = ratio + table.theta_of(row) - 1.0;
        close(bracket.upper, upper, F32 * upper.abs().max(1.0), "upper");
        assert!(bracket.lower <= phi.log_p + 1e-12 && phi.log_p <= bracket.upper + 1e-12);
        total += score.theta_normalised.unwrap().exp();
    }
    close(total, 1.0, 1e-4, "corrected θ over all states");
}

#[test]
fn conditionals_are_ratios_and_chains() {
    let table = Table::new(4, 3, 0.0, 0.0);
    let (mam, cancel) = (table.mam(Kind::Joint), Cancel::new());
    let row = vec![2, MISSING, 0, 1];
    let given = [true, false, false, false];
    let orders = Orders::Random { count: 2, seed: 0 };
    let answer =
        mam.log_conditional(&rows(std::slice::from_ref(&row)), &given, &orders, &cancel).unwrap();
    let answer = *answer[0].as_ref().unwrap();
    let evidence = vec![2, MISSING, MISSING, MISSING];
    let truth = table.log_marginal(&row) - table.log_marginal(&evidence);
    close(answer.ratio.unwrap(), truth, F32, "ratio");
    close(answer.chain.unwrap().log_p, truth, F32, "chain");
    close(answer.gap.unwrap(), 0.0, F32, "gap");
    assert_eq!((answer.asked, answer.given), (2, 1));

    let noisy = Table::new(4, 3, 0.3, 0.3);
    let mam = noisy.mam(Kind::Joint);
    let forward = mam
        .log_conditional(&rows(std::slice::from_ref(&row)), &given, &Orders::Forward, &cancel)
        .unwrap();
    let forward = forward[0].as_ref().unwrap();
    let chain = noisy.chain(&evidence, &row, &[2, 3]);
    let ratio = noisy.theta_of(&row) - noisy.theta_of(&evidence);
    close(forward.chain.unwrap().log_p, chain, F32, "the chain in its order");
    close(forward.gap.unwrap(), ratio - chain, F32, "the gap of an inconsistent model");

    let unknown = [true, true, false, false];
    let error = mam.log_conditional(&rows(&[row]), &unknown, &Orders::Forward, &cancel).unwrap();
    let error = error[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("site 1 is given, but"), "{error}");
}

#[test]
fn distributions_come_from_either_half() {
    let table = Table::new(4, 3, 0.0, 0.0);
    let (mam, cancel) = (table.mam(Kind::Joint), Cancel::new());
    let all = vec![vec![1, MISSING, 2, MISSING], vec![0; 4], vec![MISSING; 4]];
    for source in [Source::Phi, Source::Theta] {
        let found = mam.distributions(&rows(&all), source, &cancel).unwrap();
        for (row, sites) in all.iter().zip(found) {
            let sites = sites.unwrap();
            assert!(sites.iter().map(|s| s.site).eq((0..4).filter(|&i| row[i] < 0)));
            for site in sites {
                for (value, log) in site.log_p.iter().enumerate() {
                    let mut full = row.clone();
                    full[site.site] = value as i64;
                    let truth = table.log_marginal(&full) - table.log_marginal(row);
                    close(*log, truth, F32, "a conditional");
                }
            }
        }
    }
}

#[test]
fn the_report_finds_what_is_wrong_and_what_is_not() {
    let cancel = Cancel::new();
    let options = CheckOptions { steps: 8, ..CheckOptions::default() };
    let exact = Table::new(4, 2, 0.0, 0.0);
    let report = exact.mam(Kind::Joint).check(&rows(&exact.states()), &options, &cancel).unwrap();
    assert!(report.one_step.max < 1e-4 && report.sum_rule.max < 1e-4, "{report:?}");
    assert!(report.theta_against_phi.max < 1e-4 && report.order_spread < 1e-4, "{report:?}");
    close(report.normaliser.log_sum, 0.0, 1e-4, "log sum");
    let bits = exact.states().iter().map(|s| -exact.log_marginal(s)).sum::<f64>() / 16.0 / 4.0;
    close(report.phi_bits, bits / std::f64::consts::LN_2, 1e-4, "bits per site");

    let off = Table::new(4, 2, 0.4, 0.0);
    let report = off.mam(Kind::Joint).check(&rows(&off.states()), &options, &cancel).unwrap();
    // Two independent errors of θ meet in a step.
    close(report.one_step.rms, 0.4 * 2f64.sqrt(), 0.2, "one-step residual");
    assert!(report.order_spread < 1e-4, "φ is exact");
    assert!(report.normaliser.log_sum.abs() > 1e-3);
    let off = Table::new(4, 2, 0.0, 0.4);
    let report = off.mam(Kind::Joint).check(&rows(&off.states()), &options, &cancel).unwrap();
    assert!(report.order_spread > 0.05 && report.sum_rule.rms < 1e-4, "{report:?}");
}

#[test]
fn importance_sampling_finds_the_normaliser() {
    // More states than are enumerated.
    let mut table = Table::new(7, 3, 0.3, 0.1);
    table.theta[1..].iter_mut().for_each(|t| *t += 0.8);
    let truth = log_sum_exp(&table.states().iter().map(|s| table.theta_of(s)).collect::<Vec<_>>());
    let found = table.mam(Kind::Joint).normaliser(2000, 5, &Cancel::new()).unwrap();
    assert!(!found.exact && found.is_reliable() && found.error < 0.05, "{found:?}");
    close(found.log_sum, truth, 4.0 * found.error, "log Σ p_θ");
    assert!(truth > 0.5);
}

#[test]
fn what_a_half_cannot_do_is_a_usage_error() {
    let table = Table::new(3, 2, 0.0, 0.0);
    let cancel = Cancel::new();
    let row = rows(&[vec![0, 1, MISSING]]);
    let theta = table.mam(Kind::Marginal);
    let error = theta.score(&row, &options(Method::Phi), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("needs φ"), "{error}");
    let phi = table.mam(Kind::Conditional);
    let error = phi.score(&row, &options(Method::Theta), &cancel).unwrap_err();
    assert!(error.to_string().contains("needs θ"), "{error}");
    let mut by_phi = options(Method::Phi);
    assert!(phi.score(&row, &by_phi, &cancel).unwrap()[0].is_ok());
    by_phi.orders = Orders::Given(vec![vec![0, 1, 1]]);
    let error = phi.score(&row, &by_phi, &cancel).unwrap_err().to_string();
    assert!(error.contains("order 0 is no permutation"), "{error}");
}
