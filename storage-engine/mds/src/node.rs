//! What the parts of an MDS process share: log, applied state, view, peers, and the rule that only
//! a leader that has caught up with its own log answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use curve_raft::{ProposeError, ReadError};
use curve_types::{DeviceId, VolumeId};
use curve_wire::auth::Key;
use curve_wire::proto;
use prost::Message;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, watch};
use tonic::{Code, Status};

use crate::chunkservers::Chunkservers;
use crate::log::{Answer, Command, answer, command::Kind};
use crate::machine::{Replication, SharedState};
use crate::peers::Peers;
use crate::state::{Reason, Refusal, State};
use crate::view::{Moment, Scene, View};

pub struct Node {
    pub device: DeviceId,
    pub cluster_name: String,
    pub out_after: Duration,
    /// Of chunkservers among themselves; session keys derive from it.
    pub chunkserver_key: Key,
    pub state: SharedState,
    pub peers: Arc<Peers>,
    pub chunkservers: Chunkservers,
    pub group: Arc<dyn Replication>,
    pub topology: watch::Sender<Option<Arc<proto::Topology>>>,
    /// Wakes the leader's loop before its next tick.
    pub wake: Notify,
    view: Mutex<View>,
    /// Whoever fences, restores or freezes a volume holds its lock, so that an attach and the
    /// leader's own rounds do not commit the same epoch twice, and no snapshot shows half of that.
    fencing: Mutex<BTreeMap<VolumeId, Weak<AsyncMutex<()>>>>,
    /// The term for which this process serves as the leader; 0 while it does not.
    serving: AtomicU64,
    started: Instant,
}

/// What a node is made of.
pub struct Parts {
    pub device: DeviceId,
    pub cluster_name: String,
    pub out_after: Duration,
    pub cluster_key: Key,
    pub state: SharedState,
    pub peers: Arc<Peers>,
    pub group: Arc<dyn Replication>,
}

impl Node {
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { device, cluster_name, out_after, cluster_key, state, peers, group } = parts;
        let chunkserver_key = cluster_key.chunkserver_peer_key();
        Arc::new(Self {
            device,
            cluster_name,
            out_after,
            chunkservers: Chunkservers::new(device, chunkserver_key.clone()),
            chunkserver_key,
            state,
            peers,
            group,
            topology: watch::Sender::new(None),
            wake: Notify::new(),
            view: Mutex::new(View::default()),
            fencing: Mutex::default(),
            serving: AtomicU64::new(0),
            started: Instant::now(),
        })
    }

    pub fn now(&self) -> Moment {
        self.started.elapsed()
    }

    pub fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().expect("no panic while held")
    }

    /// Waits for its turn to tell a volume's copysets something.
    pub async fn fencing(&self, volume: VolumeId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.fencing.lock().expect("no panic while held");
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(&volume).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(volume, Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }

    /// Runs a pure function over everything that is known now.
    pub fn look<T>(&self, look: impl FnOnce(Scene<'_>) -> T) -> T {
        let (state, view) = (self.state.read(), self.view());
        let (now, out_after, now_unix_ms) = (self.now(), self.out_after, unix_ms());
        look(Scene { state: &state, view: &view, now, now_unix_ms, out_after })
    }

    /// From now on this process answers as the leader of `term`, with an empty view.
    pub fn begin_serving(&self, term: u64) {
        *self.view() = View::begin(self.now());
        self.serving.store(term, Ordering::Release);
    }

    pub fn end_serving(&self) {
        self.serving.store(0, Ordering::Release);
        self.topology.send_replace(None);
    }

    /// The term of this leader, or the refusal of a follower.
    pub fn leading(&self) -> Result<u64, Status> {
        let leadership = *self.group.leadership().borrow();
        let serving = self.serving.load(Ordering::Acquire);
        if leadership.is_leader && serving == leadership.term {
            return Ok(serving);
        }
        Err(not_leader())
    }

    /// Leads, and its applied state contains everything that was acknowledged before.
    pub async fn leading_now(&self) -> Result<u64, Status> {
        let term = self.leading()?;
        match self.group.read_barrier().await {
            Ok(()) => Ok(term),
            Err(ReadError::NotLeader { .. }) => Err(not_leader()),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    /// Carries out a mutation, once per request id.
    pub async fn mutate(&self, request_id: &Bytes, kind: Kind) -> Result<answer::Kind, Status> {
        validate_request_id(request_id)?;
        self.leading()?;
        self.propose(request_id.clone(), kind).await
    }

    /// Carries out a command of the leader's own.
    pub async fn command(&self, kind: Kind) -> Result<answer::Kind, Status> {
        self.propose(Bytes::new(), kind).await
    }

    async fn propose(&self, request_id: Bytes, kind: Kind) -> Result<answer::Kind, Status> {
        let command = Command { request_id, now_unix_ms: unix_ms(), kind: Some(kind) };
        let raw =
            self.group.propose(command.encode_to_vec().into()).await.map_err(
                |error| match error {
                    ProposeError::NotLeader { .. } => not_leader(),
                    ProposeError::TooLong(_) => Status::invalid_argument(error.to_string()),
                    _ => Status::unavailable(error.to_string()),
                },
            )?;
        let answer = Answer::decode(raw).map_err(|error| Status::internal(error.to_string()))?;
        match answer.kind {
            Some(answer::Kind::Refused(refused)) => Err(status(Refusal {
                reason: Reason::from_code(refused.code),
                message: refused.message,
            })),
            Some(kind) => {
                self.wake.notify_one();
                Ok(kind)
            }
            None => Err(Status::internal("the state machine gave no answer")),
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

pub fn validate_request_id(request_id: &Bytes) -> Result<(), Status> {
    if request_id.len() == 16 && request_id.iter().any(|byte| *byte != 0) {
        return Ok(());
    }
    let message = format!(
        "request_id has {} bytes: expected 16 that are not all zero, the same for every retry of \
         one request",
        request_id.len()
    );
    Err(Status::invalid_argument(message))
}

/// A follower's answer: the caller asks the next member.
fn not_leader() -> Status {
    Status::unavailable("not the leader")
}

/// A refusal at the edge.
pub fn status(refusal: Refusal) -> Status {
    let code = match refusal.reason {
        Reason::Invalid => Code::InvalidArgument,
        Reason::NotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::Precondition => Code::FailedPrecondition,
        Reason::Exhausted => Code::ResourceExhausted,
        Reason::Forbidden => Code::PermissionDenied,
        Reason::NotReady => Code::Unavailable,
    };
    Status::new(code, refusal.message)
}

/// The sentence for something that is not there.
pub fn not_found(what: &str, name: impl std::fmt::Display) -> Status {
    Status::not_found(format!("{what} {name} does not exist"))
}

/// The cluster of a state that serves; there is one, since a leader forms it before it serves.
pub fn cluster_id(state: &State) -> Result<curve_types::ClusterId, Status> {
    let cluster = state.cluster.as_ref();
    cluster.map(|cluster| cluster.id).ok_or_else(|| Status::unavailable("no cluster is formed yet"))
}
