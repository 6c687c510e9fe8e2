//! Functions local to a model are replaced by their bodies, so that the rest of hone sees operators
//! only.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Context, Result, bail};
use crate::onnx::graph::{Attribute, Graph, Names, Node};
use crate::onnx::nodes::{from_proto, normal_domain, rewrite_subgraphs};
use crate::onnx::proto::{AttributeProto, FunctionProto};
use crate::onnx::storage;
use crate::onnx::upgrade::TARGET_OPSET;

/// The most nodes that calls may expand to: functions that call functions can double at each level.
const MAX_NODES: usize = 1 << 18;
/// The deepest nesting of calls.
const MAX_DEPTH: usize = 64;

/// Replaces every call of a local function, in subgraphs too, and drops the functions.
pub fn inline(graph: &mut Graph) -> Result<()> {
    let functions = std::mem::take(&mut graph.functions);
    if functions.is_empty() {
        return Ok(());
    }
    let mut inliner = Inliner { functions: HashMap::new(), names: Names::of(graph), made: 0 };
    for function in &functions {
        let name = function.name.as_deref().unwrap_or("");
        let domain = normal_domain(function.domain.as_deref().unwrap_or(""));
        import_operator_sets(graph, function).context(|| format!("function {name:?}"))?;
        if inliner.functions.insert((domain, name), function).is_some() {
            bail!(Unsupported, "function {name:?} has overloads, which hone cannot tell apart");
        }
    }
    graph.nodes = inliner.nodes(std::mem::take(&mut graph.nodes), 0)?;
    graph.sort()
}

/// A function's operator sets join those of the graph.
fn import_operator_sets(graph: &mut Graph, function: &FunctionProto) -> Result<()> {
    for import in &function.opset_import {
        let version = import.version.unwrap_or(0);
        match normal_domain(import.domain.as_deref().unwrap_or("")) {
            "" if version != graph.opset && version.min(graph.opset) < TARGET_OPSET => bail!(
                Unsupported,
                "it uses version {version} of the ONNX operators in a model of version {}; \
                 export the model with version {TARGET_OPSET} or newer",
                graph.opset
            ),
            "" => {}
            domain => drop(graph.domains.entry(domain.into()).or_insert(version)),
        }
    }
    Ok(())
}

struct Inliner<'a> {
    functions: HashMap<(&'a str, &'a str), &'a FunctionProto>,
    names: Names,
    made: usize,
}

impl Inliner<'_> {
    fn nodes(&mut self, nodes: Vec<Node>, depth: usize) -> Result<Vec<Node>> {
        let mut result = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            rewrite_subgraphs(&mut node, &mut |inner| self.nodes(inner, depth))?;
            match self.functions.get(&(node.domain.as_str(), node.op.as_str())) {
                Some(&function) if depth < MAX_DEPTH => {
                    let name = node.describe();
                    let body = self.body(&node, function).context(|| name)?;
                    result.extend(self.nodes(body, depth + 1)?);
                }
                Some(_) => {
                    bail!(Model, "{}: functions call each other too deeply", node.describe())
                }
                None => result.push(node),
            }
        }
        Ok(result)
    }

    /// The body of `function` as called by `call`.
    fn body(&mut self, call: &Node, function: &FunctionProto) -> Result<Vec<Node>> {
        self.made += function.node.len();
        if self.made > MAX_NODES {
            bail!(Unsupported, "the functions of the model expand to more than {MAX_NODES} nodes");
        }
        if call.inputs.len() > function.input.len() || call.outputs.len() > function.output.len() {
            bail!(Model, "the call has more inputs or outputs than the function");
        }
        let actual = call.inputs.iter().cloned().chain(std::iter::repeat(String::new()));
        let mut renamed: HashMap<&str, String> =
            function.input.iter().map(String::as_str).zip(actual).collect();
        let mut results = Vec::new();
        for (formal, actual) in function.output.iter().zip(&call.outputs) {
            match renamed.get(formal.as_str()) {
                // An input or an earlier output under another name.
                Some(same) => results.push(Node::new("Identity", [same], actual)),
                None if actual.is_empty() => {}
                None => drop(renamed.insert(formal, actual.clone())),
            }
        }
        let prefix = if call.name.is_empty() { &call.op } else { &call.name };
        for name in function.node.iter().flat_map(|n| &n.output).filter(|n| !n.is_empty()) {
            if !renamed.contains_key(name.as_str()) {
                let fresh = self.names.fresh(&format!("{prefix}/{name}"));
                renamed.insert(name, fresh);
            }
        }
        let parameters = parameters(call, function);
        let mut nodes = Vec::new();
        for proto in &function.node {
            let mut node = from_proto(proto, &storage::read)?;
            rename(&mut node, &renamed, &parameters)?;
            if !node.name.is_empty() {
                node.name = format!("{prefix}/{}", node.name);
            }
            nodes.push(node);
        }
        nodes.extend(results);
        Ok(nodes)
    }
}

/// The values of the function's attributes: from the call, or else the defaults.
fn parameters(call: &Node, function: &FunctionProto) -> BTreeMap<String, Attribute> {
    let default = |a: &AttributeProto| {
        let name = a.name.clone().unwrap_or_default();
        (name, Attribute::Other(Box::new(a.clone())))
    };
    let mut parameters: BTreeMap<_, _> = function.attribute_proto.iter().map(default).collect();
    parameters.extend(call.attributes.clone());
    parameters
}

/// Gives a node of a function's body the caller's names and attribute values, in its subgraphs too.
fn rename(
    node: &mut Node,
    renamed: &HashMap<&str, String>,
    parameters: &BTreeMap<String, Attribute>,
) -> Result<()> {
    for name in node.inputs.iter_mut().chain(&mut node.outputs) {
        if let Some(new) = renamed.get(name.as_str()) {
            name.clone_from(new);
        }
    }
    let attributes = std::mem::take(&mut node.attributes);
    for (name, attribute) in attributes {
        let parameter = match &attribute {
            Attribute::Other(raw) => raw.ref_attr_name.as_deref().filter(|p| !p.is_empty()),
            _ => None,
        };
        let value = match parameter {
            Some(parameter) => parameters.get(parameter).cloned(),
            None => Some(attribute),
        };
        // An attribute that the caller leaves out is left out in the body.
        if let Some(value) = value {
            node.attributes.insert(name.clone(), crate::onnx::nodes::typed(value, &name)?);
        }
    }
    rewrite_subgraphs(node, &mut |mut inner| {
        inner.iter_mut().try_for_each(|node| rename(node, renamed, parameters))?;
        Ok(inner)
    })
}
