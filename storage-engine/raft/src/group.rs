//! The handle of one group: propose, read, change members, follow leadership.

use std::collections::BTreeSet;

use bytes::Bytes;
use curve_types::{CopysetId, DeviceId};
use thiserror::Error;
use tokio::sync::watch;

/// Who leads, as far as this replica knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    pub term: u64,
    pub leader: Option<DeviceId>,
    /// This replica leads and has applied the first entry of its term.
    pub is_leader: bool,
}

/// Why a proposal got no answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ProposeError {
    /// Nothing was written.
    #[error("this replica does not lead")]
    NotLeader { leader: Option<DeviceId> },
    /// Nothing was written; trying again later may help.
    #[error("the group cannot take writes now: {reason}")]
    Busy { reason: &'static str },
    /// Nothing was written.
    #[error("command of {0} bytes is longer than a log entry may be")]
    TooLong(usize),
    /// The entry may or may not take effect: leadership was lost, or no quorum answered in time.
    #[error("the outcome is unknown: {reason}")]
    Unknown { reason: &'static str },
    /// This replica stopped for good.
    #[error("the replica has stopped")]
    Stopped,
}

/// Why a linearizable read is not possible here.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ReadError {
    #[error("this replica does not lead")]
    NotLeader { leader: Option<DeviceId> },
    #[error("no quorum confirmed the leader in time")]
    NoQuorum,
    #[error("the replica has stopped")]
    Stopped,
}

/// Why the members were not changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ChangeError {
    #[error("this replica does not lead")]
    NotLeader { leader: Option<DeviceId> },
    #[error("the configuration is at log index {found:?}, the change expects {expected}")]
    Unexpected { expected: u64, found: Option<u64> },
    #[error("another change of members is under way")]
    InProgress,
    #[error("{0} must first be a learner that has caught up")]
    NotCaughtUp(DeviceId),
    #[error("refused: {0}")]
    Invalid(String),
    #[error("the outcome is unknown: {reason}")]
    Unknown { reason: &'static str },
    #[error("the replica has stopped")]
    Stopped,
}

/// Why leadership was not handed over.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TransferError {
    #[error("this replica does not lead")]
    NotLeader { leader: Option<DeviceId> },
    #[error("{0} is not a voter that has caught up")]
    NotEligible(DeviceId),
    #[error("{0} did not take over in time")]
    Timeout(DeviceId),
    #[error("the replica has stopped")]
    Stopped,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct GroupHandle {
    id: CopysetId,
}

impl GroupHandle {
    pub fn id(&self) -> CopysetId {
        self.id
    }

    /// Replicates a command and returns the state machine's answer.
    pub async fn propose(&self, _header: Bytes, _payload: Bytes) -> Result<Bytes, ProposeError> {
        unimplemented!("follows")
    }

    /// After Ok, this replica's applied state contains everything acknowledged before the call.
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        unimplemented!("follows")
    }

    pub fn leader(&self) -> Option<DeviceId> {
        unimplemented!("follows")
    }

    pub fn is_leader(&self) -> bool {
        unimplemented!("follows")
    }

    pub fn term(&self) -> u64 {
        unimplemented!("follows")
    }

    /// Changes of leadership and term.
    pub fn watch(&self) -> watch::Receiver<Leadership> {
        unimplemented!("follows")
    }

    /// Makes `voters` and `learners` the whole configuration, if the committed one is still that
    /// of log index `expected_config_index`. A new voter must already be a caught-up learner.
    /// Returns the log index of the new configuration.
    pub async fn change_membership(
        &self,
        _expected_config_index: u64,
        _voters: BTreeSet<DeviceId>,
        _learners: BTreeSet<DeviceId>,
    ) -> Result<u64, ChangeError> {
        unimplemented!("follows")
    }

    /// Hands leadership to a voter that has caught up; returns once another leader is known.
    pub async fn transfer_leader(&self, _to: DeviceId) -> Result<(), TransferError> {
        unimplemented!("follows")
    }
}
