//! ONNX models as data: the protobuf message in and out, the working graph, checks and edits.

mod check;
mod contrib;
mod convert;
pub mod external;
pub mod graph;
mod import;
mod inline;
mod model;
mod nodes;
mod order;
pub mod proto;
mod save;
pub mod storage;
mod types;
mod upgrade;
mod walk;
mod widen;

pub use graph::{Attribute, Dimension, Graph, Node, Value};
pub use import::import;
pub use model::Model;
