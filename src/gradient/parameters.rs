//! Which tensors of a model can be pruned, and how their weights line up in one flat vector.
//!
//! A weight is prunable when it is a float initializer that convolutions and matrix products read
//! as their weight, directly or through nodes that only rearrange it (Transpose, Reshape, ...).
//! Every prunable tensor gets a range of the flat vector in *canonical order*: one row per output
//! of the layer, the row holding the weights of that output's inputs. Fisher blocks are cut from
//! rows, N:M groups lie along a row, whatever order the model stores.

use std::collections::HashMap;
use std::ops::Range;

use super::prepare::Prepared;
use super::product::Product;
use crate::autodiff::{Facts, Slot};
use crate::onnx::{Attribute, Graph, Node, storage};
use crate::tensor::{ElementType, element_count};

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

/// A tensor that products read as their weight, as far as the graph alone tells.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The name of the initializer.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    reads: Vec<Read>,
}

/// A weight slot and the nodes that rearrange the tensor on the way to it.
#[derive(Clone, Debug)]
struct Read {
    slot: Slot,
    views: Vec<usize>,
}

impl Weight {
    /// The nodes that read it as their weight, by index.
    pub fn readers(&self) -> impl Iterator<Item = usize> {
        self.reads.iter().map(|r| r.slot.node)
    }
}

/// Finds the tensors that can be pruned, in the order of the nodes that read them; the other float
/// tensors come with the reason why not.
pub fn weights(graph: &Graph) -> (Vec<Weight>, Vec<Skipped>) {
    let uses = graph.uses();
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for (name, tensor) in &graph.initializers {
        if !tensor.element_type().is_float()
            || tensor.len() < 2
            || !uses.contains_key(name.as_str())
        {
            continue;
        }
        let shape = tensor.shape().to_vec();
        let mut walk = Walk { graph, uses: &uses, reads: Vec::new(), views: Vec::new() };
        let reason = match walk.follow(name) {
            _ if shape.len() < 2 => "a bias or the scale of a norm: it has one axis".into(),
            Err(reason) => reason,
            Ok(()) if walk.reads.is_empty() => "no product reads it as a weight".into(),
            Ok(()) => {
                found.push(Weight { name: name.clone(), shape, reads: walk.reads });
                continue;
            }
        };
        skipped.push(Skipped { name: name.clone(), shape, reason });
    }
    for node in graph.nodes.iter().filter(|n| n.has_subgraph()) {
        let reason = format!("it is inside a subgraph of {}", node.describe());
        let skip = |(name, shape)| Skipped { name, shape, reason: reason.clone() };
        skipped.extend(inner_tensors(node).into_iter().map(skip));
    }
    found.sort_by_key(|w| w.reads.iter().map(|r| r.slot).min());
    (found, skipped)
}

/// Lays the prunable tensors out in one flat vector. What was folded is no tensor of the model: it
/// follows from tensors that cannot be pruned, such as the transposed table of a tied embedding.
pub fn discover(prepared: &Prepared, row_order: RowOrder) -> (Vec<Parameter>, Vec<Skipped>) {
    let Prepared { graph, facts, folded } = prepared;
    let (mut weights, mut skipped) = weights(graph);
    weights.retain(|w| !folded.contains(&w.name));
    skipped.retain(|s| !folded.contains(&s.name));
    let (mut found, mut start) = (Vec::new(), 0);
    for weight in weights {
        match parameter(graph, facts, &weight, row_order) {
            Ok(mut p) => {
                p.range = start..start + p.range.len();
                start = p.range.end;
                found.push(p);
            }
            Err(reason) => skipped.push(Skipped { name: weight.name, shape: weight.shape, reason }),
        }
    }
    (found, skipped)
}

struct Walk<'a> {
    graph: &'a Graph,
    uses: &'a HashMap<&'a str, Vec<(usize, usize)>>,
    reads: Vec<Read>,
    views: Vec<usize>,
}

impl Walk<'_> {
    /// Follows a value that holds the weights to the products it feeds.
    fn follow(&mut self, name: &str) -> Result<(), String> {
        // A chain of views this long is not a weight's; the bound stops hostile graphs.
        const LONGEST_CHAIN: usize = 16;
        if self.views.len() > LONGEST_CHAIN {
            return Err("a long chain of nodes rearranges it".into());
        }
        if self.graph.outputs.iter().any(|o| o.name == name) {
            return Err("it is an output of the model".into());
        }
        for &(index, input) in self.uses.get(name).into_iter().flatten() {
            let node = &self.graph.nodes[index];
            if Product::is_weight_slot(node, input, self.graph) {
                let slot = Slot { node: index, input };
                self.reads.push(Read { slot, views: self.views.clone() });
            } else if input == 0 && is_view(node) {
                self.views.push(index);
                self.follow(node.output(0).unwrap_or_default())?;
                self.views.pop();
            } else {
                return Err(format!(
                    "{} reads it, not as the weight of a product",
                    node.describe()
                ));
            }
        }
        Ok(())
    }
}

/// The float tensors with two axes or more that the subgraphs of a node hold, at any depth.
fn inner_tensors(node: &Node) -> Vec<(String, Vec<usize>)> {
    let raw = |a: &'_ Attribute| match a {
        Attribute::Other(raw) => Some(raw.clone()),
        _ => None,
    };
    let mut attributes: Vec<_> = node.attributes.values().filter_map(raw).collect();
    let mut found = Vec::new();
    while let Some(attribute) = attributes.pop() {
        for graph in attribute.g.as_option().into_iter().chain(&attribute.graphs) {
            let held = graph.initializer.iter().map(|t| (t.name.as_deref(), t));
            let constants = graph.node.iter().filter_map(|n| {
                let value = n.attribute.iter().find_map(|a| a.t.as_option())?;
                Some((n.output.first().map(String::as_str), value))
            });
            for (name, tensor) in held.chain(constants) {
                let is_float = storage::element_type(tensor).is_ok_and(ElementType::is_float);
                if is_float && tensor.dims.len() >= 2 {
                    let shape = tensor.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0));
                    found.push((name.unwrap_or_default().to_owned(), shape.collect()));
                }
            }
            let inner = graph.node.iter().flat_map(|n| &n.attribute);
            attributes.extend(inner.filter(|a| a.g.is_set()).cloned().map(Box::new));
        }
    }
    found
}

/// Whether a node only rearranges its first input.
fn is_view(node: &Node) -> bool {
    const VIEWS: [&str; 6] =
        ["Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"];
    node.domain.is_empty() && VIEWS.contains(&node.op.as_str())
}

/// The storage index of each weight where a product reads it.
fn held(graph: &Graph, facts: &Facts, weight: &Weight, read: &Read) -> Option<Vec<u32>> {
    let mut held: Vec<u32> = (0..element_count(&weight.shape)? as u32).collect();
    for node in read.views.iter().map(|&i| &graph.nodes[i]).filter(|n| n.op == "Transpose") {
        let shape = &facts.get(node.input(0)?)?.shape;
        let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
        let perm = node.ints("perm").unwrap_or(&reversed);
        let perm: Vec<usize> = perm.iter().map(|&p| p as usize).collect();
        held = transposed_indices(shape, &perm)?.into_iter().map(|i| held[i as usize]).collect();
    }
    Some(held)
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
        let (length, stride) = (shape[p] as u32, strides[p] as u32);
        let along = |&start: &u32| (0..length).map(move |i| start + i * stride);
        indices = indices.iter().flat_map(along).collect();
    }
    Some(indices)
}

/// Lays out one tensor: the first product that reads it decides the canonical order.
fn parameter(
    graph: &Graph,
    facts: &Facts,
    weight: &Weight,
    row_order: RowOrder,
) -> Result<Parameter, String> {
    let mut products = Vec::new();
    for read in &weight.reads {
        let node = &graph.nodes[read.slot.node];
        let refuse = || format!("{} has weights of a form hone cannot prune", node.describe());
        let product = Product::of(node, read.slot.input, facts).ok_or_else(refuse)?;
        let held = held(graph, facts, weight, read).ok_or_else(refuse)?;
        let stored: Vec<u32> = product.natural().iter().map(|&i| held[i as usize]).collect();
        products.push((read.slot, product, stored));
    }
    let (_, first, stored) = &products[0];
    // Storage index of each canonical place, and back.
    let order = in_row_order(stored.clone(), first, row_order);
    let mut canonical = vec![0u32; order.len()];
    order.iter().enumerate().for_each(|(place, &i)| canonical[i as usize] = place as u32);
    let (row, channels) = (first.row(), first.channels());
    let uses = products
        .iter()
        .map(|(slot, product, stored)| {
            let place = stored.iter().map(|&i| canonical[i as usize]).collect();
            Use { slot: *slot, product: product.clone(), place: unless_identity(place) }
        })
        .collect();
    Ok(Parameter {
        name: weight.name.clone(),
        shape: weight.shape.clone(),
        range: 0..order.len(),
        row,
        channels,
        order: unless_identity(order),
        uses,
    })
}

/// The weights of a product (row by row, tap after tap) as `row_order` has them.
fn in_row_order(weights: Vec<u32>, product: &Product, row_order: RowOrder) -> Vec<u32> {
    let (channels, row) = (product.channels(), product.row());
    if row_order == RowOrder::Taps || channels == row {
        return weights;
    }
    let taps = row / channels;
    let one =
        |r: &[u32]| (0..row).map(|i| r[i % channels * taps + i / channels]).collect::<Vec<_>>();
    weights.chunks(row).flat_map(one).collect()
}

fn unless_identity(map: Vec<u32>) -> Option<Vec<u32>> {
    let identity = map.iter().enumerate().all(|(i, &m)| i == m as usize);
    (!identity).then_some(map)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::*;
    use crate::autodiff::Fact;
    use crate::onnx::Value;
    use crate::tensor::{ElementType, Tensor};

    /// y = MatMul(x, Transpose(w)), z = Conv(c, k), and tensors that are not weights.
    fn prepared() -> Prepared {
        let mut graph = Graph { opset: 18, ..Graph::default() };
        for (name, shape) in
            [("w", vec![3, 2]), ("k", vec![2, 4, 2, 1]), ("b", vec![3]), ("e", vec![5, 2])]
        {
            let count: usize = shape.iter().product();
            let data = (0..count).map(|i| i as f32).collect();
            graph.initializers.insert(name.into(), Arc::new(Tensor::f32(shape, data)));
        }
        graph.nodes = vec![
            Node::new("Transpose", ["w"], "wt").with("perm", vec![1, 0]),
            Node::new("MatMul", ["x", "wt"], "m"),
            Node::new("Add", ["m", "b"], "y"),
            Node::new("Conv", ["c", "k"], "z"),
            Node::new("Gather", ["e", "i"], "g"),
        ];
        graph.outputs = ["y", "z", "g"].map(Value::named).to_vec();
        let mut facts = Facts::new();
        let shapes: [(&str, &[usize]); 8] = [
            ("x", &[6, 2]),
            ("w", &[3, 2]),
            ("wt", &[2, 3]),
            ("m", &[6, 3]),
            ("c", &[6, 4, 5, 5]),
            ("k", &[2, 4, 2, 1]),
            ("z", &[6, 2, 4, 5]),
            ("e", &[5, 2]),
        ];
        for (name, shape) in shapes {
            let fact = Fact { element: ElementType::F32, shape: shape.to_vec(), constant: None };
            facts.insert(name.into(), fact);
        }
        Prepared { graph, facts, folded: HashSet::new() }
    }

    #[test]
    fn weights_are_found_through_views_and_laid_out_by_output() {
        let prepared = prepared();
        let (found, skipped) = discover(&prepared, RowOrder::Taps);
        let names: Vec<_> =
            found.iter().map(|p| (p.name.as_str(), p.range.clone(), p.row)).collect();
        assert_eq!(names, [("w", 0..6, 2), ("k", 6..22, 8)]);
        // x·wᵀ: output n reads row n of w, as stored.
        assert_eq!(found[0].order, None);
        let reasons: Vec<_> =
            skipped.iter().map(|s| (s.name.as_str(), s.reason.as_str())).collect();
        assert!(reasons[0].0 == "b" && reasons[0].1.contains("bias"), "{reasons:?}");
        assert!(reasons[1].0 == "e" && reasons[1].1.contains("Gather"), "{reasons:?}");
    }

    #[test]
    fn what_was_folded_is_no_weight() {
        let mut prepared = prepared();
        prepared.folded.extend(["k".into(), "b".into()]);
        let (found, skipped) = discover(&prepared, RowOrder::Taps);
        assert_eq!(found.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["w"]);
        assert_eq!(skipped.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["e"]);
    }

    #[test]
    fn channels_run_fastest_when_asked() {
        let prepared = prepared();
        let (found, _) = discover(&prepared, RowOrder::Channels);
        assert_eq!((found[1].row, found[1].channels), (8, 4));
        // Stored [channel][tap]; the row has the four channels of tap 0, then those of tap 1.
        assert_eq!(found[1].order.as_ref().unwrap()[..8], [0, 2, 4, 6, 1, 3, 5, 7]);
        assert_eq!(found[1].uses[0].place.as_ref().unwrap()[..8], [0, 4, 1, 5, 2, 6, 3, 7]);
    }

    #[test]
    fn transposition_lists_indices_of_the_source() {
        assert_eq!(transposed_indices(&[2, 3], &[1, 0]).unwrap(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(transposed_indices(&[2, 3], &[1, 2]), None);
    }
}
