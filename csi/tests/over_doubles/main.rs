//! The driver, whole, over doubles of the MDS and the agent.

mod clusters;
mod controller;
mod doubles;
mod node;
mod sanity;
