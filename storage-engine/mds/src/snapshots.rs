//! Takes snapshots: of several volumes at one point in time, or none of them.
//!
//! Entered in the log first, so that any leader finds what was left unfinished and drops it. Then
//! every copyset of every volume is told to keep what it has and to refuse writes from there on;
//! once all of them do, what they keep is of one moment. Writers wait from the first answer to the
//! thaw: one round of commits.

use std::sync::Arc;
use std::time::Duration;

use curve_types::VolumeId;
use curve_wire::chunk::ChunkError;
use tokio::time::Instant;
use tonic::Status;

use crate::chunkservers::{self, CommitError};
use crate::log::{self, WireId, answer, command::Kind, ids_to_wire};
use crate::node::Node;

/// What keeps one of the volumes busy for longer must not hold up attachments of the others.
const TURN_WAIT: Duration = Duration::from_secs(5);

/// Takes a snapshot of each volume under the name beside it. Answers with their ids, or with those
/// of the same snapshots if they were taken before. May be dropped at any time: what it began is
/// then given up.
pub async fn take(
    node: &Arc<Node>,
    wanted: Vec<(VolumeId, String)>,
) -> Result<Vec<VolumeId>, Status> {
    // In one order for all, so that no two wait for each other, and each once.
    let volumes: std::collections::BTreeSet<_> = wanted.iter().map(|(id, _)| *id).collect();
    let mut turns = Vec::new();
    let deadline = Instant::now() + TURN_WAIT;
    for volume in volumes {
        let turn = tokio::time::timeout_at(deadline, node.fencing(volume)).await;
        let busy = |_| Status::unavailable(format!("volume {volume} is being fenced or restored"));
        turns.push(turn.map_err(busy)?);
    }
    let pairs: Vec<(VolumeId, VolumeId)> =
        wanted.iter().map(|(volume, _)| (*volume, VolumeId::random_beside(*volume))).collect();
    let ids: Vec<VolumeId> = pairs.iter().map(|(_, snapshot)| *snapshot).collect();
    let _taking = Taking::begin(node, &ids);
    let snapshots = wanted.into_iter().zip(&ids);
    let snapshots = snapshots.map(|((volume, name), id)| log::BeginSnapshot {
        volume_id: volume.to_wire(),
        name,
        snapshot_id: id.to_wire(),
    });
    let begin = log::BeginSnapshots { snapshots: snapshots.collect() };
    let answer::Kind::Volumes(answered) = node.command(Kind::BeginSnapshots(begin)).await? else {
        return Err(Status::internal("the state machine answered something else"));
    };
    let ids_on_wire = || log::VolumeIds { ids: ids_to_wire(&ids) };
    if answered != ids_on_wire() {
        let known = log::ids_from_wire(&answered.ids);
        return known.ok_or_else(|| Status::internal("the state machine answered no ids"));
    }
    let frozen = chunkservers::freeze(node, &pairs).await;
    let next = match &frozen {
        Ok(()) => Kind::SnapshotsReady(ids_on_wire()),
        Err(_) => Kind::AbandonSnapshots(ids_on_wire()),
    };
    // What is kept changes no more: writes need not wait for the log.
    let (logged, ()) = tokio::join!(node.command(next), chunkservers::thaw(node, &pairs));
    if let Err(error) = frozen {
        let message = format!("no snapshot was taken: {error}");
        return Err(match error {
            CommitError::Refused { error: ChunkError::NoSpace, .. } => {
                Status::resource_exhausted(message)
            }
            CommitError::Leaderless { .. } => Status::unavailable(message),
            // Writes were held up for as long as was tried: no client tries again by itself.
            _ => Status::deadline_exceeded(message),
        });
    }
    logged?;
    Ok(ids)
}

/// Keeps the leader's own planner from giving up what is being taken.
struct Taking {
    node: Arc<Node>,
    ids: Vec<VolumeId>,
}

impl Taking {
    fn begin(node: &Arc<Node>, ids: &[VolumeId]) -> Self {
        node.view().taking.extend(ids);
        Self { node: node.clone(), ids: ids.to_owned() }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.node.view().taking.retain(|id| !self.ids.contains(id));
        self.node.wake.notify_one();
    }
}
