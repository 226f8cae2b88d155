//! How openraft's types look for us, and their translation to the store's vocabulary.

use std::fmt;

use bytes::Bytes;
use curve_store::LogPosition;
use curve_types::DeviceId;

/// A device as Raft's node id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub DeviceId);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A command on its way through the log; its two parts are never joined, so never copied.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Proposal {
    pub header: Bytes,
    pub payload: Bytes,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{} bytes", self.header.len(), self.payload.len())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

openraft::declare_raft_types!(
    pub Types: D = Proposal, R = Bytes, NodeId = NodeId, Node = openraft::EmptyNode
);

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<NodeId, openraft::EmptyNode>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<Types>;
pub(crate) type AppendResponse = openraft::raft::AppendEntriesResponse<Types>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<Types>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<Types>;
pub(crate) type TransferRequest = openraft::raft::TransferLeaderRequest<Types>;

pub(crate) fn position(id: &LogId) -> LogPosition {
    LogPosition { term: id.leader_id.term, node: id.leader_id.node_id.0, index: id.index }
}

pub(crate) fn log_id(position: LogPosition) -> LogId {
    let leader_id = LeaderId { term: position.term, node_id: NodeId(position.node) };
    LogId { leader_id, index: position.index }
}

pub(crate) fn stored_vote(vote: &Vote) -> curve_store::Vote {
    let node = Some(vote.leader_id.node_id.0);
    curve_store::Vote { term: vote.leader_id.term, node, committed: vote.committed }
}

pub(crate) fn raft_vote(vote: curve_store::Vote) -> Vote {
    let node_id = NodeId(vote.node.unwrap_or_default());
    Vote { leader_id: LeaderId { term: vote.term, node_id }, committed: vote.committed }
}

/// Index that follows the last entry.
pub(crate) fn next_index(last: Option<&LogId>) -> u64 {
    last.map_or(0, |id| id.index + 1)
}

/// For the conformance suite, which numbers its nodes.
#[cfg(test)]
impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        Self(DeviceId::from_bytes(bytes))
    }
}
