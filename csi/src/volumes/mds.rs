//! One cluster's MDS, over mutual TLS. `curve_client` finds the leader and retries; here are only
//! the two vocabularies.

use std::sync::Arc;

use async_trait::async_trait;
use curve_client::{CreateVolume, MdsClient, MdsError, MdsErrorKind, VolumeBy};
use curve_types::{ClusterId, LimitsChange, VolumeId};
use curve_wire::proto;

use super::{
    Connector, NewVolume, PoolSpace, SnapshotInfo, SnapshotPage, VolumeError, VolumeInfo,
    VolumePage, VolumeService,
};
use crate::capability::Sharing;
use crate::clusters::Connection;

/// Connects to the MDS processes of a connection.
pub struct MdsConnector;

#[async_trait]
impl Connector for MdsConnector {
    async fn connect(&self, to: &Connection) -> Result<Arc<dyn VolumeService>, VolumeError> {
        let client = MdsClient::connect(&to.mds, &to.identity).map_err(error)?;
        Ok(Arc::new(Mds { client }))
    }
}

struct Mds {
    client: MdsClient,
}

#[async_trait]
impl VolumeService for Mds {
    async fn cluster_id(&self) -> Result<ClusterId, VolumeError> {
        let status = self.client.status().await.map_err(error)?;
        id("cluster_id", &status.cluster_id).map(ClusterId::from_bytes)
    }

    async fn create(&self, volume: NewVolume<'_>) -> Result<VolumeInfo, VolumeError> {
        let NewVolume { name, pool, size, limits, source } = volume;
        let (name, pool) = (name.to_owned(), pool.to_owned());
        let source = source.map(VolumeBy::from);
        let volume = CreateVolume { name, pool, size, limits, source };
        volume_info(self.client.create_volume(volume).await.map_err(error)?)
    }

    async fn get(&self, id: VolumeId) -> Result<VolumeInfo, VolumeError> {
        volume_info(self.client.get_volume(id).await.map_err(error)?)
    }

    async fn get_by_name(&self, name: &str) -> Result<VolumeInfo, VolumeError> {
        volume_info(self.client.get_volume(name).await.map_err(error)?)
    }

    async fn list(&self, after: &str, limit: u32) -> Result<VolumePage, VolumeError> {
        let page = self.client.list_volumes(after, limit).await.map_err(error)?;
        let volumes = page.volumes.into_iter().map(volume_info).collect::<Result<_, _>>()?;
        Ok(VolumePage { volumes, more: page.more })
    }

    async fn resize(&self, id: VolumeId, size: u64) -> Result<VolumeInfo, VolumeError> {
        volume_info(self.client.resize_volume(id, size).await.map_err(error)?)
    }

    async fn set_limits(
        &self,
        id: VolumeId,
        change: LimitsChange,
    ) -> Result<VolumeInfo, VolumeError> {
        volume_info(self.client.set_volume_limits(id, change).await.map_err(error)?)
    }

    async fn create_snapshots(
        &self,
        snapshots: &[(VolumeId, &str)],
    ) -> Result<Vec<SnapshotInfo>, VolumeError> {
        let wanted =
            snapshots.iter().map(|(volume, name)| (VolumeBy::from(*volume), (*name).to_owned()));
        let made = self.client.create_snapshots(wanted).await.map_err(error)?;
        if made.len() != snapshots.len() {
            let (asked, answered) = (snapshots.len(), made.len());
            let text = format!("the MDS answered {answered} snapshots, {asked} were asked for");
            return Err(VolumeError::Failed(text));
        }
        made.into_iter().map(snapshot_info).collect()
    }

    async fn get_snapshot(&self, id: VolumeId) -> Result<SnapshotInfo, VolumeError> {
        snapshot_info(self.client.get_volume(id).await.map_err(error)?)
    }

    async fn list_snapshots(
        &self,
        volume: Option<VolumeId>,
        after: &str,
        limit: u32,
    ) -> Result<SnapshotPage, VolumeError> {
        let volume = volume.map(VolumeBy::from);
        let page = self.client.list_snapshots(volume, after, limit).await.map_err(error)?;
        let snapshots = page.volumes.into_iter().map(snapshot_info).collect::<Result<_, _>>()?;
        Ok(SnapshotPage { snapshots, more: page.more })
    }

    async fn delete(&self, id: VolumeId) -> Result<(), VolumeError> {
        self.client.delete_volume(id).await.map_err(error)
    }

    async fn publish(&self, id: VolumeId, node: &str, sharing: Sharing) -> Result<(), VolumeError> {
        let Sharing { read_only, shared } = sharing;
        self.client.publish_volume(id, node, read_only, shared).await.map_err(error)
    }

    async fn unpublish(&self, id: VolumeId, node: Option<&str>) -> Result<(), VolumeError> {
        self.client.unpublish_volume(id, node.unwrap_or_default()).await.map_err(error)
    }

    async fn pools(&self) -> Result<Vec<PoolSpace>, VolumeError> {
        let pools = self.client.list_pools().await.map_err(error)?;
        let space = |status: proto::PoolStatus| PoolSpace {
            name: status.pool.map(|pool| pool.name).unwrap_or_default(),
            capacity: status.provisioned_limit,
            provisioned: status.provisioned,
        };
        Ok(pools.into_iter().map(space).collect())
    }
}

fn error(error: MdsError) -> VolumeError {
    let text = error.message;
    match error.kind {
        MdsErrorKind::NotFound => VolumeError::Missing(text),
        MdsErrorKind::AlreadyExists => VolumeError::Exists(text),
        MdsErrorKind::FailedPrecondition => VolumeError::Refused(text),
        MdsErrorKind::Exhausted => VolumeError::Full(text),
        MdsErrorKind::InvalidArgument => VolumeError::Invalid(text),
        MdsErrorKind::PermissionDenied => VolumeError::Untrusted(text),
        MdsErrorKind::Unavailable => VolumeError::Unavailable(text),
        MdsErrorKind::Internal => VolumeError::Failed(text),
    }
}

fn volume_info(volume: proto::Volume) -> Result<VolumeInfo, VolumeError> {
    if volume.snapshot.is_some() {
        return Err(VolumeError::Missing(format!("{} is a snapshot, not a volume", volume.name)));
    }
    let source = Some(&volume.source_id).filter(|bytes| !bytes.is_empty());
    Ok(VolumeInfo {
        id: volume_id("volume id", &volume.id)?,
        name: volume.name,
        pool: volume.pool_name,
        size: volume.size,
        nodes: volume.published_nodes,
        deleting: volume.deleting,
        limits: volume.limits.unwrap_or_default().into(),
        source: source.map(|bytes| volume_id("source id", bytes)).transpose()?,
    })
}

fn snapshot_info(volume: proto::Volume) -> Result<SnapshotInfo, VolumeError> {
    let Some(snapshot) = volume.snapshot else {
        return Err(VolumeError::Missing(format!("{} is a volume, not a snapshot", volume.name)));
    };
    Ok(SnapshotInfo {
        id: volume_id("snapshot id", &volume.id)?,
        full_name: volume.name,
        name: snapshot.name,
        volume: volume_id("id of a snapshot's volume", &snapshot.volume_id)?,
        pool: volume.pool_name,
        size: volume.size,
        created_unix_ms: volume.created_unix_ms,
        ready: snapshot.ready,
        deleting: volume.deleting,
    })
}

fn volume_id(what: &str, bytes: &[u8]) -> Result<VolumeId, VolumeError> {
    id(what, bytes).map(VolumeId::from_bytes)
}

fn id(what: &str, bytes: &[u8]) -> Result<[u8; 16], VolumeError> {
    let length = bytes.len();
    let wrong = |_| VolumeError::Failed(format!("the MDS answered a {what} of {length} bytes"));
    bytes.try_into().map_err(wrong)
}
