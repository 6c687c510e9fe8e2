//! Training on ONNX graphs: the loss of a batch, its gradient, and optimizer steps.
//!
//! A loss is a scalar value L of a graph, whatever computes it: [`objective`] appends the usual
//! ones (cross-entropy, squared error, distillation) to a model, and a graph may bring its own,
//! with extra inputs for targets, masks or weights. [`StepGraph`] is that graph with its backward
//! pass, the trained tensors being *inputs*, so that one loaded session serves every step w ← w −
//! ηv. A batch is cut into shards of fixed size; worker threads run them in sessions of one
//! thread, and L and ∂L/∂w are the means over the shards, summed in their order: the same bits for
//! any number of threads. [`Parameters`] lines the tensors up in the flat vector that
//! [`crate::mfac::Optimizer`] steps in; weights that are to stay zero are not part of it.
//! [`Trainer`] puts these together and saves and restores the state exactly.

pub mod checkpoint;
mod graph;
mod job;
pub mod objective;
mod parameters;
pub mod report;
mod select;
mod trainer;
mod tuner;
mod workers;

pub use graph::StepGraph;
pub(crate) use job::settings;
pub use job::{Job, Length, Plan, Run, held_alone};
pub use objective::{Distillation, Loss, Objective};
pub use parameters::Parameters;
pub use select::Trained;
pub use trainer::{StepFigures, TrainOptions, Trainer};
pub use tuner::{Kind, Metric, TuneOptions, Tuner, WindowDamping};
pub use workers::Workers;
