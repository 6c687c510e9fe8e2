//! ONNX models as data: the protobuf message in and out, the working graph, checks and edits.

mod check;
mod convert;
pub mod external;
pub mod graph;
mod model;
mod order;
pub mod proto;
mod save;
pub mod storage;
mod walk;

pub use graph::{Attribute, Dimension, Graph, Node, Value};
pub use model::Model;
