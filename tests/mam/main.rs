//! Marginalization models against exact enumeration: small nets that are tables, consistent to the
//! last bit or wrong on purpose, whose every marginal the tests add up in f64 themselves.

mod adapters;
mod cli;
mod contract;
mod energies;
mod networks;
mod pruning;
mod queries;
mod rows;
mod sampling;
mod tables;
mod training;
