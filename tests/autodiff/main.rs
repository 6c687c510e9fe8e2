//! Every gradient rule, against central finite differences of ONNX Runtime's own forward kernels,
//! over single-operator graphs with random geometry.
//!
//! For random directions v and cotangents c the directional derivative ⟨∂⟨c, f⟩/∂x, v⟩ is compared
//! with (⟨c, f(x + hv)⟩ − ⟨c, f(x − hv)⟩)/2h, extrapolated from h and h/2 to remove the h² term.

mod harness;

mod conv;
mod elementwise;
mod index;
mod matmul;
mod node_cases;
mod norm;
mod pool;
mod recurrent;
mod reduce;
mod resize;
mod shape;
mod walk;
