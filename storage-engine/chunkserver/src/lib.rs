//! Serves one disk: replicas of many copysets, and the data plane in front of them.
//!
//! `machine` is what a copyset replicates, `service` what callers may ask, `fairness` how much of
//! that each volume may have under way, `device` how a disk gets its identity, `heartbeat` and
//! `orders` the talk with the MDS, `server` puts it together.
//! Where copysets should be is the MDS's business, not ours.

mod addresses;
mod admission;
mod device;
mod digest;
mod fairness;
mod freezes;
mod heartbeat;
mod machine;
mod metrics;
mod options;
mod orders;
mod reads;
mod repair;
mod scrub;
mod server;
mod service;

pub use addresses::AddressBook;
pub use device::DeviceError;
pub use options::ChunkserverOptions;
pub use server::{BlockServer, BlockServerOptions, ChunkserverError, Listeners, run, serve};
