//! Gradients of the prunable weights: the rows of G that the Fisher F = λI + (1/m) GᵀG is made of.
//!
//! [`prepare`](prepare::prepare) fixes the batch, observes shapes and [unrolls](unroll) recurrent
//! layers, [`parameters`] lays the
//! prunable tensors out in one flat vector, [`seed`] decides what is differentiated, and
//! [`collect`] streams the rows.

pub mod collect;
pub mod parameters;
pub mod prepare;
pub mod product;
pub mod seed;
pub mod unroll;
