//! Brings one request to the leader of its copyset, however long that takes.
//!
//! A request is repeated unchanged, with the same sequence number, until there is an answer that
//! settles it, the volume ends, or its deadline passes. Leaders are found by belief: the last one
//! that answered, else a hint, else any voter.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use curve_types::{ChunkKey, CopysetId, DeviceId, PoolId, chunk_shard};
use curve_wire::auth::Credentials;
use curve_wire::chunk::{ChunkError, decode_reply};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::connections::Connections;
use super::fate::Fate;
use crate::BlockError;
use crate::backoff::Backoff;
use crate::mds::{Route, TopologyWatch};

/// How long one attempt may wait for its answer before another voter is asked. Longer than a slow
/// disk's sync, about an election: a leader that died silently has a successor by then.
const ATTEMPT_MAX: Duration = Duration::from_secs(4);
/// A lost connection or a refused leader is worth an immediate look elsewhere; an election takes
/// seconds, during which asking more often than twice a second helps nobody.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Leader hints followed without a pause; two replicas that each name the other must not spin.
const HOPS_MAX: u32 = 3;

/// One request as it goes on the wire.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub kind: u16,
    pub key: ChunkKey,
    pub head: Bytes,
    pub payload: Bytes,
}

pub(super) struct Submitter {
    pool: PoolId,
    topology: Arc<TopologyWatch>,
    connections: Connections,
    leaders: Mutex<HashMap<CopysetId, DeviceId>>,
    retries: Counter,
}

/// What to do after an attempt.
enum Verdict {
    Settled(Result<Bytes, BlockError>),
    /// Somebody else leads: ask there at once.
    Follow(DeviceId),
    /// Nobody useful answered: ask the next voter after a pause.
    Again(String),
}

impl Submitter {
    pub fn new(
        pool: PoolId,
        topology: Arc<TopologyWatch>,
        credentials: Credentials,
        retries: Counter,
    ) -> Self {
        let connections = Connections::new(credentials);
        Self { pool, topology, connections, leaders: Mutex::default(), retries }
    }

    /// Waits until every shard of the pool has an owner.
    pub async fn ready(&self, deadline: Instant) -> Result<(), BlockError> {
        let mut maps = self.topology.subscribe();
        let covered = maps.wait_for(|map| map.covers(self.pool));
        match tokio::time::timeout_at(deadline, covered).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let last = format!("no MDS sent the copysets of pool {}", self.pool);
                Err(BlockError::Unavailable { last })
            }
        }
    }

    /// One chunk per copyset that `keys` touch: that of its last shard. What leaves a copyset are its
    /// last shards, so that one which still has this chunk has all of its others.
    pub fn one_per_copyset(
        &self,
        keys: impl Iterator<Item = ChunkKey>,
    ) -> BTreeMap<CopysetId, ChunkKey> {
        let map = self.topology.current();
        let mut found = BTreeMap::new();
        for key in keys {
            if let Some(route) = map.route(self.pool, chunk_shard(key)) {
                let last = found.entry(route.copyset).or_insert(key);
                if chunk_shard(key) > chunk_shard(*last) {
                    *last = key;
                }
            }
        }
        found
    }

    /// The answer to `request`, or why there is none.
    pub async fn submit(
        &self,
        request: &Outgoing,
        deadline: Instant,
        fate: &Fate,
    ) -> Result<Bytes, BlockError> {
        tokio::select! {
            biased;
            ended = fate.ended() => Err(ended),
            answer = self.attempts(request, deadline) => answer,
        }
    }

    async fn attempts(&self, request: &Outgoing, deadline: Instant) -> Result<Bytes, BlockError> {
        let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
        let mut hops = 0;
        loop {
            let verdict = match self.target(request.key) {
                Some((route, device)) => self.attempt(request, &route, device, deadline).await,
                None => Verdict::Again("the copyset's place is unknown".into()),
            };
            let why = match verdict {
                Verdict::Settled(answer) => return answer,
                Verdict::Follow(_) if hops < HOPS_MAX => {
                    hops += 1;
                    self.retries.inc();
                    continue;
                }
                Verdict::Follow(device) => format!("device {device} is said to lead"),
                Verdict::Again(why) => why,
            };
            hops = 0;
            self.retries.inc();
            let pause = backoff.pause();
            if Instant::now() + pause >= deadline {
                return Err(BlockError::Unavailable { last: why });
            }
            tracing::debug!(chunk = %request.key, why, "asking again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Whom to ask.
    fn target(&self, key: ChunkKey) -> Option<(Arc<Route>, DeviceId)> {
        let map = self.topology.current();
        let route = map.route(self.pool, chunk_shard(key))?;
        let believed = self.leaders().get(&route.copyset).copied();
        let device = believed.or(route.leader).or(route.voters.first().copied())?;
        Some((route.clone(), device))
    }

    fn leaders(&self) -> std::sync::MutexGuard<'_, HashMap<CopysetId, DeviceId>> {
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn believe(&self, route: &Route, device: DeviceId) {
        self.leaders().insert(route.copyset, device);
    }

    /// `failed` does not lead: ask the voter after it next, unless another request already learned
    /// better.
    fn doubt(&self, route: &Route, failed: DeviceId) {
        let mut leaders = self.leaders();
        if leaders.get(&route.copyset).is_some_and(|believed| *believed != failed) {
            return;
        }
        let at = route.voters.iter().position(|voter| *voter == failed);
        let next = at.map_or(0, |at| at + 1) % route.voters.len().max(1);
        match route.voters.get(next) {
            Some(next) => leaders.insert(route.copyset, *next),
            None => leaders.remove(&route.copyset),
        };
    }

    async fn attempt(
        &self,
        request: &Outgoing,
        route: &Route,
        device: DeviceId,
        deadline: Instant,
    ) -> Verdict {
        let limit = deadline.min(Instant::now() + ATTEMPT_MAX);
        let answer = match tokio::time::timeout_at(limit, self.ask(request, route, device)).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer".to_owned()),
        };
        let reply = match answer {
            Ok(reply) => reply,
            Err(why) => {
                self.doubt(route, device);
                return Verdict::Again(format!("device {device}: {why}"));
            }
        };
        match reply {
            Ok(data) => {
                self.believe(route, device);
                Verdict::Settled(Ok(data))
            }
            Err(ChunkError::NotLeader { leader: Some(leader) }) if leader != device => {
                self.believe(route, leader);
                Verdict::Follow(leader)
            }
            Err(
                error @ (ChunkError::NotLeader { .. }
                | ChunkError::NoSuchCopyset
                | ChunkError::Unavailable),
            ) => {
                self.doubt(route, device);
                Verdict::Again(format!("device {device}: {error}"))
            }
            // Its leader is the right one, and says so for as long as a snapshot takes.
            // So it is of what the copyset still has; the map will tell of the rest.
            Err(error @ (ChunkError::Frozen | ChunkError::Moved)) => {
                Verdict::Again(format!("device {device}: {error}"))
            }
            Err(ChunkError::Fenced { .. }) => Verdict::Settled(Err(BlockError::Fenced)),
            Err(ChunkError::Deleted) => Verdict::Settled(Err(BlockError::Deleted)),
            Err(ChunkError::NoSpace) => Verdict::Settled(Err(BlockError::NoSpace)),
            Err(ChunkError::Damaged) => Verdict::Settled(Err(BlockError::Damaged)),
            Err(
                error @ (ChunkError::Stale
                | ChunkError::BadRequest
                | ChunkError::Forbidden
                | ChunkError::Thawed),
            ) => Verdict::Settled(Err(BlockError::Refused { why: error.to_string() })),
        }
    }

    async fn ask(
        &self,
        request: &Outgoing,
        route: &Route,
        device: DeviceId,
    ) -> Result<Result<Bytes, ChunkError>, String> {
        let map = self.topology.current();
        let address = map.address(device).ok_or("its address is unknown")?;
        let connection = match self.connections.get(device, address).await {
            Ok(connection) => connection,
            Err(why) => {
                self.connections.retain(|device| map.address(device).is_some());
                return Err(why);
            }
        };
        let (head, payload) = (request.head.clone(), request.payload.clone());
        let frame = connection
            .call(request.kind, route.copyset.0, head, payload)
            .await
            .map_err(|error| error.to_string())?;
        decode_reply(&frame.body).map_err(|error| error.to_string())
    }
}
