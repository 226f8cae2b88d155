//! Commits commands of the MDS in copysets: finds the leader, retries, gives up at a deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use curve_types::{CopysetId, DeviceId, Epoch, SessionId, VolumeId};
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
/// Between two rounds over a copyset's replicas.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A replica that takes longer is passed over: the next one may know a leader.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a volume's copysets could not all be told.
#[derive(Debug, Error)]
pub enum FenceError {
    #[error("volume {0} does not exist any more")]
    Gone(VolumeId),
    #[error("copyset {copyset} did not answer within {FENCE_DEADLINE:?}: {last}")]
    Deadline { copyset: CopysetId, last: String },
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
    ) -> Result<ChunkReply, String> {
        let connection = self.connection(device, address).await?;
        let (head, payload) = command.encode();
        let call = connection.call(KIND_PROPOSE, copyset.0, head, payload);
        let frame = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answered) => answered.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("{address} did not answer within {CALL_TIMEOUT:?}")),
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
pub async fn fence(node: &Arc<Node>, volume: VolumeId, epoch: Epoch) -> Result<(), FenceError> {
    everywhere(node, volume, Command::Fence { volume, min_epoch: epoch }).await
}

/// Makes every copyset of the volume refuse what `session` sends below `epoch`.
pub async fn revoke(
    node: &Arc<Node>,
    volume: VolumeId,
    session: SessionId,
    epoch: Epoch,
) -> Result<(), FenceError> {
    everywhere(node, volume, Command::Revoke { volume, session, min_epoch: epoch }).await
}

/// Makes every copyset of the volume drop its chunks.
pub async fn delete(node: &Arc<Node>, volume: VolumeId) -> Result<(), FenceError> {
    everywhere(node, volume, Command::DeleteVolume { volume }).await
}

async fn everywhere(
    node: &Arc<Node>,
    volume: VolumeId,
    command: Command,
) -> Result<(), FenceError> {
    let copysets = {
        let state = node.state.read();
        let found = state.volumes.get(&volume).ok_or(FenceError::Gone(volume))?;
        state.copysets_of_volume(volume, found.pool)
    };
    let deadline = Instant::now() + FENCE_DEADLINE;
    let mut commits = JoinSet::new();
    for copyset in copysets {
        let (node, command) = (node.clone(), command.clone());
        commits.spawn(async move { commit(&node, copyset, &command, deadline).await });
    }
    while let Some(committed) = commits.join_next().await {
        committed.expect("a commit does not panic and is not cancelled")?;
    }
    Ok(())
}

/// Commits a command in one copyset.
async fn commit(
    node: &Node,
    copyset: CopysetId,
    command: &Command,
    deadline: Instant,
) -> Result<(), FenceError> {
    let mut last = "it has no replica whose address is known".to_owned();
    loop {
        let mut targets = targets(node, copyset);
        targets.reverse();
        // At most one detour by hint per round, so that two replicas that name each other do not
        // keep this from asking the third.
        let mut detours = 1;
        while let Some((device, address)) = targets.pop() {
            let call = node.chunkservers.call((device, &address), copyset, command);
            match tokio::time::timeout_at(deadline, call).await {
                Err(_) => return Err(FenceError::Deadline { copyset, last }),
                Ok(Err(message)) => last = message,
                Ok(Ok(reply)) => match verdict(command, reply) {
                    Verdict::Done => return Ok(()),
                    Verdict::Never(error) => return Err(FenceError::Refused { copyset, error }),
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
            return Err(FenceError::Deadline { copyset, last });
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

enum Verdict {
    Done,
    Again { leader: Option<DeviceId>, message: String },
    Never(ChunkError),
}

fn verdict(command: &Command, reply: ChunkReply) -> Verdict {
    let error = match (command, reply) {
        (_, Ok(_)) => return Verdict::Done,
        // What was to be reached is surpassed.
        (Command::Fence { min_epoch: wanted, .. }, Err(ChunkError::Fenced { min_epoch }))
            if min_epoch >= *wanted =>
        {
            return Verdict::Done;
        }
        (_, Err(ChunkError::Deleted)) => return Verdict::Done,
        (_, Err(error)) => error,
    };
    match error {
        ChunkError::BadRequest | ChunkError::Forbidden => Verdict::Never(error),
        ChunkError::NotLeader { leader } => Verdict::Again { leader, message: error.to_string() },
        other => Verdict::Again { leader: None, message: other.to_string() },
    }
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
