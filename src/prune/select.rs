//! One threshold over many blocks.
//!
//! A block removes its weights in its own order; the loss of each position is the running maximum
//! of the marginal losses up to it, so that a cheap weight behind a dear one waits for it and every
//! threshold cuts a prefix. (Measured on a real net, the running maximum of marginal losses merges
//! blocks better than their cumulative loss.) Finding the threshold that removes exactly K weights
//! is a bisection over the bits of the losses: no sort over all weights, no memory.

use super::{Layer, Scope};

/// The order in which a block gives up its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trace {
    /// Offsets inside the block, first to go first.
    pub order: Vec<u32>,
    /// The running maximum of the marginal losses, as long as `order`; finite, ≥ 0.
    pub loss: Vec<f32>,
}

impl Trace {
    /// An empty trace with room for `capacity` weights.
    pub fn with_capacity(capacity: usize) -> Trace {
        Trace { order: Vec::with_capacity(capacity), loss: Vec::with_capacity(capacity) }
    }

    /// The weight at `offset` goes next, for a marginal loss of `loss`.
    pub fn push(&mut self, offset: u32, loss: f64) {
        let last = self.loss.last().copied().unwrap_or(0.0);
        self.order.push(offset);
        self.loss.push((loss.min(f32::MAX as f64) as f32).max(last));
    }
}

/// How many weights each trace gives up so that the layers reach `sparsity`; `owners[i]` is the
/// layer of trace i. Layers keep at least one of the weights in `survivors`.
pub(super) fn counts(
    traces: &[Trace],
    owners: &[usize],
    layers: &[Layer],
    survivors: &[bool],
    scope: Scope,
    sparsity: f64,
) -> Vec<usize> {
    let sizes: Vec<usize> = layers.iter().map(|l| l.range.len()).collect();
    let alive: Vec<usize> = layers
        .iter()
        .map(|l| survivors[l.range.clone()].iter().filter(|alive| **alive).count())
        .collect();
    let offers = offers(traces, owners, &alive);
    let wanted = |size: usize, alive: usize| {
        ((sparsity * size as f64).round() as usize).saturating_sub(size - alive)
    };
    match scope {
        Scope::Global => prefixes(&offers, wanted(sizes.iter().sum(), alive.iter().sum())),
        Scope::Layer => {
            let mut counts = Vec::with_capacity(traces.len());
            for layer in 0..layers.len() {
                let first = owners.partition_point(|&o| o < layer);
                let end = owners.partition_point(|&o| o <= layer);
                let wanted = wanted(sizes[layer], alive[layer]);
                counts.extend(prefixes(&offers[first..end], wanted));
            }
            counts
        }
    }
}

/// The losses each trace may be cut at, without the one weight that a layer must keep: the dearest.
fn offers<'a>(traces: &'a [Trace], owners: &[usize], alive: &[usize]) -> Vec<&'a [f32]> {
    let mut offers: Vec<&[f32]> = traces.iter().map(|t| t.loss.as_slice()).collect();
    let mut start = 0;
    for same in owners.chunk_by(|a, b| a == b) {
        let mine = &mut offers[start..start + same.len()];
        if mine.iter().map(|l| l.len()).sum::<usize>() == alive[same[0]] {
            let dearest = mine
                .iter_mut()
                .filter(|l| !l.is_empty())
                .max_by(|a, b| a[a.len() - 1].total_cmp(&b[b.len() - 1]));
            if let Some(dearest) = dearest {
                *dearest = &dearest[..dearest.len() - 1];
            }
        }
        start += same.len();
    }
    offers
}

/// Cuts increasing sequences at one threshold so that `wanted` entries lie before the cuts, or all
/// if there are fewer. Ties at the threshold go to the earlier sequences.
fn prefixes(losses: &[&[f32]], wanted: usize) -> Vec<usize> {
    let below = |bits: u32| -> usize {
        losses.iter().map(|l| l.partition_point(|loss| loss.to_bits() < bits)).sum()
    };
    // Non-negative floats are ordered as their bits: the largest `low` with below(low) ≤ wanted.
    let (mut low, mut high) = (0u32, f32::INFINITY.to_bits());
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if below(middle) <= wanted { low = middle } else { high = middle }
    }
    let mut counts: Vec<usize> =
        losses.iter().map(|l| l.partition_point(|loss| loss.to_bits() < low)).collect();
    let mut missing = wanted.saturating_sub(counts.iter().sum());
    for (count, losses) in counts.iter_mut().zip(losses) {
        let ties = losses[*count..].partition_point(|loss| loss.to_bits() <= low);
        let taken = ties.min(missing);
        *count += taken;
        missing -= taken;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_take_the_cheapest_and_break_ties_in_order() {
        let (a, b, c) = ([0.0f32, 1.0, 1.0, 5.0], [1.0f32, 1.0, 2.0], [0.0f32, 0.0]);
        let losses: [&[f32]; 3] = [&a, &b, &c];
        assert_eq!(prefixes(&losses, 0), [0, 0, 0]);
        assert_eq!(prefixes(&losses, 1), [1, 0, 0]);
        assert_eq!(prefixes(&losses, 3), [1, 0, 2]);
        assert_eq!(prefixes(&losses, 6), [3, 1, 2]);
        assert_eq!(prefixes(&losses, 8), [3, 3, 2]);
        assert_eq!(prefixes(&losses, 9), [4, 3, 2]);
        assert_eq!(prefixes(&losses, 100), [4, 3, 2]);
        assert!(prefixes(&[], 3).is_empty());
    }

    #[test]
    fn every_count_is_met_exactly_at_the_smallest_threshold() {
        let mut state = 7u64;
        let mut draw = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) % 50) as f32 / 7.0
        };
        let traces: Vec<Vec<f32>> = (0..9)
            .map(|n| {
                let mut losses: Vec<f32> = (0..n * 3).map(|_| draw()).collect();
                losses.sort_by(f32::total_cmp);
                losses
            })
            .collect();
        let losses: Vec<&[f32]> = traces.iter().map(|t| t.as_slice()).collect();
        let mut all: Vec<f32> = traces.concat();
        all.sort_by(f32::total_cmp);
        for wanted in 0..=all.len() {
            let counts = prefixes(&losses, wanted);
            assert_eq!(counts.iter().sum::<usize>(), wanted);
            let sum: f32 = losses.iter().zip(&counts).flat_map(|(l, &c)| &l[..c]).sum();
            let best: f32 = all[..wanted].iter().sum();
            assert!((sum - best).abs() < 1e-3, "{wanted}: {sum} {best}");
        }
    }

    #[test]
    fn the_running_maximum_never_falls() {
        let mut trace = Trace::with_capacity(4);
        for (i, loss) in [1.0, 3.0, 2.0, f64::MAX].into_iter().enumerate() {
            trace.push(i as u32, loss);
        }
        assert_eq!(trace.loss, [1.0, 3.0, 3.0, f32::MAX]);
    }
}
