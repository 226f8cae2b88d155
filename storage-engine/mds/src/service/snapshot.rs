//! Snapshots: what the calls of `MdsVolume` about them do.

use curve_types::VolumeId;
use curve_wire::proto::{
    CreateSnapshotsRequest, CreateSnapshotsResponse, ListSnapshotsRequest, ListVolumesResponse,
    NewSnapshot, RollbackRequest, VolumeRef, volume_ref,
};
use tonic::Status;

use super::volume::{message, page_limit};
use super::{Service, volume_id};
use crate::log::{self, WireId, command::Kind};
use crate::node::{not_found, validate_request_id};
use crate::snapshots;
use crate::state::Snapshot;

impl Service {
    /// The names say which request it is: the same one again finds what the first has made.
    pub(super) async fn take_snapshots(
        &self,
        asked: CreateSnapshotsRequest,
    ) -> Result<CreateSnapshotsResponse, Status> {
        let CreateSnapshotsRequest { snapshots, request_id } = asked;
        validate_request_id(&request_id)?;
        let mut wanted = Vec::new();
        for NewSnapshot { volume, name } in snapshots {
            wanted.push((self.volume(volume.as_ref(), |id, _| id)?, name));
        }
        let ids = snapshots::take(&self.0, wanted).await?;
        let snapshots = ids.into_iter().map(|id| Ok(self.volume_message(id)?.into_inner()));
        Ok(CreateSnapshotsResponse { snapshots: snapshots.collect::<Result<_, Status>>()? })
    }

    pub(super) fn snapshots_page(
        &self,
        asked: ListSnapshotsRequest,
    ) -> Result<ListVolumesResponse, Status> {
        let ListSnapshotsRequest { volume, after_name, limit } = asked;
        let origin = self.origin(volume.as_ref())?;
        Ok(self.0.look(|scene| {
            let all = scene.state.snapshots_after(&after_name);
            let mut after = all.filter(|(.., snapshot)| origin.matches(snapshot));
            let page = after.by_ref().take(page_limit(limit));
            let volumes = page.map(|(id, volume, _)| message(scene, id, volume)).collect();
            ListVolumesResponse { volumes, more: after.next().is_some() }
        }))
    }

    /// Snapshots outlive their volume, which may then be asked for all the same. A name that
    /// neither has is a mistake.
    fn origin(&self, volume: Option<&VolumeRef>) -> Result<Origin, Status> {
        let Some(reference) = volume else { return Ok(Origin::Any) };
        match &reference.by {
            Some(volume_ref::By::Id(raw)) => Ok(Origin::Id(volume_id(raw)?)),
            Some(volume_ref::By::Name(name)) => {
                let origin = Origin::Name(name.clone());
                let state = self.0.state.read();
                let mut left = state.snapshots_after("");
                let known = state.volume_by_name(name).is_some()
                    || left.any(|(.., snapshot)| origin.matches(snapshot));
                let missing = || not_found("volume", format_args!("{name:?}"));
                known.then_some(origin).ok_or_else(missing)
            }
            None => self.volume(volume, |id, _| Origin::Id(id)),
        }
    }

    /// The command of a rollback.
    pub(super) fn rollback_command(&self, asked: &RollbackRequest) -> Result<Kind, Status> {
        let id = self.volume(asked.volume.as_ref(), |id, _| id)?;
        let snapshot = self.volume(asked.snapshot.as_ref(), |id, _| id)?;
        let live_sessions = self.live_sessions(id).into_iter().map(|live| live.id).collect();
        let (volume_id, snapshot_id) = (id.to_wire(), snapshot.to_wire());
        Ok(Kind::Rollback(log::Rollback { volume_id, snapshot_id, live_sessions }))
    }
}

/// Whose snapshots are listed.
enum Origin {
    Any,
    Id(VolumeId),
    Name(String),
}

impl Origin {
    fn matches(&self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Any => true,
            Self::Id(id) => snapshot.volume == *id,
            Self::Name(name) => snapshot.volume_name == *name,
        }
    }
}
