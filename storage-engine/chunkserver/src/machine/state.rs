//! Who may still write to which volume. Pure memory with an encoding of its own.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | version, 3; 2 ends before the copysets |
//! | 4 | number of volumes and snapshots, then for each, in order of id: |
//! | 16, 8 | volume, lowest epoch accepted |
//! | 8 | epoch at which it got the chunks of a snapshot last; 0 if never |
//! | 16 | the snapshot that it is frozen for; 0 if none |
//! | 16 | of a snapshot: the volume that it was taken of; else 0 |
//! | 4 | number of sessions, then for each, in order: |
//! | 8, 8, 8 | session, its epoch, its floor |
//! | 4 | number of deleted volumes, oldest first |
//! | 16 | volume |
//! | 4 | number of copysets that have left this one, oldest first |
//! | 4, 4, 4 | copyset, first and end of its shards |

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use curve_types::planted::{self, Bug};
use curve_types::{
    ChunkKey, CopysetId, Epoch, SHARDS_PER_POOL, SessionId, ShardRange, VolumeId, chunk_shard,
};
use curve_wire::chunk::{ChunkError, Writer};
use thiserror::Error;

const VERSION: u8 = 3;
const VERSION_WITHOUT_MOVED: u8 = 2;
/// Sessions of one volume that are remembered: several times the nodes that share one. Beyond it
/// the oldest is dropped. The MDS revokes fewer than half as many at one epoch, and those have a
/// higher epoch than any session that can still write: no revocation is dropped while it matters.
const SESSIONS_MAX: usize = 256;
/// Deleted volumes that are remembered, so that a write that was delayed cannot bring a chunk
/// back. A session that outlives so many deletions could only waste space under a dead id.
const DELETED_MAX: usize = 4096;

/// The replicated state of a copyset besides its chunks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct BlockState {
    volumes: BTreeMap<VolumeId, Fence>,
    deleted: VecDeque<VolumeId>,
    /// The same volumes as `deleted`.
    deleted_set: BTreeSet<VolumeId>,
    /// Shards that are other copysets' by now.
    moved: Vec<(CopysetId, ShardRange)>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Fence {
    min_epoch: Epoch,
    /// Of the last `Restore`.
    restored: Epoch,
    frozen_for: Option<VolumeId>,
    snapshot_of: Option<VolumeId>,
    sessions: BTreeMap<SessionId, Seen>,
}

/// The highest that a session's writes have shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    epoch: Epoch,
    floor: u64,
}

/// Why bytes are not a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum StateError {
    #[error("copyset state ends within {0}")]
    Short(&'static str),
    #[error("copyset state has version {0}, expected {VERSION}")]
    Version(u8),
    #[error("copyset state: {0} are not in order or too many")]
    Order(&'static str),
    #[error("copyset state is followed by {0} more bytes")]
    Trailing(usize),
}

impl BlockState {
    /// Whether the chunk is still this copyset's.
    pub fn check_moved(&self, key: ChunkKey) -> Result<(), ChunkError> {
        let shard = chunk_shard(key);
        match self.moved.iter().any(|(_, shards)| shards.contains(shard)) {
            true => Err(ChunkError::Moved),
            false => Ok(()),
        }
    }

    /// Whether a copyset has left this one.
    pub fn has_left(&self, copyset: CopysetId) -> bool {
        self.moved.iter().any(|(left, _)| *left == copyset)
    }

    /// Gives shards to a new copyset, and answers with what that begins with; None if it has got
    /// them. Refused during a freeze, which would have to end in both.
    pub fn split(&mut self, to: CopysetId, shards: ShardRange) -> Result<Option<Self>, ChunkError> {
        if self.moved.contains(&(to, shards)) {
            return Ok(None);
        }
        let overlaps = |other: ShardRange| shards.first < other.end && other.first < shards.end;
        let is_whole = shards.first < shards.end && shards.end <= SHARDS_PER_POOL;
        if !is_whole || self.has_left(to) || self.moved.iter().any(|(_, left)| overlaps(*left)) {
            return Err(ChunkError::BadRequest);
        }
        if self.frozen().next().is_some() {
            return Err(ChunkError::Frozen);
        }
        let left = Self { moved: Vec::new(), ..self.clone() };
        self.moved.push((to, shards));
        Ok(Some(left))
    }

    /// Whether a session may read.
    pub fn check_read(
        &self,
        volume: VolumeId,
        session: SessionId,
        epoch: Epoch,
    ) -> Result<(), ChunkError> {
        if self.deleted_set.contains(&volume) {
            return Err(ChunkError::Deleted);
        }
        let Some(fence) = self.volumes.get(&volume) else { return Ok(()) };
        let own = fence.sessions.get(&session).map_or(Epoch(0), |seen| seen.epoch);
        let min_epoch = fence.min_epoch.max(own);
        if epoch < min_epoch && !planted::has(Bug::IgnoreEpoch) {
            return Err(ChunkError::Fenced { min_epoch });
        }
        Ok(())
    }

    /// Whether a session may write at this moment.
    pub fn check_write(&self, volume: VolumeId, writer: &Writer) -> Result<(), ChunkError> {
        self.check_read(volume, writer.session, writer.epoch)?;
        match self.volumes.get(&volume) {
            Some(Fence { snapshot_of: Some(_), .. }) => Err(ChunkError::Forbidden),
            Some(Fence { frozen_for: Some(_), .. }) => Err(ChunkError::Frozen),
            _ => Ok(()),
        }
    }

    /// Takes note of a write that is about to be carried out, or refuses it.
    pub fn admit(&mut self, volume: VolumeId, writer: &Writer) -> Result<(), ChunkError> {
        self.check_write(volume, writer)?;
        let fence = self.volumes.entry(volume).or_default();
        let fresh = Seen { epoch: writer.epoch, floor: writer.floor };
        let seen = fence.sessions.entry(writer.session).or_insert(fresh);
        if writer.epoch > seen.epoch {
            // A new incarnation numbers its writes afresh.
            *seen = fresh;
        }
        seen.floor = seen.floor.max(writer.floor);
        let stale = writer.seq < seen.floor;
        if fence.sessions.len() > SESSIONS_MAX {
            fence.drop_oldest_but(writer.session);
        }
        if stale { Err(ChunkError::Stale) } else { Ok(()) }
    }

    /// Raises a fence, never lowers it.
    pub fn fence(&mut self, volume: VolumeId, min_epoch: Epoch) -> Result<(), ChunkError> {
        self.live(volume)?.raise(min_epoch);
        Ok(())
    }

    /// Raises the fence of one session, never lowers it.
    pub fn revoke(
        &mut self,
        volume: VolumeId,
        session: SessionId,
        min_epoch: Epoch,
    ) -> Result<(), ChunkError> {
        let fence = self.live(volume)?;
        let own = fence.sessions.get(&session).map_or(fence.min_epoch, |seen| seen.epoch);
        if own < min_epoch {
            fence.sessions.insert(session, Seen { epoch: min_epoch, floor: 0 });
            if fence.sessions.len() > SESSIONS_MAX {
                fence.drop_oldest_but(session);
            }
        }
        Ok(())
    }

    /// Freezes the volume for a snapshot. True if its chunks are to be copied, false if they are.
    pub fn snapshot(&mut self, volume: VolumeId, snapshot: VolumeId) -> Result<bool, ChunkError> {
        if self.deleted_set.contains(&snapshot) {
            return Err(ChunkError::Deleted);
        }
        let frozen_for = self.live(volume)?.frozen_for;
        match self.volumes.get(&snapshot).map(|known| known.snapshot_of) {
            Some(of) if of != Some(volume) => return Err(ChunkError::BadRequest),
            Some(_) if frozen_for != Some(snapshot) => return Err(ChunkError::Thawed),
            Some(_) => return Ok(false),
            None if frozen_for.is_some() => return Err(ChunkError::Frozen),
            None => {}
        }
        self.live(volume)?.frozen_for = Some(snapshot);
        let taken = Fence { snapshot_of: Some(volume), ..Fence::default() };
        self.volumes.insert(snapshot, taken);
        Ok(true)
    }

    /// Whether both are snapshots of one volume.
    pub fn are_of_one_volume(&self, one: VolumeId, other: VolumeId) -> bool {
        let of = |id: VolumeId| self.volumes.get(&id).and_then(|known| known.snapshot_of);
        of(one).is_some() && of(one) == of(other)
    }

    /// Ends the freeze for this snapshot, if it lasts.
    pub fn thaw(&mut self, volume: VolumeId, snapshot: VolumeId) {
        let fence = self.volumes.get_mut(&volume);
        if let Some(fence) = fence.filter(|fence| fence.frozen_for == Some(snapshot)) {
            fence.frozen_for = None;
        }
    }

    /// Volumes that are frozen, each with the snapshot that it is frozen for.
    pub fn frozen(&self) -> impl Iterator<Item = (VolumeId, VolumeId)> + '_ {
        self.volumes.iter().filter_map(|(volume, fence)| Some((*volume, fence.frozen_for?)))
    }

    /// Takes note that a volume gets the chunks of a snapshot. False if it has got them, at that
    /// epoch or a later one.
    pub fn restore(
        &mut self,
        volume: VolumeId,
        snapshot: VolumeId,
        epoch: Epoch,
    ) -> Result<bool, ChunkError> {
        let is_snapshot =
            |id: &VolumeId| self.volumes.get(id).is_some_and(|known| known.snapshot_of.is_some());
        let (source, target) = (is_snapshot(&snapshot), is_snapshot(&volume));
        let fence = self.live(volume)?;
        if fence.restored >= epoch {
            return Ok(false);
        }
        if !source || target {
            return Err(ChunkError::BadRequest);
        }
        fence.restored = epoch;
        fence.raise(epoch);
        Ok(true)
    }

    fn live(&mut self, volume: VolumeId) -> Result<&mut Fence, ChunkError> {
        if self.deleted_set.contains(&volume) {
            return Err(ChunkError::Deleted);
        }
        Ok(self.volumes.entry(volume).or_default())
    }

    /// Forgets a volume but for the fact that it is gone.
    pub fn delete(&mut self, volume: VolumeId) {
        let of = self.volumes.remove(&volume).and_then(|fence| fence.snapshot_of);
        if let Some(of) = of {
            self.thaw(of, volume);
        }
        if self.deleted_set.insert(volume) {
            self.deleted.push_back(volume);
        }
        while self.deleted.len() > DELETED_MAX {
            let oldest = self.deleted.pop_front().expect("longer than the limit");
            self.deleted_set.remove(&oldest);
        }
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u32_le(self.volumes.len() as u32);
        for (volume, fence) in &self.volumes {
            out.put_slice(&volume.to_bytes());
            out.put_u64_le(fence.min_epoch.0);
            out.put_u64_le(fence.restored.0);
            out.put_slice(&fence.frozen_for.unwrap_or_default().to_bytes());
            out.put_slice(&fence.snapshot_of.unwrap_or_default().to_bytes());
            out.put_u32_le(fence.sessions.len() as u32);
            for (session, seen) in &fence.sessions {
                out.put_u64_le(session.0);
                out.put_u64_le(seen.epoch.0);
                out.put_u64_le(seen.floor);
            }
        }
        out.put_u32_le(self.deleted.len() as u32);
        self.deleted.iter().for_each(|volume| out.put_slice(&volume.to_bytes()));
        out.put_u32_le(self.moved.len() as u32);
        for (copyset, shards) in &self.moved {
            [copyset.0, shards.first, shards.end].iter().for_each(|field| out.put_u32_le(*field));
        }
        out.freeze()
    }

    pub fn decode(raw: &[u8]) -> Result<Self, StateError> {
        let mut input = Input(raw);
        let version = input.u8("the version")?;
        if version != VERSION && version != VERSION_WITHOUT_MOVED {
            return Err(StateError::Version(version));
        }
        let mut state = Self::default();
        for _ in 0..input.u32("the volumes")? {
            let volume = input.volume("a volume")?;
            if state.volumes.last_key_value().is_some_and(|(last, _)| *last >= volume) {
                return Err(StateError::Order("volumes"));
            }
            let fence = Fence::decode(&mut input)?;
            state.volumes.insert(volume, fence);
        }
        let deleted = input.u32("the deleted volumes")?;
        if deleted as usize > DELETED_MAX {
            return Err(StateError::Order("deleted volumes"));
        }
        for _ in 0..deleted {
            let volume = input.volume("a deleted volume")?;
            if state.volumes.contains_key(&volume) || !state.deleted_set.insert(volume) {
                return Err(StateError::Order("deleted volumes"));
            }
            state.deleted.push_back(volume);
        }
        let moved = if version == VERSION { input.u32("the copysets that left")? } else { 0 };
        for _ in 0..moved {
            let mut field = || input.u32("a copyset that left");
            let (copyset, first, end) = (CopysetId(field()?), field()?, field()?);
            state.moved.push((copyset, ShardRange { first, end }));
        }
        match input.0.len() {
            0 => Ok(state),
            more => Err(StateError::Trailing(more)),
        }
    }
}

impl Fence {
    fn raise(&mut self, min_epoch: Epoch) {
        self.min_epoch = self.min_epoch.max(min_epoch);
        let min_epoch = self.min_epoch;
        // Whatever lies below is refused by its epoch alone.
        self.sessions.retain(|_, seen| seen.epoch >= min_epoch);
    }

    /// The oldest is the one with the lowest epoch, and is fenced, which is always safe. Of
    /// several at that epoch it is the one that was opened first, and is only forgotten: a fence
    /// would end all of them. Should it write again, it is remembered anew, without its floor.
    fn drop_oldest_but(&mut self, keep: SessionId) {
        let others = self.sessions.iter().filter(|(session, _)| **session != keep);
        let Some((epoch, oldest)) = others.map(|(session, seen)| (seen.epoch, *session)).min()
        else {
            return;
        };
        let mut rest = self.sessions.iter().filter(|(session, _)| **session != oldest);
        if rest.all(|(_, seen)| seen.epoch > epoch) {
            self.raise(Epoch(epoch.0 + 1));
        } else {
            self.sessions.remove(&oldest);
        }
    }

    fn decode(input: &mut Input<'_>) -> Result<Self, StateError> {
        let min_epoch = Epoch(input.u64("a fence")?);
        let restored = Epoch(input.u64("a fence")?);
        let some = |id: VolumeId| (!id.is_nil()).then_some(id);
        let frozen_for = some(input.volume("a fence")?);
        let snapshot_of = some(input.volume("a fence")?);
        let mut sessions = BTreeMap::<SessionId, Seen>::new();
        for _ in 0..input.u32("the sessions")? {
            let session = SessionId(input.u64("a session")?);
            let seen =
                Seen { epoch: Epoch(input.u64("a session")?), floor: input.u64("a session")? };
            if sessions.last_key_value().is_some_and(|(last, _)| *last >= session) {
                return Err(StateError::Order("sessions"));
            }
            sessions.insert(session, seen);
        }
        Ok(Self { min_epoch, restored, frozen_for, snapshot_of, sessions })
    }
}

/// Bytes still to be read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], StateError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(StateError::Short(what))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, StateError> {
        self.take::<1>(what).map(|[byte]| byte)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, StateError> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, StateError> {
        self.take(what).map(u64::from_le_bytes)
    }

    fn volume(&mut self, what: &'static str) -> Result<VolumeId, StateError> {
        self.take(what).map(VolumeId::from_bytes)
    }
}
