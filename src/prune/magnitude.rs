//! Magnitude pruning: the smallest |w| go and the rest stays as it is. The baseline of the field.

use super::select::{self, Trace};
use super::{Layer, Pattern, Scope, check_vectors};
use crate::error::Result;

/// The mask (true: alive) that leaves the largest weights of `layers` at `sparsity`, counted and
/// limited as in [`super::step`]; ties go to the earlier weight. Outside the layers the mask is
/// `alive`.
///
/// # Errors
/// `Usage` for a sparsity or a geometry that makes no sense, `Numerics` for weights that are not
/// finite.
pub fn magnitude(
    weights: &[f32],
    alive: &[bool],
    layers: &[Layer],
    pattern: Pattern,
    scope: Scope,
    sparsity: f64,
) -> Result<Vec<bool>> {
    check_vectors(weights, alive, layers)?;
    pattern.check_sparsity(sparsity)?;
    let traces: Vec<Trace> =
        layers.iter().map(|layer| rank(weights, alive, layer, pattern)).collect::<Result<_>>()?;
    let owners: Vec<usize> = (0..layers.len()).collect();
    let counts = select::counts(&traces, &owners, layers, alive, scope, sparsity);
    let mut mask = alive.to_vec();
    for ((layer, trace), count) in layers.iter().zip(traces).zip(counts) {
        for offset in &trace.order[..count] {
            mask[layer.range.start + *offset as usize] = false;
        }
    }
    Ok(mask)
}

/// The weights of a layer that may go, the smallest first.
fn rank(weights: &[f32], alive: &[bool], layer: &Layer, pattern: Pattern) -> Result<Trace> {
    let (weights, alive) = (&weights[layer.range.clone()], &alive[layer.range.clone()]);
    let groups = pattern.groups(layer, &layer.range)?;
    let mut budget = Vec::new();
    groups.remaining(alive, &mut budget);
    let mut order: Vec<u32> =
        (0..layer.range.len() as u32).filter(|&i| alive[i as usize]).collect();
    let size = |i: u32| weights[i as usize].abs();
    order.sort_by(|&a, &b| size(a).total_cmp(&size(b)).then(a.cmp(&b)));
    let mut trace = Trace::with_capacity(order.len());
    for i in order {
        let left = &mut budget[groups.group[i as usize] as usize];
        if *left > 0 {
            *left -= 1;
            trace.push(i, size(i) as f64);
        }
    }
    Ok(trace)
}
