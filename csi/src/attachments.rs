//! What the node plugin asks of its node's agent. `agent` carries it out over a Unix socket; tests
//! have a double that hands out loop devices.

pub mod agent;

use std::path::PathBuf;

use async_trait::async_trait;
use thiserror::Error;

use crate::capability::Sharing;
use crate::handle::{ClusterName, VolumeHandle};

/// A volume that is attached to this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    pub handle: VolumeHandle,
    /// Block device node, for example `/dev/loop3`.
    pub device: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// What the agent answered instead of the result. Each text is the agent's own.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AttachError {
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Failed(String),
}

/// The agent of this node. Every method is idempotent.
#[async_trait]
pub trait AttachService: Send + Sync {
    /// The existing device if the volume is attached already.
    async fn attach(
        &self,
        cluster: &ClusterName,
        handle: VolumeHandle,
        sharing: Sharing,
    ) -> Result<Attachment, AttachError>;
    /// Done if the volume is not attached.
    async fn detach(&self, handle: VolumeHandle) -> Result<(), AttachError>;
    /// Makes the device as large as the volume is now; answers its bytes.
    async fn resize(&self, handle: VolumeHandle) -> Result<u64, AttachError>;
    async fn list(&self) -> Result<Vec<Attachment>, AttachError>;
}
