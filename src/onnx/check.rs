//! What must be true of a model before hone works with it: the rules of ONNX that the rest of the
//! code relies on, checked once, when a file is read.
//!
//! Names are defined once and before they are read, nodes form no cycle, tensors hold as many
//! elements as their shape says, and the operator set is one that hone knows. Element types and
//! operators that hone does not know are no error here: they stay in the model untouched.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::error::{Context, Result, bail, error};
use crate::onnx::external;
use crate::onnx::graph::{Node, defined_names, free_names_of_attribute};
use crate::onnx::nodes::normal_domain;
use crate::onnx::order::{Step, cycle_error, topological_order};
use crate::onnx::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::onnx::{storage, walk};
use crate::tensor::ElementType;

/// The oldest operator set that hone reads.
pub const MIN_OPSET: i64 = 9;
/// The newest operator set that hone reads: that of the schema it was built with.
pub const MAX_OPSET: i64 = 28;

/// Checks the model. It is handed out unchanged; the walk over its tensors is a mutable one.
pub fn model(proto: &mut ModelProto) -> Result<()> {
    if !proto.graph.is_set() {
        bail!(Model, "it has no graph; is this an ONNX file, and complete?");
    }
    operator_sets(proto)?;
    walk::model(proto, &mut |t| storage::named(tensor(t), t.name.as_deref().unwrap_or("")))?;
    let main = proto.graph.as_option().expect("checked above");
    if main.output.is_empty() {
        bail!(Model, "its graph has no outputs");
    }
    graph(main, &mut Vec::new())?;
    proto.functions.iter().try_for_each(function)
}

fn operator_sets(proto: &ModelProto) -> Result<()> {
    let mut seen = HashSet::new();
    for import in &proto.opset_import {
        let domain = normal_domain(import.domain.as_deref().unwrap_or(""));
        if !seen.insert(domain) {
            bail!(Model, "it imports the operator set {domain:?} twice");
        }
        let version = import.version.unwrap_or(0);
        if domain.is_empty() && !(MIN_OPSET..=MAX_OPSET).contains(&version) {
            bail!(
                Unsupported,
                "it uses version {version} of the ONNX operators; hone reads {MIN_OPSET} to \
                 {MAX_OPSET}: convert the model with onnx.version_converter"
            );
        }
    }
    if !seen.contains("") {
        bail!(Model, "it does not say which version of the ONNX operators it uses");
    }
    Ok(())
}

/// Checks that the shape is possible and the elements are as many as it says.
fn tensor(proto: &TensorProto) -> Result<()> {
    let shape = storage::shape(proto)?;
    // The smallest size stands in for the types that hone does not know.
    let element = storage::element_type(proto).ok();
    storage::byte_length(element.unwrap_or(ElementType::U8), &shape)?;
    // Only the tensors that hone replaced have both, between replacing and saving.
    if storage::is_external(proto) && proto.raw_data.is_some() {
        bail!(Model, "it has elements both inside and in another file");
    }
    match (storage::is_external(proto), element.is_some()) {
        (true, _) => external::reference(proto).map(drop),
        (false, true) => storage::check_embedded(proto).map(drop),
        (false, false) => Ok(()),
    }
}

/// Checks names and order in a graph. `scopes` are the names of the graphs around it.
fn graph<'a>(proto: &'a GraphProto, scopes: &mut Vec<HashSet<&'a str>>) -> Result<()> {
    let mut given = HashSet::new();
    for input in &proto.input {
        define(&mut given, input.name.as_deref().unwrap_or(""), "input")?;
    }
    let sparse = proto.sparse_initializer.iter().filter_map(|s| s.values.as_option());
    let mut constants = HashSet::new();
    for tensor in proto.initializer.iter().chain(sparse) {
        define(&mut constants, tensor.name.as_deref().unwrap_or(""), "initializer")?;
    }
    given.extend(constants); // An initializer may be the default of an input.
    nodes(&proto.node, given)?;

    scopes.push(defined_names(proto).collect());
    let known = |name: &str, scopes: &[HashSet<&str>]| scopes.iter().any(|s| s.contains(name));
    for node in &proto.node {
        let missing = node.input.iter().find(|n| !n.is_empty() && !known(n, scopes));
        if let Some(name) = missing {
            bail!(Model, "{} reads {name:?}, which nothing provides", describe(node));
        }
        for attribute in &node.attribute {
            for subgraph in attribute.g.as_option().into_iter().chain(&attribute.graphs) {
                graph(subgraph, scopes).context(|| describe(node))?;
            }
        }
    }
    for output in &proto.output {
        let name = output.name.as_deref().unwrap_or("");
        if !known(name, scopes) {
            bail!(Model, "nothing provides the output {name:?}");
        }
    }
    scopes.pop();
    Ok(())
}

/// Checks names and order in a function.
fn function(proto: &FunctionProto) -> Result<()> {
    let name = proto.name.as_deref().unwrap_or("");
    let check = || {
        let mut given = HashSet::new();
        proto.input.iter().try_for_each(|input| define(&mut given, input, "input"))?;
        let produced = proto.node.iter().flat_map(|n| &n.output).map(String::as_str);
        let known: HashSet<&str> = given.iter().copied().chain(produced).collect();
        nodes(&proto.node, given)?;
        let read = proto.node.iter().flat_map(|n| &n.input).chain(&proto.output);
        match read.into_iter().find(|n| !n.is_empty() && !known.contains(n.as_str())) {
            Some(name) => Err(error!(Model, "nothing provides {name:?}")),
            None => Ok(()),
        }
    };
    check().context(|| format!("function {name:?}"))
}

/// Checks that each node has an operator, each output is new, and there is no cycle.
fn nodes<'a>(nodes: &'a [NodeProto], mut defined: HashSet<&'a str>) -> Result<()> {
    for node in nodes {
        if node.op_type.as_deref().unwrap_or("").is_empty() {
            bail!(Model, "{} has no operator", describe(node));
        }
        let mut seen = HashSet::new();
        for attribute in &node.attribute {
            let define = define(&mut seen, attribute.name.as_deref().unwrap_or(""), "attribute");
            define.context(|| describe(node))?;
        }
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            define(&mut defined, output, "value").context(|| describe(node))?;
        }
    }
    let steps: Vec<_> = nodes
        .iter()
        .map(|node| {
            let mut reads: Vec<_> = node.input.iter().map(String::as_str).collect();
            node.attribute.iter().for_each(|a| free_names_of_attribute(a, &mut reads));
            Step { reads: reads.into_iter().map(Cow::from).collect(), writes: &node.output }
        })
        .collect();
    let described = |cycle: Vec<usize>| cycle_error(cycle.iter().map(|&i| describe(&nodes[i])));
    topological_order(&steps).map(drop).map_err(described)
}

fn define<'a>(names: &mut HashSet<&'a str>, name: &'a str, what: &str) -> Result<()> {
    if name.is_empty() {
        bail!(Model, "an {what} has no name");
    }
    if !names.insert(name) {
        bail!(Model, "the {what} {name:?} is defined twice");
    }
    Ok(())
}

fn describe(node: &NodeProto) -> String {
    let head = Node {
        op: node.op_type.clone().unwrap_or_default(),
        domain: node.domain.clone().unwrap_or_default(),
        name: node.name.clone().unwrap_or_default(),
        outputs: node.output.clone(),
        ..Node::default()
    };
    head.describe()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::onnx::proto::{AttributeProto, OperatorSetIdProto, ValueInfoProto};
    use crate::onnx::{Graph, Value};
    use crate::tensor::Tensor;
    use std::sync::Arc;

    /// A sound model: `y = Relu(x w)`.
    fn sound() -> ModelProto {
        let graph = Graph {
            opset: 18,
            nodes: vec![Node::new("MatMul", ["x", "w"], "a"), Node::new("Relu", ["a"], "y")],
            initializers: [("w".to_owned(), Arc::new(Tensor::f32([1, 1], vec![2.0])))].into(),
            inputs: vec![Value::fixed("x", ElementType::F32, &[1, 1])],
            outputs: vec![Value::named("y")],
            ..Graph::default()
        };
        graph.to_proto()
    }

    /// The error after one change to the sound model's graph.
    fn broken(change: impl FnOnce(&mut GraphProto)) -> Error {
        broken_model(|model| change(model.graph.as_option_mut().unwrap()))
    }

    fn broken_model(change: impl FnOnce(&mut ModelProto)) -> Error {
        let mut proto = sound();
        assert!(model(&mut proto).is_ok());
        change(&mut proto);
        model(&mut proto).unwrap_err()
    }

    fn says(error: Error, kind: ErrorKind, text: &str) {
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
    }

    #[test]
    fn names_are_defined_once() {
        let e = broken(|g| g.node[1].output[0] = "a".into());
        says(e, ErrorKind::Model, r#"Relu node "a": the value "a" is defined twice"#);
        let e = broken(|g| g.node[1].output[0] = "w".into());
        says(e, ErrorKind::Model, r#"Relu node "w": the value "w" is defined twice"#);
        let e = broken(|g| g.initializer.push(g.initializer[0].clone()));
        says(e, ErrorKind::Model, r#"the initializer "w" is defined twice"#);
        let e = broken(|g| g.input.push(g.input[0].clone()));
        says(e, ErrorKind::Model, r#"the input "x" is defined twice"#);
        let e = broken(|g| g.initializer[0].name = None);
        says(e, ErrorKind::Model, "an initializer has no name");
        let axis = AttributeProto { name: Some("axis".into()), ..AttributeProto::default() };
        let e = broken(|g| g.node[1].attribute = vec![axis.clone(), axis]);
        says(e, ErrorKind::Model, r#"Relu node "y": the attribute "axis" is defined twice"#);
    }

    #[test]
    fn what_is_read_exists() {
        let e = broken(|g| g.node[0].input[0] = "z".into());
        says(e, ErrorKind::Model, r#"MatMul node "a" reads "z", which nothing provides"#);
        let e = broken(|g| g.output[0].name = Some("z".into()));
        says(e, ErrorKind::Model, r#"nothing provides the output "z""#);
        let e = broken(|g| g.output.clear());
        says(e, ErrorKind::Model, "its graph has no outputs");
        let e = broken(|g| g.node[0].op_type = None);
        says(e, ErrorKind::Model, r#" node "a" has no operator"#);
    }

    #[test]
    fn cycles_are_found_in_the_main_graph_and_below() {
        let e = broken(|g| g.node[0].input[0] = "y".into());
        assert!(e.to_string().contains("wait for each other"), "{e}");

        let mut inner = sound().graph.into_option().unwrap();
        inner.input.clear();
        inner.initializer.clear();
        for node in &mut inner.node {
            node.output[0].insert(0, '_');
        }
        inner.node[1].input[0] = "_a".into();
        inner.output = vec![ValueInfoProto { name: Some("_y".into()), ..Default::default() }];
        let with_branch = |g: &mut GraphProto, inner: &GraphProto| {
            let branch = AttributeProto {
                name: Some("then_branch".into()),
                g: inner.clone().into(),
                ..AttributeProto::default()
            };
            g.node[1].attribute.push(branch);
        };
        let mut proto = sound();
        with_branch(proto.graph.as_option_mut().unwrap(), &inner);
        assert!(model(&mut proto).is_ok(), "outer names may be read");

        let mut through_outer = inner.clone();
        through_outer.node[0].input[0] = "y".into();
        let e = broken(|g| with_branch(g, &through_outer));
        assert!(e.to_string().contains("wait for each other"), "{e}");

        inner.node[0].input[0] = "_y".into();
        let e = broken(|g| with_branch(g, &inner));
        assert!(e.to_string().starts_with(r#"Relu node "y": these nodes wait"#), "{e}");
    }

    #[test]
    fn tensors_hold_what_their_shape_says() {
        let e = broken(|g| g.initializer[0].dims = vec![1, 2]);
        let text = r#"tensor "w": shape [1, 2] of float32 takes 8 bytes, not 4"#;
        says(e, ErrorKind::Model, text);
        let e = broken(|g| g.initializer[0].dims = vec![-1]);
        says(e, ErrorKind::Model, r#"tensor "w": its shape [-1] is impossible"#);
        let e = broken(|g| {
            g.initializer[0].data_type = Some(22); // INT4, which hone does not decode
            g.initializer[0].dims = vec![i64::MAX, 3];
        });
        assert!(e.to_string().contains("beyond any memory"), "{e}");
    }

    #[test]
    fn the_operator_set_must_be_known() {
        for version in [0, 8, 29, i64::MAX, i64::MIN] {
            let e = broken_model(|m| m.opset_import[0].version = Some(version));
            assert_eq!(e.kind(), ErrorKind::Unsupported);
            assert!(e.to_string().contains("hone reads 9 to 28"), "{e}");
        }
        let e = broken_model(|m| m.opset_import.clear());
        assert!(e.to_string().contains("which version"), "{e}");
        let e = broken_model(|m| {
            let domain = Some("ai.onnx".to_owned());
            m.opset_import.push(OperatorSetIdProto { domain, ..m.opset_import[0].clone() });
        });
        assert!(e.to_string().contains("twice"), "{e}");
        let e = broken_model(|m| drop(m.graph.take()));
        assert!(e.to_string().contains("no graph"), "{e}");
    }
}
