//! The working [`Graph`] from a model, and back into a model that ONNX Runtime runs.
//!
//! On the way in, constants get one home: `Constant` nodes become initializers named after their
//! output, external data is read, and nodes are put in topological order. On the way out every
//! tensor is embedded as raw data, so that ONNX Runtime never opens a file on our behalf.

use std::borrow::Cow;
use std::sync::Arc;

use buffa::Message;

use crate::error::{Context, Result, bail, error};
use crate::onnx::graph::{Dimension, Graph, Node, Value, outer_names};
use crate::onnx::model::Model;
use crate::onnx::nodes::{self, Read, embed, normal_domain};
use crate::onnx::order::{Step, cycle_error, topological_order};
use crate::onnx::proto::__buffa::oneof::tensor_shape_proto::dimension::Value as Dim;
use crate::onnx::proto::__buffa::oneof::type_proto::Value as Type;
use crate::onnx::proto::tensor_shape_proto::Dimension as DimensionProto;
use crate::onnx::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use crate::onnx::{storage, walk};
use crate::tensor::{ElementType, Tensor};

/// The version of the file format that hone writes: the newest that every supported ONNX Runtime
/// reads.
const IR_VERSION: i64 = 10;

impl Graph {
    /// The graph of `model`, with all constants read into memory. Errors name the tensor that
    /// cannot be held, the input that is no tensor, or the nodes of a cycle.
    pub fn from_model(model: &Model) -> Result<Graph> {
        import(model).context(|| model.name())
    }

    /// The graph as an ONNX file with all tensors inside. Errors beyond protobuf's 2 GB.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.encode(self.to_proto())
    }

    /// The graph as an ONNX file that only names its float initializers of `min_bytes` and more,
    /// as external data without a place; and their names. Integers stay inside: shapes are read
    /// from them. Errors beyond protobuf's 2 GB.
    pub fn to_bytes_without(&self, min_bytes: usize) -> Result<(Vec<u8>, Vec<String>)> {
        let is_large = |tensor: &Tensor| {
            let element = tensor.element_type();
            element.is_float() && tensor.len() * element.size() >= min_bytes
        };
        let write = |(name, tensor): (&String, &Arc<Tensor>)| match is_large(tensor) {
            true => storage::outside(name, tensor),
            false => storage::write(name, tensor),
        };
        let proto = self.to_proto_with(self.initializers.iter().map(write).collect());
        let large = self.initializers.iter().filter(|(_, t)| is_large(t));
        Ok((self.encode(proto)?, large.map(|(name, _)| name.clone()).collect()))
    }

    fn encode(&self, proto: ModelProto) -> Result<Vec<u8>> {
        proto.try_encode_to_vec().map_err(|e| {
            error!(Unsupported, "graph {:?} exceeds the 2 GB of an ONNX file", self.name)
                .with_source(e)
        })
    }

    /// The graph as a protobuf message with all tensors inside.
    pub fn to_proto(&self) -> ModelProto {
        self.to_proto_with(self.initializers.iter().map(|(n, t)| storage::write(n, t)).collect())
    }

    fn to_proto_with(&self, initializer: Vec<TensorProto>) -> ModelProto {
        let import = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.into()),
            version: Some(version),
            ..OperatorSetIdProto::default()
        };
        let others = self.domains.iter().map(|(domain, &version)| import(domain, version));
        let graph = GraphProto {
            name: Some(if self.name.is_empty() { "graph".into() } else { self.name.clone() }),
            node: self.nodes.iter().map(nodes::to_proto).collect(),
            initializer,
            input: self.inputs.iter().map(value_to_proto).collect(),
            output: self.outputs.iter().map(value_to_proto).collect(),
            ..GraphProto::default()
        };
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("hone".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            opset_import: std::iter::once(import("", self.opset)).chain(others).collect(),
            graph: graph.into(),
            functions: self.functions.clone(),
            ..ModelProto::default()
        }
    }

    /// Puts a node after the producers of its inputs, leaving a graph that is in order as it is.
    /// The error names the nodes of a cycle.
    pub fn sort(&mut self) -> Result<()> {
        let steps =
            self.nodes.iter().map(|node| Step { reads: reads(node), writes: &node.outputs });
        let order = topological_order(&steps.collect::<Vec<_>>())
            .map_err(|cycle| cycle_error(cycle.iter().map(|&i| self.nodes[i].describe())))?;
        let mut nodes: Vec<Option<Node>> = self.nodes.drain(..).map(Some).collect();
        let take = |i: usize| nodes[i].take().expect("an order lists each node once");
        self.nodes = order.into_iter().map(take).collect();
        Ok(())
    }
}

fn import(model: &Model) -> Result<Graph> {
    let read: Read = &|tensor| model.read(tensor);
    let proto = &model.proto;
    let Some(source) = proto.graph.as_option() else { bail!(Model, "it has no graph") };
    if !source.sparse_initializer.is_empty() {
        bail!(Unsupported, "it has sparse initializers; save it with dense ones");
    }
    let mut graph = Graph {
        name: source.name.clone().unwrap_or_default(),
        functions: proto.functions.clone(),
        ..Graph::default()
    };
    for import in &proto.opset_import {
        let version = import.version.unwrap_or(0);
        match normal_domain(import.domain.as_deref().unwrap_or("")) {
            "" => graph.opset = version,
            domain => drop(graph.domains.insert(domain.into(), version)),
        }
    }
    for function in &mut graph.functions {
        walk::nodes(&mut function.node, &mut |tensor| embed(tensor, read))?;
    }
    for tensor in &source.initializer {
        let name = tensor.name.as_deref().unwrap_or("");
        graph.initializers.insert(name.into(), Arc::new(storage::named(read(tensor), name)?));
    }
    for node in &source.node {
        let node = nodes::from_proto(node, read)?;
        match nodes::constant_value(&node) {
            Some((name, tensor)) => drop(graph.initializers.insert(name, tensor)),
            None => graph.nodes.push(node),
        }
    }
    let supplied =
        |v: &&ValueInfoProto| !graph.initializers.contains_key(v.name.as_deref().unwrap_or(""));
    graph.inputs = source.input.iter().filter(supplied).map(input).collect::<Result<_>>()?;
    graph.outputs = source.output.iter().map(value).collect();
    graph.sort()?;
    Ok(graph)
}

/// What the node reads, in its subgraphs too.
fn reads(node: &Node) -> Vec<Cow<'_, str>> {
    let inputs = node.inputs.iter().map(|name| Cow::from(name.as_str()));
    inputs.chain(outer_names(node).into_iter().map(Cow::from)).collect()
}

/// A graph input, which must be a tensor of numbers.
fn input(proto: &ValueInfoProto) -> Result<Value> {
    let value = value(proto);
    if value.element.is_none() {
        let name = &value.name;
        bail!(Unsupported, "input {name:?} is no tensor of numbers; hone cannot supply it");
    }
    Ok(value)
}

/// The declared name, element type and shape.
pub fn value(proto: &ValueInfoProto) -> Value {
    let mut value = Value::named(proto.name.clone().unwrap_or_default());
    let Some(Type::TensorType(tensor)) = proto.r#type.as_option().and_then(|t| t.value.as_ref())
    else {
        return value;
    };
    value.element = tensor.elem_type.and_then(ElementType::from_onnx);
    let axis = |d: &DimensionProto| match &d.value {
        Some(Dim::DimValue(v)) => {
            usize::try_from(*v).map_or(Dimension::Symbol(String::new()), Dimension::Fixed)
        }
        Some(Dim::DimParam(name)) => Dimension::Symbol(name.clone()),
        None => Dimension::Symbol(String::new()),
    };
    value.shape = tensor.shape.as_option().map(|shape| shape.dim.iter().map(axis).collect());
    value
}

fn value_to_proto(value: &Value) -> ValueInfoProto {
    let mut proto = ValueInfoProto { name: Some(value.name.clone()), ..ValueInfoProto::default() };
    let Some(element) = value.element else { return proto };
    let axis = |d: &Dimension| DimensionProto {
        value: match d {
            Dimension::Fixed(length) => Some(Dim::DimValue(*length as i64)),
            Dimension::Symbol(name) if name.is_empty() => None,
            Dimension::Symbol(name) => Some(Dim::DimParam(name.clone())),
        },
        ..DimensionProto::default()
    };
    let mut tensor =
        type_proto::Tensor { elem_type: Some(element.to_onnx()), ..type_proto::Tensor::default() };
    if let Some(shape) = &value.shape {
        let dim = shape.iter().map(axis).collect();
        tensor.shape = TensorShapeProto { dim, ..TensorShapeProto::default() }.into();
    }
    proto.r#type = TypeProto { value: tensor.into(), ..TypeProto::default() }.into();
    proto
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::Attribute;
    use crate::onnx::proto::attribute_proto::AttributeType;
    use crate::onnx::proto::{AttributeProto, NodeProto};
    use crate::tensor::{Data, Tensor};

    fn roundtrip(graph: &Graph) -> Result<Graph> {
        Graph::from_model(&Model::from_bytes(&graph.to_bytes()?, None)?)
    }

    fn relu_chain() -> Graph {
        Graph {
            name: "chain".into(),
            opset: 18,
            domains: [("com.example".to_owned(), 1)].into(),
            nodes: vec![
                Node::new("MatMul", ["x", "w"], "a"),
                Node::new("Relu", ["a"], "b").with("alpha", 0.5),
                Node::new("Add", ["b", "bias"], "y").with("axes", vec![1i64, -2]),
            ],
            initializers: [
                ("w".to_owned(), Arc::new(Tensor::f32([2, 2], vec![1.0, -0.0, 3.0, 4.0]))),
                ("bias".to_owned(), Arc::new(Tensor::new([1], Data::Bool(vec![true])).unwrap())),
            ]
            .into(),
            inputs: vec![Value {
                name: "x".into(),
                element: Some(ElementType::F16),
                shape: Some(vec![
                    Dimension::Symbol("batch".into()),
                    Dimension::Symbol(String::new()),
                    Dimension::Fixed(2),
                ]),
            }],
            outputs: vec![Value::named("y")],
            functions: Vec::new(),
        }
    }

    fn constant(output: &str, attribute: AttributeProto) -> NodeProto {
        NodeProto {
            op_type: Some("Constant".into()),
            output: vec![output.into()],
            attribute: vec![attribute],
            ..NodeProto::default()
        }
    }

    fn assert_same(a: &Graph, b: &Graph) {
        assert_eq!(a.to_proto(), b.to_proto());
    }

    #[test]
    fn a_graph_survives_the_file_format() {
        let mut graph = relu_chain();
        graph.nodes[1].attributes.extend([
            ("string".to_owned(), Attribute::from("NOTSET")),
            ("floats".to_owned(), Attribute::Floats(vec![-0.0, 1.0])),
            ("tensor".to_owned(), Attribute::from(Tensor::i64([1], vec![7]))),
        ]);
        let again = roundtrip(&graph).unwrap();
        assert_same(&graph, &again);
        assert_eq!(graph.nodes, again.nodes);
        assert_eq!(graph.inputs, again.inputs);
        assert_eq!(graph.initializers, again.initializers);
        assert_eq!(graph.domains, again.domains);
    }

    #[test]
    fn nodes_out_of_order_are_sorted_and_others_stay() {
        let mut graph = relu_chain();
        graph.nodes.rotate_left(1);
        let again = roundtrip(&graph).unwrap();
        assert_same(&relu_chain(), &again);
    }

    #[test]
    fn a_cycle_names_its_nodes() {
        let mut graph = relu_chain();
        graph.nodes[0].inputs[0] = "b".into();
        graph.nodes[0].name = "first".into();
        let text = graph.sort().unwrap_err().to_string();
        assert!(text.contains(r#"MatMul node "first""#) && text.contains("Relu"), "{text}");
        assert!(!text.contains("Add"), "it is behind the cycle, not on it: {text}");
    }

    #[test]
    fn constants_of_every_form_become_initializers() {
        let named = |name: &str| AttributeProto { name: Some(name.into()), ..Default::default() };
        let tensor = Tensor::f32([2], vec![1.0, 2.0]);
        let mut proto = relu_chain().to_proto();
        let nodes = &mut proto.graph.as_option_mut().unwrap().node;
        nodes.extend([
            constant(
                "t",
                AttributeProto { t: storage::write("", &tensor).into(), ..named("value") },
            ),
            constant("i", AttributeProto { i: Some(3), ..named("value_int") }),
            constant("f", AttributeProto { f: Some(0.5), ..named("value_float") }),
            constant("is", AttributeProto { ints: vec![1, 2], ..named("value_ints") }),
            constant("fs", AttributeProto { floats: vec![1.5], ..named("value_floats") }),
            constant("s", AttributeProto { s: Some(b"text".to_vec()), ..named("value_string") }),
        ]);
        let model = Model::from_bytes(&proto.encode_to_vec(), None).unwrap();
        let graph = Graph::from_model(&model).unwrap();
        for (name, expected) in [
            ("t", tensor),
            ("i", Tensor::i64([], vec![3])),
            ("f", Tensor::scalar(0.5)),
            ("is", Tensor::i64([2], vec![1, 2])),
            ("fs", Tensor::f32([1], vec![1.5])),
        ] {
            assert_eq!(*graph.initializers[name], expected, "{name}");
            assert_eq!(model.tensor(name).unwrap(), expected, "{name}");
        }
        let left: Vec<_> = graph.nodes.iter().filter(|n| n.op == "Constant").collect();
        assert_eq!(left.len(), 1, "only the string stays a node");
        assert_eq!(left[0].output(0), Some("s"));
    }

    #[test]
    fn inputs_with_a_default_are_not_inputs() {
        let mut graph = relu_chain();
        graph.inputs.push(Value::fixed("w", ElementType::F32, &[2, 2]));
        assert_same(&relu_chain(), &roundtrip(&graph).unwrap());
    }

    #[test]
    fn constants_in_subgraphs_stay_where_they_are() {
        let inner = GraphProto {
            node: vec![
                constant(
                    "c",
                    AttributeProto {
                        name: Some("value_float".into()),
                        f: Some(1.0),
                        ..AttributeProto::default()
                    },
                ),
                nodes::to_proto(&Node::new("Add", ["c", "a"], "inner")),
            ],
            output: vec![value_to_proto(&Value::named("inner"))],
            ..GraphProto::default()
        };
        let branch = Attribute::Other(Box::new(AttributeProto {
            name: Some("then_branch".into()),
            r#type: Some(AttributeType::GRAPH),
            g: inner.into(),
            ..AttributeProto::default()
        }));
        let mut graph = relu_chain();
        graph.nodes.push(Node::new("If", ["bias"], "z").with("then_branch", branch));
        graph.nodes.rotate_right(1);
        let again = roundtrip(&graph).unwrap();
        assert!(!again.initializers.contains_key("c"));
        assert_eq!(
            again.nodes.iter().map(|n| &n.op[..]).collect::<Vec<_>>(),
            ["MatMul", "If", "Relu", "Add"]
        );
        assert_eq!(outer_names(&again.nodes[1]), ["a"]);
    }
}
