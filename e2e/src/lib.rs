//! What the end-to-end tests share: driving kubectl, waiting with a reason, and patterns that say
//! which write a block came from. Tests are in `tests/`, one target per subject.

pub mod kubectl;
pub mod wait;
