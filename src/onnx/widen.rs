//! Half precision models become float32 models, in the working graph only.
//!
//! M-FAC sums squares of gradients, which float16 cannot hold, and ONNX Runtime computes half
//! precision on the processor in float32 anyway. The model file keeps its types; new weights are
//! rounded to them when they are written.

use std::sync::Arc;

use crate::onnx::graph::{Attribute, Graph, Node};
use crate::tensor::{ElementType, Tensor};

/// Makes every float16 and bfloat16 value of `graph` a float32 one: constants, declared inputs and
/// outputs, and what casts and generators produce. A graph with subgraphs stays as it is, since
/// their types would have to change with it.
pub fn widen(graph: &mut Graph) {
    if graph.nodes.iter().any(Node::has_subgraph) {
        return;
    }
    for tensor in graph.initializers.values_mut() {
        widen_tensor(tensor);
    }
    for value in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        value.element = value.element.map(widened);
    }
    for attribute in graph.nodes.iter_mut().filter(|n| n.domain.is_empty()).flat_map(types_of) {
        match attribute {
            Attribute::Int(code) => *code = widened_code(*code),
            Attribute::Tensor(tensor) => widen_tensor(tensor),
            _ => {}
        }
    }
}

/// The attributes that set the element type of a result: `Cast` has `to`, random numbers and
/// `EyeLike` have `dtype`, `ConstantOfShape` has `value`.
fn types_of(node: &mut Node) -> impl Iterator<Item = &mut Attribute> {
    let named = |name: &str| matches!(name, "to" | "dtype" | "output_dtype" | "value");
    node.attributes.iter_mut().filter(move |(name, _)| named(name)).map(|(_, value)| value)
}

fn widened_code(code: i64) -> i64 {
    let element = i32::try_from(code).ok().and_then(ElementType::from_onnx);
    element.map_or(code, |e| widened(e).to_onnx().into())
}

fn widened(element: ElementType) -> ElementType {
    match element {
        ElementType::F16 | ElementType::BF16 => ElementType::F32,
        other => other,
    }
}

fn widen_tensor(tensor: &mut Arc<Tensor>) {
    if widened(tensor.element_type()) != tensor.element_type() {
        *tensor = Arc::new(Tensor::f32(tensor.shape(), tensor.to_f32()));
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::onnx::Value;
    use crate::tensor::Data;

    #[test]
    fn every_half_precision_type_widens_and_no_other_changes() {
        let half = |values: &[f32]| {
            let data = values.iter().map(|&v| f16::from_f32(v)).collect();
            Arc::new(Tensor::new([values.len()], Data::F16(data)).unwrap())
        };
        let (f16_code, i64_code) =
            (i64::from(ElementType::F16.to_onnx()), i64::from(ElementType::I64.to_onnx()));
        let fill = Attribute::Tensor(half(&[0.5]));
        let mut graph = Graph {
            nodes: vec![
                Node::new("Cast", ["x"], "a").with("to", f16_code),
                Node::new("Cast", ["x"], "b").with("to", i64_code),
                Node::new("ConstantOfShape", ["b"], "c").with("value", 0i64),
                Node::new("Flatten", ["x"], "d").with("axis", f16_code),
            ],
            initializers: [
                ("w".to_owned(), half(&[1.5, -2.0])),
                ("n".to_owned(), Arc::new(Tensor::i64([1], vec![10]))),
            ]
            .into(),
            inputs: vec![Value::fixed("x", ElementType::F16, &[2])],
            outputs: vec![Value::fixed("y", ElementType::F64, &[2])],
            ..Graph::default()
        };
        graph.nodes[2].attributes.insert("value".into(), fill);
        widen(&mut graph);
        assert_eq!(graph.initializers["w"].as_f32().unwrap(), [1.5, -2.0]);
        assert_eq!(graph.initializers["n"].element_type(), ElementType::I64);
        assert_eq!(graph.inputs[0].element, Some(ElementType::F32));
        assert_eq!(graph.outputs[0].element, Some(ElementType::F64));
        assert_eq!(graph.nodes[0].int("to"), Some(ElementType::F32.to_onnx().into()));
        assert_eq!(graph.nodes[1].int("to"), Some(i64_code));
        let Attribute::Tensor(fill) = &graph.nodes[2].attributes["value"] else { panic!() };
        assert_eq!(fill.as_f32().unwrap(), [0.5]);
        assert_eq!(graph.nodes[3].int("axis"), Some(f16_code), "an axis is no type");
    }
}
