//! One task per group follows who leads, and replaces a leader whose connection closed without
//! waiting for the election timeout: it asks the other voters whether they lost it too, and stands
//! for election if a majority did. Silence without a closed connection is openraft's business.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use curve_types::DeviceId;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use rand::Rng;
use tokio::time::Instant;

use crate::Leadership;
use crate::codec::message::{self, Probe, read_reply};
use crate::core::GroupCore;
use crate::peers::Lane;
use crate::types::{LeaderId, Membership, NodeId, log_id};

/// Candidates wait a random part of this before they ask, so that two rarely stand at once.
const SPREAD: Duration = Duration::from_millis(150);
/// Before asking again those who had not noticed yet.
const RETRY: Duration = Duration::from_millis(100);
/// A voter that does not answer within this is counted as a no.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// An election is decided within this, or left to openraft's timers.
const DECIDED_WITHIN: Duration = Duration::from_secs(1);

/// Runs for as long as the group does.
pub(crate) async fn follow_leadership(core: Arc<GroupCore>) {
    let mut server = core.raft.server_metrics();
    let mut data = core.raft.data_metrics();
    loop {
        let (vote, leads, leader) = {
            let now = server.borrow_watched();
            (now.vote, now.state == ServerState::Leader, now.current_leader)
        };
        let term = vote.leader_id.term;
        let applied = data.borrow_watched().last_applied;
        // The first entry of a term is the leader's own; with it, all earlier ones are applied.
        let ready = leads && applied.is_some_and(|id| id.leader_id == vote.leader_id);
        let now = Leadership { term, leader: leader.map(|id| id.0), is_leader: ready };
        core.leadership.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        let replace = async {
            match leader {
                Some(id) if !leads && id != core.node() => {
                    replace_when_lost(&core, vote.leader_id).await;
                }
                _ => {}
            }
            // Nothing more to do until something changes.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            changed = server.changed() => if changed.is_err() { return },
            changed = data.changed(), if leads && !ready => if changed.is_err() { return },
            () = replace => {}
        }
    }
}

/// Watches the connection to the leader; the caller drops this when leadership changes.
async fn replace_when_lost(core: &GroupCore, leader: LeaderId) {
    let link = core.shared.peers.link(leader.node_id.0, Lane::Control);
    // A leader that was never reached from here is left to openraft: it may well reach us.
    link.up().await;
    loop {
        link.down().await;
        let spread = SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
        tokio::time::sleep(core.gate.hold_left(Instant::now()) + spread).await;
        if !link.lost() {
            continue;
        }
        if may_stand(core)
            && core.gate.may_replace(Instant::now())
            && majority_lost_it(core, leader).await
        {
            stand(core, leader).await;
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn may_stand(core: &GroupCore) -> bool {
    let me = core.node();
    core.is_whole() && core.membership().get_joint_config().iter().any(|c| c.contains(&me))
}

/// A majority of each part of the configuration, this replica included.
fn is_quorum(membership: &Membership, yes: &BTreeSet<NodeId>) -> bool {
    let configs = membership.get_joint_config();
    let majority = |config: &BTreeSet<NodeId>| config.intersection(yes).count() * 2 > config.len();
    !configs.is_empty() && configs.iter().all(majority)
}

async fn majority_lost_it(core: &GroupCore, leader: LeaderId) -> bool {
    let membership = core.membership();
    let last = core.group.log_state().last.map(log_id);
    let probe = Probe { leader, last }.encode();
    let mut yes = BTreeSet::from([core.node()]);
    if is_quorum(&membership, &yes) {
        return true;
    }
    let others = membership.voter_ids().filter(|id| *id != core.node() && *id != leader.node_id);
    let mut answers: FuturesUnordered<_> = others
        .map(|id| {
            let probe = probe.clone();
            async move { (id, ask(core, id.0, probe).await) }
        })
        .collect();
    while let Some((id, granted)) = answers.next().await {
        if granted {
            yes.insert(id);
            if is_quorum(&membership, &yes) {
                return true;
            }
        }
    }
    false
}

async fn ask(core: &GroupCore, peer: DeviceId, probe: Bytes) -> bool {
    let link = core.shared.peers.link(peer, Lane::Control);
    let exchange = async {
        let connection = link.connection(PROBE_TIMEOUT).await?;
        let called = connection.call(message::PROBE, core.id.0, probe, Bytes::new());
        let mut reader = read_reply(called.await.ok()?.body).ok()?.ok()?;
        reader.flag("probe answer").ok()
    };
    matches!(tokio::time::timeout(PROBE_TIMEOUT, exchange).await, Ok(Some(true)))
}

/// Stands for election in the next term; the others' gates let it through.
async fn stand(core: &GroupCore, leader: LeaderId) {
    if !core.gate.depose(leader, Instant::now()) {
        return;
    }
    // Dropped when leadership changes while this waits: the gate must open again then too.
    let _reinstate = Reinstate(core, leader);
    core.shared.metrics.early_elections.inc();
    tracing::info!(group = %core.id, leader = %leader.node_id, "the leader's connection closed; standing for election");
    if core.raft.trigger().elect(false).await.is_err() {
        return;
    }
    let mut metrics = core.metrics.clone();
    let decided = async {
        while metrics.borrow_watched().vote.leader_id == leader {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DECIDED_WITHIN, decided).await;
}

struct Reinstate<'a>(&'a GroupCore, LeaderId);

impl Drop for Reinstate<'_> {
    fn drop(&mut self) {
        self.0.gate.reinstate(self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> BTreeSet<NodeId> {
        numbers.iter().map(|n| NodeId::from(*n)).collect()
    }

    #[test]
    fn a_quorum_is_a_majority_of_old_and_new_voters() {
        let uniform = Membership::new_with_defaults(vec![ids(&[1, 2, 3])], []);
        assert!(is_quorum(&uniform, &ids(&[1, 3])));
        assert!(!is_quorum(&uniform, &ids(&[1, 4])));
        let joint = Membership::new_with_defaults(vec![ids(&[1, 2, 3]), ids(&[3, 4, 5])], []);
        assert!(!is_quorum(&joint, &ids(&[1, 2, 3])));
        assert!(is_quorum(&joint, &ids(&[1, 3, 4])));
        assert!(!is_quorum(&Membership::default(), &ids(&[1])));
    }
}
