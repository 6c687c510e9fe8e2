//! How good answers are, and how far two runs of a model are apart.
//!
//! Accuracy is the share of positions whose largest logit is the label's, the loss the mean of
//! −log p(label). The divergence of outputs q from a reference p is the mean KL(p‖q) = Σ p log(p/q)
//! of the softmax over the class axis, the share of equal answers, the relative error ‖q − p‖/‖p‖
//! and the largest |q − p|. Sums are kept in float64, batch after batch.

use crate::calibration::Labels;
use crate::error::{Result, bail, error};
use crate::tensor::Tensor;

/// Keeps log(p/q) finite where a model that ends in softmax says exactly 0.
const SMALLEST_PROBABILITY: f64 = 1e-12;
/// How far the outputs of a softmax may be from a sum of 1 and still count as probabilities.
const PROBABILITY_TOLERANCE: f64 = 1e-3;

/// How many positions were answered, and how many of them rightly.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// Positions whose largest logit is the label's.
    pub correct: u64,
    /// All positions.
    pub total: u64,
    /// The sum over positions of the cross-entropy −log p(label), in nats.
    pub loss: f64,
}

impl Accuracy {
    /// Counts one more batch.
    pub fn add(&mut self, other: Accuracy) {
        self.correct += other.correct;
        self.total += other.total;
        self.loss += other.loss;
    }

    /// The mean cross-entropy, in nats; 0 when there were no positions.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.total.max(1) as f64
    }

    /// The share of right answers, 0 to 1; 0 when there were none at all.
    pub fn value(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.correct as f64 / self.total as f64 }
    }
}

/// Compares `logits` (`[N, K]`, or `[N, T, K]`) with the labels of `rows`, row by row.
///
/// The largest logit wins, the lowest class among equals; a position with a NaN is wrong. Errors
/// (`Data`): shapes that do not fit each other, labels that are not classes of the model.
pub fn accuracy(logits: &Tensor, labels: &Labels, rows: &[usize]) -> Result<Accuracy> {
    let classes = class_count(logits).ok_or_else(|| {
        error!(Data, "accuracy needs outputs [N, K] or [N, T, K], not {:?}", logits.shape())
    })?;
    let labels = labels.batch(rows);
    let Some(indices) = labels.classes() else {
        bail!(Data, "accuracy needs class labels, these are targets of a regression");
    };
    labels.check(classes)?;
    if logits.shape()[0] != rows.len() || indices.len() * classes != logits.len() {
        bail!(
            Data,
            "labels of shape {:?} do not fit outputs of shape {:?}: one label per row, or per row \
             and position",
            labels.tensor().shape(),
            logits.shape()
        );
    }
    let values = logits.to_f64();
    let probabilities = values.chunks_exact(classes).all(is_distribution);
    let mut sum = Accuracy { total: indices.len() as u64, ..Accuracy::default() };
    for (position, &label) in values.chunks_exact(classes).zip(indices) {
        let label = label as usize;
        sum.correct += u64::from(argmax(position) == Some(label));
        sum.loss -= log_probability(position, probabilities)(position[label]);
    }
    Ok(sum)
}

/// How far the outputs of one run are from those of a reference, summed over batches.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    kl_sum: f64,
    positions: u64,
    probabilities: Option<bool>,
    difference_squared: f64,
    reference_squared: f64,
    max_abs: f64,
    agreeing: u64,
}

impl Divergence {
    /// Adds one batch: the same output of the reference and of the other run.
    ///
    /// Errors (`Data`) when the shapes differ.
    pub fn add(&mut self, reference: &Tensor, other: &Tensor) -> Result<()> {
        if reference.shape() != other.shape() {
            bail!(
                Data,
                "outputs of shape {:?} and {:?} cannot be compared",
                reference.shape(),
                other.shape()
            );
        }
        let (p, q) = (reference.to_f64(), other.to_f64());
        for (p, q) in p.iter().zip(&q) {
            let difference = q - p;
            self.difference_squared += difference * difference;
            self.reference_squared += p * p;
            // NaN must not hide behind max, which would drop it.
            if difference.abs() > self.max_abs || difference.is_nan() {
                self.max_abs = difference.abs();
            }
        }
        if let Some(classes) = class_count(reference).filter(|&k| k > 1) {
            let positions = || p.chunks_exact(classes).zip(q.chunks_exact(classes));
            let probabilities = *self
                .probabilities
                .get_or_insert_with(|| p.chunks_exact(classes).all(is_distribution));
            self.kl_sum += positions().map(|(p, q)| kl(p, q, probabilities)).sum::<f64>();
            self.positions += (p.len() / classes) as u64;
            let same = |(p, q): &(&[f64], &[f64])| argmax(p).is_some_and(|a| argmax(q) == Some(a));
            self.agreeing += positions().filter(same).count() as u64;
        }
        Ok(())
    }

    /// Adds what another accumulator has seen.
    pub fn merge(&mut self, other: &Divergence) {
        self.kl_sum += other.kl_sum;
        self.positions += other.positions;
        self.difference_squared += other.difference_squared;
        self.reference_squared += other.reference_squared;
        if other.max_abs > self.max_abs || other.max_abs.is_nan() {
            self.max_abs = other.max_abs;
        }
        self.agreeing += other.agreeing;
    }

    /// The mean over positions of KL(reference‖other), in nats; `None` for outputs that have no
    /// class axis. Outputs that already are probabilities are taken as they are.
    pub fn mean_kl(&self) -> Option<f64> {
        (self.positions > 0).then(|| self.kl_sum / self.positions as f64)
    }

    /// The share of positions where both have their largest output at the same class; `None` for
    /// outputs that have no class axis.
    pub fn agreement(&self) -> Option<f64> {
        (self.positions > 0).then(|| self.agreeing as f64 / self.positions as f64)
    }

    /// ‖other − reference‖/‖reference‖ over everything added; 0 when both are 0.
    pub fn relative_error(&self) -> f64 {
        if self.difference_squared == 0.0 {
            return 0.0;
        }
        (self.difference_squared / self.reference_squared).sqrt()
    }

    /// The largest |other − reference|; NaN if there was a NaN.
    pub fn max_abs(&self) -> f64 {
        self.max_abs
    }
}

/// The length of the class axis: axis 1 of `[N, K]`, the last of `[N, T, K]`.
fn class_count(outputs: &Tensor) -> Option<usize> {
    match outputs.shape() {
        [_, k] | [_, _, k] if outputs.element_type().is_float() && *k > 0 => Some(*k),
        _ => None,
    }
}

/// The first index of the largest value; `None` if one is NaN.
fn argmax(values: &[f64]) -> Option<usize> {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if v.is_nan() {
            return None;
        }
        if *v > values[best] {
            best = i;
        }
    }
    Some(best)
}

fn is_distribution(values: &[f64]) -> bool {
    let sum: f64 = values.iter().sum();
    values.iter().all(|&v| v >= 0.0) && (sum - 1.0).abs() < PROBABILITY_TOLERANCE
}

/// KL(p‖q) of two rows of logits, or of probabilities.
fn kl(p: &[f64], q: &[f64], probabilities: bool) -> f64 {
    let (log_p, log_q) = (log_probability(p, probabilities), log_probability(q, probabilities));
    let term = |(&p, &q): (&f64, &f64)| match (log_p(p), log_q(q)) {
        // A masked class: 0 log 0 = 0.
        (f64::NEG_INFINITY, _) => 0.0,
        (p, q) => p.exp() * (p - q),
    };
    p.iter().zip(q).map(term).sum()
}

/// The map from a value of `row` to the log of its probability: the log-softmax of logits, the
/// plain log of what already are probabilities.
fn log_probability(row: &[f64], probabilities: bool) -> impl Fn(f64) -> f64 {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
    let normalizer = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    move |x| match probabilities {
        true if x.is_nan() => x,
        true => x.max(SMALLEST_PROBABILITY).ln(),
        false => x - normalizer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_counts_rows_and_positions() {
        let labels = Labels::new(Tensor::i64([4], vec![2, 0, 1, 1])).unwrap();
        let logits = Tensor::f32([3, 3], vec![1., 1., 0., 0., 5., 1., f32::NAN, 9., 0.]);
        // Row 1 ties: class 0 wins and is right. Row 3 is right. Row 2 has a NaN and is wrong.
        let mut got = accuracy(&logits, &labels, &[1, 3, 2]).unwrap();
        assert_eq!((got.correct, got.total), (2, 3));
        assert!(got.loss.is_nan());
        got.add(Accuracy { correct: 1, total: 1, loss: 0.0 });
        assert_eq!(got.value(), 0.75);

        // Two classes with logits 0 and log 3: probabilities 1/4 and 3/4, given either way.
        let labels = Labels::new(Tensor::i64([2], vec![1, 0])).unwrap();
        let expected = -((0.75f64).ln() + (0.25f64).ln()) / 2.0;
        for row in [[0.0, 3f32.ln()], [0.25, 0.75]] {
            let both = Tensor::f32([2, 2], [row, row].concat());
            let got = accuracy(&both, &labels, &[0, 1]).unwrap();
            assert_eq!(got.correct, 1);
            assert!((got.mean_loss() - expected).abs() < 1e-6, "{}", got.mean_loss());
        }

        let labels = Labels::new(Tensor::i64([2, 2], vec![1, 0, 0, 1])).unwrap();
        let logits = Tensor::f32([2, 2, 2], vec![0., 1., 0., 1., 0., 1., 0., 1.]);
        assert_eq!(accuracy(&logits, &labels, &[0, 1]).unwrap().correct, 2);
        assert!(accuracy(&logits, &labels, &[0]).is_err());
        let flat = Tensor::f32([2, 2], vec![0.; 4]);
        assert!(accuracy(&flat, &labels, &[0, 1]).is_err());
        let targets = Labels::new(Tensor::f32([2], vec![0.; 2])).unwrap();
        assert!(accuracy(&flat, &targets, &[0, 1]).is_err());
    }

    #[test]
    fn divergence_of_logits_and_of_probabilities_agree() {
        let softmax = |v: [f32; 3]| {
            let sum: f32 = v.iter().map(|x| x.exp()).sum();
            v.map(|x| x.exp() / sum)
        };
        let (p, q) = ([0.0, 1.0, 2.0], [0.5, 0.5, -1.0]);
        let row = |v: [f32; 3]| Tensor::f32([1, 3], v.to_vec());
        let mut logits = Divergence::default();
        logits.add(&row(p), &row(q)).unwrap();
        let mut probabilities = Divergence::default();
        probabilities.add(&row(softmax(p)), &row(softmax(q))).unwrap();
        // Σ p log(p/q) by hand: p = softmax(0, 1, 2), q = softmax(.5, .5, −1).
        let expected: f32 = softmax(p).iter().zip(softmax(q)).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((logits.mean_kl().unwrap() - f64::from(expected)).abs() < 1e-5);
        assert!((probabilities.mean_kl().unwrap() - f64::from(expected)).abs() < 1e-5);
        assert_eq!(logits.max_abs(), 3.0);
        assert_eq!(logits.agreement(), Some(0.0));
        assert!((logits.relative_error() - (9.5f64 / 5.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn equal_runs_do_not_diverge_and_nan_is_seen() {
        let zero = Tensor::f32([2], vec![0.0; 2]);
        let mut same = Divergence::default();
        same.add(&zero, &zero).unwrap();
        assert_eq!((same.mean_kl(), same.relative_error(), same.max_abs()), (None, 0.0, 0.0));
        let nan = Tensor::f32([2], vec![f32::NAN, 5.0]);
        same.add(&zero, &nan).unwrap();
        assert!(same.max_abs().is_nan() && same.relative_error().is_nan());
        assert!(same.add(&zero, &Tensor::f32([1], vec![0.0])).is_err());
    }
}
