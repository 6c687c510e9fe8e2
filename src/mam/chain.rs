//! Chains: log p_φ(x_U | x_V) = Σ_d log p_φ(x_σ(d) | x_V, x_σ(<d)) along an order σ of U.
//!
//! For scoring, every prefix of a chain is known beforehand. So the prefixes of many chains go
//! through φ together, equal ones once, instead of |U| runs one after the other. An ordered net
//! gives the terms of a whole chain in one row.

use crate::cancel::Cancel;
use crate::error::{Result, bail, error};
use crate::mam::contract::Trained;
use crate::mam::half::Found;
use crate::mam::model::{
    Answers, ByRow, Mam, WINDOW_BYTES, WINDOW_ROWS, Want, log_softmax_at, log_sum_exp,
};
use crate::mam::rows::{Distinct, copy};
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
    pub(crate) fn new(logs: &[f64]) -> ChainScore {
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
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Orders::Random { count, .. } => *count,
            Orders::Forward => 1,
            Orders::Given(orders) => orders.len(),
        }
    }

    /// The orders as permutations of all sites, one behind the other in `flat`, whose memory is
    /// kept; refuses what the model was not trained for.
    pub(crate) fn write_to(&self, flat: &mut Vec<u32>, mam: &Mam) -> Result<()> {
        let length = mam.contract().length;
        let sites = 0..length as u32;
        flat.clear();
        match self {
            Orders::Random { count, seed } => {
                for j in 0..*count {
                    flat.extend(sites.clone());
                    Stream::new(*seed, j as u64).shuffle(&mut flat[j * length..]);
                }
            }
            Orders::Forward => flat.extend(sites.clone()),
            Orders::Given(orders) => {
                for (j, order) in orders.iter().enumerate() {
                    let mut sorted = order.clone();
                    sorted.sort_unstable();
                    if !sorted.iter().copied().eq(sites.clone()) {
                        bail!(
                            Usage,
                            "order {j} is no permutation of the sites 0 to {}",
                            length - 1
                        );
                    }
                    flat.extend(order);
                }
            }
        }
        if flat.is_empty() {
            bail!(Usage, "0 orders give no answer");
        }
        let forward = |order: &[u32]| order.iter().copied().eq(sites.clone());
        if mam.contract().orders == Trained::Forward && !flat.chunks_exact(length).all(forward) {
            bail!(
                Usage,
                "the model was trained for the order 0, 1, 2, ... only (mam.orders is forward); \
                 use forward orders"
            );
        }
        Ok(())
    }
}

/// Chains on their way through the net, in memory that can be used again.
///
/// They are added step by step; their prefixes wait in a window, equal ones once, until it is full.
#[derive(Debug)]
pub(crate) struct Chains {
    rows: Distinct,
    wants: Vec<Want>,
    /// Of each want.
    terms: Vec<Term>,
    by_row: ByRow,
    found: Found,
    /// The chain at hand: what is known so far, and for an ordered net the order.
    row: Vec<i32>,
    /// Where its own wants begin.
    own: usize,
    sums: Vec<Sum>,
}

/// What waits for the net: a term of a chain.
#[derive(Debug)]
struct Term {
    chain: usize,
    value: i32,
}

/// log p_φ along a chain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    log_p: f64,
    /// The first site whose conditional is no number.
    bad: Option<u32>,
}

impl Sum {
    /// The sum, or the site that spoils it.
    pub fn value(self) -> std::result::Result<f64, u32> {
        self.bad.map_or(Ok(self.log_p), Err)
    }
}

impl Chains {
    /// No chains of a model.
    pub fn new(mam: &Mam) -> Chains {
        let length = mam.contract().length;
        let width = if mam.ordered.is_some() { 2 * length } else { length };
        Chains {
            rows: Distinct::new(width),
            wants: Vec::new(),
            terms: Vec::new(),
            by_row: ByRow::default(),
            found: Found::default(),
            row: Vec::with_capacity(width),
            own: 0,
            sums: Vec::new(),
        }
    }

    /// Forgets all chains, and keeps the memory.
    pub fn clear(&mut self) {
        self.forget_terms();
        self.sums.clear();
    }

    fn forget_terms(&mut self) {
        self.rows.clear();
        self.wants.clear();
        self.terms.clear();
        self.own = 0;
    }

    /// The sums of all chains since they were cleared, once [`Mam::end_chains`] was called.
    pub fn sums(&self) -> &[Sum] {
        &self.sums
    }

    /// About how many bytes it holds.
    pub fn bytes(&self) -> usize {
        let of_want = size_of::<Want>() + size_of::<Term>() + size_of::<u32>() + size_of::<f64>();
        self.rows.bytes()
            + self.wants.capacity() * of_want
            + self.sums.capacity() * size_of::<Sum>()
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
        let mut flat = Vec::new();
        orders.write_to(&mut flat, self)?;
        let orders = flat.chunks_exact(self.contract().length);
        let mut chains = Chains::new(self);
        for row in rows.iter().filter_map(|row| row.as_ref().ok()) {
            for order in orders.clone() {
                let asked = order.iter().filter(|&&site| row.asked(site as usize));
                let steps = asked.map(|&site| (site, row.full[site as usize]));
                self.add_chain(&mut chains, row.given.iter().copied(), steps, cancel)?;
            }
        }
        self.end_chains(&mut chains, cancel)?;
        let mut values = chains.sums().iter().map(|sum| sum.value().map_err(not_finite));
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
        let mut added = Chains::new(self);
        for chain in chains {
            let (start, steps) = (chain.start.into_iter(), chain.steps.into_iter());
            self.add_chain(&mut added, start, steps, cancel)?;
        }
        self.end_chains(&mut added, cancel)?;
        Ok(added.sums().iter().map(|sum| sum.value().map_err(not_finite)).collect())
    }

    /// Adds a chain from `start`, in which V is known, along sites and values of U.
    pub(crate) fn add_chain(
        &self,
        chains: &mut Chains,
        start: impl Iterator<Item = i32>,
        steps: impl Iterator<Item = (u32, i32)>,
        cancel: &Cancel,
    ) -> Result<()> {
        let number = chains.sums.len();
        chains.sums.push(Sum::default());
        chains.row.clear();
        chains.row.extend(start);
        if self.ordered.is_some() {
            return self.add_ordered(chains, number, steps, cancel);
        }
        let window = self.rows_at_a_time();
        for (site, value) in steps {
            let row = chains.rows.insert(&chains.row);
            chains.wants.push(Want { row, site });
            chains.terms.push(Term { chain: number, value });
            chains.row[site as usize] = value;
            if chains.rows.len() >= window || chains.wants.len() >= 4 * window {
                self.end_chains(chains, cancel)?;
            }
        }
        Ok(())
    }

    /// An ordered net has all terms of a chain in one row: the known sites first, then U in its
    /// order, then the rest.
    fn add_ordered(
        &self,
        chains: &mut Chains,
        number: usize,
        steps: impl Iterator<Item = (u32, i32)>,
        cancel: &Cancel,
    ) -> Result<()> {
        let length = self.contract().length;
        let row = &mut chains.row;
        for site in 0..length {
            if row[site] >= 0 {
                row.push(site as i32);
            }
        }
        for (site, value) in steps {
            row[site as usize] = value;
            row.push(site as i32);
            chains.wants.push(Want { row: 0, site });
            chains.terms.push(Term { chain: number, value });
        }
        for site in 0..length {
            if row[site] < 0 {
                row.push(site as i32);
            }
        }
        let id = chains.rows.insert(row);
        chains.wants[chains.own..].iter_mut().for_each(|want| want.row = id);
        chains.own = chains.wants.len();
        if chains.rows.len() >= (WINDOW_BYTES / (16 * length)).clamp(1, WINDOW_ROWS) {
            self.end_chains(chains, cancel)?;
        }
        Ok(())
    }

    /// Runs what waits, and adds its terms to the sums of their chains, in their order.
    pub(crate) fn end_chains(&self, chains: &mut Chains, cancel: &Cancel) -> Result<()> {
        let net = match &self.ordered {
            Some(ordered) => ordered,
            None => self.needed_phi()?,
        };
        let Chains { rows, wants, terms, by_row, found, sums, .. } = chains;
        if wants.is_empty() {
            chains.forget_terms();
            return Ok(());
        }
        by_row.sort(wants, rows.len());
        found.reset(wants.len());
        let (vocab, cards) = (self.contract().vocab, &self.contract().cardinalities);
        net.run(rows, cancel, |id, output| {
            for &w in by_row.of(id) {
                let (site, value) = (wants[w as usize].site as usize, terms[w as usize].value);
                let log = match self.ordered.is_some() {
                    true => f64::from(output[site]),
                    false => log_softmax_at(&output[site * vocab..][..cards[site]], value as usize),
                };
                found.set(w as usize, log);
            }
        })?;
        for (w, (term, want)) in terms.iter().zip(wants.iter()).enumerate() {
            let (sum, log) = (&mut sums[term.chain], found.at(w));
            match sum.bad {
                None if log.is_nan() || log == f64::INFINITY => sum.bad = Some(want.site),
                None => sum.log_p += log,
                Some(_) => {}
            }
        }
        chains.forget_terms();
        Ok(())
    }
}

/// The error of a chain that [`Sum::value`] has a site for.
pub(crate) fn not_finite(site: u32) -> crate::Error {
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
}
