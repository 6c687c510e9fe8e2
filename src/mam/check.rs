//! How far a model can be trusted: do θ and φ agree, and does θ sum to one?
//!
//! One-step residual: r = f_θ(x_S) + log p_φ(x_i | x_S) − f_θ(x_S, x_i), 0 where the halves agree.
//! Sum rule: log Σ_k p_θ(x_S, x_i = k) − log p_θ(x_S), 0 where θ is consistent with itself.
//! Normaliser: log Σ_x p_θ(x) as log E_q w with w = p_θ(x) / q(x|σ), x drawn from φ; by enumeration
//! where that is less work.

use serde_json::json;

use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::mam::chain::{Chain, ChainScore, Orders, Split};
use crate::mam::contract::Trained;
use crate::mam::model::{Mam, log_sum_exp};
use crate::mam::pareto::{LARGEST_TAIL, tail_index};
use crate::mam::rows::{Distinct, Rows, known_sites};
use crate::mam::sample::SampleOptions;
use crate::random::Stream;

/// Draws or states per round.
const ROUND: usize = 1024;

/// An effective sample size below this says that the estimate may be far off.
pub const LEAST_EFFECTIVE_DRAWS: f64 = 100.0;

/// An estimate of log Σ_x p_θ(x), with p_θ(x) = exp(f_θ(x) − f_θ(∅)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normaliser {
    /// The estimate; 0 for a normalised θ.
    pub log_sum: f64,
    /// Its standard error by the delta method; 0 for an enumeration.
    pub error: f64,
    /// (Σ w)² / Σ w²: how many independent draws the estimate is worth.
    pub effective: f64,
    /// The largest weight's share of all.
    pub largest_share: f64,
    /// Pareto k̂ of the largest weights: the estimate cannot be relied on from [`LARGEST_TAIL`] on.
    /// None for an enumeration, few draws, or weights that are all alike.
    pub tail: Option<f64>,
    /// Draws, or states for an enumeration.
    pub draws: usize,
    /// Whether all states were summed.
    pub exact: bool,
}

/// Residuals r of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Residuals {
    /// Their mean: a bias per step.
    pub mean: f64,
    /// Their root mean square.
    pub rms: f64,
    /// The largest |r|.
    pub max: f64,
    /// How many.
    pub count: usize,
}

impl Residuals {
    pub(crate) fn new(values: &[f64]) -> Residuals {
        let n = values.len() as f64;
        Residuals {
            mean: values.iter().sum::<f64>() / n,
            rms: (values.iter().map(|v| v * v).sum::<f64>() / n).sqrt(),
            max: values.iter().fold(0.0, |m, v| v.abs().max(m)),
            count: values.len(),
        }
    }
}

/// What [`Mam::check`] finds, in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Consistency {
    /// Rows that were looked at.
    pub rows: usize,
    /// f_θ(x_S) + log p_φ(x_i | x_S) − f_θ(x_S, x_i).
    pub one_step: Residuals,
    /// log Σ_k p_θ(x_S, x_i = k) − log p_θ(x_S).
    pub sum_rule: Residuals,
    /// log p_θ(x_S) − log p_φ(x_S) (several orders), of the known sites of each row.
    pub theta_against_phi: Residuals,
    /// The mean over rows of the standard deviation of log p_φ(x_S|σ) over orders.
    pub order_spread: f64,
    /// The mean over rows of −log p_φ(x_S), in bits per known site.
    pub phi_bits: f64,
    /// Whether θ sums to one.
    pub normaliser: Normaliser,
}

impl Consistency {
    /// The same as a document of the schema `hone.mam.check/1`.
    pub fn to_json(&self) -> serde_json::Value {
        let residuals =
            |r: &Residuals| json!({ "mean": r.mean, "rms": r.rms, "max": r.max, "count": r.count });
        let n = &self.normaliser;
        json!({
            "schema": "hone.mam.check/1",
            "rows": self.rows,
            "one_step": residuals(&self.one_step),
            "sum_rule": residuals(&self.sum_rule),
            "theta_against_phi": residuals(&self.theta_against_phi),
            "order_spread": self.order_spread,
            "phi_bits_per_site": self.phi_bits,
            "normaliser": {
                "log_sum": n.log_sum, "error": n.error, "effective_draws": n.effective,
                "largest_share": n.largest_share, "pareto_k": n.tail, "draws": n.draws,
                "exact": n.exact, "reliable": n.is_reliable(),
            },
        })
    }
}

/// How much to look at.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Steps (a subset and a site) per row.
    pub steps: usize,
    /// Orders of φ's chains.
    pub orders: usize,
    /// Draws for the normaliser.
    pub draws: usize,
    /// Of everything random.
    pub seed: u64,
}

impl Default for CheckOptions {
    fn default() -> CheckOptions {
        CheckOptions { steps: 4, orders: 5, draws: 2048, seed: 0 }
    }
}

/// A subset of a row's known sites and one more.
struct Step {
    before: Vec<i32>,
    site: usize,
    value: i32,
}

impl Mam {
    /// Looks at how far θ and φ agree on `rows`; a bad row is an error here. Needs both halves.
    pub fn check(
        &self,
        rows: &Rows,
        options: &CheckOptions,
        cancel: &Cancel,
    ) -> Result<Consistency> {
        self.needed_phi()?;
        let rows: Vec<Vec<i32>> = numbered(rows.checked(self.contract())?)?;
        let steps = self.steps(&rows, options)?;
        let (one_step, sum_rule) = self.step_residuals(&steps, cancel)?;
        let splits: Vec<Result<Split>> =
            rows.iter().map(|row| Ok(Split::unconditional(row))).collect();
        let orders = match self.contract().orders {
            Trained::Any => Orders::Random { count: options.orders, seed: options.seed },
            Trained::Forward => Orders::Forward,
        };
        let phi = self.chain_scores(&splits, &orders, cancel)?;
        let phi: Vec<ChainScore> = numbered(phi)?.into_iter().map(|(score, _)| score).collect();
        let theta = numbered(self.log_marginals(rows.iter().map(|r| Ok(r.as_slice())), cancel)?)?;
        let gaps: Vec<f64> = theta.iter().zip(&phi).map(|(t, p)| t - p.log_p).collect();
        let known = rows.iter().map(|row| known_sites(row).count()).sum::<usize>();
        let total: f64 = phi.iter().map(|p| p.log_p).sum();
        Ok(Consistency {
            rows: rows.len(),
            one_step,
            sum_rule,
            theta_against_phi: Residuals::new(&gaps),
            order_spread: phi.iter().map(|p| p.spread).sum::<f64>() / phi.len() as f64,
            phi_bits: -total / known.max(1) as f64 / std::f64::consts::LN_2,
            normaliser: self.normaliser(options.draws, options.seed, cancel)?,
        })
    }

    /// Random prefixes of random orders of each row's known sites.
    fn steps(&self, rows: &[Vec<i32>], options: &CheckOptions) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for (r, row) in rows.iter().enumerate() {
            let known: Vec<usize> = known_sites(row).collect();
            let mut random = Stream::new(options.seed, (2 << 40) + r as u64);
            for _ in 0..options.steps.min(known.len() * options.steps) {
                let order: Vec<u32> = match self.contract().orders {
                    Trained::Any => random.permutation(known.len()),
                    Trained::Forward => (0..known.len() as u32).collect(),
                };
                let prefix = random.below(known.len());
                let mut before = vec![-1; row.len()];
                for &i in &order[..prefix] {
                    before[known[i as usize]] = row[known[i as usize]];
                }
                let site = known[order[prefix] as usize];
                steps.push(Step { before, site, value: row[site] });
            }
        }
        if steps.is_empty() {
            bail!(Data, "no row has a known site, so there is nothing to check");
        }
        Ok(steps)
    }

    /// Residuals of all steps: one-step and sum-rule.
    fn step_residuals(&self, steps: &[Step], cancel: &Cancel) -> Result<(Residuals, Residuals)> {
        let chains = steps
            .iter()
            .map(|s| Chain { start: s.before.clone(), steps: vec![(s.site as u32, s.value)] });
        let log_phi = self.chains(chains, cancel)?.into_iter().collect::<Result<Vec<_>>>()?;
        let (mut one, mut sum) = (Vec::new(), Vec::new());
        for (part, logs) in steps.chunks(ROUND / 8).zip(log_phi.chunks(ROUND / 8)) {
            let mut rows = Distinct::new(self.contract().length);
            let mut ids = Vec::new();
            for step in part {
                let before = rows.insert(&step.before);
                let mut row = step.before.clone();
                let after: Vec<u32> = (0..self.contract().cardinalities[step.site])
                    .map(|value| {
                        row[step.site] = value as i32;
                        rows.insert(&row)
                    })
                    .collect();
                ids.push((before, after));
            }
            let f = self.f_theta(&rows, cancel)?;
            if let Some(bad) = f.iter().find(|f| !f.is_finite()) {
                bail!(Numerics, "the net's log_p is {bad} for a part of a row");
            }
            for ((step, (before, after)), log) in part.iter().zip(&ids).zip(logs) {
                let before = f[*before as usize];
                one.push(before + log - f[after[step.value as usize] as usize]);
                sum.push(log_sum_exp(after.iter().map(|&id| f[id as usize])) - before);
            }
        }
        Ok((Residuals::new(&one), Residuals::new(&sum)))
    }

    /// log Σ_x p_θ(x): by enumeration when there are no more states than `draws`, else by
    /// importance sampling from φ.
    pub fn normaliser(&self, draws: usize, seed: u64, cancel: &Cancel) -> Result<Normaliser> {
        if let Some(states) = self.contract().states().filter(|&n| n <= draws.max(ROUND) as u64) {
            return self.enumerate(states as usize, cancel);
        }
        if draws < 2 {
            bail!(Usage, "{draws} draws are too few for an estimate");
        }
        let (mut log_w, length) = (Vec::with_capacity(draws), self.contract().length);
        for start in (0..draws).step_by(ROUND) {
            let count = ROUND.min(draws - start);
            let options =
                SampleOptions { seed, first_draw: start as u64, ..SampleOptions::default() };
            let samples = self.sample(&Rows::all_missing(length, count), &options, cancel)?;
            let samples = samples.into_iter().collect::<Result<Vec<_>>>()?;
            let cells = samples.iter().flat_map(|s| s.values.iter().copied()).collect();
            let theta = self.log_marginal(&Rows::new(length, cells)?, cancel)?;
            for (sample, theta) in samples.iter().zip(theta) {
                log_w.push(theta.context(|| "a sample")? - sample.log_q);
            }
        }
        Ok(Normaliser::from_log_weights(&log_w))
    }

    fn enumerate(&self, states: usize, cancel: &Cancel) -> Result<Normaliser> {
        let cards = &self.contract().cardinalities;
        let mut logs = Vec::with_capacity(states);
        for start in (0..states).step_by(ROUND) {
            let mut cells = Vec::new();
            for state in start..(start + ROUND).min(states) {
                let mut rest = state;
                cells.extend(cards.iter().map(|&k| {
                    let value = rest % k;
                    rest /= k;
                    value as i64
                }));
            }
            let rows = Rows::new(cards.len(), cells)?;
            logs.extend(self.log_marginal(&rows, cancel)?.into_iter().collect::<Result<Vec<_>>>()?);
        }
        Ok(Normaliser {
            log_sum: log_sum_exp(logs.iter().copied()),
            error: 0.0,
            effective: states as f64,
            largest_share: logs.iter().fold(f64::NEG_INFINITY, |m, &l| l.max(m)).exp(),
            tail: None,
            draws: states,
            exact: true,
        })
    }
}

impl Normaliser {
    /// From log w of each draw.
    pub(crate) fn from_log_weights(log_w: &[f64]) -> Normaliser {
        let n = log_w.len() as f64;
        let total = log_sum_exp(log_w.iter().copied());
        let shares = log_w.iter().map(|l| (l - total).exp());
        let squares: f64 = shares.clone().map(|s| s * s).sum();
        Normaliser {
            log_sum: total - n.ln(),
            // Var(mean w) / (mean w)² = (Σ s² − 1/n) · n / (n − 1).
            error: ((squares - 1.0 / n).max(0.0) * n / (n - 1.0)).sqrt(),
            effective: 1.0 / squares,
            largest_share: shares.fold(0.0, f64::max),
            tail: tail_index(log_w),
            draws: log_w.len(),
            exact: false,
        }
    }

    /// Whether the estimate rests on enough draws to be used.
    pub fn is_reliable(&self) -> bool {
        let light = self.tail.is_none_or(|k| k < LARGEST_TAIL);
        self.exact || (self.effective >= LEAST_EFFECTIVE_DRAWS && light)
    }
}

/// All answers, or the first error with its row.
pub(crate) fn numbered<T>(answers: impl IntoIterator<Item = Result<T>>) -> Result<Vec<T>> {
    let name = |(r, answer): (usize, Result<T>)| answer.context(|| format!("row {r}"));
    answers.into_iter().enumerate().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn importance_weights_are_summed_up() {
        let even = Normaliser::from_log_weights(&[0.5; 200]);
        assert!((even.log_sum - 0.5).abs() < 1e-12 && even.error < 1e-7);
        assert!((even.effective - 200.0).abs() < 1e-6 && even.is_reliable());
        let mut random = Stream::new(1, 0);
        // w = exp(s z − s²/2) has mean 1.
        let log_w: Vec<f64> =
            (0..20_000).map(|_| 0.5 * f64::from(random.normal()) - 0.125).collect();
        let n = Normaliser::from_log_weights(&log_w);
        assert!(n.log_sum.abs() < 4.0 * n.error && n.error < 0.01, "{n:?}");
        assert!((n.effective / 20_000.0 - (-0.25f64).exp()).abs() < 0.03, "{n:?}");
        assert!(!Normaliser::from_log_weights(&[0.0, 50.0]).is_reliable());
        assert!(n.is_reliable() && n.tail.unwrap() < LARGEST_TAIL, "{n:?}");
        // So many draws count, and yet the weights have no mean.
        let heavy: Vec<f64> = (0..20_000).map(|_| -1.2 * (1.0 - random.uniform()).ln()).collect();
        let heavy = Normaliser::from_log_weights(&heavy);
        assert!(heavy.tail.unwrap() > 1.0 && !heavy.is_reliable(), "{heavy:?}");
    }

    #[test]
    fn residuals_are_summed_up() {
        let r = Residuals::new(&[3.0, -1.0]);
        assert_eq!((r.mean, r.rms, r.max, r.count), (1.0, 5f64.sqrt(), 3.0, 2));
    }
}
