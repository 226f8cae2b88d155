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
use crate::heard::Heard;
use crate::host::children::Children;
use crate::inbox::Delivery;
use crate::lease::LeaseClock;
use crate::log::InstallGate;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::replica::{Machine, Replica, SnapshotData};
use crate::room::LogRoom;
use crate::snapshot::{Destination, Receiver, Target};
use crate::types::{LeaderId, Membership, NodeId, SnapshotMeta, StoredMembership, Types, Vote};
use crate::{GroupReport, Leadership, ReadPolicy, Timing};

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
    pub children: Children,
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
    pub heard: Arc<Heard>,
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

    /// Whether it has all that it ever acknowledged, as who stands for election must.
    pub fn is_whole(&self) -> bool {
        !self.is_blank() && self.group.owes().is_none()
    }

    /// Lets Raft stand for election by itself, unless it stands by a leader or owes entries. A
    /// blank replica does not anyway.
    pub fn let_elect(&self) {
        if self.gate.may_replace(Instant::now()) && self.group.owes().is_none() {
            self.raft.runtime_config().elect(true);
        }
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
        let is_leader = leads(&m);
        let committed = &m.committed_membership_config;
        let effective = &m.membership_config;
        let shown = shown_config(&m).membership();
        let members = || effective.membership().nodes().map(|(id, _)| *id);
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
            config_index: committed.log_id().as_ref().map(|id| id.index),
            changing: shown.get_joint_config().len() > 1
                || effective.log_id() != committed.log_id(),
            voters: shown.voter_ids().map(|id| id.0).collect(),
            learners: shown.learner_ids().map(|id| id.0).collect(),
            caught_up: members().filter(caught_up).map(|id| id.0).collect(),
            reachable: members().filter(reachable).map(|id| id.0).collect(),
            failure: m.running_state.err().map(|error| error.to_string()),
        }
    }

    pub fn members(&self) -> BTreeSet<DeviceId> {
        self.look(|m| m.membership_config.membership().nodes().map(|(id, _)| id.0).collect())
    }
}

/// Whether this replica leads and has applied the first entry of its term. Before that it may not
/// know yet that a change of its predecessor's is committed.
fn leads(m: &RaftMetrics) -> bool {
    let leader = m.vote.leader_id;
    m.state == ServerState::Leader && m.last_applied.is_some_and(|id| id.leader_id == leader)
}

/// The members to report: those of the committed configuration, as its index says. One that is not
/// committed may be taken back, and until it is committed the one before is what counts. A group
/// that is just being formed shows its first, which has none before it.
fn shown_config(m: &RaftMetrics) -> &StoredMembership {
    match m.committed_membership_config.log_id() {
        Some(_) => &m.committed_membership_config,
        None => &m.membership_config,
    }
}

/// How long ago an instant of openraft's was.
pub(crate) fn elapsed(
    instant: openraft::type_config::alias::InstantOf<Types>,
) -> std::time::Duration {
    openraft::Instant::elapsed(&instant)
}

impl Target for GroupCore {
    fn begin_install(&self) -> Result<Destination, String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogId;

    fn id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 1, node_id: NodeId::from(1) }, index }
    }

    fn config(index: u64, configs: &[&[u64]]) -> Arc<StoredMembership> {
        let set = |numbers: &&[u64]| numbers.iter().map(|n| NodeId::from(*n)).collect();
        let configs = configs.iter().map(set).collect::<Vec<BTreeSet<_>>>();
        let members = Membership::new_with_defaults(configs, []);
        Arc::new(StoredMembership::new(Some(id(index)), members))
    }

    #[test]
    fn a_configuration_is_reported_only_once_it_is_committed() {
        let mut metrics = RaftMetrics::new_initial(NodeId::from(1));
        let voters = |metrics: &RaftMetrics| -> Vec<NodeId> {
            shown_config(metrics).membership().voter_ids().collect()
        };
        let nodes =
            |numbers: &[u64]| -> Vec<_> { numbers.iter().map(|n| NodeId::from(*n)).collect() };
        metrics.membership_config = config(0, &[&[1, 2, 3]]);
        assert_eq!(voters(&metrics), nodes(&[1, 2, 3]), "the group is being formed");
        // 3 is about to leave, yet a quorum may still need it.
        metrics.committed_membership_config = config(5, &[&[1, 2, 3], &[1, 2, 4]]);
        metrics.membership_config = config(6, &[&[1, 2, 4]]);
        assert_eq!(voters(&metrics), nodes(&[1, 2, 3, 4]));
        metrics.committed_membership_config = metrics.membership_config.clone();
        assert_eq!(voters(&metrics), nodes(&[1, 2, 4]));
    }

    #[test]
    fn a_leader_reports_as_such_once_it_has_applied_an_entry_of_its_own() {
        let mut metrics = RaftMetrics::new_initial(NodeId::from(1));
        metrics.state = ServerState::Leader;
        metrics.vote = Vote { leader_id: id(0).leader_id, committed: true };
        let before = LeaderId { term: 0, node_id: NodeId::from(2) };
        metrics.last_applied = Some(LogId { leader_id: before, index: 6 });
        assert!(!leads(&metrics));
        metrics.last_applied = Some(id(7));
        assert!(leads(&metrics));
    }
}
