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

/// An error with its causes on one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text += &format!(": {next}");
        }
        cause = error.source();
    }
    text
}
