//! What the parts of one running group share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use curve_store::{Group, Install, Store};
use curve_types::{CopysetId, DeviceId};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::gate::Gate;
use crate::inbox::Delivery;
use crate::lease::LeaseClock;
use crate::log::InstallGate;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::replica::{Machine, Replica, SnapshotData};
use crate::room::LogRoom;
use crate::snapshot::{Receiver, Target};
use crate::types::{LeaderId, Membership, NodeId, SnapshotMeta, Types, Vote};
use crate::{GroupReport, Leadership, ReadPolicy, SnapshotSink, Timing};

pub(crate) type Raft = openraft::Raft<Types, Machine>;
pub(crate) type RaftMetrics = openraft::RaftMetrics<Types>;
type MetricsReceiver = WatchReceiverOf<Types, RaftMetrics>;

/// A member whose log ends at most this many entries before the leader's is caught up: at full
/// load that is a tenth of a second.
pub(crate) const CAUGHT_UP_LAG: u64 = 1024;

/// What all groups of a host share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub device: DeviceId,
    pub store: Store,
    pub timing: Timing,
    pub read_policy: ReadPolicy,
    pub peers: Arc<Peers>,
    pub metrics: Metrics,
    pub clock: Arc<LeaseClock>,
    pub room: Arc<LogRoom>,
    /// Bytes of proposals under way, in KiB.
    pub proposal_kib: Arc<Semaphore>,
}

pub(crate) struct GroupCore {
    pub id: CopysetId,
    pub shared: Shared,
    pub raft: Raft,
    pub metrics: MetricsReceiver,
    pub group: Group,
    pub replica: Arc<Replica>,
    pub gate: Gate,
    pub installs: Arc<InstallGate>,
    pub inbox: mpsc::Sender<Delivery>,
    pub snapshots: Receiver,
    pub leadership: watch::Sender<Leadership>,
    /// Term plus one of the last leadership that this replica began to hand over.
    pub handing_over: AtomicU64,
    /// Changes of members that this replica drives, one at a time.
    pub changing: tokio::sync::Mutex<()>,
    pub tasks: Mutex<Vec<AbortHandle>>,
}

impl GroupCore {
    pub fn device(&self) -> DeviceId {
        self.shared.device
    }

    pub fn node(&self) -> NodeId {
        NodeId(self.shared.device)
    }

    /// Reads a few fields of Raft's metrics without cloning all of them.
    pub fn look<T>(&self, read: impl FnOnce(&RaftMetrics) -> T) -> T {
        read(&self.metrics.borrow_watched())
    }

    pub fn vote(&self) -> Vote {
        self.look(|m| m.vote)
    }

    /// The elected leader that this replica follows, if it follows one.
    pub fn followed(&self) -> Option<LeaderId> {
        let vote = self.vote();
        (vote.committed && vote.leader_id.term > 0).then_some(vote.leader_id)
    }

    /// A replica that has never received a log knows nothing that it could vote by.
    pub fn is_blank(&self) -> bool {
        self.group.log_state().last.is_none()
    }

    pub fn membership(&self) -> Membership {
        self.look(|m| m.membership_config.membership().clone())
    }

    pub fn begin_hand_over(&self, term: u64) {
        self.handing_over.store(term + 1, Ordering::Release);
    }

    pub fn hands_over(&self, term: u64) -> bool {
        self.handing_over.load(Ordering::Acquire) == term + 1
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = tokio::spawn(task).abort_handle();
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }

    /// Stops Raft and everything that serves it. Idempotent.
    pub async fn stop(&self) {
        self.snapshots.abort();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.iter().for_each(AbortHandle::abort);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.id, %error, "Raft did not stop cleanly");
        }
        self.leadership.send_modify(|now| (now.leader, now.is_leader) = (None, false));
    }

    pub fn report(&self) -> GroupReport {
        let m = self.look(RaftMetrics::clone);
        let is_leader = m.state == ServerState::Leader;
        let committed = m.committed_membership_config.log_id().as_ref().map(|id| id.index);
        let effective = &m.membership_config;
        let membership = effective.membership();
        let members = || membership.nodes().map(|(id, _)| *id);
        let me = self.node();
        let replication = m.replication.as_ref().filter(|_| is_leader);
        let caught_up = |id: &NodeId| {
            let matched = replication.and_then(|all| all.get(id).copied().flatten());
            *id == me && is_leader
                || matched.is_some_and(|matched| {
                    matched.index + CAUGHT_UP_LAG >= m.last_log_index.unwrap_or(0)
                })
        };
        let heartbeat = m.heartbeat.as_ref().filter(|_| is_leader);
        let reachable = |id: &NodeId| {
            let acked = heartbeat.and_then(|all| all.get(id).copied().flatten());
            *id == me && is_leader
                || acked
                    .is_some_and(|at| elapsed(at.into_inner()) < self.shared.timing.election_max)
        };
        GroupReport {
            id: self.id,
            term: m.current_term,
            leader: m.current_leader.map(|id| id.0),
            is_leader,
            applied: m.last_applied.map(|id| id.index),
            last: m.last_log_index,
            config_index: committed,
            changing: membership.get_joint_config().len() > 1
                || effective.log_id() != m.committed_membership_config.log_id(),
            voters: membership.voter_ids().map(|id| id.0).collect(),
            learners: membership.learner_ids().map(|id| id.0).collect(),
            caught_up: members().filter(caught_up).map(|id| id.0).collect(),
            reachable: members().filter(reachable).map(|id| id.0).collect(),
            failure: m.running_state.err().map(|error| error.to_string()),
        }
    }

    pub fn members(&self) -> BTreeSet<DeviceId> {
        self.look(|m| m.membership_config.membership().nodes().map(|(id, _)| id.0).collect())
    }
}

/// How long ago an instant of openraft's was.
pub(crate) fn elapsed(
    instant: openraft::type_config::alias::InstantOf<Types>,
) -> std::time::Duration {
    openraft::Instant::elapsed(&instant)
}

impl Target for GroupCore {
    fn begin_install(&self) -> Result<(Box<dyn SnapshotSink>, Install), String> {
        self.replica.begin_install().map_err(|error| error.to_string())
    }

    fn admit(&self, leader: &Vote) -> Option<Vote> {
        self.gate.admit_leader(&leader.leader_id, Instant::now()).then(|| self.vote())
    }

    async fn install(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        state: Bytes,
        install: Install,
    ) -> Result<Vote, String> {
        let _announced = self.installs.announce();
        let snapshot = SnapshotData::Received { state, install };
        let snapshot = openraft::Snapshot { meta, snapshot };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        installed.map(|response| response.vote).map_err(|error| error.to_string())
    }
}
