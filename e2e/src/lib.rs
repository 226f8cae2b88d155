//! What the end-to-end tests share: driving kubectl, workloads, the engine's processes, and
//! waiting with a reason. Tests are in `tests/`, one target per subject.

pub mod engine;
pub mod kubectl;
pub mod load;
pub mod metrics;
pub mod playground;
pub mod wait;
pub mod workload;
