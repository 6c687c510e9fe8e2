//! Which tensors of a model can be pruned, and how their weights line up in one flat vector.
//!
//! A weight is prunable when it is a float initializer that convolutions and matrix products read
//! as their weight, directly or through nodes that only rearrange it (Transpose, Reshape, ...).
//! Every prunable tensor gets a range of the flat vector in *canonical order*: one row per output
//! of the layer, the row holding the weights of that output's inputs. Fisher blocks are cut from
//! rows, N:M groups lie along a row, whatever order the model stores.

use std::collections::HashMap;
use std::ops::Range;

use super::product::Product;
use crate::autodiff::{Facts, Slot};
use crate::onnx::{Graph, Node};
use crate::tensor::element_count;

/// A prunable tensor.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The name of the initializer.
    pub name: String,
    /// Its shape in the model.
    pub shape: Vec<usize>,
    /// Its range of the flat vector.
    pub range: Range<usize>,
    /// Weights per output, the length of a row.
    pub row: usize,
    /// Input channels of a row whose weights lie `stride` apart: along these N:M groups run.
    pub channels: usize,
    /// Where each weight of the range is stored in the tensor; `None` when in the same order.
    pub order: Option<Vec<u32>>,
    /// The products that read it.
    pub uses: Vec<Use>,
}

/// One product that reads a parameter as its weight.
#[derive(Clone, Debug)]
pub struct Use {
    /// The weight slot of the node.
    pub slot: Slot,
    /// How the product computes, for its weight gradient.
    pub product: Product,
    /// The canonical place of each weight in the product's row order; `None` when the same.
    pub place: Option<Vec<u32>>,
}

/// A float tensor that is left alone, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Skipped {
    /// The name of the initializer.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Why it is not pruned.
    pub reason: String,
}

/// Along which of its inputs a row runs fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Channel by channel, the taps of a kernel together, as ONNX stores convolutions.
    Taps,
    /// Tap by tap, the channels together, so that N:M groups are consecutive.
    Channels,
}

/// Finds the prunable tensors of `graph`, in the order of its nodes, and gives them their ranges.
pub fn discover(graph: &Graph, facts: &Facts, row_order: RowOrder) -> (Vec<Parameter>, Vec<Skipped>) {
    let uses = graph.uses();
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for (name, tensor) in &graph.initializers {
        if !tensor.element_type().is_float() || tensor.len() < 2 || !uses.contains_key(name.as_str()) {
            continue;
        }
        let shape = tensor.shape().to_vec();
        let skip = |reason: String| Skipped { name: name.clone(), shape: shape.clone(), reason };
        if shape.iter().filter(|&&d| d > 1).count() < 2 && shape.len() < 2 {
            skipped.push(skip("a bias or a norm's scale: it has one axis".into()));
            continue;
        }
        let identity: Vec<u32> = (0..tensor.len() as u32).collect();
        let mut walk = Walk { graph, facts, uses: &uses, reads: Vec::new() };
        match walk.follow(name, &identity, 0) {
            Ok(()) if walk.reads.is_empty() => skipped.push(skip("nothing reads it as a weight".into())),
            Ok(()) => found.push(parameter(name, &shape, walk.reads, row_order)),
            Err(reason) => skipped.push(skip(reason)),
        }
    }
    found.sort_by_key(|p| p.uses.iter().map(|u| (u.slot.node, u.slot.input)).min());
    let mut start = 0;
    for p in &mut found {
        p.range = start..start + p.range.len();
        start = p.range.end;
    }
    (found, skipped)
}

/// The values on the way from prunable tensors to their weight slots: they must not be folded.
pub fn protected(graph: &Graph, facts: &Facts) -> Vec<String> {
    let producers = graph.producers();
    let (parameters, _) = discover(graph, facts, RowOrder::Taps);
    let mut names = Vec::new();
    for u in parameters.iter().flat_map(|p| &p.uses) {
        let mut name = graph.nodes[u.slot.node].inputs[u.slot.input].as_str();
        names.push(name.to_string());
        while let Some(&i) = producers.get(name) {
            name = &graph.nodes[i].inputs[0];
            names.push(name.to_string());
        }
    }
    names
}

struct Walk<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    uses: &'a HashMap<&'a str, Vec<(usize, usize)>>,
    reads: Vec<(Slot, Product, Vec<u32>)>,
}

impl Walk<'_> {
    /// Follows a value that holds the weights `held` (storage indices) to the products it feeds.
    fn follow(&mut self, name: &str, held: &[u32], depth: usize) -> Result<(), String> {
        // A chain of views this long is not a weight's; the bound stops hostile graphs.
        const LONGEST_CHAIN: usize = 16;
        if depth > LONGEST_CHAIN {
            return Err("a long chain of nodes rearranges it".into());
        }
        if self.graph.outputs.iter().any(|o| o.name == name) {
            return Err("it is an output of the model".into());
        }
        for &(index, input) in self.uses.get(name).into_iter().flatten() {
            let node = &self.graph.nodes[index];
            if let Some(product) = Product::of(node, input, self.facts)? {
                self.reads.push((Slot { node: index, input }, product, held.to_vec()));
            } else if let Some(held) = rearranged(node, input, held, self.facts) {
                let output = node.output(0).unwrap_or_default();
                self.follow(output, &held, depth + 1)?;
            } else {
                return Err(format!("{} reads it, not as the weight of a product", node.describe()));
            }
        }
        Ok(())
    }
}

/// The weights in the order that a view of them has, if `node` is a view of its first input.
fn rearranged(node: &Node, input: usize, held: &[u32], facts: &Facts) -> Option<Vec<u32>> {
    if input != 0 || !node.domain.is_empty() {
        return None;
    }
    match node.op.as_str() {
        "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => Some(held.to_vec()),
        "Transpose" => {
            let shape = &facts.get(node.input(0)?)?.shape;
            let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
            let perm = node.ints("perm").unwrap_or(&reversed);
            let axes: Vec<usize> = perm.iter().map(|&p| p as usize).collect();
            Some(transposed_indices(shape, &axes)?.into_iter().map(|i| held[i as usize]).collect())
        }
        _ => None,
    }
}

/// For each element of the transposed array, its index in the array of `shape`.
pub fn transposed_indices(shape: &[usize], perm: &[usize]) -> Option<Vec<u32>> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    if perm.len() != shape.len() || perm.iter().any(|&p| p >= shape.len()) {
        return None;
    }
    let mut indices = vec![0u32];
    for &p in perm {
        let steps = indices.iter().flat_map(|&base| (0..shape[p]).map(move |i| base + (i * strides[p]) as u32));
        indices = steps.collect();
    }
    Some(indices)
}

/// Lays out one tensor: the first product that reads it decides the canonical order.
fn parameter(
    name: &str,
    shape: &[usize],
    reads: Vec<(Slot, Product, Vec<u32>)>,
    row_order: RowOrder,
) -> Parameter {
    let len = element_count(shape).expect("the tensor exists");
    let (_, first, held) = &reads[0];
    // Storage index of each canonical place, and back.
    let stored = |product: &Product, held: &[u32]| -> Vec<u32> {
        product.natural().iter().map(|&i| held[i as usize]).collect()
    };
    let order = in_row_order(stored(first, held), first, row_order);
    let mut canonical = vec![0u32; len];
    order.iter().enumerate().for_each(|(place, &i)| canonical[i as usize] = place as u32);
    let uses = reads
        .iter()
        .map(|(slot, product, held)| {
            let place = stored(product, held).iter().map(|&i| canonical[i as usize]).collect();
            Use { slot: slot.clone(), product: product.clone(), place: unless_identity(place) }
        })
        .collect();
    Parameter {
        name: name.into(),
        shape: shape.into(),
        range: 0..len,
        row: first.row(),
        channels: first.channels(),
        order: unless_identity(order),
        uses,
    }
}

/// The weights of a product (row by row, tap after tap) as `row_order` has them.
fn in_row_order(weights: Vec<u32>, product: &Product, row_order: RowOrder) -> Vec<u32> {
    let (channels, row) = (product.channels(), product.row());
    if row_order == RowOrder::Taps || channels == row {
        return weights;
    }
    let taps = row / channels;
    let one = |r: &[u32]| (0..row).map(|i| r[i % channels * taps + i / channels]).collect::<Vec<_>>();
    weights.chunks(row).flat_map(one).collect()
}

fn unless_identity(map: Vec<u32>) -> Option<Vec<u32>> {
    let identity = map.iter().enumerate().all(|(i, &m)| i == m as usize);
    (!identity).then_some(map)
}
