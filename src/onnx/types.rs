//! Which float type each value of a graph has, as far as the graph says.
//!
//! A pass that adds a constant must give it the type of the value it meets: half precision models
//! take no float32 constants. Full type inference is ONNX Runtime's; here a node's results have
//! the type of its first input of a float type, which holds for every operator that a pass asks
//! about.

use std::collections::HashMap;

use half::{bf16, f16};

use crate::onnx::graph::{Graph, Node};
use crate::tensor::{Data, ElementType, Tensor};

/// The float types of values by name.
#[derive(Debug, Default)]
pub struct FloatTypes(HashMap<String, ElementType>);

impl FloatTypes {
    /// What the nodes of `graph`, in order, say.
    pub fn of(graph: &Graph) -> FloatTypes {
        let mut types = FloatTypes::default();
        let constants = graph.initializers.iter().map(|(n, t)| (n, t.element_type()));
        let inputs = graph.inputs.iter().filter_map(|v| Some((&v.name, v.element?)));
        let floats = constants.chain(inputs).filter(|(_, t)| t.is_float());
        types.0.extend(floats.map(|(name, element)| (name.clone(), element)));
        graph.nodes.iter().for_each(|node| types.note(node));
        types
    }

    /// Notes the results of one more node.
    pub fn note(&mut self, node: &Node) {
        let element = match (node.op.as_str(), node.int("to")) {
            ("Cast", Some(code)) => i32::try_from(code).ok().and_then(ElementType::from_onnx),
            _ => node.inputs.iter().find_map(|input| self.0.get(input).copied()),
        };
        if let Some(element) = element.filter(|e| e.is_float()) {
            self.0.extend(node.outputs.iter().map(|output| (output.clone(), element)));
        }
    }

    /// The scalar `value` in the type of the value `like`; float32 when that is unknown.
    pub fn scalar(&self, like: &str, value: f32) -> Tensor {
        let data = match self.0.get(like) {
            Some(ElementType::F64) => Data::F64(vec![value.into()]),
            Some(ElementType::F16) => Data::F16(vec![f16::from_f32(value)]),
            Some(ElementType::BF16) => Data::BF16(vec![bf16::from_f32(value)]),
            _ => Data::F32(vec![value]),
        };
        Tensor::new([], data).expect("a scalar has one element")
    }
}
