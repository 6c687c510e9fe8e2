//! ONNX models as data: the protobuf message in and out, the working graph, checks and edits.

pub mod graph;
pub mod proto;

pub use graph::{Attribute, Dimension, Graph, Node, Value};
