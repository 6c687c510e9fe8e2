//! The intermediate sparsities of a gradual run.

/// `stages` sparsities that lead from `from` to `to` (exclusive and inclusive), the density falling
/// by the same factor each time: density_j = density_from · (density_to / density_from)^(j/stages).
///
/// `schedule(0.0, 0.75, 2)` is `[0.5, 0.75]`. The last entry is exactly `to`; no stages, no
/// entries. Both ends lie in [0, 1).
pub fn schedule(from: f64, to: f64, stages: usize) -> Vec<f64> {
    let (start, end) = (1.0 - from, 1.0 - to);
    let density = |j: usize| start * (end / start).powf(j as f64 / stages as f64);
    (1..=stages).map(|j| if j == stages { to } else { 1.0 - density(j) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn density_falls_by_a_constant_factor() {
        let stages = schedule(0.2, 0.9, 5);
        assert_eq!(stages.len(), 5);
        assert_eq!(stages[4], 0.9);
        let mut density = 0.8;
        for sparsity in stages {
            let factor = (1.0 - sparsity) / density;
            assert!((factor - 0.125f64.powf(0.2)).abs() < 1e-12, "{factor}");
            density = 1.0 - sparsity;
        }
        assert_eq!(schedule(0.0, 0.75, 2), [0.5, 0.75]);
        assert!(schedule(0.0, 0.5, 0).is_empty());
    }
}
