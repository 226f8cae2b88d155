//! The gRPC services: who may ask, what is asked, how a refusal looks. A file per service.

mod admin;
mod caller;
mod device;
mod peer;
mod snapshot;
mod topology;
mod volume;

use std::sync::Arc;

use bytes::Bytes;
use curve_types::VolumeId;
use curve_wire::proto::{VolumeRef, volume_ref};
use tonic::Status;

use crate::log::WireId;
use crate::node::{Node, not_found};
use crate::state::Volume;

pub use peer::PeerService;

/// Everything that a leader answers.
#[derive(Clone)]
pub struct Service(pub Arc<Node>);

impl Service {
    /// Finds a volume that is not being deleted, and takes from it what the caller wants.
    fn volume<T>(
        &self,
        reference: Option<&VolumeRef>,
        take: impl FnOnce(VolumeId, &Volume) -> T,
    ) -> Result<T, Status> {
        let state = self.0.state.read();
        match reference.and_then(|reference| reference.by.as_ref()) {
            Some(volume_ref::By::Name(name)) => {
                let (id, volume) = state
                    .volume_by_name(name)
                    .ok_or_else(|| not_found("volume", format_args!("{name:?}")))?;
                Ok(take(id, volume))
            }
            Some(volume_ref::By::Id(raw)) => {
                let id = volume_id(raw)?;
                let found = state.volumes.get(&id).filter(|volume| !volume.deleting);
                Ok(take(id, found.ok_or_else(|| not_found("volume", id))?))
            }
            None => Err(Status::invalid_argument("volume is missing: expected its id or name")),
        }
    }
}

fn volume_id(raw: &Bytes) -> Result<VolumeId, Status> {
    VolumeId::from_wire(raw).ok_or_else(|| bad_id("volume id", raw))
}

fn bad_id(field: &str, raw: &[u8]) -> Status {
    let message = format!("{field} has {} bytes: expected 16 that are not all zero", raw.len());
    Status::invalid_argument(message)
}

#[cfg(test)]
mod tests;
