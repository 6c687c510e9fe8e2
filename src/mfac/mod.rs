//! The mathematics of M-FAC, over plain slices: the inverse of the empirical Fisher, never formed.
//!
//! With the m×d matrix G of gradients, the curvature is F = λI + GᵀG/m. Everything hone asks of it
//! is a diagonal, a block or a product of F⁻¹. Blocks no wider than m are held in *primal* form
//! (GᵀG of the block, summed while gradients stream by); wider ones and the whole of F in *dual*
//! form, through the m×m matrix S = mλI + GGᵀ and the identity F⁻¹ = (I − GᵀS⁻¹G)/λ.

pub mod block;
pub mod block_fixed;
pub mod dense;
pub mod fixed;
pub(crate) mod kernels;
pub mod machine;
pub mod optimizer;
mod parallel;
mod passes;
pub mod sliding;
pub mod store;

pub use block::BlockFisher;
pub use block_fixed::BlockFixed;
pub use fixed::Fixed;
pub use optimizer::Optimizer;
pub use sliding::Sliding;
pub use store::{GradientStore, Gradients, Storage};

#[cfg(test)]
mod tolerance;
