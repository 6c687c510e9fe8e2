//! The intermediate sparsities of a gradual run.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, bail};

/// How sparsity rises from step to step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ramp {
    /// The density falls by the same factor each time: see [`schedule`].
    #[default]
    Geometric,
    /// s_j = to − (to − from)·(1 − j/n)³: fast at first, with more steps near the end.
    Cubic,
}

impl Ramp {
    /// `steps` sparsities from `from` to `to` (exclusive and inclusive), both in [0, 1).
    pub fn sparsities(self, from: f64, to: f64, steps: usize) -> Vec<f64> {
        let left = |j: usize| (to - from) * (1.0 - j as f64 / steps as f64).powi(3);
        match self {
            Ramp::Geometric => schedule(from, to, steps),
            Ramp::Cubic => (1..=steps).map(|j| to - left(j)).collect(),
        }
    }
}

impl FromStr for Ramp {
    type Err = Error;

    fn from_str(s: &str) -> Result<Ramp> {
        match s {
            "geometric" => Ok(Ramp::Geometric),
            "cubic" => Ok(Ramp::Cubic),
            _ => bail!(Usage, "unknown ramp {s:?}: use geometric or cubic"),
        }
    }
}

impl fmt::Display for Ramp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ramp::Geometric => "geometric",
            Ramp::Cubic => "cubic",
        })
    }
}

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
    #[test]
    fn a_cubic_ramp_ends_where_it_should() {
        let way = Ramp::Cubic.sparsities(0.5, 0.9, 2);
        assert!((way[0] - 0.85).abs() < 1e-12 && way[1] == 0.9, "{way:?}");
        assert_eq!(Ramp::Geometric.sparsities(0.0, 0.75, 2), [0.5, 0.75]);
        for ramp in [Ramp::Geometric, Ramp::Cubic] {
            assert_eq!(ramp.to_string().parse::<Ramp>().unwrap(), ramp);
        }
        assert!("steep".parse::<Ramp>().unwrap_err().to_string().contains("cubic"));
    }
}
