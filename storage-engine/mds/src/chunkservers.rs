//! Commits commands of the MDS in copysets: finds the leader, retries, gives up at a deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use curve_types::{CopysetId, DeviceId, Epoch, SessionId, ShardRange, VolumeId};
use curve_wire::auth::{Credentials, Key, Principal};
use curve_wire::chunk::{ChunkError, ChunkReply, Command, KIND_PROPOSE, decode_reply};
use curve_wire::rpc::Connection;
use curve_wire::with_causes;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::node::Node;

/// A fence is tried for so long: longer than the election of a leader for every copyset after a
/// node was lost, shorter than what callers wait.
const FENCE_DEADLINE: Duration = Duration::from_secs(40);
/// All copysets of a snapshot must have frozen their volumes by then, from before the first is
/// told. Each stays frozen for at least ten seconds unless it is thawed, so that all are then, and
/// would be if clocks ran at half their speed.
const FREEZE_WINDOW: Duration = Duration::from_secs(5);
/// A thaw that takes longer is left to the end of the freeze.
const THAW_DEADLINE: Duration = Duration::from_secs(5);
/// Between two rounds over a copyset's replicas.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A replica that takes longer is passed over: the next one may know a leader.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The same within `FREEZE_WINDOW`, which leaves less time.
const FREEZE_CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a volume's copysets could not all be told.
#[derive(Debug, Error)]
pub enum CommitError {
    #[error("volume {0} does not exist any more")]
    Gone(VolumeId),
    #[error("copyset {copyset} did not answer within {within:?}: {last}")]
    Deadline { copyset: CopysetId, within: Duration, last: String },
    #[error("copyset {copyset} has no leader at this moment")]
    Leaderless { copyset: CopysetId },
    #[error("the copysets' answers took longer than {FREEZE_WINDOW:?}")]
    Late,
    #[error("copyset {copyset} refuses: {error}")]
    Refused { copyset: CopysetId, error: ChunkError },
}

/// Connections to chunkservers, as the MDS.
pub struct Chunkservers {
    credentials: Credentials,
    connections: Mutex<BTreeMap<DeviceId, Arc<Connection>>>,
}

impl Chunkservers {
    pub fn new(device: DeviceId, chunkserver_key: Key) -> Self {
        let credentials = Credentials::peer(Principal::Mds { device }, &chunkserver_key);
        Self { credentials, connections: Mutex::new(BTreeMap::new()) }
    }

    async fn call(
        &self,
        (device, address): (DeviceId, &str),
        copyset: CopysetId,
        command: &Command,
        timeout: Duration,
    ) -> Result<ChunkReply, String> {
        let connection = self.connection(device, address).await?;
        let (head, payload) = command.encode();
        let call = connection.call(KIND_PROPOSE, copyset.0, head, payload);
        let frame = match tokio::time::timeout(timeout, call).await {
            Ok(answered) => answered.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("{address} did not answer within {timeout:?}")),
        };
        decode_reply(&frame.body).map_err(|error| error.to_string())
    }

    async fn connection(&self, device: DeviceId, address: &str) -> Result<Arc<Connection>, String> {
        let known = self.connections.lock().await.get(&device).cloned();
        if let Some(connection) = known.filter(|connection| !connection.is_closed()) {
            return Ok(connection);
        }
        // Not under the lock: a device that does not answer must not hold up the others.
        let opened = Connection::open(address, &self.credentials, device).await;
        let connection = Arc::new(opened.map_err(|error| with_causes(&error))?);
        let mut connections = self.connections.lock().await;
        connections.retain(|_, other| !other.is_closed());
        connections.insert(device, connection.clone());
        Ok(connection)
    }
}

/// Makes every copyset of the volume refuse what is below `epoch`.
pub async fn fence(node: &Arc<Node>, volume: VolumeId, epoch: Epoch) -> Result<(), CommitError> {
    everywhere(node, [Command::Fence { volume, min_epoch: epoch }], Effort::patient()).await
}

/// Makes every copyset of the volume refuse what `session` sends below `epoch`.
pub async fn revoke(
    node: &Arc<Node>,
    volume: VolumeId,
    session: SessionId,
    epoch: Epoch,
) -> Result<(), CommitError> {
    everywhere(node, [Command::Revoke { volume, session, min_epoch: epoch }], Effort::patient())
        .await
}

/// Makes every copyset of the volume drop its chunks.
pub async fn delete(node: &Arc<Node>, volume: VolumeId) -> Result<(), CommitError> {
    everywhere(node, [Command::DeleteVolume { volume }], Effort::patient()).await
}

/// Makes every copyset of the volume give it the chunks of `snapshot`, and refuse what is below
/// `epoch`.
pub async fn restore(
    node: &Arc<Node>,
    volume: VolumeId,
    snapshot: VolumeId,
    epoch: Epoch,
) -> Result<(), CommitError> {
    everywhere(node, [Command::Restore { volume, snapshot, epoch }], Effort::patient()).await
}

/// Makes a copyset give the chunks of these shards to another.
pub async fn split(
    node: &Node,
    copyset: CopysetId,
    to: CopysetId,
    shards: ShardRange,
) -> Result<(), CommitError> {
    commit(node, copyset, &Command::Split { to, shards }, Effort::patient()).await
}

/// Makes every copyset of each volume keep what it has as the snapshot beside it. Done means that
/// at one moment all of them refused writes: what they keep is what was there then.
pub async fn freeze(node: &Arc<Node>, pairs: &[(VolumeId, VolumeId)]) -> Result<(), CommitError> {
    let freeze = |(volume, snapshot): &(VolumeId, VolumeId)| {
        let (volume, snapshot) = (*volume, *snapshot);
        Command::Snapshot { volume, snapshot }
    };
    if let Some(copyset) = leaderless(node, pairs) {
        return Err(CommitError::Leaderless { copyset });
    }
    let effort = Effort::begin(FREEZE_WINDOW, FREEZE_CALL_TIMEOUT);
    everywhere(node, pairs.iter().map(freeze), effort).await?;
    // An answer that was there in time may have been looked at too late.
    if Instant::now() > effort.deadline {
        return Err(CommitError::Late);
    }
    Ok(())
}

/// A copyset that is known not to answer: to freeze the others would only hold up writes.
fn leaderless(node: &Node, pairs: &[(VolumeId, VolumeId)]) -> Option<CopysetId> {
    node.look(|scene| {
        let volumes = pairs.iter().filter_map(|(id, _)| Some((*id, scene.state.volumes.get(id)?)));
        volumes
            .flat_map(|(id, volume)| scene.state.copysets_of_volume(id, volume.pool))
            .find(|copyset| scene.view.leader_of(*copyset, scene.now).is_none())
    })
}

/// Lets writes go on after a freeze, wherever that succeeds in time.
pub async fn thaw(node: &Arc<Node>, pairs: &[(VolumeId, VolumeId)]) {
    let effort = Effort::begin(THAW_DEADLINE, FREEZE_CALL_TIMEOUT);
    let mut commits = JoinSet::new();
    for (volume, snapshot) in pairs {
        let (volume, snapshot) = (*volume, *snapshot);
        // A volume that is gone has no writes that wait.
        let _ = spawn_commits(node, &mut commits, &Command::Thaw { volume, snapshot }, effort);
    }
    while let Some(committed) = commits.join_next().await {
        if let Err(error) = committed.expect("a commit does not panic and is not cancelled") {
            tracing::warn!(%error, "writes wait until the freeze of a snapshot runs out");
        }
    }
}

/// How long a command is tried.
#[derive(Clone, Copy)]
struct Effort {
    deadline: Instant,
    /// From the beginning to the deadline.
    within: Duration,
    /// What one replica has to answer.
    call: Duration,
}

impl Effort {
    fn begin(within: Duration, call: Duration) -> Self {
        Self { deadline: Instant::now() + within, within, call }
    }

    /// For what a caller waits for, and what may take an election.
    fn patient() -> Self {
        Self::begin(FENCE_DEADLINE, CALL_TIMEOUT)
    }
}

/// Commits each command in every copyset of its volume, all at once.
async fn everywhere(
    node: &Arc<Node>,
    commands: impl IntoIterator<Item = Command>,
    effort: Effort,
) -> Result<(), CommitError> {
    let mut commits = JoinSet::new();
    for command in commands {
        spawn_commits(node, &mut commits, &command, effort)?;
    }
    while let Some(committed) = commits.join_next().await {
        committed.expect("a commit does not panic and is not cancelled")?;
    }
    Ok(())
}

fn spawn_commits(
    node: &Arc<Node>,
    commits: &mut JoinSet<Result<(), CommitError>>,
    command: &Command,
    effort: Effort,
) -> Result<(), CommitError> {
    let copysets = {
        let Some(volume) = command.volume() else { return Ok(()) };
        let state = node.state.read();
        let found = state.volumes.get(&volume).ok_or(CommitError::Gone(volume))?;
        state.copysets_of_volume(volume, found.pool)
    };
    for copyset in copysets {
        let (node, command) = (node.clone(), command.clone());
        commits.spawn(async move { commit(&node, copyset, &command, effort).await });
    }
    Ok(())
}

/// Commits a command in one copyset.
async fn commit(
    node: &Node,
    copyset: CopysetId,
    command: &Command,
    effort: Effort,
) -> Result<(), CommitError> {
    let Effort { deadline, within, call: timeout } = effort;
    let mut last = "it has no replica whose address is known".to_owned();
    loop {
        let mut targets = targets(node, copyset);
        targets.reverse();
        // At most one detour by hint per round, so that two replicas that name each other do not
        // keep this from asking the third.
        let mut detours = 1;
        while let Some((device, address)) = targets.pop() {
            let call = node.chunkservers.call((device, &address), copyset, command, timeout);
            match tokio::time::timeout_at(deadline, call).await {
                Err(_) => return Err(CommitError::Deadline { copyset, within, last }),
                Ok(Err(message)) => last = message,
                Ok(Ok(reply)) => match verdict(node, command, reply) {
                    Verdict::Done => return Ok(()),
                    Verdict::Never(error) => return Err(CommitError::Refused { copyset, error }),
                    Verdict::Again { leader, message } => {
                        last = message;
                        let there = leader.and_then(|leader| address_of(node, leader));
                        if let Some(there) = there.filter(|_| detours > 0) {
                            detours -= 1;
                            targets.push(there);
                        }
                    }
                },
            }
        }
        if Instant::now() + RETRY_PAUSE >= deadline {
            return Err(CommitError::Deadline { copyset, within, last });
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

enum Verdict {
    Done,
    Again { leader: Option<DeviceId>, message: String },
    Never(ChunkError),
}

fn verdict(node: &Node, command: &Command, reply: ChunkReply) -> Verdict {
    let Err(error) = reply else { return Verdict::Done };
    match (command, error) {
        // What was to be reached is surpassed.
        (Command::Fence { min_epoch: wanted, .. }, ChunkError::Fenced { min_epoch })
            if min_epoch >= *wanted =>
        {
            Verdict::Done
        }
        // This one cannot become whole any more.
        (
            Command::Snapshot { .. },
            error @ (ChunkError::Deleted | ChunkError::Thawed | ChunkError::NoSpace),
        ) => Verdict::Never(error),
        // What is gone may be the snapshot, and the volume still without data.
        (Command::Restore { volume, .. }, ChunkError::Deleted) if !is_deleting(node, *volume) => {
            Verdict::Never(ChunkError::Deleted)
        }
        (_, ChunkError::Deleted) => Verdict::Done,
        (_, error @ (ChunkError::BadRequest | ChunkError::Forbidden)) => Verdict::Never(error),
        (_, error @ ChunkError::NotLeader { leader }) => {
            Verdict::Again { leader, message: error.to_string() }
        }
        (_, other) => Verdict::Again { leader: None, message: other.to_string() },
    }
}

fn is_deleting(node: &Node, volume: VolumeId) -> bool {
    node.state.read().volumes.get(&volume).is_none_or(|volume| volume.deleting)
}

/// Replicas to ask, the most promising first.
fn targets(node: &Node, copyset: CopysetId) -> Vec<(DeviceId, String)> {
    let order = node.look(|scene| {
        let leader = scene.view.leader_of(copyset, scene.now).map(|(leader, _)| leader);
        let mut order: Vec<DeviceId> = leader.into_iter().collect();
        let found = scene.state.copysets.get(&copyset);
        let mut voters = found.map(|copyset| copyset.voters.clone()).unwrap_or_default();
        voters.sort_by_key(|voter| !scene.is_up(*voter));
        order.extend(voters);
        order
    });
    let mut seen = std::collections::BTreeSet::new();
    let fresh = order.into_iter().filter(|device| seen.insert(*device));
    fresh.filter_map(|device| address_of(node, device)).collect()
}

fn address_of(node: &Node, device: DeviceId) -> Option<(DeviceId, String)> {
    let state = node.state.read();
    state.devices.get(&device).map(|found| (device, found.address.clone()))
}
