//! The developer's commands: a local Kubernetes without Docker, images, checks and test runs.
//!
//! A library, so that end-to-end tests can stop and start nodes of the same cluster;
//! nothing of the product is linked in here, and nothing here ends up in a product image.

pub mod bench;
pub mod check;
pub mod cluster;
pub mod command;
pub mod deploy;
pub mod fuzz;
pub mod image;
pub mod packages;
pub mod paths;
pub mod progress;
pub mod test;
pub mod tools;
pub mod up;
