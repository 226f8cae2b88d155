//! One Raft group on the device: its log and its chunk space.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use curve_types::{ChunkKey, CopysetId, VolumeId};

use crate::{Done, LogEntry, LogPosition, LogState, StateProvider, StoreError, Vote};

/// Handle to a group. All methods may be called from any thread.
#[derive(Clone, Debug)]
pub struct Group {
    _todo: Arc<()>,
}

impl Group {
    pub fn id(&self) -> CopysetId {
        unimplemented!("follows")
    }

    // ---- log: every call below is one step in the disk's single write order ----

    /// Remembers the vote at once, calls `done` when it is durable.
    pub fn save_vote(&self, _vote: Vote, _done: Done) {
        unimplemented!("follows")
    }

    pub fn vote(&self) -> Option<Vote> {
        unimplemented!("follows")
    }

    /// Appends entries that follow the last one. Readable on return, durable at `done`; callbacks
    /// of one store come strictly in the order of the calls. On Err nothing was appended and
    /// `done` was dropped uncalled.
    ///
    /// Waits while more than 64 MiB are queued, and up to `wal_full_wait` for room in a full WAL.
    pub fn append(&self, _entries: Vec<LogEntry>, _done: Done) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// Drops every entry after `last_kept` (`None`: all of them).
    pub fn truncate_after(&self, _last_kept: Option<u64>, _done: Done) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// Drops entries up to and including `upto` from the log. They stay on disk, out of sight,
    /// until a durable checkpoint contains their effect: after a crash `LogState::last_purged`
    /// may therefore be lower again, never above `applied`. `upto` may lie past the last entry
    /// (after a snapshot was installed): the log is then empty and continues after `upto`.
    pub fn purge(&self, _upto: LogPosition, _done: Done) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// Entries of `range` that exist, in order, as many as fit into `bytes_max`, but at least one
    /// if there is one. What was purged or is not there yet is left out.
    pub fn entries(
        &self,
        _range: Range<u64>,
        _bytes_max: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        unimplemented!("follows")
    }

    pub fn log_state(&self) -> LogState {
        unimplemented!("follows")
    }

    // ---- chunk space ----

    /// Registers who answers for the applied position and state at checkpoints. Until then a
    /// checkpoint repeats what was recovered. Register before the first `begin_apply`.
    pub fn set_state_provider(&self, _provider: Arc<dyn StateProvider>) {
        unimplemented!("follows")
    }

    /// Starts applying one entry (or several that may be seen together). Waits while the overlay
    /// is full. Excludes checkpoints, views and installs until the returned value is dropped, so
    /// they see whole entries; drop it only after the state machine's own applied position moved.
    pub fn begin_apply(&self) -> Result<Apply<'_>, StoreError> {
        unimplemented!("follows")
    }

    /// Reads bytes of a chunk; holes read as zeroes.
    pub fn read(&self, _key: ChunkKey, _offset: u32, _len: u32) -> Result<Bytes, StoreError> {
        unimplemented!("follows")
    }

    /// The group's state now, held still for a Raft snapshot. Asks the state provider.
    pub fn view(&self) -> Result<ChunkView, StoreError> {
        unimplemented!("follows")
    }

    /// Starts receiving a snapshot into shadow tables. The present state stays in use.
    pub fn begin_install(&self) -> Result<Install, StoreError> {
        unimplemented!("follows")
    }
}

/// Permission to change the chunk space. Changes are in memory until the next checkpoint; after
/// a crash the host replays the log.
pub struct Apply<'a> {
    _group: &'a Group,
}

impl Apply<'_> {
    /// Writes at any byte alignment; partial blocks are read, changed and written.
    pub fn write(&self, _key: ChunkKey, _offset: u32, _data: Bytes) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// Makes the range read as zeroes; whole blocks become holes.
    pub fn write_zeroes(&self, _key: ChunkKey, _offset: u32, _len: u32) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// Frees the whole blocks of the range (they read as zeroes); partial blocks are untouched.
    pub fn discard(&self, _key: ChunkKey, _offset: u32, _len: u32) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// Forgets all chunks of a volume.
    pub fn delete_volume(&self, _volume: VolumeId) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// As `Group::read`.
    pub fn read(&self, _key: ChunkKey, _offset: u32, _len: u32) -> Result<Bytes, StoreError> {
        unimplemented!("follows")
    }
}

/// A pinned, immutable state of a group. Blocks it refers to are not reused while it lives.
#[derive(Clone)]
pub struct ChunkView {
    _todo: Arc<()>,
}

impl ChunkView {
    /// Applied position and state blob that belong to the tables.
    pub fn applied(&self) -> Option<LogPosition> {
        unimplemented!("follows")
    }

    pub fn state(&self) -> &Bytes {
        unimplemented!("follows")
    }

    /// All chunks that hold at least one block, in order.
    pub fn chunks(&self) -> Vec<ChunkKey> {
        unimplemented!("follows")
    }

    /// Runs of blocks that hold data, in order. Everything else of the chunk is holes.
    pub fn block_ranges(&self, _key: ChunkKey) -> Vec<Range<u32>> {
        unimplemented!("follows")
    }

    /// Bytes of a run of blocks.
    pub fn read(&self, _key: ChunkKey, _blocks: Range<u32>) -> Result<Bytes, StoreError> {
        unimplemented!("follows")
    }
}

/// A snapshot on its way in. Dropped without `commit`, it leaves no trace.
pub struct Install {
    _todo: Arc<()>,
}

impl Install {
    /// Stores received bytes; `offset` and length are multiples of 4096. Waits while the overlay
    /// is full.
    pub fn put(&self, _key: ChunkKey, _offset: u32, _data: Bytes) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// Replaces the group's chunk space, applied position, state and log base in one durable
    /// step. The log keeps entries after `applied` if it holds `applied` itself; otherwise it is
    /// emptied and continues after it. The switch is visible when `done` is called; until then
    /// (and after a crash before it) the old state holds. The provider must answer with the new
    /// state before `begin_apply` is called again. `done` runs on the checkpoint thread.
    pub fn commit(self, _applied: LogPosition, _state: Bytes, _done: Done) {
        unimplemented!("follows")
    }
}
