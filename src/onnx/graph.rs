//! A model as plain data to compute with: nodes, tensors and typed attributes by name.
//!
//! The protobuf message of a user's model is kept untouched elsewhere ([`super::Model`]) so that
//! what hone does not know survives; this graph is the working copy that passes rewrite and the
//! backward pass is built on. Values are names, as in ONNX: a node reads and writes names, an
//! empty name is an absent optional input or output.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::onnx::proto::{AttributeProto, FunctionProto, GraphProto};
use crate::tensor::{ElementType, Tensor};

/// A graph with everything ONNX Runtime needs to run it.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// A name for messages and viewers.
    pub name: String,
    /// The version of the default operator set (`ai.onnx`).
    pub opset: i64,
    /// Versions of the other operator sets in use, by domain.
    pub domains: BTreeMap<String, i64>,
    /// In topological order: a node comes after the producers of its inputs.
    pub nodes: Vec<Node>,
    /// Constant tensors by name.
    pub initializers: BTreeMap<String, Arc<Tensor>>,
    /// What the caller supplies (initializers are not repeated here).
    pub inputs: Vec<Value>,
    /// What the caller gets.
    pub outputs: Vec<Value>,
    /// Functions local to the model, passed through as they are.
    pub functions: Vec<FunctionProto>,
}

/// One operator application.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// The operator, such as `Conv`.
    pub op: String,
    /// The operator set, empty for the default one.
    pub domain: String,
    /// A name for messages; need not be unique.
    pub name: String,
    /// Names of the inputs; empty where an optional input is absent.
    pub inputs: Vec<String>,
    /// Names of the outputs; empty where an optional output is absent.
    pub outputs: Vec<String>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    String(String),
    Tensor(Arc<Tensor>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    /// Anything else (subgraphs, types, sparse tensors, lists of them), as it came.
    Other(Box<AttributeProto>),
}

/// The name and, where declared, the type of an input or output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Value {
    /// The name.
    pub name: String,
    /// The element type; `None` when undeclared or not a tensor hone can hold.
    pub element: Option<ElementType>,
    /// The axes; `None` when the rank is undeclared.
    pub shape: Option<Vec<Dimension>>,
}

/// The declared length of an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// A fixed length.
    Fixed(usize),
    /// A named length, such as `batch`; an empty name when undeclared.
    Symbol(String),
}

impl Value {
    /// A value of known type and shape.
    pub fn fixed(name: impl Into<String>, element: ElementType, shape: &[usize]) -> Value {
        Value {
            name: name.into(),
            element: Some(element),
            shape: Some(shape.iter().map(|&d| Dimension::Fixed(d)).collect()),
        }
    }

    /// A value of which only the name is stated; ONNX Runtime infers the rest for outputs.
    pub fn named(name: impl Into<String>) -> Value {
        Value { name: name.into(), ..Value::default() }
    }
}

impl Node {
    /// A node of the default operator set with one output.
    pub fn new<S: Into<String>>(
        op: &str,
        inputs: impl IntoIterator<Item = S>,
        output: impl Into<String>,
    ) -> Node {
        Node {
            op: op.into(),
            inputs: inputs.into_iter().map(Into::into).collect(),
            outputs: vec![output.into()],
            ..Node::default()
        }
    }

    /// The node with one more attribute.
    pub fn with(mut self, name: &str, value: impl Into<Attribute>) -> Node {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// The name of input `index`, unless it is absent.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|s| !s.is_empty())
    }

    /// The name of output `index`, unless it is absent.
    pub fn output(&self, index: usize) -> Option<&str> {
        self.outputs.get(index).map(String::as_str).filter(|s| !s.is_empty())
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(v)) => Some(*v),
            _ => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attributes.get(name) {
            Some(Attribute::Float(v)) => Some(*v),
            _ => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// A string attribute.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Attribute::String(v)) => Some(v),
            _ => None,
        }
    }

    /// How messages name the node: `Conv node "conv1"`, or by its first output when it has no name.
    pub fn describe(&self) -> String {
        let domain =
            if self.domain.is_empty() { String::new() } else { format!("{}.", self.domain) };
        let name = if self.name.is_empty() {
            self.outputs.iter().find(|o| !o.is_empty()).map_or("", String::as_str)
        } else {
            &self.name
        };
        format!("{domain}{} node {name:?}", self.op)
    }

    /// Whether the node carries subgraphs (`If`, `Loop`, `Scan`), which may read outer names.
    pub fn has_subgraph(&self) -> bool {
        self.attributes.values().any(|a| match a {
            Attribute::Other(raw) => raw.g.is_set() || !raw.graphs.is_empty(),
            _ => false,
        })
    }
}

impl Graph {
    /// Which node produces each value.
    pub fn producers(&self) -> HashMap<&str, usize> {
        let mut map = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            map.extend(node.outputs.iter().filter(|o| !o.is_empty()).map(|o| (o.as_str(), i)));
        }
        map
    }

    /// Which (node, input slot) pairs read each value; reads inside subgraphs are not listed.
    pub fn uses(&self) -> HashMap<&str, Vec<(usize, usize)>> {
        let mut map: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for (slot, name) in node.inputs.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                map.entry(name).or_default().push((i, slot));
            }
        }
        map
    }

    /// Every name in use, in subgraphs too, for choosing a fresh one.
    pub fn names(&self) -> HashSet<String> {
        let values = self.nodes.iter().flat_map(|n| n.inputs.iter().chain(&n.outputs));
        let ends = self.inputs.iter().chain(&self.outputs).map(|v| &v.name);
        let mut names: HashSet<String> =
            values.chain(ends).chain(self.initializers.keys()).cloned().collect();
        let attributes = self.nodes.iter().flat_map(|n| n.attributes.values());
        for attribute in attributes {
            if let Attribute::Other(raw) = attribute {
                inner_names(raw, &mut names);
            }
        }
        names
    }

    /// Removes the nodes and initializers that no output depends on.
    pub fn remove_unused(&mut self) {
        let mut needed: BTreeSet<String> = self.outputs.iter().map(|v| v.name.clone()).collect();
        let mut keep = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().any(|o| needed.contains(o)) {
                keep[i] = true;
                needed.extend(node.inputs.iter().cloned());
                needed.extend(outer_names(node));
            }
        }
        let mut kept = keep.into_iter();
        self.nodes.retain(|_| kept.next().expect("one flag per node"));
        self.initializers.retain(|name, _| needed.contains(name));
    }
}

/// The names in use, for choosing new ones.
#[derive(Clone, Debug, Default)]
pub struct Names {
    taken: HashSet<String>,
    /// The number to try next, by base.
    next: HashMap<String, usize>,
}

impl Names {
    /// The names of `graph`, in subgraphs too.
    pub fn of(graph: &Graph) -> Names {
        Names { taken: graph.names(), next: HashMap::new() }
    }

    /// A new name: `base`, or `base_2`, `base_3`, ...
    pub fn fresh(&mut self, base: &str) -> String {
        let next = self.next.entry(base.to_owned()).or_insert(1);
        loop {
            let name = if *next == 1 { base.to_owned() } else { format!("{base}_{next}") };
            *next += 1;
            if !name.is_empty() && self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// The outer values that the subgraphs of `node` read: names they mention but do not define.
pub fn outer_names(node: &Node) -> Vec<String> {
    let mut names = Vec::new();
    for attribute in node.attributes.values() {
        if let Attribute::Other(raw) = attribute {
            free_names_of_attribute(raw, &mut names);
        }
    }
    names.into_iter().map(str::to_owned).collect()
}

/// The names that the subgraphs in `attribute` read from outside, appended to `names`.
pub(crate) fn free_names_of_attribute<'a>(attribute: &'a AttributeProto, names: &mut Vec<&'a str>) {
    attribute.g.as_option().into_iter().chain(&attribute.graphs).for_each(|g| free_names(g, names));
}

/// The names that `graph` reads but does not define, appended to `names`.
fn free_names<'a>(graph: &'a GraphProto, names: &mut Vec<&'a str>) {
    let mut read: Vec<&str> = graph.output.iter().filter_map(|v| v.name.as_deref()).collect();
    for node in &graph.node {
        read.extend(node.input.iter().map(String::as_str));
        node.attribute.iter().for_each(|a| free_names_of_attribute(a, &mut read));
    }
    let defined: HashSet<&str> = defined_names(graph).collect();
    names.extend(read.into_iter().filter(|name| !name.is_empty() && !defined.contains(name)));
}

/// Every name that the subgraphs in `attribute` mention.
fn inner_names(attribute: &AttributeProto, names: &mut HashSet<String>) {
    for graph in attribute.g.as_option().into_iter().chain(&attribute.graphs) {
        names.extend(defined_names(graph).map(str::to_owned));
        for node in &graph.node {
            names.extend(node.input.iter().cloned());
            node.attribute.iter().for_each(|a| inner_names(a, names));
        }
    }
}

/// The names that `graph` itself gives a value: inputs, initializers and node outputs.
pub(crate) fn defined_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let produced = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
    let supplied = graph.input.iter().filter_map(|v| v.name.as_deref());
    let held = graph.initializer.iter().filter_map(|t| t.name.as_deref());
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_option());
    produced.chain(supplied).chain(held).chain(sparse.filter_map(|t| t.name.as_deref()))
}

impl From<i64> for Attribute {
    fn from(v: i64) -> Attribute {
        Attribute::Int(v)
    }
}

impl From<f32> for Attribute {
    fn from(v: f32) -> Attribute {
        Attribute::Float(v)
    }
}

impl From<&str> for Attribute {
    fn from(v: &str) -> Attribute {
        Attribute::String(v.into())
    }
}

impl From<Vec<i64>> for Attribute {
    fn from(v: Vec<i64>) -> Attribute {
        Attribute::Ints(v)
    }
}

impl From<&[i64]> for Attribute {
    fn from(v: &[i64]) -> Attribute {
        Attribute::Ints(v.into())
    }
}

impl From<Tensor> for Attribute {
    fn from(v: Tensor) -> Attribute {
        Attribute::Tensor(Arc::new(v))
    }
}
