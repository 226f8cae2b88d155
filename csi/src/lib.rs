//! The CSI driver `block.csi.curve.io`: Kubernetes' volume requests, carried out by the MDS of a
//! Curve cluster and by the agent of a node.
//!
//! `controller`, `group_controller` and `node` hold a file per RPC: parse, plan (pure), execute. What they ask of the
//! rest of Curve is in `volumes` and `attachments`. Every RPC goes through `rpc`, which joins
//! repeated calls, logs and counts. No volume state is kept here: it is in the MDS, in the agent
//! and in the node's mount table.

pub mod attachments;
pub mod capability;
pub mod clusters;
pub mod controller;
pub mod error;
pub mod group_controller;
pub mod handle;
pub mod health;
pub mod identity;
pub mod limits;
pub mod names;
pub mod node;
pub mod parameters;
pub mod registration;
pub mod rpc;
pub mod server;
pub mod size;
pub mod volumes;

/// Name under which Kubernetes knows the driver.
pub const DRIVER_NAME: &str = "block.csi.curve.io";
/// Version that identity reports.
pub const DRIVER_VERSION: &str = env!("CARGO_PKG_VERSION");
/// The one topology segment. A Curve volume is reachable from every node that runs the node
/// plugin and from no other, so that is all there is to say; kubelet turns the segment into a
/// node label, and the scheduler keeps pods off nodes that could never attach their volume.
pub const TOPOLOGY_KEY: &str = "block.csi.curve.io/attachable";
/// Value of `TOPOLOGY_KEY` wherever the node plugin runs.
pub const TOPOLOGY_VALUE: &str = "true";
