//! Marginalization models (MaM, Liu, Ramadge, Adams, ICML 2024): any marginal of a discrete x by
//! one pass of f_θ(x_S) ≈ log p(x_S), any conditional p_φ(x_i | x_S), and answers that say how they
//! were obtained and how far they can be trusted.
//!
//! [`contract`] is what an ONNX file has to be, [`Mam`] a loaded model. Queries take rows of values
//! in which −1 is missing, and return one result per row, in their order: a bad row has an error of
//! its own. A row's answer does not depend on the rows beside it or on the number of threads.

mod adapt;
mod chain;
mod check;
mod condition;
pub mod contract;
mod data;
mod half;
mod kept;
mod model;
pub mod networks;
mod pareto;
pub mod prune;
mod rows;
mod sample;
mod score;
pub mod train;

pub use adapt::{Foreign, adapt};
pub use chain::{ChainScore, Orders};
pub use check::{CheckOptions, Consistency, LEAST_EFFECTIVE_DRAWS, Normaliser, Residuals};
pub use condition::{Conditional, SiteDistribution, Source};
pub use contract::Contract;
pub use data::{RowData, read_rows, read_training_rows, row_text, write_npy};
pub use half::{BatchEffect, DEFAULT_BATCH, LoadOptions};
pub use model::Mam;
pub use networks::{Network, Size};
pub use pareto::LARGEST_TAIL;
pub use rows::{MISSING, Rows};
pub use sample::{FillOrder, Sample, SampleOptions};
pub use score::{Bracket, Method, Score, ScoreOptions};
