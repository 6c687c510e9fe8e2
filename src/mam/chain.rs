//! Chains: log p_φ(x_U | x_V) = Σ_d log p_φ(x_σ(d) | x_V, x_σ(<d)) along an order σ of U.
//!
//! For scoring, every prefix of a chain is known beforehand. So the prefixes of many chains go
//! through φ together, equal ones once, instead of |U| runs one after the other. An ordered net
//! gives the terms of a whole chain in one row.

use crate::cancel::Cancel;
use crate::error::{Result, bail, error};
use crate::mam::contract::Trained;
use crate::mam::model::{
    Answers, Mam, WINDOW_BYTES, WINDOW_ROWS, Want, log_softmax_at, log_sum_exp,
};
use crate::mam::rows::{Distinct, copy, free_sites, known_sites};
use crate::random::Stream;

/// Along which orders chains run.
#[derive(Clone, Debug, PartialEq)]
pub enum Orders {
    /// So many random orders, the same for every row, so that a row's answer does not depend on
    /// where it stands.
    Random {
        /// How many.
        count: usize,
        /// Of the random numbers.
        seed: u64,
    },
    /// Site 0, 1, 2, ...
    Forward,
    /// These permutations of all sites; each row uses its own sites in that order.
    Given(Vec<Vec<u32>>),
}

/// log p_φ by chains over m orders, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChainScore {
    /// log (1/m) Σ_σ p_φ(x|σ): a lower bound, in expectation, of the log of the mean over all
    /// orders, which is a normalised probability.
    pub log_p: f64,
    /// (1/m) Σ_σ log p_φ(x|σ): the any-order bound, below that.
    pub mean: f64,
    /// The standard deviation of log p_φ(x|σ) over the orders; 0 for one order.
    pub spread: f64,
    /// m.
    pub orders: usize,
}

impl ChainScore {
    fn new(logs: &[f64]) -> ChainScore {
        let m = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / m;
        let squares = logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>();
        ChainScore {
            log_p: log_sum_exp(logs.iter().copied()) - m.ln(),
            mean,
            spread: if logs.len() > 1 { (squares / (m - 1.0)).sqrt() } else { 0.0 },
            orders: logs.len(),
        }
    }
}

/// A chain to compute: from `start`, in which V is known, site by site.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub start: Vec<i32>,
    /// Sites and values of U.
    pub steps: Vec<(u32, i32)>,
}

impl Orders {
    /// The orders as permutations of `length` sites; refuses what the model was not trained for.
    pub(crate) fn permutations(&self, mam: &Mam) -> Result<Vec<Vec<u32>>> {
        let length = mam.contract().length;
        let forward: Vec<u32> = (0..length as u32).collect();
        let orders = match self {
            Orders::Random { count: 0, .. } => bail!(Usage, "0 orders give no answer"),
            Orders::Random { count, seed } => {
                (0..*count as u64).map(|j| Stream::new(*seed, j).permutation(length)).collect()
            }
            Orders::Forward => vec![forward.clone()],
            Orders::Given(orders) => orders.clone(),
        };
        for (j, order) in orders.iter().enumerate() {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            if sorted != forward {
                bail!(Usage, "order {j} is no permutation of the sites 0 to {}", length - 1);
            }
            if mam.contract().orders == Trained::Forward && *order != forward {
                bail!(
                    Usage,
                    "the model was trained for the order 0, 1, 2, ... only (mam.orders is \
                     forward); use forward orders"
                );
            }
        }
        if orders.is_empty() {
            bail!(Usage, "0 orders give no answer");
        }
        Ok(orders)
    }
}

impl Mam {
    /// log p_φ(x_U | x_V) over `orders` for each row of (all known sites, V), and the values of φ
    /// along each order.
    pub(crate) fn chain_scores(
        &self,
        rows: &[Result<Split>],
        orders: &Orders,
        cancel: &Cancel,
    ) -> Result<Answers<(ChainScore, Vec<f64>)>> {
        let orders = orders.permutations(self)?;
        let good = rows.iter().filter_map(|row| row.as_ref().ok());
        let chains = good.flat_map(|row| orders.iter().map(|order| row.chain(order)));
        let mut values = self.chains(chains, cancel)?.into_iter();
        let answer = |row: &Result<Split>| {
            if let Err(e) = row {
                return Err(copy(e));
            }
            let own: Vec<Result<f64>> = values.by_ref().take(orders.len()).collect();
            let logs = own.into_iter().collect::<Result<Vec<f64>>>()?;
            Ok((ChainScore::new(&logs), logs))
        };
        Ok(rows.iter().map(answer).collect())
    }

    /// The log-probability of each chain. Memory does not grow with their number.
    pub(crate) fn chains(
        &self,
        chains: impl Iterator<Item = Chain>,
        cancel: &Cancel,
    ) -> Result<Vec<Result<f64>>> {
        if self.ordered.is_some() {
            return self.ordered_chains(chains, cancel);
        }
        self.needed_phi()?;
        let length = self.contract().length;
        let window = self.rows_at_a_time();
        let mut sums: Vec<Result<f64>> = Vec::new();
        let mut rows = Distinct::new(length);
        let (mut wants, mut terms) = (Vec::new(), Vec::new());
        for chain in chains {
            sums.push(Ok(0.0));
            let mut current = chain.start;
            for (site, value) in chain.steps {
                wants.push(Want { row: rows.insert(&current), site });
                terms.push(Term { chain: sums.len() - 1, value });
                current[site as usize] = value;
                if rows.len() >= window || wants.len() >= 4 * window {
                    self.add_terms(&mut rows, &mut wants, &mut terms, &mut sums, cancel)?;
                }
            }
        }
        self.add_terms(&mut rows, &mut wants, &mut terms, &mut sums, cancel)?;
        Ok(sums)
    }

    /// Adds the terms that wait to the sums of their chains, in their order, and clears them.
    fn add_terms(
        &self,
        rows: &mut Distinct,
        wants: &mut Vec<Want>,
        terms: &mut Vec<Term>,
        sums: &mut [Result<f64>],
        cancel: &Cancel,
    ) -> Result<()> {
        if terms.is_empty() {
            return Ok(());
        }
        let value = |w: usize| terms[w].value as usize;
        let logs =
            self.phi_at(rows, wants, cancel, |w, logits| log_softmax_at(logits, value(w)))?;
        for ((term, want), log) in terms.iter().zip(wants.iter()).zip(logs) {
            let sum = &mut sums[term.chain];
            match sum {
                Ok(_) if log.is_nan() => *sum = Err(not_finite(want.site)),
                Ok(total) => *total += log,
                Err(_) => {}
            }
        }
        rows.clear();
        wants.clear();
        terms.clear();
        Ok(())
    }

    /// Chains by an ordered net: the known sites first, then U in its order, then the rest.
    fn ordered_chains(
        &self,
        chains: impl Iterator<Item = Chain>,
        cancel: &Cancel,
    ) -> Result<Vec<Result<f64>>> {
        let ordered = self.ordered.as_ref().expect("the caller looked");
        let length = self.contract().length;
        let window = (WINDOW_BYTES / (16 * length)).clamp(1, WINDOW_ROWS);
        let mut sums = Vec::new();
        let mut chains = chains.peekable();
        while chains.peek().is_some() {
            let mut rows = Distinct::new(2 * length);
            let mut waiting = Vec::new();
            for chain in chains.by_ref().take(window) {
                let mut row = chain.start;
                let mut order: Vec<i32> = known_sites(&row).map(|s| s as i32).collect();
                for &(site, value) in &chain.steps {
                    row[site as usize] = value;
                    order.push(site as i32);
                }
                order.extend(free_sites(&row).map(|s| s as i32));
                row.extend(order);
                waiting.push((rows.insert(&row), chain.steps));
            }
            let mut terms: Vec<Vec<f32>> = Vec::with_capacity(rows.len());
            ordered.run(&rows, cancel, &mut terms, |_, terms, all| all.push(terms.to_vec()))?;
            sums.extend(waiting.into_iter().map(|(id, steps)| {
                let term = |&(site, _): &(u32, i32)| f64::from(terms[id as usize][site as usize]);
                let bad = |step: &&(u32, i32)| term(step).is_nan() || term(step) == f64::INFINITY;
                match steps.iter().find(bad) {
                    Some(&(site, _)) => Err(not_finite(site)),
                    None => Ok(steps.iter().map(term).sum()),
                }
            }));
        }
        Ok(sums)
    }
}

/// A term that waits for φ.
struct Term {
    chain: usize,
    value: i32,
}

fn not_finite(site: u32) -> crate::Error {
    error!(Numerics, "site {site}: the net's conditional is NaN or infinite")
}

/// A row taken apart: V, which is given, and the sites and values of U.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    pub given: Vec<i32>,
    pub full: Vec<i32>,
}

impl Split {
    /// Everything that is known is U.
    pub fn unconditional(row: &[i32]) -> Split {
        Split { given: vec![-1; row.len()], full: row.to_vec() }
    }

    /// Whether a site belongs to U.
    pub fn asked(&self, site: usize) -> bool {
        self.full[site] >= 0 && self.given[site] < 0
    }

    /// The chain over U in the order that `order` puts its sites in.
    fn chain(&self, order: &[u32]) -> Chain {
        let asked = order.iter().filter(|&&site| self.asked(site as usize));
        let steps = asked.map(|&site| (site, self.full[site as usize])).collect();
        Chain { start: self.given.clone(), steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_over_orders_are_ordered() {
        let score = ChainScore::new(&[-1.0, -3.0]);
        let mean = ((-1.0f64).exp() + (-3.0f64).exp()) / 2.0;
        assert!((score.log_p - mean.ln()).abs() < 1e-12 && score.mean == -2.0);
        assert!((score.spread - 2f64.sqrt()).abs() < 1e-12 && score.orders == 2);
        let impossible = ChainScore::new(&[f64::NEG_INFINITY]);
        assert_eq!((impossible.log_p, impossible.spread), (f64::NEG_INFINITY, 0.0));
    }

    #[test]
    fn a_chain_visits_what_is_asked_in_order() {
        let split = Split { given: vec![-1, 7, -1, -1], full: vec![4, 7, -1, 5] };
        let chain = split.chain(&[3, 2, 1, 0]);
        assert_eq!((chain.start, chain.steps), (vec![-1, 7, -1, -1], vec![(3, 5), (0, 4)]));
    }
}
