//! Older operator sets become version 18, so that the rest of hone knows one form of each operator.
//!
//! Most changes between versions 9 and 18 moved attributes into inputs. The others: Softmax used to
//! flatten its input into a matrix, Upsample became Resize with its own idea of coordinates, Split
//! must say how many parts it makes, BatchNormalization lost its training outputs. Versions from 18
//! on stay as they are, and a version never goes down.

use std::collections::HashSet;

use crate::error::{Context, Result, bail};
use crate::onnx::graph::{Attribute, Graph, Names, Node};
use crate::onnx::nodes::rewrite_subgraphs;
use crate::onnx::types::FloatTypes;
use crate::tensor::Tensor;

/// The version that older graphs are brought to.
pub const TARGET_OPSET: i64 = 18;

/// Brings `graph` to operator set 18 unless it is there or beyond. `rank` may know the number of
/// axes of a value; where it does not, Softmax takes a detour through a matrix.
pub fn upgrade(graph: &mut Graph, rank: &dyn Fn(&str) -> Option<usize>) -> Result<()> {
    if graph.opset >= TARGET_OPSET {
        return Ok(());
    }
    let mut upgrade = Upgrade {
        from: graph.opset,
        rank,
        empty: empty_constants(graph),
        types: FloatTypes::of(graph),
        names: Names::of(graph),
        constants: Vec::new(),
        read: graph.outputs.iter().map(|v| v.name.clone()).collect(),
    };
    for node in &graph.nodes {
        upgrade.read.extend(node.inputs.iter().cloned());
        upgrade.read.extend(crate::onnx::graph::outer_names(node));
    }
    graph.nodes = upgrade.nodes(std::mem::take(&mut graph.nodes))?;
    let constants = upgrade.constants.into_iter().map(|(name, tensor)| (name, tensor.into()));
    graph.initializers.extend(constants);
    graph.opset = TARGET_OPSET;
    Ok(())
}

fn empty_constants(graph: &Graph) -> HashSet<String> {
    let empty = graph.initializers.iter().filter(|(_, t)| t.is_empty());
    empty.map(|(name, _)| name.clone()).collect()
}

struct Upgrade<'a> {
    from: i64,
    rank: &'a dyn Fn(&str) -> Option<usize>,
    /// Constants without elements, which stood for absent inputs before inputs could be absent.
    empty: HashSet<String>,
    types: FloatTypes,
    names: Names,
    /// New constants of the graph at hand.
    constants: Vec<(String, Tensor)>,
    /// The values that something reads.
    read: HashSet<String>,
}

impl Upgrade<'_> {
    fn nodes(&mut self, nodes: Vec<Node>) -> Result<Vec<Node>> {
        let mut result = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            rewrite_subgraphs(&mut node, &mut |inner| self.subgraph(inner))?;
            if node.domain.is_empty() {
                let name = node.describe();
                self.node(node, &mut result).context(|| name)?;
            } else {
                result.push(node);
            }
        }
        Ok(result)
    }

    /// The nodes of a subgraph, with new constants as nodes in front.
    fn subgraph(&mut self, nodes: Vec<Node>) -> Result<Vec<Node>> {
        let around = std::mem::take(&mut self.constants);
        nodes.iter().for_each(|node| self.read.extend(node.inputs.iter().cloned()));
        nodes.iter().for_each(|node| self.types.note(node));
        let nodes = self.nodes(nodes)?;
        let constants = std::mem::replace(&mut self.constants, around);
        let constant = |(name, tensor): (String, Tensor)| {
            Node { op: "Constant".into(), outputs: vec![name], ..Node::default() }
                .with("value", tensor)
        };
        Ok(constants.into_iter().map(constant).chain(nodes).collect())
    }

    fn node(&mut self, mut node: Node, result: &mut Vec<Node>) -> Result<()> {
        match node.op.as_str() {
            "Slice" => {
                for (slot, name) in ["starts", "ends", "axes"].into_iter().enumerate() {
                    self.ints_to_input(&mut node, name, slot + 1);
                }
            }
            "TopK" if node.int("k").is_some() => {
                let k = node.int("k").expect("just seen");
                node.attributes.remove("k");
                self.set_input(&mut node, 1, Tensor::i64([1], vec![k]));
            }
            "Clip" => {
                for (slot, name) in ["min", "max"].into_iter().enumerate() {
                    self.float_to_input(&mut node, name, slot + 1);
                }
            }
            "Pad" => {
                self.ints_to_input(&mut node, "pads", 1);
                self.float_to_input(&mut node, "value", 2);
            }
            "Dropout" => drop(node.attributes.remove("ratio")), // It is no training.
            "Scatter" => node.op = "ScatterElements".into(),
            "Upsample" => self.upsample(&mut node),
            "Resize" => self.resize(&mut node),
            "RoiAlign" if self.from < 16 => {
                let old = Attribute::from("output_half_pixel");
                node.attributes.entry("coordinate_transformation_mode".into()).or_insert(old);
            }
            "BatchNormalization" => self.batch_normalization(&mut node)?,
            "Split" => {
                self.ints_to_input(&mut node, "split", 1);
                if node.input(1).is_none() {
                    let parts = node.outputs.len() as i64;
                    node.attributes.insert("num_outputs".into(), parts.into());
                }
            }
            "Squeeze" | "Unsqueeze" => self.ints_to_input(&mut node, "axes", 1),
            op if op.starts_with("Reduce") => self.ints_to_input(&mut node, "axes", 1),
            "Softmax" | "LogSoftmax" | "Hardmax" if self.from < 13 => {
                return self.softmax(node, result);
            }
            _ => {}
        }
        result.push(node);
        Ok(())
    }

    /// Softmax before version 13 works on the rows of a matrix: the axes before `axis` by the rest.
    fn softmax(&mut self, mut node: Node, result: &mut Vec<Node>) -> Result<()> {
        let (Some(input), Some(output)) = (node.input(0), node.output(0)) else {
            bail!(Model, "it lacks its input or output");
        };
        let (input, output) = (input.to_owned(), output.to_owned());
        let axis = node.int("axis").unwrap_or(1);
        let last = (self.rank)(&input).is_some_and(|rank| axis == rank as i64 - 1);
        node.attributes.insert("axis".into(), Attribute::Int(-1));
        if last || axis == -1 {
            result.push(node);
            return Ok(());
        }
        let [shape, matrix, rows] =
            ["shape", "matrix", "rows"].map(|what| self.names.fresh(&format!("{output}_{what}")));
        result.push(Node::new("Shape", [&input], &shape));
        result.push(Node::new("Flatten", [&input], &matrix).with("axis", axis));
        node.inputs = vec![matrix];
        node.outputs = vec![rows.clone()];
        result.push(node);
        result.push(Node::new("Reshape", [rows, shape], output));
        Ok(())
    }

    /// Upsample is Resize that maps coordinates by the plain ratio and rounds down.
    fn upsample(&mut self, node: &mut Node) {
        node.op = "Resize".into();
        if let Some(Attribute::Floats(scales)) = node.attributes.remove("scales") {
            self.set_input(node, 1, Tensor::f32([scales.len()], scales));
        }
        self.plain_coordinates(node);
    }

    fn resize(&mut self, node: &mut Node) {
        if self.from < 11 {
            return self.plain_coordinates(node);
        }
        for input in node.inputs.iter_mut().skip(1) {
            if self.empty.contains(input) {
                input.clear();
            }
        }
    }

    /// Inputs (X, scales) become (X, roi, scales), with the coordinates of version 10 and before.
    fn plain_coordinates(&self, node: &mut Node) {
        if node.inputs.len() == 2 {
            node.inputs.insert(1, String::new());
        }
        node.attributes.insert("coordinate_transformation_mode".into(), "asymmetric".into());
        if node.string("mode").unwrap_or("nearest") == "nearest" {
            node.attributes.insert("nearest_mode".into(), "floor".into());
        }
    }

    /// Only the result proper is left of the outputs; hone works with models in inference.
    fn batch_normalization(&self, node: &mut Node) -> Result<()> {
        if node.outputs.iter().skip(1).any(|o| self.read.contains(o)) {
            bail!(Unsupported, "it is in training mode; export the model for inference");
        }
        node.outputs.truncate(1);
        node.attributes.remove("spatial");
        Ok(())
    }

    /// An attribute of integers, if it is there, becomes the input `slot`.
    fn ints_to_input(&mut self, node: &mut Node, name: &str, slot: usize) {
        if let Some(Attribute::Ints(values)) = node.attributes.remove(name)
            && !values.is_empty()
        {
            self.set_input(node, slot, Tensor::i64([values.len()], values));
        }
    }

    /// A float attribute, if it is there, becomes the scalar input `slot`.
    fn float_to_input(&mut self, node: &mut Node, name: &str, slot: usize) {
        if let Some(Attribute::Float(value)) = node.attributes.remove(name) {
            let scalar = self.types.scalar(node.input(0).unwrap_or(""), value);
            self.set_input(node, slot, scalar);
        }
    }

    fn set_input(&mut self, node: &mut Node, slot: usize, value: Tensor) {
        let base = format!("{}_{}", node.output(0).unwrap_or(&node.op), slot);
        let name = self.names.fresh(&base);
        if node.inputs.len() <= slot {
            node.inputs.resize(slot + 1, String::new());
        }
        node.inputs[slot] = name.clone();
        self.constants.push((name, value));
    }
}
