//! One cluster's MDS, over mutual TLS. `curve_client` finds the leader and retries; here are only
//! the two vocabularies.

use std::sync::Arc;

use async_trait::async_trait;
use curve_client::{CreateVolume, MdsClient, MdsError, MdsErrorKind};
use curve_types::{ClusterId, LimitsChange, VolumeId, VolumeLimits};
use curve_wire::proto;

use super::{Connector, PoolSpace, VolumeError, VolumeInfo, VolumePage, VolumeService};
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

    async fn create(
        &self,
        name: &str,
        pool: &str,
        size: u64,
        limits: VolumeLimits,
    ) -> Result<VolumeInfo, VolumeError> {
        let (name, pool) = (name.to_owned(), pool.to_owned());
        let volume = CreateVolume { name, pool, size, limits, source: None };
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
            capacity: status.logical_capacity,
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
    Ok(VolumeInfo {
        id: id("volume id", &volume.id).map(VolumeId::from_bytes)?,
        name: volume.name,
        pool: volume.pool_name,
        size: volume.size,
        nodes: volume.published_nodes,
        deleting: volume.deleting,
        limits: volume.limits.unwrap_or_default().into(),
    })
}

fn id(what: &str, bytes: &[u8]) -> Result<[u8; 16], VolumeError> {
    let length = bytes.len();
    let wrong = |_| VolumeError::Failed(format!("the MDS answered a {what} of {length} bytes"));
    bytes.try_into().map_err(wrong)
}
