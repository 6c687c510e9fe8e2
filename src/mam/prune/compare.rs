//! A pruned model beside its dense one: bits per dimension by φ, and the error of θ's marginals
//! over subsets of all sizes.

use serde_json::{Value as Json, json};

use crate::cancel::Cancel;
use crate::error::{Context, Result, bail};
use crate::mam::chain::{Orders, Split};
use crate::mam::check::{Residuals, numbered};
use crate::mam::contract::Trained;
use crate::mam::model::Mam;
use crate::mam::rows::{Rows, known_sites};
use crate::random::Stream;

/// Subsets of each evaluation row unless told otherwise.
pub const SUBSETS: usize = 4;

/// Quarters of the sizes of subsets.
const CLASSES: usize = 4;

/// The streams of subsets, away from those of masks.
const STREAM: u64 = 5 << 40;

/// Evaluation rows, subsets of them, and what the dense model says of both.
#[derive(Debug)]
pub struct Reference {
    rows: Vec<Vec<i32>>,
    subsets: Vec<Vec<i32>>,
    orders: Orders,
    phi_bits: Option<f64>,
    phi: Option<Vec<f64>>,
    theta: Option<Vec<f64>>,
}

/// θ's error over subsets of a range of sizes, root mean square in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SizeClass {
    /// The smallest size.
    pub least: usize,
    /// The largest size.
    pub most: usize,
    /// How many subsets.
    pub subsets: usize,
    /// Pruned θ − dense θ.
    pub against_theta: f64,
    /// Pruned θ − φ's chain of the dense model.
    pub against_phi: Option<f64>,
}

/// What pruning did to the answers. θ's values are log p(x_S), log Z subtracted.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Evaluation rows.
    pub rows: usize,
    /// −log₂ p_φ per known site, several orders, of the dense and of the pruned model.
    pub phi_bits: Option<[f64; 2]>,
    /// Pruned θ − dense θ over all subsets.
    pub theta_against_theta: Option<Residuals>,
    /// θ − φ's chains of the dense model: of the dense θ and of the pruned one.
    pub theta_against_phi: Option<[Residuals; 2]>,
    /// The same by size.
    pub sizes: Vec<SizeClass>,
}

impl Reference {
    /// Asks the dense model; `subsets` of each row, chains over `orders` orders.
    pub fn new(
        dense: &Mam,
        rows: &Rows,
        subsets: usize,
        orders: usize,
        seed: u64,
        cancel: &Cancel,
    ) -> Result<Reference> {
        let rows = numbered(rows.checked(dense.contract())?)?;
        if rows.iter().all(|row| known_sites(row).next().is_none()) {
            bail!(Data, "no evaluation row has a known site");
        }
        let orders = match dense.contract().orders {
            Trained::Any => Orders::Random { count: orders, seed },
            Trained::Forward => Orders::Forward,
        };
        let mut reference = Reference {
            subsets: rows
                .iter()
                .enumerate()
                .flat_map(|(r, row)| parts(row, r, subsets, seed))
                .collect(),
            rows,
            orders,
            phi_bits: None,
            phi: None,
            theta: None,
        };
        reference.phi_bits = reference.bits(dense, cancel)?;
        if dense.has_chains() {
            reference.phi = Some(reference.chains(dense, &reference.subsets, cancel)?);
        }
        reference.theta = reference.marginals(dense, cancel)?;
        Ok(reference)
    }

    /// Sets `pruned` beside the dense model.
    pub fn compare(&self, pruned: &Mam, cancel: &Cancel) -> Result<Comparison> {
        let theta = self.marginals(pruned, cancel)?;
        let apart =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
        let moved = self.theta.as_deref().zip(theta.as_deref()).map(|(d, p)| apart(p, d));
        let off = theta.as_deref().zip(self.phi.as_deref()).map(|(t, p)| apart(t, p));
        let off_dense = self.theta.as_deref().zip(self.phi.as_deref()).map(|(t, p)| apart(t, p));
        let summed = |v: &Option<Vec<f64>>| v.as_deref().map(Residuals::new);
        let sizes = match &moved {
            Some(moved) => self.sizes(moved, off.as_deref()),
            None => Vec::new(),
        };
        Ok(Comparison {
            rows: self.rows.len(),
            phi_bits: self.phi_bits.zip(self.bits(pruned, cancel)?).map(<[f64; 2]>::from),
            theta_against_theta: summed(&moved),
            theta_against_phi: summed(&off_dense).zip(summed(&off)).map(<[Residuals; 2]>::from),
            sizes,
        })
    }

    fn sizes(&self, moved: &[f64], off: Option<&[f64]>) -> Vec<SizeClass> {
        let size = |i: usize| known_sites(&self.subsets[i]).count();
        let most = (0..moved.len()).map(size).max().unwrap_or(0);
        let class = |c: usize| {
            let (least, last) = (most * c / CLASSES + 1, most * (c + 1) / CLASSES);
            let own: Vec<usize> =
                (0..moved.len()).filter(|&i| (least..=last).contains(&size(i))).collect();
            let rms =
                |v: &[f64]| Residuals::new(&own.iter().map(|&i| v[i]).collect::<Vec<_>>()).rms;
            let (against_theta, against_phi) = (rms(moved), off.map(rms));
            SizeClass { least, most: last, subsets: own.len(), against_theta, against_phi }
        };
        (0..CLASSES).map(class).filter(|c| c.subsets > 0).collect()
    }

    /// −log₂ p_φ per known site.
    fn bits(&self, mam: &Mam, cancel: &Cancel) -> Result<Option<f64>> {
        if !mam.has_chains() {
            return Ok(None);
        }
        let total: f64 = self.chains(mam, &self.rows, cancel)?.iter().sum();
        let known: usize = self.rows.iter().map(|row| known_sites(row).count()).sum();
        Ok(Some(-total / known as f64 / std::f64::consts::LN_2))
    }

    fn chains(&self, mam: &Mam, rows: &[Vec<i32>], cancel: &Cancel) -> Result<Vec<f64>> {
        let splits: Vec<_> = rows.iter().map(|row| Ok(Split::unconditional(row))).collect();
        let found = mam.chain_scores(&splits, &self.orders, cancel)?;
        Ok(numbered(found)?.into_iter().map(|(score, _)| score.log_p).collect())
    }

    fn marginals(&self, mam: &Mam, cancel: &Cancel) -> Result<Option<Vec<f64>>> {
        if !mam.has_theta() {
            return Ok(None);
        }
        let rows = self.subsets.iter().map(|row| Ok(row.as_slice()));
        numbered(mam.log_marginals(rows, cancel)?).map(Some).context(|| "a subset of a row")
    }
}

/// Subsets of the known sites of a row, sizes 1 to all of them.
fn parts(row: &[i32], number: usize, count: usize, seed: u64) -> Vec<Vec<i32>> {
    let known: Vec<usize> = known_sites(row).collect();
    let mut random = Stream::new(seed, STREAM + number as u64);
    let mut subset = |_| {
        let size = random.below(known.len()) + 1;
        let mut part = vec![-1; row.len()];
        for &i in &random.permutation(known.len())[..size] {
            part[known[i as usize]] = row[known[i as usize]];
        }
        part
    };
    if known.is_empty() { Vec::new() } else { (0..count).map(&mut subset).collect() }
}

fn residuals(r: &Residuals) -> Json {
    json!({ "mean": r.mean, "rms": r.rms, "max": r.max, "subsets": r.count })
}

impl Comparison {
    /// The same as JSON.
    pub fn to_json(&self) -> Json {
        let size = |c: &SizeClass| {
            json!({
                "least": c.least, "most": c.most, "subsets": c.subsets,
                "theta_against_dense_rms": c.against_theta,
                "theta_against_phi_rms": c.against_phi,
            })
        };
        let bits = |[dense, pruned]: [f64; 2]| json!({ "dense": dense, "pruned": pruned });
        let both = |[dense, pruned]: &[Residuals; 2]| {
            let (dense, pruned) = (residuals(dense), residuals(pruned));
            json!({ "dense": dense, "pruned": pruned })
        };
        json!({
            "rows": self.rows,
            "phi_bits": self.phi_bits.map(bits),
            "theta_against_dense": self.theta_against_theta.as_ref().map(residuals),
            "theta_against_phi": self.theta_against_phi.as_ref().map(both),
            "by_size": self.sizes.iter().map(size).collect::<Vec<_>>(),
        })
    }
}
