//! The Curve operator: turns `CurveCluster` and `CurvePool` objects into running processes.
//!
//! One directory per controller, each a pipeline: dereference (client) -> validate (pure) ->
//! build (pure) -> apply (client) -> update_status.

pub mod api;
pub mod cluster;
mod condition;
pub mod context;
pub mod crd;
#[cfg(test)]
mod fixtures;
pub mod metrics;
mod object;
pub mod pool;
pub mod run;
#[cfg(test)]
mod scenario;
