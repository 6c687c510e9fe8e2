//! hone compresses ONNX models with second-order information (M-FAC).
#![warn(missing_docs)]

pub mod atomic_file;
pub mod autodiff;
pub mod calibration;
pub mod cancel;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod gradient;
pub mod inspect;
pub mod mam;
pub mod mfac;
pub mod onnx;
pub mod progress;
pub mod prune;
pub mod random;
pub mod runtime;
mod sys;
pub mod tensor;
pub mod train;

pub use error::{Error, ErrorKind, Result};
