//! The inner loops: free functions over slices that take scratch and never allocate.
//!
//! One register tile, [`tile`], serves every product of matrices; [`panel`] lays operands out for
//! it, [`syrk`] symmetric products from it, [`sweep`] inverses and [`norms`] the column norms
//! of T·G. [`gemv`] has the passes over G that a product with a vector takes, and [`ahead`] asks
//! for what the next step reads; [`vectors`] says which code may run. Unsafe code and processor
//! features are confined to the innermost files, behind safe functions that check lengths and
//! choose the code path.

pub mod ahead;
pub mod cast;
pub mod gemv;
pub mod norms;
pub mod panel;
pub mod sweep;
pub mod syrk;
pub mod tile;
pub mod transpose;
pub mod vectors;
