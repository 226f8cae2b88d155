//! Conditional changes of a group's members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::ChangeMembershipRequest;
use openraft::{ChangeMembers, EmptyNode, Precondition, ServerState};

use super::ChangeError;
use crate::core::{CAUGHT_UP_LAG, GroupCore, RaftMetrics};
use crate::types::{NodeId, Types};

type Ids = BTreeSet<NodeId>;

/// Two entries have to be committed, the second by a majority of the new voters.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// What openraft is to be asked for; checked against the metrics of this moment, and by openraft
/// against the configuration of the moment it is carried out.
fn plan(
    metrics: &RaftMetrics,
    expected: u64,
    voters: &Ids,
    learners: &Ids,
) -> Result<ChangeMembershipRequest<Types>, ChangeError> {
    if metrics.state != ServerState::Leader {
        return Err(ChangeError::NotLeader { leader: metrics.current_leader.map(|id| id.0) });
    }
    let committed = &metrics.committed_membership_config;
    let found = committed.log_id().as_ref().map(|id| id.index);
    if found != Some(expected) {
        return Err(ChangeError::Unexpected { expected, found });
    }
    let membership = committed.membership();
    if metrics.membership_config.log_id() != committed.log_id()
        || membership.get_joint_config().len() > 1
    {
        return Err(ChangeError::InProgress);
    }
    if voters.is_empty() || !voters.is_disjoint(learners) {
        let why = "voters must not be empty and nobody may be voter and learner at once";
        return Err(ChangeError::Invalid(why.to_owned()));
    }
    let (old_voters, old_learners): (Ids, Ids) =
        (membership.voter_ids().collect(), membership.learner_ids().collect());
    for id in voters.difference(&old_voters) {
        let matched = metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
        let last = metrics.last_log_index.unwrap_or(0);
        if !old_learners.contains(id) || matched.is_none_or(|id| id.index + CAUGHT_UP_LAG < last) {
            return Err(ChangeError::NotCaughtUp(id.0));
        }
    }
    // openraft keeps all removed voters as learners, or none.
    let removed: Ids = old_voters.difference(voters).copied().collect();
    let kept = removed.intersection(learners).count();
    if kept > 0 && kept < removed.len() {
        let why = "either all removed voters stay as learners, or none";
        return Err(ChangeError::Invalid(why.to_owned()));
    }
    let added: BTreeMap<_, _> =
        learners.difference(&old_learners).map(|id| (*id, EmptyNode {})).collect();
    let dropped: Ids = old_learners
        .iter()
        .filter(|id| !learners.contains(id) && !voters.contains(id))
        .copied()
        .collect();
    let members = ChangeMembers::Batch(vec![
        ChangeMembers::AddNodes(added),
        ChangeMembers::RemoveNodes(dropped),
        ChangeMembers::ReplaceAllVoters(voters.clone()),
    ]);
    let condition =
        Precondition::LastMembershipLogId { last_membership_log_id: *committed.log_id() };
    Ok(ChangeMembershipRequest::new(members, kept > 0).with_preconditions([condition]))
}

/// The second step of a change whose first is committed, for its leader, and the log index that
/// the first step left the configuration at.
fn plan_finish(metrics: &RaftMetrics) -> Option<(u64, ChangeMembershipRequest<Types>)> {
    let committed = &metrics.committed_membership_config;
    let joint = (*committed.log_id())?;
    if metrics.state != ServerState::Leader
        || metrics.membership_config.log_id() != committed.log_id()
        || committed.membership().get_joint_config().len() < 2
    {
        return None;
    }
    // For openraft any change of a joint configuration starts from its newer half, and leaves
    // that alone. Nobody asks for removed voters to stay as learners, so they do not.
    let members = ChangeMembers::AddVoterIds(Ids::new());
    let condition = Precondition::LastMembershipLogId { last_membership_log_id: Some(joint) };
    let request = ChangeMembershipRequest::new(members, false).with_preconditions([condition]);
    Some((joint.index, request))
}

/// At the leader, finishes in the background a change that was left between its two steps: by a
/// leader that went, or by a caller that did not wait. Nothing else would, and the old voters
/// would stay necessary.
pub(crate) fn finish_half_done(core: &Arc<GroupCore>) {
    let Some((expected, request)) = core.look(plan_finish) else { return };
    let core = core.clone();
    tokio::spawn(async move {
        // Held by a change that is about to do its second step itself.
        let Ok(_one_at_a_time) = core.changing.try_lock() else { return };
        match carry_out(&core, expected, request).await {
            Ok(index) => tracing::info!(group = %core.id, index, "finished a change of members"),
            Err(error) => {
                tracing::warn!(group = %core.id, %error, "change of members not finished");
            }
        }
    });
}

pub(super) async fn change(
    core: &Arc<GroupCore>,
    expected: u64,
    voters: Ids,
    learners: Ids,
) -> Result<u64, ChangeError> {
    let Ok(_one_at_a_time) = core.changing.try_lock() else {
        return Err(ChangeError::InProgress);
    };
    let request = core.look(|metrics| plan(metrics, expected, &voters, &learners))?;
    carry_out(core, expected, request).await
}

async fn carry_out(
    core: &GroupCore,
    expected: u64,
    request: ChangeMembershipRequest<Types>,
) -> Result<u64, ChangeError> {
    let changed = core.raft.change_membership_with_payload(request);
    match tokio::time::timeout(CHANGE_TIMEOUT, changed).await {
        Ok(Ok(outcome)) => Ok(outcome.uniform.log_id.index),
        Ok(Err(error)) => Err(change_error(core, expected, error)),
        Err(_) => Err(ChangeError::Unknown { reason: "no quorum answered in time" }),
    }
}

fn change_error(
    core: &GroupCore,
    expected: u64,
    error: RaftError<Types, ClientWriteError<Types>>,
) -> ChangeError {
    match error {
        RaftError::Fatal(_) => ChangeError::Stopped,
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ChangeError::NotLeader { leader: forward.leader_id.map(|id| id.0) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            ChangeError::Unknown { reason: "leadership was lost meanwhile" }
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => {
            let found = core.look(|m| m.membership_config.log_id().as_ref().map(|id| id.index));
            ChangeError::Unexpected { expected, found }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) => ChangeError::InProgress,
            other => ChangeError::Invalid(other.to_string()),
        },
    }
}
