//! A graph in the form ONNX Runtime takes: a serialized model, and beside it the tensors that are
//! too large to be copied through protobuf.
//!
//! Large tensors are only named in the file, as external data, and handed over in memory; so
//! sessions share one copy of them, and models beyond protobuf's 2 GB run. No file is ever read.

use std::sync::Arc;

use ort::value::DynValue;

use super::library;
use super::session::owned;
use crate::error::Result;
use crate::onnx::Graph;

/// Float tensors from this size on stay outside the file.
const MIN_OUTSIDE_BYTES: usize = 1 << 20;

/// A serialized graph, to be loaded by any number of sessions.
#[derive(Debug)]
pub struct Program {
    pub(super) file: Vec<u8>,
    /// The initializers that the file only names.
    pub(super) outside: Vec<(String, Arc<DynValue>)>,
}

impl Program {
    /// Serializes a working graph. Errors where what has to be in the file exceeds 2 GB.
    pub fn of_graph(graph: &Graph) -> Result<Program> {
        Program::split(graph, MIN_OUTSIDE_BYTES)
    }

    /// A model file as it is, all of its tensors inside.
    pub fn from_file(file: Vec<u8>) -> Program {
        Program { file, outside: Vec::new() }
    }

    fn split(graph: &Graph, min_outside_bytes: usize) -> Result<Program> {
        // Values are made by ONNX Runtime.
        library::load()?;
        let (file, names) = graph.to_bytes_without(min_outside_bytes)?;
        let value = |name: String| {
            let tensor = graph.initializers[&name].as_ref().clone();
            Ok((name, Arc::new(owned(tensor)?)))
        };
        let outside = names.into_iter().map(value).collect::<Result<_>>()?;
        Ok(Program { file, outside })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::onnx::{Dimension, Node, Value};
    use crate::runtime::{Session, SessionOptions};
    use crate::tensor::{ElementType, Tensor};

    #[test]
    fn tensors_outside_the_file_give_the_same_answers() {
        let input = Value {
            name: "x".into(),
            element: Some(ElementType::F32),
            shape: Some(vec![Dimension::Symbol("n".into()), Dimension::Fixed(3)]),
        };
        let weight = Tensor::f32([3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let shape = Tensor::i64([1], vec![-1]);
        let graph = Graph {
            name: "g".into(),
            opset: 18,
            nodes: vec![
                Node::new("MatMul", ["x", "w"], "a"),
                Node::new("Reshape", ["a", "shape"], "y"),
            ],
            initializers: [
                ("w".to_owned(), Arc::new(weight)),
                ("shape".to_owned(), Arc::new(shape)),
            ]
            .into(),
            inputs: vec![input],
            outputs: vec![Value::named("y")],
            ..Graph::default()
        };
        let x = Tensor::f32([1, 3], vec![1.0, 10.0, 100.0]);
        // All inside, the weight outside; a shape is inside whatever its size.
        for (min_outside_bytes, outside) in [(25, 0), (24, 1), (0, 1)] {
            let program = Program::split(&graph, min_outside_bytes).unwrap();
            assert_eq!(program.outside.len(), outside);
            let mut session = Session::new(&program, &SessionOptions::default()).unwrap();
            let outputs = session.run([("x", &x)], &Cancel::new()).unwrap();
            assert_eq!(outputs.f32("y").unwrap(), (vec![2], &[531.0, 642.0][..]));
        }
    }
}
