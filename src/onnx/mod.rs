//! ONNX models as data: the protobuf message in and out, the working graph, checks and edits.

mod convert;
pub mod graph;
mod model;
pub mod proto;
pub mod storage;

pub use graph::{Attribute, Dimension, Graph, Node, Value};
pub use model::Model;
