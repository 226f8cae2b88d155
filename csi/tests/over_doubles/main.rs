//! The driver, whole, over doubles of the MDS and the agent.

mod clusters;
mod controller;
mod doubles;
mod groups;
mod node;
mod sanity;
mod snapshots;
