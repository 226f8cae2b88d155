//! Volumes, publications and sessions.

use bytes::Bytes;
use curve_types::{LimitsChange, SessionId, VolumeId, VolumeLimits};
use curve_wire::proto::mds_volume_client::MdsVolumeClient;
use curve_wire::proto::{
    AttachRequest, CreateSnapshotsRequest, CreateVolumeRequest, DeleteVolumeRequest, DetachRequest,
    ListSnapshotsRequest, ListVolumesRequest, ListVolumesResponse, NewSnapshot, PublishRequest,
    RenewSessionRequest, RenewSessionResponse, ResizeVolumeRequest, RollbackRequest,
    SetLimitsRequest, UnpublishRequest, Volume, VolumeRef, volume_ref,
};

use super::leader::ANSWER_BYTES_MAX;
use super::{MdsClient, MdsError, request_id};
use crate::Session;

/// A volume, by its lasting id or its present name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VolumeBy {
    Id(VolumeId),
    Name(String),
}

impl From<VolumeId> for VolumeBy {
    fn from(id: VolumeId) -> Self {
        Self::Id(id)
    }
}

impl From<&str> for VolumeBy {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<VolumeBy> for VolumeRef {
    fn from(by: VolumeBy) -> Self {
        let by = match by {
            VolumeBy::Id(id) => volume_ref::By::Id(id_bytes(id)),
            VolumeBy::Name(name) => volume_ref::By::Name(name),
        };
        Self { by: Some(by) }
    }
}

fn id_bytes(id: VolumeId) -> Bytes {
    Bytes::copy_from_slice(&id.to_bytes())
}

/// A volume to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateVolume {
    pub name: String,
    pub pool: String,
    /// Bytes; 0 for the size of the source.
    pub size: u64,
    pub limits: VolumeLimits,
    /// A snapshot whose data it begins with.
    pub source: Option<VolumeBy>,
}

/// How a volume is attached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AttachOptions {
    pub node: String,
    pub read_only: bool,
    /// Beside other shared attachments.
    pub shared: bool,
    /// Fence an existing session instead of being refused.
    pub force: bool,
}

impl MdsClient {
    /// Makes a volume; the existing one if it has the same name and properties.
    pub async fn create_volume(&self, volume: CreateVolume) -> Result<Volume, MdsError> {
        let CreateVolume { name, pool, size, limits, source } = volume;
        let (limits, source) = (Some(limits.into()), source.map(VolumeRef::from));
        let request_id = request_id();
        let request = CreateVolumeRequest { name, pool, size, request_id, limits, source };
        self.call_fencing("create volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).create(request).await
        })
        .await
    }

    pub async fn get_volume(&self, volume: impl Into<VolumeBy>) -> Result<Volume, MdsError> {
        let request = VolumeRef::from(volume.into());
        self.call("get volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).get(request).await
        })
        .await
    }

    /// One page of volumes in order of name: those after `after_name` (empty: from the first), at
    /// most `limit` (0: 1000).
    pub async fn list_volumes(
        &self,
        after_name: &str,
        limit: u32,
    ) -> Result<ListVolumesResponse, MdsError> {
        let request = ListVolumesRequest { after_name: after_name.to_owned(), limit };
        self.call("list volumes", request, |channel, request| async move {
            let client = MdsVolumeClient::new(channel);
            client.max_decoding_message_size(ANSWER_BYTES_MAX).list(request).await
        })
        .await
    }

    /// Takes a snapshot of each volume under the name given with it, all at one point in time.
    pub async fn create_snapshots(
        &self,
        snapshots: impl IntoIterator<Item = (VolumeBy, String)>,
    ) -> Result<Vec<Volume>, MdsError> {
        let snapshots = snapshots.into_iter();
        let snapshots = snapshots
            .map(|(volume, name)| NewSnapshot { volume: Some(volume.into()), name })
            .collect();
        let request = CreateSnapshotsRequest { snapshots, request_id: request_id() };
        let answer = self
            .call_fencing("create snapshot", request, |channel, request| async move {
                MdsVolumeClient::new(channel).create_snapshots(request).await
            })
            .await?;
        Ok(answer.snapshots)
    }

    /// One page of the snapshots of `volume`, or of all, in order of their names `VOLUME@SNAPSHOT`.
    pub async fn list_snapshots(
        &self,
        volume: Option<VolumeBy>,
        after_name: &str,
        limit: u32,
    ) -> Result<ListVolumesResponse, MdsError> {
        let (volume, after_name) = (volume.map(VolumeRef::from), after_name.to_owned());
        let request = ListSnapshotsRequest { volume, after_name, limit };
        self.call("list snapshots", request, |channel, request| async move {
            let client = MdsVolumeClient::new(channel);
            client.max_decoding_message_size(ANSWER_BYTES_MAX).list_snapshots(request).await
        })
        .await
    }

    /// Gives a volume that nobody uses the data of one of its snapshots.
    pub async fn rollback_volume(
        &self,
        volume: impl Into<VolumeBy>,
        snapshot: impl Into<VolumeBy>,
    ) -> Result<Volume, MdsError> {
        let (volume, snapshot) = (Some(volume.into().into()), Some(snapshot.into().into()));
        let request = RollbackRequest { volume, snapshot, request_id: request_id() };
        self.call_fencing("roll back volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).rollback(request).await
        })
        .await
    }

    /// Grows a volume to `size` bytes.
    pub async fn resize_volume(
        &self,
        volume: impl Into<VolumeBy>,
        size: u64,
    ) -> Result<Volume, MdsError> {
        let volume = Some(volume.into().into());
        let request = ResizeVolumeRequest { volume, size, request_id: request_id() };
        self.call("resize volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).resize(request).await
        })
        .await
    }

    /// Changes limits of a volume. Whoever has it attached keeps them from its next renewal on.
    pub async fn set_volume_limits(
        &self,
        volume: impl Into<VolumeBy>,
        change: LimitsChange,
    ) -> Result<Volume, MdsError> {
        let (volume, limits) = (Some(volume.into().into()), Some(change.into()));
        let request = SetLimitsRequest { volume, limits, request_id: request_id() };
        self.call("set limits of volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).set_limits(request).await
        })
        .await
    }

    /// Deletes a volume; done if there is none.
    pub async fn delete_volume(&self, volume: impl Into<VolumeBy>) -> Result<(), MdsError> {
        let volume = Some(volume.into().into());
        let request = DeleteVolumeRequest { volume, request_id: request_id() };
        self.call("delete volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).delete(request).await
        })
        .await?;
        Ok(())
    }

    /// Allows `node` to attach the volume.
    pub async fn publish_volume(
        &self,
        volume: impl Into<VolumeBy>,
        node: &str,
        read_only: bool,
        shared: bool,
    ) -> Result<(), MdsError> {
        let request = PublishRequest {
            volume: Some(volume.into().into()),
            node: node.to_owned(),
            read_only,
            shared,
            request_id: request_id(),
        };
        self.call("publish volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).publish(request).await
        })
        .await?;
        Ok(())
    }

    /// Takes the permission back and fences what `node` (empty: any node) still has open.
    pub async fn unpublish_volume(
        &self,
        volume: impl Into<VolumeBy>,
        node: &str,
    ) -> Result<(), MdsError> {
        let volume = Some(volume.into().into());
        let request = UnpublishRequest { volume, node: node.to_owned(), request_id: request_id() };
        self.call_fencing("unpublish volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).unpublish(request).await
        })
        .await?;
        Ok(())
    }

    /// Opens a session: on return every copyset of the volume refuses older ones.
    pub async fn attach(
        &self,
        volume: impl Into<VolumeBy>,
        options: &AttachOptions,
    ) -> Result<Session, MdsError> {
        let AttachOptions { node, read_only, shared, force } = options.clone();
        let volume = Some(volume.into().into());
        let request_id = request_id();
        let request = AttachRequest { volume, node, read_only, force, request_id, shared };
        let session = self
            .call_fencing("attach volume", request, |channel, request| async move {
                MdsVolumeClient::new(channel).attach(request).await
            })
            .await?;
        session.try_into().map_err(|error| MdsError::malformed("attach volume", error))
    }

    /// Keeps a session alive. `NotFound`: it is fenced.
    pub async fn renew_session(
        &self,
        session: SessionId,
        volume: VolumeId,
    ) -> Result<RenewSessionResponse, MdsError> {
        let request = RenewSessionRequest { session: session.0, volume_id: id_bytes(volume) };
        self.call("renew session", request, |channel, request| async move {
            MdsVolumeClient::new(channel).renew_session(request).await
        })
        .await
    }

    /// Ends a session.
    pub async fn detach(&self, session: SessionId, volume: VolumeId) -> Result<(), MdsError> {
        let (session, volume_id) = (session.0, id_bytes(volume));
        let request = DetachRequest { session, volume_id, request_id: request_id() };
        self.call("detach volume", request, |channel, request| async move {
            MdsVolumeClient::new(channel).detach(request).await
        })
        .await?;
        Ok(())
    }
}
