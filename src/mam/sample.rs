//! Draws from φ: ancestral samples in any order, and completions by block-Gibbs sweeps.
//!
//! A draw fills one site after the other, x_σ(d) ~ p_φ(· | what is known), and all draws of a batch
//! advance together. A sweep erases a block of sites and fills it again; what is evidence is never
//! erased. Draw i uses random numbers of (seed, i) alone.

use std::collections::VecDeque;

use crate::cancel::Cancel;
use crate::error::{Result, bail, error};
use crate::mam::chain::Orders;
use crate::mam::contract::Trained;
use crate::mam::model::{Mam, Want, log_softmax_at};
use crate::mam::rows::{Distinct, Rows, free_sites};
use crate::random::Stream;

/// Draws that advance together.
const GROUP: usize = 1024;

/// The stream of draw i is `STREAM + i`, away from the streams of orders.
const STREAM: u64 = 1 << 40;

/// In which order a draw fills the sites.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum FillOrder {
    /// Each draw in a random order of its own.
    #[default]
    Random,
    /// Site 0, 1, 2, ...
    Forward,
    /// A permutation of all sites.
    Given(Vec<u32>),
}

/// How to draw.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// In which order.
    pub order: FillOrder,
    /// Logits are divided by it: below 1 for likelier, above 1 for more varied values.
    pub temperature: f64,
    /// Draw from the likeliest so many values of a site only.
    pub top_k: Option<usize>,
    /// Of the random numbers.
    pub seed: u64,
    /// The number of the first draw, so that a run in parts equals a run in one.
    pub first_draw: u64,
}

impl Default for SampleOptions {
    fn default() -> SampleOptions {
        SampleOptions {
            order: FillOrder::default(),
            temperature: 1.0,
            top_k: None,
            seed: 0,
            first_draw: 0,
        }
    }
}

/// A completed row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// A value at every site.
    pub values: Vec<i64>,
    /// log of the probability with which the missing sites were drawn, along the order they were
    /// drawn in: temperature and top-k included. Not meaningful after sweeps.
    pub log_q: f64,
    /// log p_φ along the same order: what `log_q` is at temperature 1 without top-k.
    pub log_p: f64,
}

/// One draw in the making.
struct Walker {
    row: Vec<i32>,
    /// Sites to be filled next.
    queue: VecDeque<u32>,
    /// Blocks to be erased and filled after that.
    blocks: VecDeque<Vec<u32>>,
    random: Stream,
    log_q: f64,
    log_p: f64,
    failed: Option<u32>,
}

impl Walker {
    /// The next site to fill; erases the next block when nothing is left to fill.
    fn next_site(&mut self) -> Option<u32> {
        if self.failed.is_some() {
            return None;
        }
        if self.queue.is_empty()
            && let Some(block) = self.blocks.pop_front()
        {
            block.iter().for_each(|&site| self.row[site as usize] = -1);
            self.queue.extend(block);
        }
        self.queue.pop_front()
    }
}

impl Mam {
    /// Completes each row of `evidence` by ancestral sampling: a draw per row.
    pub fn sample(
        &self,
        evidence: &Rows,
        options: &SampleOptions,
        cancel: &Cancel,
    ) -> Result<Vec<Result<Sample>>> {
        self.draw(evidence, options, 0, 1, cancel)
    }

    /// Completes each row of `evidence`, then redraws the missing sites in `sweeps` sweeps of
    /// blocks of `block` sites. Evidence keeps its values.
    pub fn impute(
        &self,
        evidence: &Rows,
        options: &SampleOptions,
        sweeps: usize,
        block: usize,
        cancel: &Cancel,
    ) -> Result<Vec<Result<Sample>>> {
        if block == 0 {
            bail!(Usage, "a block of 0 sites redraws nothing");
        }
        if sweeps > 0 && self.contract().orders == Trained::Forward {
            bail!(Usage, "sweeps need a model of any order; mam.orders of this one is forward");
        }
        self.draw(evidence, options, sweeps, block, cancel)
    }

    fn draw(
        &self,
        evidence: &Rows,
        options: &SampleOptions,
        sweeps: usize,
        block: usize,
        cancel: &Cancel,
    ) -> Result<Vec<Result<Sample>>> {
        self.needed_phi()?;
        if !(options.temperature > 0.0 && options.temperature.is_finite()) {
            bail!(Usage, "temperature {} is not a positive number", options.temperature);
        }
        if options.top_k == Some(0) {
            bail!(Usage, "the likeliest 0 values are none");
        }
        let order = match &options.order {
            FillOrder::Random if self.contract().orders == Trained::Any => None,
            FillOrder::Given(order) => Some(Orders::Given(vec![order.clone()])),
            // A model of forward order is never asked for another one by default.
            FillOrder::Forward | FillOrder::Random => Some(Orders::Forward),
        };
        let order = match order {
            Some(order) => {
                let mut sites = Vec::new();
                order.write_to(&mut sites, self)?;
                Some(sites)
            }
            None => None,
        };
        let mut samples = Vec::with_capacity(evidence.len());
        for start in (0..evidence.len()).step_by(GROUP) {
            let end = (start + GROUP).min(evidence.len());
            let checked = evidence.slice(start..end).checked(self.contract())?;
            let mut walkers: Vec<Result<Walker>> = Vec::with_capacity(checked.len());
            for (i, row) in checked.into_iter().enumerate() {
                let number = options.first_draw + (start + i) as u64;
                let random = Stream::new(options.seed, STREAM.wrapping_add(number));
                walkers.push(row.map(|row| walker(row, random, order.as_deref(), sweeps, block)));
            }
            self.walk(&mut walkers, options, cancel)?;
            samples.extend(walkers.into_iter().map(|w| finished(w?)));
        }
        Ok(samples)
    }

    /// Fills one site of every walker at a time until all are done.
    fn walk(
        &self,
        walkers: &mut [Result<Walker>],
        options: &SampleOptions,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut rows = Distinct::new(self.contract().length);
        loop {
            rows.clear();
            let (mut wants, mut moving) = (Vec::new(), Vec::new());
            for walker in walkers.iter_mut().filter_map(|w| w.as_mut().ok()) {
                if let Some(site) = walker.next_site() {
                    wants.push(Want { row: rows.insert(&walker.row), site });
                    moving.push((walker.random.uniform(), walker));
                }
            }
            if wants.is_empty() {
                return Ok(());
            }
            let uniforms: Vec<f64> = moving.iter().map(|(u, _)| *u).collect();
            let pick = |w: usize, logits: &[f32]| draw_value(logits, uniforms[w], options);
            let drawn = self.phi_at(&rows, &wants, cancel, pick)?;
            for (((_, walker), want), drawn) in moving.into_iter().zip(&wants).zip(drawn) {
                match drawn {
                    Some((value, log_q, log_p)) => {
                        walker.row[want.site as usize] = value as i32;
                        walker.log_q += log_q;
                        walker.log_p += log_p;
                    }
                    None => walker.failed = Some(want.site),
                }
            }
        }
    }
}

fn walker(
    row: Vec<i32>,
    mut random: Stream,
    order: Option<&[u32]>,
    sweeps: usize,
    block: usize,
) -> Walker {
    let free: Vec<u32> = free_sites(&row).map(|s| s as u32).collect();
    let mut shuffled = || -> Vec<u32> {
        random.permutation(free.len()).into_iter().map(|i| free[i as usize]).collect()
    };
    let queue = match order {
        Some(order) => order.iter().copied().filter(|&s| row[s as usize] < 0).collect(),
        None => shuffled().into(),
    };
    let mut blocks = VecDeque::new();
    for _ in 0..sweeps {
        blocks.extend(shuffled().chunks(block).map(<[u32]>::to_vec));
    }
    Walker { row, queue, blocks, random, log_q: 0.0, log_p: 0.0, failed: None }
}

fn finished(walker: Walker) -> Result<Sample> {
    if let Some(site) = walker.failed {
        return Err(error!(Numerics, "site {site}: the net's logits are NaN or infinite"));
    }
    let values = walker.row.into_iter().map(i64::from).collect();
    Ok(Sample { values, log_q: walker.log_q, log_p: walker.log_p })
}

/// The value at quantile `u` of softmax(logits / T) over the likeliest values, its log-probability
/// there, and that under softmax(logits). `None` when the logits make no distribution.
pub(crate) fn draw_value(
    logits: &[f32],
    u: f64,
    options: &SampleOptions,
) -> Option<(usize, f64, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() || logits.iter().any(|l| l.is_nan()) {
        return None;
    }
    // Of equal ones the first count as the likeliest.
    let kept = options.top_k.filter(|&top| top < logits.len()).map(|top| {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let mut kept = vec![false; logits.len()];
        order[..top].iter().for_each(|&k| kept[k] = true);
        kept
    });
    let weight = |k: usize| match kept.as_ref().is_none_or(|kept| kept[k]) {
        true => ((f64::from(logits[k]) - f64::from(max)) / options.temperature).exp(),
        false => 0.0,
    };
    let total: f64 = (0..logits.len()).map(weight).sum();
    let mut left = u * total;
    let mut value = 0;
    for k in (0..logits.len()).filter(|&k| weight(k) > 0.0) {
        value = k;
        left -= weight(k);
        if left < 0.0 {
            break;
        }
    }
    Some((value, (weight(value) / total).ln(), log_softmax_at(logits, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_as_often_as_they_should() {
        let logits = [0.0f32, 1.0, -1.0, f32::NEG_INFINITY];
        let count = |options: &SampleOptions| {
            let mut counts = [0usize; 4];
            let mut random = Stream::new(3, 0);
            for _ in 0..40_000 {
                let (value, log_q, log_p) = draw_value(&logits, random.uniform(), options).unwrap();
                counts[value] += 1;
                assert!(log_q <= 0.0 && log_p <= 0.0);
            }
            counts.map(|c| c as f64 / 40_000.0)
        };
        let expect = |found: [f64; 4], weights: [f64; 4]| {
            let total: f64 = weights.iter().sum();
            for (f, w) in found.iter().zip(weights) {
                assert!((f - w / total).abs() < 0.01, "{found:?} {weights:?}");
            }
        };
        let e = std::f64::consts::E;
        let plain = SampleOptions::default();
        expect(count(&plain), [1.0, e, 1.0 / e, 0.0]);
        let cold = SampleOptions { temperature: 0.5, ..plain.clone() };
        expect(count(&cold), [1.0, e * e, 1.0 / (e * e), 0.0]);
        let top = SampleOptions { top_k: Some(2), ..plain.clone() };
        expect(count(&top), [1.0, e, 0.0, 0.0]);
        let one = SampleOptions { top_k: Some(1), ..plain.clone() };
        for u in [0.0, 0.5, 0.99] {
            assert_eq!(draw_value(&[0.0, 1.0, 1.0], u, &one).unwrap().0, 1, "one of equals");
        }
        assert_eq!(draw_value(&[f32::NAN, 0.0], 0.5, &plain), None);
        assert_eq!(draw_value(&[f32::NEG_INFINITY; 2], 0.5, &plain), None);
    }
}
