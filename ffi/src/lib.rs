//! The C ABI of hone. Each module is a noun of the header, in the header's order; `include/hone.h`
//! is made from them by cbindgen, comments included, so what is said here is said to C programmers.
//!
//! Three functions carry the boundary: `error::guard` turns errors and panics into return values,
//! `options::read` takes structs of callers older or newer than this library, and
//! `arguments::slice` checks what arrives as pointer and length.
#![allow(non_camel_case_types, reason = "the types bear the names that C knows them by")]

mod arguments;
mod callback;
pub mod error;
mod options;
pub mod version;

pub mod log_sink;

pub mod tensor;

pub mod report;

pub mod engine;

pub mod model;

pub mod samples;

pub mod job;

mod process;
pub mod prune;

pub mod finetune;

pub mod evaluate;

pub mod scorer;

pub mod likelihood;

pub mod mam_train;

pub mod gradients;

pub mod fisher;

pub mod weights;

pub mod optimizer;
