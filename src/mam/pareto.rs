//! How heavy the tail of importance weights is: k̂ of the generalised Pareto distribution that fits
//! the largest weights (Vehtari, Simpson, Gelman, Yao, Gabry 2024). Weights have a finite variance
//! for k < ½; estimates can be relied on up to about 0.7 and are worthless from 1 on.

/// From here on an estimate from the weights cannot be relied on.
pub const LARGEST_TAIL: f64 = 0.7;

/// The fewest weights of a tail that can be fitted.
const LEAST_TAIL: usize = 5;

/// k̂ of the tail of weights, given their logarithms; `None` when there are too few of them, or
/// when the tail is flat.
pub(crate) fn tail_index(log_w: &[f64]) -> Option<f64> {
    let n = log_w.len() as f64;
    let tail = (0.2 * n).min(3.0 * n.sqrt()).ceil() as usize;
    if tail < LEAST_TAIL || tail >= log_w.len() || log_w.iter().any(|l| l.is_nan()) {
        return None;
    }
    let mut sorted = log_w.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (max, cut) = (sorted[sorted.len() - 1], sorted[sorted.len() - tail - 1]);
    if !max.is_finite() {
        return None;
    }
    let low = (cut - max).exp();
    let excess: Vec<f64> =
        sorted[sorted.len() - tail..].iter().map(|l| (l - max).exp() - low).collect();
    pareto_shape(&excess)
}

/// The shape k of a generalised Pareto distribution of the ascending `excess` ≥ 0, by the
/// quasi-Bayesian estimate of Zhang and Stephens (2009), with the weak prior of ten draws at ½.
fn pareto_shape(excess: &[f64]) -> Option<f64> {
    let n = excess.len() as f64;
    let (largest, quartile) =
        (excess[excess.len() - 1], excess[((n / 4.0 + 0.5) as usize).max(1) - 1]);
    if !(quartile > 0.0 && largest.is_finite()) {
        return None;
    }
    let count = 30 + n.sqrt() as usize;
    let shape = |b: f64| excess.iter().map(|x| (-b * x).ln_1p()).sum::<f64>() / n;
    let points: Vec<(f64, f64)> = (1..=count)
        .map(|j| {
            let step = 1.0 - (count as f64 / (j as f64 - 0.5)).sqrt();
            let b = 1.0 / largest + step / (3.0 * quartile);
            let k = shape(b);
            (b, n * ((-b / k).ln() - k - 1.0))
        })
        .filter(|(_, l)| l.is_finite())
        .collect();
    let best = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let weights = points.iter().map(|p| (p.1 - best).exp());
    let total: f64 = weights.clone().sum();
    let b = points.iter().zip(weights).map(|(p, w)| p.0 * w).sum::<f64>() / total;
    let k = (shape(b) * n + 5.0) / (n + 10.0);
    k.is_finite().then_some(k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    #[test]
    fn the_shape_of_known_tails_is_found() {
        for k in [0.2, 0.5, 1.0, 1.5] {
            let mut random = Stream::new(3, (10.0 * k) as u64);
            // A Pareto distribution with tail exponent 1/k.
            let log_w: Vec<f64> = (0..20_000).map(|_| -k * (1.0 - random.uniform()).ln()).collect();
            let found = tail_index(&log_w).unwrap();
            assert!((found - k).abs() < 0.17, "{k}: {found}");
        }
        let mut random = Stream::new(3, 99);
        let bounded: Vec<f64> = (0..5000).map(|_| random.uniform()).collect();
        assert!(tail_index(&bounded).unwrap() < 0.0);
    }

    #[test]
    fn what_has_no_tail_has_no_index() {
        assert_eq!(tail_index(&[0.5; 200]), None);
        assert_eq!(tail_index(&[0.0, 1.0, 2.0]), None);
        assert_eq!(tail_index(&[f64::NEG_INFINITY; 100]), None);
        let mut some = vec![0.0; 100];
        some[3] = f64::NAN;
        assert_eq!(tail_index(&some), None);
    }
}
