//! The leader's loop: forms the cluster, runs the planners, carries out what they return, and
//! tells those who watch. Runs in every MDS and rests while another leads.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use curve_types::{CopysetId, DeviceId, VolumeId};
use curve_wire::proto;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

use crate::chunkservers::{self, CommitError};
use crate::log::{self, WireId, command::Kind, ids_to_wire};
use crate::membership;
use crate::metrics::Metrics;
use crate::node::{Node, not_found};
use crate::plan::{device_map, plan};
use crate::state::{Copyset, Volume};
use crate::view::Scene;

/// Between two looks when nothing wakes the loop.
const TICK: Duration = Duration::from_millis(500);
/// After a step that failed, so that a group without a quorum is not asked in a circle.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Volumes whose copysets are told something at a time, beside attachments that wait for it.
const VOLUMES_IN_FLIGHT_MAX: usize = 8;
/// How long a volume that is to be told something waits for a split of a copyset of its pool.
const SPLIT_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at that.
const SPLIT_LOOK: Duration = Duration::from_millis(50);

/// Runs until dropped.
pub async fn lead(node: Arc<Node>, metrics: Arc<Metrics>) {
    let mut leadership = node.group.leadership();
    loop {
        let now = *leadership.borrow_and_update();
        if now.is_leader {
            tracing::info!(term = now.term, "leading");
            serve_term(&node, now.term, &metrics).await;
            node.end_serving();
            metrics.on_follower();
            tracing::info!(term = now.term, "no longer leading");
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Returns when the term is over.
async fn serve_term(node: &Arc<Node>, term: u64, metrics: &Metrics) {
    let mut leadership = node.group.leadership();
    let over = |now: &curve_raft::Leadership| !now.is_leader || now.term != term;
    tokio::select! {
        _ = leadership.wait_for(over) => {}
        () = serve_as_leader(node, term, metrics) => {}
    }
}

async fn serve_as_leader(node: &Arc<Node>, term: u64, metrics: &Metrics) {
    loop {
        let ready = match node.group.read_barrier().await {
            Ok(()) if node.state.read().cluster.is_none() => membership::form_cluster(node).await,
            Ok(()) => break,
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
        if let Err(status) = ready {
            tracing::info!(error = status.message(), "not ready to lead yet");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
    for (name, id) in &node.state.read().members {
        node.peers.learn(*id, name);
    }
    node.begin_serving(term);
    let errands = Errands::default();
    let mut versions = 0u64;
    loop {
        step(node, &errands).await;
        versions += 1;
        publish_topology(node, term << 32 | versions);
        node.look(|scene| metrics.on_leader(term, scene));
        tokio::select! {
            () = node.wake.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn step(node: &Arc<Node>, errands: &Errands) {
    let due = node.look(plan);
    {
        let state = node.state.read();
        node.view().retain_known(&state);
    }
    for command in due.commands {
        announce(&command);
        if let Err(status) = node.command(command).await {
            tracing::warn!(error = status.message(), "a planned step was not carried out");
        }
    }
    // The others wait for these.
    due.splits.into_iter().for_each(|copyset| errands.start(node, Errand::Split(copyset)));
    due.fences.into_iter().for_each(|volume| errands.start(node, Errand::Fence(volume)));
    // They make room for what follows.
    due.deletions.into_iter().for_each(|volume| errands.start(node, Errand::Delete(volume)));
    due.restorations.into_iter().for_each(|volume| errands.start(node, Errand::Restore(volume)));
}

/// A person who reads the log later wants to know why data moved.
fn announce(command: &Kind) {
    let id = |raw: &[u8]| DeviceId::from_wire(raw).unwrap_or_default();
    match command {
        Kind::AddCopysets(add) => {
            tracing::info!(pool = add.pool, copysets = add.placements.len(), "dividing a pool");
        }
        Kind::RecreateCopyset(recreate) => {
            tracing::warn!(copyset = recreate.copyset, "starting over with an unformed copyset");
        }
        Kind::BeginReplacement(log::Replacement { copyset, remove, add }) => {
            let (remove, add) = (id(remove), id(add));
            tracing::info!(copyset, %remove, %add, "moving or re-creating a replica");
        }
        Kind::AbandonReplacement(log::Replacement { copyset, add, .. }) => {
            tracing::warn!(copyset, add = %id(add), "giving up a replica's move or re-creation");
        }
        Kind::ObserveMembership(log::ObservedMembership { copyset, .. }) => {
            tracing::info!(copyset, "replicas changed");
        }
        Kind::PreferLeader(log::PreferLeader { copyset, device }) => {
            tracing::info!(copyset, device = %id(device), "another replica is to lead");
        }
        Kind::BeginSplit(copyset) => tracing::info!(copyset, "splitting a copyset"),
        Kind::ForgetDevice(device) => tracing::info!(device = %id(device), "forgetting a device"),
        Kind::AbandonSnapshots(log::VolumeIds { ids }) => {
            tracing::warn!(snapshots = ids.len(), "giving up snapshots that were left unfinished");
        }
        Kind::BeginScrub(copyset) => tracing::info!(copyset, "scrubbing a copyset"),
        Kind::EndScrub(end) => announce_scrub(end),
        _ => {}
    }
}

/// Replicas that differ are the one finding that nobody repairs.
fn announce_scrub(end: &log::EndScrub) {
    let log::EndScrub { copyset, number, index, replicas } = end;
    let total = |of: fn(&log::ReplicaFindings) -> u64| replicas.iter().map(of).sum::<u64>();
    let (repaired, lost) = (total(|found| found.repaired), total(|found| found.lost));
    let unrepaired = total(|found| found.unrepaired);
    tracing::info!(copyset, number, repaired, lost, unrepaired, "a copyset is scrubbed");
    let known = || replicas.iter().filter_map(|found| found.digest);
    if known().any(|digest| Some(digest) != known().next()) {
        let digest = |found: &log::ReplicaFindings| {
            let device = DeviceId::from_wire(&found.device).unwrap_or_default();
            found
                .digest
                .map_or(format!("{device}: none"), |value| format!("{device}: {value:016x}"))
        };
        let digests: Vec<String> = replicas.iter().map(digest).collect();
        let digests = digests.join(", ");
        tracing::error!(copyset, index, digests, "replicas hold valid copies that differ");
    }
}

#[derive(Clone, Copy)]
enum Errand {
    Fence(VolumeId),
    Restore(VolumeId),
    Delete(VolumeId),
    Split(CopysetId),
}

/// What there is at most one errand for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Subject {
    Volume(VolumeId),
    Copyset(CopysetId),
}

impl Subject {
    fn is_volume(self) -> bool {
        matches!(self, Self::Volume(_))
    }
}

impl Errand {
    fn subject(self) -> Subject {
        match self {
            Self::Fence(volume) | Self::Restore(volume) | Self::Delete(volume) => {
                Subject::Volume(volume)
            }
            Self::Split(copyset) => Subject::Copyset(copyset),
        }
    }
}

/// Work that nobody waits for. What fails is planned again.
#[derive(Default)]
struct Errands {
    running: Arc<Mutex<BTreeSet<Subject>>>,
    /// Stops them when the term ends.
    tasks: Mutex<JoinSet<()>>,
}

impl Errands {
    fn start(&self, node: &Arc<Node>, errand: Errand) {
        let subject = errand.subject();
        let mut running = self.running.lock().expect("no panic while held");
        let volumes = running.iter().filter(|subject| subject.is_volume()).count();
        // Splits are few, and the others may wait for them.
        let is_full = volumes >= VOLUMES_IN_FLIGHT_MAX && subject.is_volume();
        if is_full || !running.insert(subject) {
            return;
        }
        let (node, running) = (node.clone(), self.running.clone());
        let mut tasks = self.tasks.lock().expect("no panic while held");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let done = match errand {
                Errand::Fence(volume) => finish_fence(&node, volume).await,
                Errand::Restore(volume) => finish_restoration(&node, volume).await,
                Errand::Delete(volume) => finish_deletion(&node, volume).await,
                Errand::Split(copyset) => finish_split(&node, copyset).await,
            };
            if let Err(status) = done {
                tracing::warn!(?subject, error = status.message(), "will be tried again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            running.lock().expect("no panic while held").remove(&subject);
            node.wake.notify_one();
        });
    }
}

/// The volume while no copyset of its pool is being split. As long as it owes something none will be.
async fn at_rest(node: &Node, volume: VolumeId) -> Result<Volume, Status> {
    let look = || -> Result<Option<Volume>, Status> {
        let state = node.state.read();
        let found = state.volumes.get(&volume).ok_or_else(|| not_found("volume", volume))?;
        Ok((!state.is_splitting(found.pool)).then(|| found.clone()))
    };
    let deadline = Instant::now() + SPLIT_PATIENCE;
    loop {
        match look()? {
            Some(found) => return Ok(found),
            None if Instant::now() >= deadline => {
                let message = format!("a copyset of volume {volume} is still being split");
                return Err(Status::unavailable(message));
            }
            None => tokio::time::sleep(SPLIT_LOOK).await,
        }
    }
}

/// Has the copyset divide, and makes what left it known.
async fn finish_split(node: &Arc<Node>, id: CopysetId) -> Result<(), Status> {
    let found = node.state.read().copysets.get(&id).cloned();
    let found = found.ok_or_else(|| not_found("copyset", id))?;
    let Some((to, (_, shards))) = found.splitting.zip(found.shards.halves()) else { return Ok(()) };
    chunkservers::split(node, id, to, shards).await.map_err(commit_status)?;
    node.command(Kind::FinishSplit(id.0)).await?;
    node.view().split.insert(to, node.now());
    tracing::info!(copyset = %id, %to, first = shards.first, end = shards.end, "split");
    Ok(())
}

/// Sees to it that every copyset of the volume enforces the newest epoch and every revocation, and
/// records that.
pub async fn finish_fence(node: &Arc<Node>, volume: VolumeId) -> Result<(), Status> {
    let _turn = node.fencing(volume).await;
    let found = at_rest(node, volume).await?;
    if !found.owes_fence() {
        return Ok(());
    }
    if found.fenced_epoch < found.epoch {
        chunkservers::fence(node, volume, found.epoch).await.map_err(commit_status)?;
    }
    // An epoch that the session's key is not good for.
    let beyond = found.epoch.next_attachment();
    for session in &found.revoking {
        chunkservers::revoke(node, volume, *session, beyond).await.map_err(commit_status)?;
    }
    let revoked = found.revoking.iter().map(|session| session.0).collect();
    let fenced = log::Fenced { volume_id: volume.to_wire(), epoch: found.epoch.0, revoked };
    node.command(Kind::Fenced(fenced)).await?;
    Ok(())
}

/// Sees to it that every copyset of the volume has taken over the data of the snapshot that it is
/// being restored from, and refuses older epochs, and records that.
pub async fn finish_restoration(node: &Arc<Node>, volume: VolumeId) -> Result<(), Status> {
    let _turn = node.fencing(volume).await;
    let found = at_rest(node, volume).await?;
    let Some(snapshot) = found.restoring else { return Ok(()) };
    chunkservers::restore(node, volume, snapshot, found.epoch).await.map_err(commit_status)?;
    let restored = log::Restored { volume_id: volume.to_wire(), epoch: found.epoch.0 };
    node.command(Kind::Restored(restored)).await?;
    tracing::info!(%volume, %snapshot, "took over a snapshot's data");
    Ok(())
}

async fn finish_deletion(node: &Arc<Node>, volume: VolumeId) -> Result<(), Status> {
    at_rest(node, volume).await?;
    chunkservers::delete(node, volume).await.map_err(commit_status)?;
    node.command(Kind::ForgetVolume(volume.to_wire())).await?;
    tracing::info!(%volume, "dropped a deleted volume's chunks");
    Ok(())
}

fn commit_status(error: CommitError) -> Status {
    match error {
        CommitError::Gone(_) => Status::not_found(error.to_string()),
        CommitError::Deadline { .. } | CommitError::Leaderless { .. } | CommitError::Late => {
            Status::unavailable(error.to_string())
        }
        CommitError::Refused { .. } => Status::internal(error.to_string()),
    }
}

/// Sends the topology to those who watch, if it is another than they have.
fn publish_topology(node: &Node, version: u64) {
    let new = node.look(|scene| topology(scene, version));
    node.topology.send_if_modified(|current| {
        let known = current.as_ref().map_or(0, |current| current.version);
        let same = current.as_deref() == Some(&proto::Topology { version: known, ..new.clone() });
        if !same {
            *current = Some(Arc::new(new.clone()));
        }
        !same
    });
}

fn topology(scene: Scene<'_>, version: u64) -> proto::Topology {
    let state = scene.state;
    let copysets = state.copysets.iter().filter(|(_, copyset)| copyset.active);
    let info = |(id, copyset): (&CopysetId, &Copyset)| proto::CopysetInfo {
        id: id.0,
        pool: copyset.pool.0,
        shard_first: copyset.shards.first,
        shard_end: copyset.shards.end,
        voters: ids_to_wire(&copyset.voters),
        leader: scene
            .view
            .leader_of(*id, scene.now)
            .map(|(leader, _)| leader.to_wire())
            .unwrap_or_default(),
    };
    proto::Topology {
        version,
        cluster_id: state.cluster.as_ref().map(|c| c.id.to_wire()).unwrap_or_default(),
        devices: Some(device_map(state)),
        copysets: copysets.map(info).collect(),
    }
}
