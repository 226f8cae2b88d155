//! What the controller asks of one cluster's MDS. `mds` carries it out over the network; tests
//! have a double in memory.

pub mod mds;

use std::sync::Arc;

use async_trait::async_trait;
use curve_types::{ClusterId, LimitsChange, VolumeId, VolumeLimits};
use thiserror::Error;

use crate::capability::Sharing;
use crate::clusters::Connection;

/// A volume as the MDS knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeInfo {
    pub id: VolumeId,
    pub name: String,
    pub pool: String,
    /// Bytes.
    pub size: u64,
    /// Nodes that may attach it.
    pub nodes: Vec<String>,
    /// On its way out: it can only be deleted again.
    pub deleting: bool,
    pub limits: VolumeLimits,
    /// The snapshot that it was made from, which may be gone by now.
    pub source: Option<VolumeId>,
}

/// A snapshot as the MDS knows it: it outlives the volume that it was taken of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotInfo {
    /// In one space with those of volumes.
    pub id: VolumeId,
    /// `VOLUME@SNAPSHOT`, by which lists are ordered.
    pub full_name: String,
    /// The part of it behind the `@`.
    pub name: String,
    /// Of what; that volume may be gone by now.
    pub volume: VolumeId,
    pub pool: String,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since 1970, by the MDS's clock.
    pub created_unix_ms: u64,
    /// It is whole: volumes can be made from it.
    pub ready: bool,
    /// On its way out: it can only be deleted again.
    pub deleting: bool,
}

/// Snapshots in the order of their full names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotPage {
    pub snapshots: Vec<SnapshotInfo>,
    /// Snapshots with greater names exist.
    pub more: bool,
}

/// A volume to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewVolume<'a> {
    pub name: &'a str,
    pub pool: &'a str,
    /// Bytes.
    pub size: u64,
    pub limits: VolumeLimits,
    /// A snapshot in the same pool, not larger, whose data it begins with.
    pub source: Option<VolumeId>,
}

/// Volumes in the order of their names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VolumePage {
    pub volumes: Vec<VolumeInfo>,
    /// Volumes with greater names exist.
    pub more: bool,
}

/// Volumes that the MDS takes snapshots of at one point in time.
pub const SNAPSHOTS_AT_ONCE: usize = 64;

/// Space of one pool, in bytes of volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolSpace {
    pub name: String,
    /// What the volumes may have in all.
    pub capacity: u64,
    /// Sum of the volumes' sizes.
    pub provisioned: u64,
}

/// What the MDS answered instead of the result. Each text is the MDS's own.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum VolumeError {
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Exists(String),
    /// The volume's or the cluster's state does not allow it now.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Full(String),
    #[error("{0}")]
    Invalid(String),
    /// No leader answers. Worth another try.
    #[error("{0}")]
    Unavailable(String),
    /// The certificate is not, or no longer, accepted.
    #[error("{0}")]
    Untrusted(String),
    #[error("{0}")]
    Failed(String),
}

/// One cluster. Every method is idempotent.
#[async_trait]
pub trait VolumeService: Send + Sync {
    /// Which cluster answers there.
    async fn cluster_id(&self) -> Result<ClusterId, VolumeError>;
    /// The existing volume if it has the same properties, `Exists` if it has others.
    async fn create(&self, volume: NewVolume<'_>) -> Result<VolumeInfo, VolumeError>;
    /// `Missing` also for the id of a snapshot.
    async fn get(&self, id: VolumeId) -> Result<VolumeInfo, VolumeError>;
    async fn get_by_name(&self, name: &str) -> Result<VolumeInfo, VolumeError>;
    /// At most `limit` volumes whose names are greater than `after`.
    async fn list(&self, after: &str, limit: u32) -> Result<VolumePage, VolumeError>;
    /// Grows the volume to `size` bytes.
    async fn resize(&self, id: VolumeId, size: u64) -> Result<VolumeInfo, VolumeError>;
    /// Limits that the change does not name stay.
    async fn set_limits(
        &self,
        id: VolumeId,
        change: LimitsChange,
    ) -> Result<VolumeInfo, VolumeError>;
    /// Takes a snapshot of each volume under the name beside it, all at one point in time, and
    /// answers when they are ready, in the order asked for. At most `SNAPSHOTS_AT_ONCE`.
    async fn create_snapshots(
        &self,
        snapshots: &[(VolumeId, &str)],
    ) -> Result<Vec<SnapshotInfo>, VolumeError>;
    /// `Missing` also for the id of a volume.
    async fn get_snapshot(&self, id: VolumeId) -> Result<SnapshotInfo, VolumeError>;
    /// At most `limit` snapshots, of `volume` or of all, whose names are greater than `after`.
    async fn list_snapshots(
        &self,
        volume: Option<VolumeId>,
        after: &str,
        limit: u32,
    ) -> Result<SnapshotPage, VolumeError>;
    /// Of a volume or a snapshot. Done if it is absent.
    async fn delete(&self, id: VolumeId) -> Result<(), VolumeError>;
    /// Lets `node` attach the volume.
    async fn publish(&self, id: VolumeId, node: &str, sharing: Sharing) -> Result<(), VolumeError>;
    /// Takes `publish` back for one node, or for all, and fences what they have open.
    async fn unpublish(&self, id: VolumeId, node: Option<&str>) -> Result<(), VolumeError>;
    async fn pools(&self) -> Result<Vec<PoolSpace>, VolumeError>;
}

/// Makes a `VolumeService` of a connection.
#[async_trait]
pub trait Connector: Send + Sync {
    async fn connect(&self, to: &Connection) -> Result<Arc<dyn VolumeService>, VolumeError>;
}
