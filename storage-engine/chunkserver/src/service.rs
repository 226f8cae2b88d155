//! The data plane: decides whether a caller may do what it asks, and does it where this replica
//! leads. Raft's own frames go to the host.

mod authorize;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use curve_raft::{GroupHandle, ProposeError, RaftHost, ReadError};
use curve_store::{BegunRead, Group, StoreError};
use curve_types::{BLOCK_SIZE, ChunkKey, CopysetId};
use curve_wire::auth::Principal;
use curve_wire::chunk::{
    Changes, ChunkError, ChunkMessageError, ChunkRange, Command, KIND_CHANGES, KIND_PEER_READ,
    KIND_PROPOSE, KIND_READ, PeerRead, Read, encode_reply,
};
use curve_wire::frame::Frame;
use curve_wire::rpc::{Replier, Request, Service};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use crate::admission::Admission;
use crate::digest::DigestSlot;
use crate::fairness::{Fairness, Turn};
use crate::machine::SharedState;
use crate::metrics::{Metrics, Operation};
use crate::repair::{Finder, Outcome, Repairer, blocking, peer_block, stopping};

/// Reads at the disk at a time: as deep as one disk makes use of. Those that do not lie in one piece
/// take a thread each.
const READS_MAX: usize = 64;

/// What reads and the scrub need of a replica, by copyset.
#[derive(Clone, Default)]
pub(crate) struct Replicas(Arc<RwLock<HashMap<CopysetId, Replica>>>);

#[derive(Clone)]
pub(crate) struct Replica {
    pub group: Group,
    pub state: SharedState,
    pub digest: DigestSlot,
}

impl Replica {
    fn check_moved(&self, key: ChunkKey) -> Result<(), ChunkError> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).check_moved(key)
    }

    /// Whether a copyset has left this one, as far as it is applied here.
    pub fn has_left(&self, copyset: CopysetId) -> bool {
        self.state.read().unwrap_or_else(PoisonError::into_inner).has_left(copyset)
    }
}

impl Replicas {
    pub fn insert(&self, id: CopysetId, replica: Replica) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, replica);
    }

    pub fn remove(&self, id: CopysetId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub fn clear(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn ids(&self) -> Vec<CopysetId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    pub fn get(&self, id: CopysetId) -> Option<Replica> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// Serves one device's connections.
pub(crate) struct BlockService {
    inner: Arc<Inner>,
}

struct Inner {
    host: RaftHost,
    replicas: Replicas,
    admission: Admission,
    fairness: Fairness,
    reads: Semaphore,
    repairer: Arc<Repairer>,
    metrics: Metrics,
}

impl BlockService {
    pub fn new(
        host: RaftHost,
        replicas: Replicas,
        admission: Admission,
        repairer: Arc<Repairer>,
        metrics: Metrics,
    ) -> Self {
        let reads = Semaphore::new(READS_MAX);
        let fairness = Fairness::new(metrics.held_back());
        let inner = Inner { host, replicas, admission, fairness, reads, repairer, metrics };
        Self { inner: Arc::new(inner) }
    }
}

impl Service for BlockService {
    fn on_request(&self, request: Request, replier: Replier) {
        if RaftHost::KINDS.contains(&request.frame.header.kind) {
            return self.inner.host.on_request(request, replier);
        }
        let inner = self.inner.clone();
        // Bounded by the connection's in-flight limit, which the replier holds a share of.
        tokio::spawn(async move {
            let Request { principal, frame } = request;
            let (head, payload) = inner.answer(principal, frame).await;
            replier.reply(head, payload).await;
        });
    }
}

impl Inner {
    async fn answer(&self, principal: Principal, frame: Frame) -> (Bytes, Bytes) {
        let began = Instant::now();
        let copyset = CopysetId(frame.header.group);
        let (operation, answer, bytes) = match frame.header.kind {
            KIND_PROPOSE => {
                let bytes = frame.body.len();
                (Operation::Propose, self.propose(principal, copyset, frame.body).await, bytes)
            }
            KIND_READ => {
                let read = self.read(principal, copyset, &frame.body).await;
                let bytes = read.as_ref().map_or(0, Bytes::len);
                (Operation::Read, read.map(|data| encode_reply(&Ok(data))), bytes)
            }
            KIND_PEER_READ => {
                let read = self.peer_read(principal, copyset, &frame.body).await;
                let bytes = read.as_ref().map_or(0, Bytes::len);
                (Operation::PeerRead, read.map(|data| encode_reply(&Ok(data))), bytes)
            }
            KIND_CHANGES => {
                let changes = self.changes(principal, copyset, &frame.body).await;
                let bytes = changes.as_ref().map_or(0, Bytes::len);
                (Operation::Changes, changes.map(|data| encode_reply(&Ok(data))), bytes)
            }
            kind => {
                tracing::warn!(?principal, kind, "refused a frame of unknown kind");
                (Operation::Unknown, Err(ChunkError::BadRequest), 0)
            }
        };
        self.metrics.record(operation, answer.as_ref().err(), bytes as u64, began.elapsed());
        answer.unwrap_or_else(|error| encode_reply(&Err(error)))
    }

    fn group(&self, copyset: CopysetId) -> Result<(GroupHandle, Replica), ChunkError> {
        let group = self.host.group(copyset).ok_or(ChunkError::NoSuchCopyset)?;
        let replica = self.replicas.get(copyset).ok_or(ChunkError::NoSuchCopyset)?;
        Ok((group, replica))
    }

    /// The machine's answer, encoded.
    async fn propose(
        &self,
        principal: Principal,
        copyset: CopysetId,
        body: Bytes,
    ) -> Result<(Bytes, Bytes), ChunkError> {
        let malformed = |error: ChunkMessageError| {
            tracing::warn!(?principal, %copyset, %error, "refused a malformed command");
            ChunkError::BadRequest
        };
        let (header, payload) = Command::split(&body).map_err(malformed)?;
        let command = Command::decode_parts(&header, payload.clone()).map_err(malformed)?;
        authorize::command(&principal, &command)?;
        let (group, replica) = self.group(copyset)?;
        // What the log would refuse anyway need not be logged: fences only ever rise. Not so a
        // freeze, which a leader that was cut off would never see end.
        if let Some((chunk, writer)) = authorize::writer(&command) {
            let state = replica.state.read().unwrap_or_else(PoisonError::into_inner);
            state.check_read(chunk.volume, writer.session, writer.epoch)?;
            state.check_moved(chunk)?;
        }
        let mut turn = match authorize::writer(&command) {
            Some((chunk, _)) if group.is_leader() => {
                Some(self.fairness.write(chunk.volume, payload.len() as u64).await)
            }
            _ => None,
        };
        let _promise = match &command {
            Command::Write { range, .. } if group.is_leader() => {
                Some(self.admission.admit(copyset, range).ok_or(ChunkError::NoSpace)?)
            }
            Command::Snapshot { .. } if group.is_leader() => {
                self.admission.admit_snapshot().then_some(None).ok_or(ChunkError::NoSpace)?
            }
            _ => None,
        };
        drop(command);
        let answer = group.propose(header, payload).await.map_err(|error| match error {
            ProposeError::NotLeader { leader } => ChunkError::NotLeader { leader },
            ProposeError::TooLong(_) => ChunkError::BadRequest,
            error @ (ProposeError::Busy { .. }
            | ProposeError::Unknown { .. }
            | ProposeError::Stopped) => {
                tracing::debug!(%copyset, %error, "a proposal got no answer");
                ChunkError::Unavailable
            }
        })?;
        turn.iter_mut().for_each(Turn::succeed);
        Ok((answer, Bytes::new()))
    }

    async fn read(
        &self,
        principal: Principal,
        copyset: CopysetId,
        body: &[u8],
    ) -> Result<Bytes, ChunkError> {
        let read = Read::decode(body).map_err(|error| {
            tracing::warn!(?principal, %copyset, %error, "refused a malformed read");
            ChunkError::BadRequest
        })?;
        authorize::read(&principal, &read)?;
        let (group, replica) = self.group(copyset)?;
        let (volume, len) = (read.range.key.volume, u64::from(read.range.len));
        let mut turn = match group.is_leader() {
            true => Some(self.fairness.read(volume, len).await),
            false => None,
        };
        // Each time at least one block more is whole, unless the device damages them as fast.
        for _ in 0..=u64::from(read.range.len).div_ceil(BLOCK_SIZE) + 1 {
            let error = match self.read_once(&group, &replica, read).await? {
                Ok(bytes) => {
                    turn.iter_mut().for_each(Turn::succeed);
                    return Ok(bytes);
                }
                Err(error) => error,
            };
            tracing::error!(%copyset, chunk = %read.range.key, %error, "read failed");
            let Some((key, block)) = error.unreadable_block() else {
                return Err(chunk_error(&error));
            };
            let damaged = PeerRead { key, block };
            match self.repairer.repair(&group, &replica.group, damaged, Finder::Read).await {
                Ok(Outcome::Repaired | Outcome::Superseded) => {}
                Ok(Outcome::Lost) => return Err(ChunkError::Damaged),
                Ok(Outcome::Unfinished) => return Err(ChunkError::Unavailable),
                Err(error) => return Err(chunk_error(&error)),
            }
        }
        Err(ChunkError::Unavailable)
    }

    /// The inner error is the store's.
    async fn read_once(
        &self,
        group: &GroupHandle,
        replica: &Replica,
        read: Read,
    ) -> Result<Result<Bytes, StoreError>, ChunkError> {
        barrier(group).await?;
        let Read { range, session, epoch } = read;
        {
            let state = replica.state.read().unwrap_or_else(PoisonError::into_inner);
            state.check_read(range.key.volume, session, epoch)?;
        }
        let _slot = self.reads.acquire().await.expect("never closed");
        let stored = read_stored(replica.group.clone(), range).await;
        // Only now: without its chunk, a replica reads a hole.
        replica.check_moved(range.key)?;
        Ok(stored)
    }

    /// The blocks of a snapshot that differ from another's, as a bitmap.
    async fn changes(
        &self,
        principal: Principal,
        copyset: CopysetId,
        body: &[u8],
    ) -> Result<Bytes, ChunkError> {
        let asked = Changes::decode(body).map_err(|error| {
            tracing::warn!(?principal, %copyset, %error, "refused a malformed request for changes");
            ChunkError::BadRequest
        })?;
        authorize::changes(&principal, &asked)?;
        let (group, replica) = self.group(copyset)?;
        barrier(&group).await?;
        let Changes { key, base, session, epoch } = asked;
        {
            let state = replica.state.read().unwrap_or_else(PoisonError::into_inner);
            state.check_read(key.volume, session, epoch)?;
            if base.is_some_and(|base| !state.are_of_one_volume(key.volume, base)) {
                return Err(ChunkError::BadRequest);
            }
        }
        let changes = replica.group.changes(key, base).map_err(|error| chunk_error(&error))?;
        replica.check_moved(key)?;
        let state = replica.state.read().unwrap_or_else(PoisonError::into_inner);
        if base.is_some_and(|base| !state.are_of_one_volume(key.volume, base)) {
            // Deleted meanwhile, and its chunks may have been gone when they were compared.
            return Err(ChunkError::BadRequest);
        }
        Ok(Bytes::copy_from_slice(changes.as_bytes()))
    }

    /// A member of the copyset asks for a block as it is here, whoever leads.
    async fn peer_read(
        &self,
        principal: Principal,
        copyset: CopysetId,
        body: &[u8],
    ) -> Result<Bytes, ChunkError> {
        let wanted = PeerRead::decode(body).map_err(|error| {
            tracing::warn!(?principal, %copyset, %error, "refused a malformed peer read");
            ChunkError::BadRequest
        })?;
        let (group, replica) = self.group(copyset)?;
        match principal {
            Principal::Peer { device } if group.members().contains(&device) => {}
            _ => return Err(ChunkError::Forbidden),
        }
        peer_block(&replica.group, wanted).await.map(|block| block.encode()).map_err(|error| {
            tracing::warn!(%copyset, ?wanted, %error, "no block for a peer");
            chunk_error(&error)
        })
    }
}

/// Whatever was acknowledged before is applied here, and nobody else leads.
async fn barrier(group: &GroupHandle) -> Result<(), ChunkError> {
    group.read_barrier().await.map_err(|error| match error {
        ReadError::NotLeader { leader } => ChunkError::NotLeader { leader },
        ReadError::NoQuorum | ReadError::Stopped => ChunkError::Unavailable,
    })
}

async fn read_stored(group: Group, range: ChunkRange) -> Result<Bytes, StoreError> {
    let ChunkRange { key, offset, len } = range;
    let (answer, answered) = oneshot::channel();
    let fetched = Box::new(move |fetched| drop(answer.send(fetched)));
    match group.begin_read(key, offset, len, fetched)? {
        BegunRead::Ready(bytes) => Ok(bytes),
        BegunRead::Pending => answered.await.map_err(|_| stopping())?.into_bytes(),
        BegunRead::Declined => blocking(&group, move |group| group.read(key, offset, len)).await,
    }
}

fn chunk_error(error: &StoreError) -> ChunkError {
    match error {
        error if error.unreadable_block().is_some() => ChunkError::Damaged,
        StoreError::NoGroup(_) => ChunkError::NoSuchCopyset,
        _ => ChunkError::Unavailable,
    }
}
