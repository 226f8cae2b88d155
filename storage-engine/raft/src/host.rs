//! The host: starts and stops groups, routes frames to them, reports on them.

use std::collections::BTreeSet;

use curve_store::StoreError;
use curve_types::CopysetId;
use curve_wire::rpc::{Replier, Request};
use prometheus_client::registry::Registry;
use thiserror::Error;

use crate::{Factory, GroupHandle, GroupReport, HostOptions};

/// Why a group could not be started, created or dropped.
#[derive(Debug, Error)]
pub enum HostError {
    #[error("copyset {0} exists here")]
    Exists(CopysetId),
    #[error("no copyset {0} here")]
    NoGroup(CopysetId),
    #[error("copyset {0} already has a log and cannot be initialized")]
    Initialized(CopysetId),
    #[error("this device is not among the voters of copyset {0}")]
    NotAVoter(CopysetId),
    #[error("open the state machine of copyset {id}")]
    StateMachine { id: CopysetId, source: std::io::Error },
    #[error("start Raft for copyset {id}: {reason}")]
    Raft { id: CopysetId, reason: String },
    #[error("store")]
    Store(#[from] StoreError),
    #[error("timing: {0}")]
    Timing(String),
    #[error("the host is shutting down")]
    ShuttingDown,
}

/// All groups of one process. Cheap to clone.
#[derive(Clone)]
pub struct RaftHost {}

impl RaftHost {
    /// Frame kinds that `on_request` takes.
    pub const KINDS: std::ops::RangeInclusive<u16> = 0x0100..=0x01ff;

    /// Starts every recovered group.
    pub async fn start(_options: HostOptions, _factory: Factory) -> Result<Self, HostError> {
        unimplemented!("follows")
    }

    /// Creates an empty replica that waits for a leader to find it. It has no vote until it has
    /// received a log.
    pub async fn create_group(&self, _id: CopysetId) -> Result<GroupHandle, HostError> {
        unimplemented!("follows")
    }

    /// Forms a new group of `voters`. Must be called, with the same voters, at each of them, and
    /// only once in the life of a group. Creates the replica if it is not there; a replica that
    /// already has these voters' log is left as it is.
    pub async fn initialize(
        &self,
        _id: CopysetId,
        _voters: BTreeSet<curve_types::DeviceId>,
    ) -> Result<GroupHandle, HostError> {
        unimplemented!("follows")
    }

    /// Stops a replica and forgets its data. The device must be out of the configuration first.
    pub async fn drop_group(&self, _id: CopysetId) -> Result<(), HostError> {
        unimplemented!("follows")
    }

    pub fn group(&self, _id: CopysetId) -> Option<GroupHandle> {
        unimplemented!("follows")
    }

    /// Takes a frame of `KINDS`. Answers strangers with a refusal.
    pub fn on_request(&self, _request: Request, _replier: Replier) {
        unimplemented!("follows")
    }

    /// All groups, sorted by id.
    pub fn reports(&self) -> Vec<GroupReport> {
        unimplemented!("follows")
    }

    pub fn register_metrics(&self, _registry: &mut Registry) {
        unimplemented!("follows")
    }

    /// Hands over what can be handed over, stops every group and closes connections.
    pub async fn shutdown(&self) {
        unimplemented!("follows")
    }
}
