//! The handle of one group: propose, read, change members, follow leadership.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use curve_store::LogEntry;
use curve_types::{CopysetId, DeviceId};
use curve_wire::rpc::Connection;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason, LinearizableReadError, RaftError};
use openraft::{ReadPolicy as RaftReadPolicy, ServerState};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ReadPolicy;
use crate::core::{CAUGHT_UP_LAG, GroupCore};
use crate::peers::DialError;
use crate::types::{NodeId, Proposal};

pub(crate) mod change;

/// A proposal without an answer for this long has an unknown outcome.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(15);
/// While the leader cannot tell whether it still leads, proposals are tried again at this pace.
const LEASE_RETRY: Duration = Duration::from_millis(20);
/// Bytes of proposals that one host has under way; further ones wait.
pub(crate) const PROPOSALS_KIB_MAX: usize = 64 << 10;

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
    /// This replica stopped for good; what was under way has an unknown outcome.
    #[error("the replica has stopped")]
    Stopped,
}

impl ProposeError {
    fn name(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "not_leader",
            Self::Busy { .. } => "busy",
            Self::TooLong(_) => "too_long",
            Self::Unknown { .. } => "unknown",
            Self::Stopped => "stopped",
        }
    }
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
    pub(crate) core: Arc<GroupCore>,
}

impl std::fmt::Debug for GroupHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupHandle({})", self.core.id)
    }
}

impl GroupHandle {
    pub fn id(&self) -> CopysetId {
        self.core.id
    }

    /// Replicates a command and returns the state machine's answer.
    pub async fn propose(&self, header: Bytes, payload: Bytes) -> Result<Bytes, ProposeError> {
        let proposed = self.try_propose(Proposal { header, payload }).await;
        self.core
            .shared
            .metrics
            .proposal(proposed.as_ref().map_or_else(ProposeError::name, |_| "ok"));
        proposed
    }

    async fn try_propose(&self, proposal: Proposal) -> Result<Bytes, ProposeError> {
        let core = &self.core;
        let len = proposal.header.len() + proposal.payload.len();
        if len > LogEntry::BYTES_MAX {
            return Err(ProposeError::TooLong(len));
        }
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let kib = (len as u32).div_ceil(1024) + 1;
        let permit = core.shared.proposal_kib.acquire_many(kib);
        let _permit = match tokio::time::timeout_at(deadline, permit).await {
            Ok(permit) => permit.map_err(|_| ProposeError::Stopped)?,
            Err(_) => {
                return Err(ProposeError::Busy { reason: "too many proposals are under way" });
            }
        };
        let Some(_room) = core.shared.room.admit_proposal(len) else {
            return Err(ProposeError::Busy { reason: "the log is nearly full" });
        };
        let lease_deadline = Instant::now() + core.shared.timing.election_max;
        loop {
            let write = core.raft.client_write(proposal.clone());
            let error = match tokio::time::timeout_at(deadline, write).await {
                Ok(Ok(written)) => return Ok(written.data),
                Ok(Err(error)) => error,
                Err(_) => {
                    return Err(ProposeError::Unknown { reason: "no quorum answered in time" });
                }
            };
            match propose_error(error) {
                Refused::Final(error) => return Err(error),
                Refused::NoLease if Instant::now() >= lease_deadline => {
                    return Err(ProposeError::Busy { reason: "no quorum answers the leader" });
                }
                Refused::NoLease => tokio::time::sleep(LEASE_RETRY).await,
            }
        }
    }

    /// After Ok, this replica's applied state contains everything acknowledged before the call.
    ///
    /// By lease: within `Timing::lease` of sending what a quorum answered, no member of that quorum
    /// helps another leader (see `gate`), so every write that was acknowledged went through this
    /// replica and was applied here first, once the term's own first entry is applied. Without a
    /// lease, the same holds once a quorum answered what was sent after the call.
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        if self.core.shared.read_policy == ReadPolicy::Lease && self.holds_lease() {
            self.core.shared.metrics.lease_reads.inc();
            return Ok(());
        }
        self.core.shared.metrics.index_reads.inc();
        let confirmed = self.confirm(Instant::now());
        let confirmed = tokio::time::timeout(self.core.shared.timing.election_max, confirmed);
        confirmed.await.unwrap_or(Err(ReadError::NoQuorum))
    }

    /// Asks all members whether they still follow, and waits for a quorum that does after `asked`.
    async fn confirm(&self, asked: Instant) -> Result<(), ReadError> {
        let core = &self.core;
        match core.raft.ensure_linearizable(RaftReadPolicy::ReadIndex).await {
            Ok(_) => {}
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                return Err(ReadError::NotLeader { leader: forward.leader_id.map(|id| id.0) });
            }
            Err(RaftError::APIError(_)) => return Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(_)) => return Err(ReadError::Stopped),
        }
        let (mut heard, mut metrics) = (core.heard.watch(), core.metrics.clone());
        loop {
            if self.heard_by_quorum().is_some_and(|(_, sent)| sent >= asked) {
                return Ok(());
            }
            if core.look(|m| m.state != ServerState::Leader) {
                return Err(ReadError::NotLeader { leader: self.leader() });
            }
            tokio::select! {
                answered = heard.changed() => answered.map_err(|_| ReadError::Stopped)?,
                changed = metrics.changed() => changed.map_err(|_| ReadError::Stopped)?,
            }
        }
    }

    fn holds_lease(&self) -> bool {
        let core = &self.core;
        self.heard_by_quorum().is_some_and(|(term, sent)| {
            let age = sent.elapsed();
            age < core.shared.timing.lease
                && !core.hands_over(term)
                && core.shared.clock.trusts(age)
        })
    }

    /// The term in which this replica leads, and a time after which a quorum heard it do so; None
    /// as long as it has not applied an entry of that term.
    fn heard_by_quorum(&self) -> Option<(u64, Instant)> {
        let core = &self.core;
        let me = core.node();
        core.look(|m| {
            let leader = m.vote.leader_id;
            let leads = m.state == ServerState::Leader && m.vote.committed && leader.node_id == me;
            let ready = m.last_applied.is_some_and(|id| id.leader_id == leader);
            if !leads || !ready {
                return None;
            }
            let members = m.membership_config.membership();
            let sent = core.heard.by_quorum((leader.term, me), members, Instant::now())?;
            Some((leader.term, sent))
        })
    }

    /// Voters and learners of the effective configuration.
    pub fn members(&self) -> BTreeSet<DeviceId> {
        self.core.members()
    }

    /// A connection of one's own to another member.
    pub async fn dial(&self, peer: DeviceId) -> Result<Connection, DialError> {
        self.core.shared.peers.dial(peer).await
    }

    pub fn leader(&self) -> Option<DeviceId> {
        self.core.look(|m| m.current_leader.map(|id| id.0))
    }

    /// Whether this replica leads and has applied the first entry of its term.
    pub fn is_leader(&self) -> bool {
        self.core.leadership.borrow().is_leader
    }

    pub fn term(&self) -> u64 {
        self.core.look(|m| m.current_term)
    }

    /// Changes of leadership and term.
    pub fn watch(&self) -> watch::Receiver<Leadership> {
        self.core.leadership.subscribe()
    }

    /// Makes `voters` and `learners` the whole configuration, if the committed one is still that
    /// of log index `expected_config_index`. A new voter must already be a caught-up learner.
    /// Returns the log index of the new configuration. What an error or a caller that did not wait
    /// leaves half done, the leader finishes by itself; until then the answer is `InProgress`.
    pub async fn change_membership(
        &self,
        expected_config_index: u64,
        voters: BTreeSet<DeviceId>,
        learners: BTreeSet<DeviceId>,
    ) -> Result<u64, ChangeError> {
        let set = |ids: BTreeSet<DeviceId>| ids.into_iter().map(NodeId).collect();
        change::change(&self.core, expected_config_index, set(voters), set(learners)).await
    }

    /// Hands leadership to a voter that has caught up; returns once another leader is known.
    pub async fn transfer_leader(&self, to: DeviceId) -> Result<(), TransferError> {
        let core = &self.core;
        let (leads, term, leader, eligible) = core.look(|m| {
            let matched =
                m.replication.as_ref().and_then(|all| all.get(&NodeId(to)).copied().flatten());
            let close =
                matched.is_some_and(|id| id.index + CAUGHT_UP_LAG >= m.last_log_index.unwrap_or(0));
            let voter = m.membership_config.voter_ids().any(|id| id.0 == to);
            (m.state == ServerState::Leader, m.current_term, m.current_leader, close && voter)
        });
        if !leads {
            return Err(TransferError::NotLeader { leader: leader.map(|id| id.0) });
        }
        if to == core.device() {
            return Ok(());
        }
        if !eligible {
            return Err(TransferError::NotEligible(to));
        }
        // From here on this term serves no read by lease, whatever becomes of the transfer.
        core.begin_hand_over(term);
        core.raft
            .trigger()
            .transfer_leader(NodeId(to))
            .await
            .map_err(|_| TransferError::Stopped)?;
        let mut watch = self.watch();
        let me = core.device();
        let taken = watch.wait_for(|now| now.leader.is_some_and(|leader| leader != me));
        match tokio::time::timeout(core.shared.timing.election_max * 2, taken).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(TransferError::Stopped),
            Err(_) => Err(TransferError::Timeout(to)),
        }
    }
}

enum Refused {
    Final(ProposeError),
    /// The leader has not heard a quorum lately; nothing was written.
    NoLease,
}

type WriteError = RaftError<crate::types::Types, ClientWriteError<crate::types::Types>>;

fn propose_error(error: WriteError) -> Refused {
    let error = match error {
        RaftError::Fatal(_) => ProposeError::Stopped,
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            if forward.reason == ForwardReason::LeaseExpired {
                return Refused::NoLease;
            }
            ProposeError::NotLeader { leader: forward.leader_id.map(|id| id.0) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            ProposeError::Unknown { reason: "leadership was lost meanwhile" }
        }
        // Neither is asked for by a plain write.
        RaftError::APIError(
            ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_),
        ) => ProposeError::Busy { reason: "refused by Raft" },
    };
    Refused::Final(error)
}
