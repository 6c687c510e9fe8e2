//! Conditionals: log p(x_U | x_V) as a ratio of marginals and as a chain, with the gap between
//! them, and the distribution of every missing site.
//!
//! The ratio f_θ(x_U, x_V) − f_θ(x_V) takes two passes and needs no normaliser; the chain is a
//! normalised probability of x_U. Where θ and φ agree with each other, so do these two; the gap is
//! the error estimate that comes with the answer.

use crate::cancel::Cancel;
use crate::error::{Result, bail};
use crate::mam::chain::{ChainScore, Orders, Split};
use crate::mam::model::{Mam, Want, log_softmax_at, log_sum_exp};
use crate::mam::rows::{Distinct, MISSING, Rows, copy, free_sites};

/// Missing sites whose values go through θ together.
const SITES_AT_A_TIME: usize = 64;

/// log p(x_U | x_V) of a row, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditional {
    /// |U|.
    pub asked: usize,
    /// |V|.
    pub given: usize,
    /// f_θ(x_U, x_V) − f_θ(x_V), of a model with θ.
    pub ratio: Option<f64>,
    /// Chains over U, of a model with φ.
    pub chain: Option<ChainScore>,
    /// ratio − chain.
    pub gap: Option<f64>,
}

/// The distribution of one missing site.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteDistribution {
    /// Which site.
    pub site: usize,
    /// log p(x_i = k | the known sites) of each value k.
    pub log_p: Vec<f64>,
}

/// Which half distributions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// softmax of φ's logits: one row gives all sites.
    Phi,
    /// p_θ(x_V, x_i = k) / Σ_k' p_θ(x_V, x_i = k'): K_i rows for each site.
    Theta,
}

impl Mam {
    /// log p(x_U | x_V) for each row: V are the sites where `given` is true, U its other known
    /// sites. `given` has an element for each cell of `rows`.
    pub fn log_conditional(
        &self,
        rows: &Rows,
        given: &[bool],
        orders: &Orders,
        cancel: &Cancel,
    ) -> Result<Vec<Result<Conditional>>> {
        if given.len() != rows.cells().len() {
            let (g, r) = (given.len(), rows.cells().len());
            bail!(Data, "`given` has {g} elements, the rows have {r}");
        }
        if !self.has_theta() && !self.has_chains() {
            bail!(Usage, "the model has neither half");
        }
        let given = given.chunks_exact(rows.length());
        let checked = rows.checked(self.contract())?.into_iter().zip(given);
        let splits: Vec<Result<Split>> = checked.map(|(row, given)| split(row?, given)).collect();
        let ratios = match self.has_theta() {
            true => self.ratios(&splits, cancel)?.into_iter().map(|v| v.map(Some)).collect(),
            false => (0..splits.len()).map(|_| Ok(None)).collect::<Vec<_>>(),
        };
        let chains = match self.has_chains() {
            true => {
                let scores = self.chain_scores(&splits, orders, cancel)?.into_iter();
                scores.map(|v| v.map(|(score, _)| Some(score))).collect()
            }
            false => (0..splits.len()).map(|_| Ok(None)).collect::<Vec<_>>(),
        };
        let answer = |((split, ratio), chain): ((Result<Split>, _), _)| {
            let (split, ratio, chain): (_, Option<f64>, Option<ChainScore>) =
                (split?, ratio?, chain?);
            let sites = 0..split.full.len();
            Ok(Conditional {
                asked: sites.clone().filter(|&s| split.asked(s)).count(),
                given: sites.filter(|&s| split.given[s] >= 0).count(),
                gap: ratio.zip(chain).map(|(r, c)| r - c.log_p),
                ratio,
                chain,
            })
        };
        Ok(splits.into_iter().zip(ratios).zip(chains).map(answer).collect())
    }

    fn ratios(&self, splits: &[Result<Split>], cancel: &Cancel) -> Result<Vec<Result<f64>>> {
        let mut rows = Distinct::new(self.contract().length);
        let mut ids = Vec::new();
        for split in splits {
            let pair = split.as_ref().ok().map(|s| (rows.insert(&s.full), rows.insert(&s.given)));
            ids.push(pair);
        }
        let f = self.f_theta(&rows, cancel)?;
        let answer = |(split, pair): (&Result<Split>, Option<(u32, u32)>)| {
            split.as_ref().map_err(copy)?;
            let (full, given) = pair.expect("good rows have ids");
            Ok(self.normal(f[full as usize])? - self.normal(f[given as usize])?)
        };
        Ok(splits.iter().zip(ids).map(answer).collect())
    }

    /// The distribution of each missing site of each row given its known ones. Each is of its site
    /// alone: their product is not the joint distribution of several.
    pub fn distributions(
        &self,
        rows: &Rows,
        source: Source,
        cancel: &Cancel,
    ) -> Result<Vec<Result<Vec<SiteDistribution>>>> {
        let checked = rows.checked(self.contract())?.into_iter().collect();
        match source {
            Source::Phi => self.distributions_by_phi(checked, cancel),
            Source::Theta => self.distributions_by_theta(checked, cancel),
        }
    }

    fn distributions_by_phi(
        &self,
        checked: Vec<Result<Vec<i32>>>,
        cancel: &Cancel,
    ) -> Result<Vec<Result<Vec<SiteDistribution>>>> {
        let mut rows = Distinct::new(self.contract().length);
        let mut wants = Vec::new();
        for row in checked.iter().filter_map(|r| r.as_ref().ok()) {
            let sites = free_sites(row);
            let id = rows.insert(row);
            wants.extend(sites.map(|site| Want { row: id, site: site as u32 }));
        }
        let all = |w: usize, logits: &[f32]| SiteDistribution {
            site: wants[w].site as usize,
            log_p: (0..logits.len()).map(|k| log_softmax_at(logits, k)).collect(),
        };
        let mut found = self.phi_at(&rows, &wants, cancel, all)?.into_iter();
        let answer = |row: Result<Vec<i32>>| {
            let own: Vec<_> = found.by_ref().take(free_sites(&row?).count()).collect();
            check_finite(own)
        };
        Ok(checked.into_iter().map(answer).collect())
    }

    fn distributions_by_theta(
        &self,
        checked: Vec<Result<Vec<i32>>>,
        cancel: &Cancel,
    ) -> Result<Vec<Result<Vec<SiteDistribution>>>> {
        let of_row = |row: Result<Vec<i32>>| -> Result<Result<Vec<_>>> {
            let row = match row {
                Ok(row) => row,
                Err(e) => return Ok(Err(e)),
            };
            let sites: Vec<usize> = free_sites(&row).collect();
            let mut found = Vec::new();
            for sites in sites.chunks(SITES_AT_A_TIME) {
                found.extend(self.sites_by_theta(row.clone(), sites, cancel)?);
            }
            Ok(check_finite(found))
        };
        checked.into_iter().map(of_row).collect()
    }

    fn sites_by_theta(
        &self,
        mut row: Vec<i32>,
        sites: &[usize],
        cancel: &Cancel,
    ) -> Result<Vec<SiteDistribution>> {
        let cards = &self.contract().cardinalities;
        let mut rows = Distinct::new(row.len());
        for &site in sites {
            for value in 0..cards[site] {
                row[site] = value as i32;
                rows.insert(&row);
            }
            row[site] = MISSING as i32;
        }
        let mut f = self.f_theta(&rows, cancel)?.into_iter();
        let of_site = |&site: &usize| {
            let own: Vec<f64> = f.by_ref().take(cards[site]).collect();
            let total = log_sum_exp(own.iter().copied());
            SiteDistribution { site, log_p: own.into_iter().map(|f| f - total).collect() }
        };
        Ok(sites.iter().map(of_site).collect())
    }
}

fn check_finite(sites: Vec<SiteDistribution>) -> Result<Vec<SiteDistribution>> {
    match sites.iter().find(|s| s.log_p.iter().any(|l| l.is_nan())) {
        Some(s) => bail!(Numerics, "site {}: the net's output is NaN or infinite", s.site),
        None => Ok(sites),
    }
}

/// Evidence must be known, and something must be asked for.
fn split(full: Vec<i32>, given: &[bool]) -> Result<Split> {
    if let Some(site) = (0..full.len()).find(|&s| given[s] && full[s] < 0) {
        bail!(Data, "site {site} is given, but its value is missing");
    }
    let evidence = full.iter().zip(given).map(|(&v, &g)| if g { v } else { -1 }).collect();
    Ok(Split { given: evidence, full })
}
