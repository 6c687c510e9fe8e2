//! The inner loops: free functions over slices that take scratch and never allocate.
//!
//! One register tile, [`tile`], serves every product of matrices; [`panel`] lays operands out for
//! it, [`syrk`] builds symmetric products from it. Unsafe code and processor features are confined
//! to the innermost files, behind safe functions that check lengths and choose the code path.

pub mod panel;
pub mod syrk;
pub mod tile;
