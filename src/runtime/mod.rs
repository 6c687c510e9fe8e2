//! ONNX Runtime, found and loaded once per process, and sessions on it.
//!
//! hone never links ONNX Runtime: it loads a shared library at run time ([`library`]), so that a
//! host can bring its own and a missing one is an error with instructions instead of a program
//! that does not start. A [`Session`] runs one graph on one [`Device`].

mod device;
mod library;
mod program;
mod session;

pub use device::Device;
pub use library::{load, use_api, use_library};
pub use program::Program;
pub use session::{Outputs, Session, SessionOptions};

pub(crate) use crate::sys::{Numbers, Prepared};
