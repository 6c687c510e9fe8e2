//! Scores of rows: log p(x_S) by θ, by φ, or between two bounds, and how each was obtained.
//!
//! With u = E_σ p_φ(x|σ), the mean over orders, which is a normalised probability, and any c > 0:
//!
//! E_σ log p_φ(x|σ) ≤ log u ≤ u/c + log c − 1.
//!
//! θ supplies c = p_θ(x), near enough to u for the right side to be tight. θ itself is a likelihood
//! only if it sums to one, which training brings about approximately; so it is never returned as
//! one unless the model says that it is exact, or a [`Normaliser`](crate::mam::Normaliser) was
//! estimated and subtracted.

use crate::cancel::Cancel;
use crate::error::{Context, Result};
use crate::mam::chain::{Chain, ChainScore, Orders, Split};
use crate::mam::model::{Answers, Mam, Want, log_softmax_at, parts};
use crate::mam::rows::{Checked, Distinct, Rows, known_sites};

/// How rows are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// f_θ(x_S) − f_θ(∅): one pass.
    Theta,
    /// Chains of φ over m orders: m·|S| rows, in batches.
    Phi,
    /// Both, and the two-sided bracket.
    Bracket,
}

/// What to compute for each row.
#[derive(Clone, Debug)]
pub struct ScoreOptions {
    /// By which half.
    pub method: Method,
    /// Orders of φ's chains.
    pub orders: Orders,
    /// log Σ_x p_θ(x), to be subtracted from θ's value of complete rows.
    pub log_normaliser: Option<f64>,
    /// Also Σ_i log p(x_i) − log p(x_S).
    pub conflict: bool,
    /// Also −log p_φ(x_i | x_rest) of each known site.
    pub surprise: bool,
}

/// The score of a row, in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// |S|: how many sites are known.
    pub known: usize,
    /// f_θ(x_S) − f_θ(∅), as the net has it.
    pub theta: Option<f64>,
    /// θ's value as a log-likelihood: of an exact model, or of a complete row corrected by
    /// `log_normaliser`. `None` where θ cannot be trusted to sum to one.
    pub theta_normalised: Option<f64>,
    /// By chains.
    pub phi: Option<ChainScore>,
    /// Bounds of the log of the mean over all orders.
    pub bracket: Option<Bracket>,
    /// Σ_i log p(x_i) − log p(x_S): how much less likely the values are together than each by
    /// itself; high where they contradict each other. By θ unless the method is φ alone.
    pub conflict: Option<f64>,
    /// −log p_φ(x_i | all other known sites) of each known site, with the site.
    pub surprise: Option<Vec<(usize, f64)>>,
}

/// Bounds of log u = log E_σ p_φ(x|σ), estimated from the same orders.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bracket {
    /// (1/m) Σ_σ log p_φ(x|σ).
    pub lower: f64,
    /// The standard error of `lower`.
    pub lower_error: f64,
    /// u/c + log c − 1 at c = p_θ(x); +∞ where θ is hopelessly low.
    pub upper: f64,
    /// The standard error of `upper`.
    pub upper_error: f64,
}

/// A chain score and log p_φ along each order.
type PhiScore = (ChainScore, Vec<f64>);

impl Bracket {
    fn new(logs: &[f64], log_c: f64) -> Bracket {
        let m = logs.len() as f64;
        let ratios: Vec<f64> = logs.iter().map(|l| (l - log_c).exp()).collect();
        let (lower, lower_error) = mean_and_error(logs, m);
        let (ratio, upper_error) = mean_and_error(&ratios, m);
        Bracket { lower, lower_error, upper: ratio + log_c - 1.0, upper_error }
    }
}

/// The mean and its standard error, NaN of a single value.
pub(crate) fn mean_and_error(values: &[f64], m: f64) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / m;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (mean, (squares / (m - 1.0) / m).sqrt())
}

impl Mam {
    /// Scores each row by its known sites. The outer error is of the whole request, the inner ones
    /// are of single rows.
    pub fn score(
        &self,
        rows: &Rows,
        options: &ScoreOptions,
        cancel: &Cancel,
    ) -> Result<Vec<Result<Score>>> {
        let by_theta = options.method != Method::Phi;
        let singles = match options.conflict {
            true => Some(self.single_sites(by_theta, cancel)?),
            false => None,
        };
        let most = match options.method {
            Method::Theta => self.rows_at_a_time(),
            _ => self.chained_rows_at_a_time(&options.orders),
        };
        let mut answers = Vec::with_capacity(rows.len());
        for part in parts(rows.len(), most) {
            let rows = rows.checked_part(part, self.contract())?;
            self.score_part(&rows, options, singles.as_deref(), &mut answers, cancel)?;
        }
        Ok(answers)
    }

    /// Adds the scores of a part of the rows to those before.
    fn score_part(
        &self,
        rows: &Checked,
        options: &ScoreOptions,
        singles: Option<&[Vec<f64>]>,
        answers: &mut Vec<Result<Score>>,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut theta = match options.method {
            Method::Phi => None,
            _ => Some(self.log_marginals(rows.iter(), cancel)?.into_iter()),
        };
        let mut phi = match options.method {
            Method::Theta => None,
            _ => {
                let splits: Vec<Result<Split>> =
                    rows.iter().map(|row| row.map(Split::unconditional)).collect();
                Some(self.chain_scores(&splits, &options.orders, cancel)?.into_iter())
            }
        };
        let mut surprise = match options.surprise {
            true => Some(self.surprises(rows, cancel)?.into_iter()),
            false => None,
        };
        answers.extend(rows.iter().map(|row| {
            let (theta, phi) = (next(&mut theta), next(&mut phi));
            let surprise = next(&mut surprise);
            let row = row?;
            let (theta, phi, surprise): (_, Option<PhiScore>, _) = (theta?, phi?, surprise?);
            let known = row.iter().filter(|&&v| v >= 0).count();
            let bracket = theta.zip(phi.as_ref()).map(|(t, (_, logs))| Bracket::new(logs, t));
            let theta_normalised = match options.log_normaliser {
                _ if self.is_normalised() => theta,
                Some(z) if known == row.len() => theta.map(|t| t - z),
                _ => None,
            };
            let phi = phi.map(|(score, _)| score);
            let conflict = singles.map(|singles| {
                let apart = known_sites(row).map(|site| singles[site][row[site] as usize]);
                let together = theta.or(phi.map(|p| p.log_p)).expect("a method computes one");
                apart.sum::<f64>() - together
            });
            Ok(Score { known, theta, theta_normalised, phi, bracket, conflict, surprise })
        }));
        Ok(())
    }

    /// log p(x_i = k) of every site and value, by the half that also scores whole rows.
    fn single_sites(&self, by_theta: bool, cancel: &Cancel) -> Result<Vec<Vec<f64>>> {
        let c = self.contract();
        let mut rows = Distinct::new(c.length);
        let mut row = vec![-1; c.length];
        if !by_theta && !self.has_phi() {
            // An ordered net: chains of one step.
            let values =
                |site: usize| (0..c.cardinalities[site]).map(move |v| (site as u32, v as i32));
            let all = (0..c.length).flat_map(values);
            let chains = all.map(|step| Chain { start: row.clone(), steps: vec![step] });
            let mut logs = self.chains(chains, cancel)?.into_iter();
            let of_site = |&k: &usize| logs.by_ref().take(k).collect::<Result<Vec<f64>>>();
            return c.cardinalities.iter().map(of_site).collect();
        }
        if !by_theta {
            rows.insert(&row);
            let wants: Vec<Want> = (0..c.length as u32).map(|site| Want { row: 0, site }).collect();
            let all = |_: usize, logits: &[f32]| {
                (0..logits.len()).map(|k| log_softmax_at(logits, k)).collect()
            };
            return self.phi_at(&rows, &wants, cancel, all);
        }
        let mut singles = Vec::with_capacity(c.length);
        for site in 0..c.length {
            rows.clear();
            for value in 0..c.cardinalities[site] {
                row[site] = value as i32;
                rows.insert(&row);
            }
            row[site] = -1;
            let values = self.f_theta(&rows, cancel)?;
            let logs = values.into_iter().map(|f| self.normal(f)).collect::<Result<_>>();
            singles.push(logs.context(|| format!("site {site} alone"))?);
        }
        Ok(singles)
    }

    /// −log p_φ(x_i | x_rest) of the known sites of each row.
    fn surprises(&self, rows: &Checked, cancel: &Cancel) -> Result<Answers<Vec<(usize, f64)>>> {
        let chains = rows.iter().filter_map(Result::ok).flat_map(|row| {
            known_sites(row).map(|site| {
                let mut start = row.to_vec();
                start[site] = -1;
                Chain { start, steps: vec![(site as u32, row[site])] }
            })
        });
        let mut logs = self.chains(chains, cancel)?.into_iter();
        let answer = |row: Result<&[i32]>| {
            let own: Vec<_> = known_sites(row?).zip(logs.by_ref()).collect();
            let own = own.into_iter().map(|(site, log)| Ok((site, -log?)));
            own.collect()
        };
        Ok(rows.iter().map(answer).collect())
    }
}

/// The next answer of a kind that was asked for.
fn next<T>(answers: &mut Option<std::vec::IntoIter<Result<T>>>) -> Result<Option<T>> {
    let answer = answers.as_mut().map(|a| a.next().expect("an answer for each row"));
    answer.transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bracket_holds_the_mean_over_orders() {
        let logs = [-2.0, -3.0, -2.5];
        let truth = (logs.iter().map(|l: &f64| l.exp()).sum::<f64>() / 3.0).ln();
        for log_c in [-4.0, -2.6, -1.0] {
            let bracket = Bracket::new(&logs, log_c);
            assert!(bracket.lower <= truth && truth <= bracket.upper, "{bracket:?}");
        }
        let tight = Bracket::new(&logs, truth);
        assert!((tight.upper - truth).abs() < 1e-12 && tight.upper_error > 0.0);
        assert_eq!(Bracket::new(&[-1.0], -800.0).upper, f64::INFINITY);
    }
}
