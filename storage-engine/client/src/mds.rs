//! Calls to the MDS: one method per RPC, answered by whoever leads.
//!
//! `leader` finds the leader and retries; `admin`, `volumes`, `devices` hold the calls by service.
//! A mutation's request id is made once per call, so that a retry has the effect of one call.

mod admin;
mod devices;
mod error;
mod leader;
mod topology;
mod volumes;

pub use admin::CreatePool;
pub use error::{MdsError, MdsErrorKind};
pub use leader::MdsClient;
pub(crate) use topology::{Route, TopologyWatch};
pub use volumes::{AttachOptions, CreateVolume, VolumeBy};

use bytes::Bytes;

/// A fresh request id.
fn request_id() -> Bytes {
    Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes())
}
