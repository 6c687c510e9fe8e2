//! Which weights may be zero together: anywhere, or at most N non-zeros in each M.
//!
//! A pattern N:M (NVIDIA's meaning, 2:4 being the one that sparse tensor cores run) divides each
//! row of a layer into groups of M consecutive weights along the input axis. The last group of a
//! row may be shorter: of `len` weights it keeps at most ⌈len·N/M⌉. Kernels see a pattern only as
//! [`Groups`]: the group of each weight and how many weights a group may still lose.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::Layer;
use crate::error::{Error, Result, bail, error};

/// Which weights may be zero together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Any weight may go.
    Unstructured,
    /// At most `keep` non-zeros in each `of` consecutive weights of a row, 0 < keep < of ≤ 64.
    NOfM {
        /// N: the weights that a group keeps.
        keep: usize,
        /// M: the length of a group.
        of: usize,
    },
}

/// The longest group: no known hardware goes beyond 16, and a bound keeps blocks small.
const LONGEST_GROUP: usize = 64;

impl FromStr for Pattern {
    type Err = Error;

    /// Reads `unstructured` or `N:M` with 0 < N < M ≤ 64.
    fn from_str(text: &str) -> Result<Pattern> {
        if text == "unstructured" {
            return Ok(Pattern::Unstructured);
        }
        let numbers = text.split_once(':').and_then(|(n, m)| Some((number(n)?, number(m)?)));
        match numbers {
            Some((keep, of)) if 0 < keep && keep < of && of <= LONGEST_GROUP => {
                Ok(Pattern::NOfM { keep, of })
            }
            _ => Err(error!(
                Usage,
                "pattern {text:?} is neither \"unstructured\" nor N:M with 0 < N < M <= \
                 {LONGEST_GROUP}, such as 2:4"
            )),
        }
    }
}

/// Digits only: no sign, no blank.
fn number(text: &str) -> Option<usize> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured => f.write_str("unstructured"),
            Pattern::NOfM { keep, of } => write!(f, "{keep}:{of}"),
        }
    }
}

impl Pattern {
    /// The highest sparsity that the pattern allows: 1 − N/M, or 1.
    pub fn sparsity_limit(self) -> f64 {
        match self {
            Pattern::Unstructured => 1.0,
            Pattern::NOfM { keep, of } => 1.0 - keep as f64 / of as f64,
        }
    }

    /// A sparsity that the pattern can have.
    pub fn check_sparsity(self, sparsity: f64) -> Result<()> {
        if !(0.0..1.0).contains(&sparsity) {
            bail!(Usage, "sparsity {sparsity} is not in [0, 1)");
        }
        if sparsity > self.sparsity_limit() + 1e-9 {
            let limit = self.sparsity_limit();
            bail!(Usage, "pattern {self} allows a sparsity of at most {limit}, not {sparsity}");
        }
        Ok(())
    }

    /// The groups of `range`, a part of `layer` that must not cut a group.
    pub(super) fn groups(self, layer: &Layer, range: &Range<usize>) -> Result<Groups> {
        let Pattern::NOfM { keep, of } = self else { return Ok(Groups::one(range.len())) };
        if !self.is_boundary(layer, range.start) || !self.is_boundary(layer, range.end) {
            bail!(
                Usage,
                "layer {:?}: a Fisher block cuts a group of the pattern {self}; choose a block \
                 size that is a multiple of {of}",
                layer.name
            );
        }
        let per_row = layer.row.div_ceil(of);
        let group_of = |i: usize| {
            let position = i - layer.range.start;
            (position / layer.row) * per_row + position % layer.row / of
        };
        let first = group_of(range.start);
        let mut groups = Groups { group: Vec::with_capacity(range.len()), budget: Vec::new() };
        for i in range.clone() {
            let group = group_of(i) - first;
            if group == groups.budget.len() {
                let column = (i - layer.range.start) % layer.row;
                let len = of.min(layer.row - column);
                groups.budget.push((len - (len * keep).div_ceil(of)) as u32);
            }
            groups.group.push(group as u32);
        }
        Ok(groups)
    }

    /// Whether a block of `layer` may begin or end at flat index `at`.
    fn is_boundary(self, layer: &Layer, at: usize) -> bool {
        match self {
            Pattern::Unstructured => true,
            Pattern::NOfM { of, .. } => ((at - layer.range.start) % layer.row).is_multiple_of(of),
        }
    }
}

/// The groups of consecutive weights and what each may lose.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    /// The group of each weight.
    pub group: Vec<u32>,
    /// How many weights each group may lose when all of it is alive.
    pub budget: Vec<u32>,
}

impl Groups {
    /// One group that may lose everything.
    fn one(len: usize) -> Groups {
        Groups { group: vec![0; len], budget: vec![u32::MAX] }
    }

    /// Writes to `budget` what each group may still lose, given which weights are alive.
    pub fn remaining(&self, alive: &[bool], budget: &mut Vec<u32>) {
        budget.clear();
        budget.extend_from_slice(&self.budget);
        for (&group, _) in self.group.iter().zip(alive).filter(|(_, alive)| !**alive) {
            let left = &mut budget[group as usize];
            *left = left.saturating_sub(1);
        }
    }
}

/// Divides the layers into Fisher blocks of at most `size` weights (at least one pattern group).
///
/// Blocks follow rows, because the weights of one output are the most correlated: a row longer than
/// `size` is cut into near-equal parts at group boundaries, shorter rows are put together whole.
/// `size = usize::MAX` makes each layer one block.
pub fn plan_blocks(layers: &[Layer], size: usize, pattern: Pattern) -> Vec<Range<usize>> {
    let unit = match pattern {
        Pattern::Unstructured => 1,
        Pattern::NOfM { of, .. } => of,
    };
    let size = size.max(unit);
    let mut blocks = Vec::new();
    for layer in layers.iter().filter(|l| !l.range.is_empty()) {
        let (step, rows) = if layer.row <= size {
            ((size / layer.row).saturating_mul(layer.row), layer.range.len())
        } else {
            let parts = layer.row.div_ceil(size / unit * unit);
            (layer.row.div_ceil(parts).next_multiple_of(unit), layer.row)
        };
        for start in layer.range.clone().step_by(rows) {
            let end = start + rows;
            blocks.extend((start..end).step_by(step).map(|s| s..s.saturating_add(step).min(end)));
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(outputs: usize, row: usize) -> Layer {
        Layer { name: "w".into(), range: 10..10 + outputs * row, row }
    }

    #[test]
    fn patterns_are_read_and_written() {
        for text in ["unstructured", "2:4", "4:8", "1:4", "63:64"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        for text in ["", "4:4", "0:4", "5:4", "2:65", "2", "2:4:8", "+2:4", " 2:4", "a:b", ":"] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn short_last_groups_keep_the_ceiling() {
        let pattern = Pattern::NOfM { keep: 2, of: 4 };
        let layer = layer(2, 7);
        let groups = pattern.groups(&layer, &layer.range).unwrap();
        assert_eq!(groups.group, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]);
        assert_eq!(groups.budget, [2, 1, 2, 1]);
        let mut alive = vec![true; 14];
        alive[0] = false;
        alive[4] = false;
        alive[5] = false;
        let mut budget = Vec::new();
        groups.remaining(&alive, &mut budget);
        assert_eq!(budget, [1, 0, 2, 1]);
    }

    #[test]
    fn a_block_that_cuts_a_group_is_refused() {
        let pattern = Pattern::NOfM { keep: 2, of: 4 };
        let layer = layer(2, 7);
        assert!(pattern.groups(&layer, &(14..17)).is_ok());
        let error = pattern.groups(&layer, &(10..16)).unwrap_err().to_string();
        assert!(error.contains("\"w\"") && error.contains("2:4"), "{error}");
    }

    #[test]
    fn planned_blocks_tile_the_layers_and_respect_rows_and_groups() {
        let layers =
            [layer(5, 27), Layer { name: "v".into(), range: 145..145 + 3 * 144, row: 144 }];
        for pattern in [Pattern::Unstructured, Pattern::NOfM { keep: 2, of: 4 }] {
            for size in [1, 3, 16, 64, 128, 1000, usize::MAX] {
                let blocks = plan_blocks(&layers, size, pattern);
                assert_eq!(blocks[0].start, 10);
                assert!(blocks.windows(2).all(|b| b[0].end == b[1].start), "{blocks:?}");
                assert_eq!(blocks.last().unwrap().end, 577);
                assert!(blocks.iter().all(|b| !b.is_empty() && b.len() <= size.max(4)));
                for block in &blocks {
                    let layer = layers.iter().find(|l| l.range.contains(&block.start)).unwrap();
                    assert!(block.end <= layer.range.end);
                    pattern.groups(layer, block).unwrap();
                }
            }
        }
        let sizes: Vec<usize> =
            plan_blocks(&layers, 128, Pattern::Unstructured).iter().map(|b| b.len()).collect();
        assert_eq!(sizes, [108, 27, 72, 72, 72, 72, 72, 72]);
    }
}
