//! Nodes and their attributes in and out of the protobuf schema.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Context, Result};
use crate::onnx::graph::{Attribute, Node};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::onnx::{storage, walk};
use crate::tensor::Tensor;

/// Reads a tensor from wherever it is stored.
pub type Read<'a> = &'a dyn Fn(&TensorProto) -> Result<Tensor>;

/// The node with its attributes read; subgraphs stay messages, with external data read into them.
pub fn from_proto(proto: &NodeProto, read: Read) -> Result<Node> {
    let mut node = Node {
        op: proto.op_type.clone().unwrap_or_default(),
        domain: normal_domain(proto.domain.as_deref().unwrap_or("")).into(),
        name: proto.name.clone().unwrap_or_default(),
        inputs: proto.input.clone(),
        outputs: proto.output.clone(),
        attributes: BTreeMap::new(),
    };
    for attribute in &proto.attribute {
        let name = attribute.name.clone().unwrap_or_default();
        let value = attribute_from_proto(attribute, read);
        let value = value.context(|| format!("{}: attribute {name:?}", node.describe()))?;
        node.attributes.insert(name, value);
    }
    Ok(node)
}

fn attribute_from_proto(proto: &AttributeProto, read: Read) -> Result<Attribute> {
    let other = || {
        let mut copy = proto.clone();
        walk::attribute(&mut copy, &mut |tensor| embed(tensor, read))?;
        Ok(Attribute::Other(Box::new(copy)))
    };
    Ok(match attribute_type(proto) {
        AttributeType::INT => Attribute::Int(proto.i.unwrap_or(0)),
        AttributeType::FLOAT => Attribute::Float(proto.f.unwrap_or(0.0)),
        AttributeType::INTS => Attribute::Ints(proto.ints.clone()),
        AttributeType::FLOATS => Attribute::Floats(proto.floats.clone()),
        AttributeType::STRING => match std::str::from_utf8(proto.s.as_deref().unwrap_or(b"")) {
            Ok(text) => Attribute::String(text.into()),
            Err(_) => other()?,
        },
        AttributeType::TENSOR => match proto.t.as_option() {
            Some(t) if storage::element_type(t).is_ok() => Attribute::Tensor(Arc::new(read(t)?)),
            _ => other()?,
        },
        _ => other()?,
    })
}

/// The attribute under the name `name`, in its own variant where it came as a message.
pub fn typed(attribute: Attribute, name: &str) -> Result<Attribute> {
    match attribute {
        Attribute::Other(mut raw) => {
            raw.name = Some(name.into());
            attribute_from_proto(&raw, &storage::read)
        }
        typed => Ok(typed),
    }
}

/// Replaces a reference to another file by what is there.
pub fn embed(proto: &mut TensorProto, read: Read) -> Result<()> {
    if storage::is_external(proto) {
        let name = proto.name.as_deref().unwrap_or("");
        *proto = storage::write(name, &storage::named(read(proto), name)?);
    }
    Ok(())
}

/// Rewrites the nodes of each subgraph of `node` (but not of the subgraphs in those, which
/// `rewrite` may reach by another call).
pub fn rewrite_subgraphs(
    node: &mut Node,
    rewrite: &mut dyn FnMut(Vec<Node>) -> Result<Vec<Node>>,
) -> Result<()> {
    for attribute in node.attributes.values_mut() {
        let Attribute::Other(raw) = attribute else { continue };
        for graph in raw.g.as_option_mut().into_iter().chain(&mut raw.graphs) {
            let nodes = graph.node.iter().map(|n| from_proto(n, &storage::read));
            let nodes = rewrite(nodes.collect::<Result<_>>()?)?;
            graph.node = nodes.iter().map(to_proto).collect();
        }
    }
    Ok(())
}

/// The attribute with the value of a `Constant` node that has one output.
pub fn constant_attribute(node: &NodeProto) -> Option<&AttributeProto> {
    let constant = node.op_type.as_deref() == Some("Constant")
        && normal_domain(node.domain.as_deref().unwrap_or("")).is_empty()
        && matches!(node.output.as_slice(), [name] if !name.is_empty());
    node.attribute.first().filter(|_| constant)
}

/// The name and value of a `Constant` node, whatever form it is in; `None` for strings, sparse
/// tensors and element types that hone cannot hold.
pub fn constant_value(node: &Node) -> Option<(String, Arc<Tensor>)> {
    if node.op != "Constant" || !node.domain.is_empty() {
        return None;
    }
    let tensor = match node.attributes.iter().next()? {
        (name, Attribute::Tensor(tensor)) if name == "value" => tensor.clone(),
        (name, Attribute::Int(v)) if name == "value_int" => Tensor::i64([], vec![*v]).into(),
        (name, Attribute::Float(v)) if name == "value_float" => Tensor::scalar(*v).into(),
        (name, Attribute::Ints(v)) if name == "value_ints" => {
            Tensor::i64([v.len()], v.clone()).into()
        }
        (name, Attribute::Floats(v)) if name == "value_floats" => {
            Tensor::f32([v.len()], v.clone()).into()
        }
        _ => return None,
    };
    Some((node.output(0)?.to_owned(), tensor))
}

/// The type of an attribute; files older than the `type` field tell it by what is set.
pub fn attribute_type(proto: &AttributeProto) -> AttributeType {
    if proto.ref_attr_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return AttributeType::UNDEFINED; // A function's parameter stands here, not a value.
    }
    match proto.r#type {
        Some(known) if known != AttributeType::UNDEFINED => known,
        _ if proto.i.is_some() => AttributeType::INT,
        _ if proto.f.is_some() => AttributeType::FLOAT,
        _ if proto.s.is_some() => AttributeType::STRING,
        _ if proto.t.is_set() => AttributeType::TENSOR,
        _ if !proto.ints.is_empty() => AttributeType::INTS,
        _ if !proto.floats.is_empty() => AttributeType::FLOATS,
        _ => AttributeType::UNDEFINED,
    }
}

/// The node as a message.
pub fn to_proto(node: &Node) -> NodeProto {
    NodeProto {
        op_type: Some(node.op.clone()),
        domain: (!node.domain.is_empty()).then(|| node.domain.clone()),
        name: (!node.name.is_empty()).then(|| node.name.clone()),
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        attribute: node.attributes.iter().map(|(n, a)| attribute_to_proto(n, a)).collect(),
        ..NodeProto::default()
    }
}

fn attribute_to_proto(name: &str, attribute: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
    proto.r#type = Some(match attribute {
        Attribute::Int(v) => {
            proto.i = Some(*v);
            AttributeType::INT
        }
        Attribute::Float(v) => {
            proto.f = Some(*v);
            AttributeType::FLOAT
        }
        Attribute::String(v) => {
            proto.s = Some(v.as_bytes().into());
            AttributeType::STRING
        }
        Attribute::Tensor(v) => {
            proto.t = TensorProto { name: None, ..storage::write("", v) }.into();
            AttributeType::TENSOR
        }
        Attribute::Ints(v) => {
            proto.ints = v.clone();
            AttributeType::INTS
        }
        Attribute::Floats(v) => {
            proto.floats = v.clone();
            AttributeType::FLOATS
        }
        Attribute::Other(raw) => return (**raw).clone(),
    });
    proto
}

/// The default operator set has two names.
pub(crate) fn normal_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}
