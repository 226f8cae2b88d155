//! The open device: threads, groups, checkpoints, usage.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use curve_types::CopysetId;

use crate::{Disk, Group, LogPosition, LogState, StoreError, Superblock, Vote};

/// Completion of a durable operation. Runs on the disk's IO thread, in log order: it must not
/// block and must not call into the store in a way that waits (see `Group::append`).
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Supplies a group's applied position and state when the store checkpoints.
pub trait StateProvider: Send + Sync {
    /// Called on the store's checkpoint thread (or by `Group::view`) while the group's apply
    /// lock is held, so the answer matches the chunk tables exactly. It must not call
    /// `begin_apply`, and a lock that it takes must never be held by a caller of `begin_apply`.
    fn state(&self) -> (Option<LogPosition>, Bytes);
}

/// Settings of an open store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Applied blocks held in memory before the flusher has written them. `begin_apply` waits
    /// while more than this is dirty.
    pub overlay_bytes_max: u64,
    /// Recent log entries kept in memory; older ones are read back from the WAL.
    pub log_cache_bytes_max: u64,
    /// An idle log writes one mark-only batch after this time, so that damage to the last
    /// acknowledged batch is told from a torn tail.
    pub idle_mark_after: Duration,
    /// How long `append` waits for room in a full WAL before it answers `WalFull`.
    pub wal_full_wait: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            overlay_bytes_max: 64 << 20,
            log_cache_bytes_max: 64 << 20,
            idle_mark_after: Duration::from_millis(100),
            wal_full_wait: Duration::from_secs(10),
        }
    }
}

/// A group found at open. The host replays the log after `applied` through its state machine,
/// as far as it knows it committed.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    pub group: Group,
    pub vote: Option<Vote>,
    pub log_state: LogState,
    /// Last entry whose effect the chunk tables and `state` contain.
    pub applied: Option<LogPosition>,
    /// Blob of the last checkpoint; empty when there was none.
    pub state: Bytes,
}

/// Space on the device. Blocks are of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub data_blocks_total: u64,
    /// Blocks that live chunk tables refer to, overlay blocks included.
    pub data_blocks_used: u64,
    /// Superseded, but still referred to by the last checkpoint, a view or an install.
    pub data_blocks_pending_free: u64,
    /// Kept free so that what was admitted can always be flushed.
    pub data_blocks_reserve: u64,
    pub wal_bytes_total: u64,
    pub wal_bytes_used: u64,
    pub overlay_bytes: u64,
    pub overlay_bytes_max: u64,
}

impl Usage {
    /// Blocks that proposals may still be admitted for. Everything admitted but not yet applied
    /// must be subtracted by the caller.
    pub fn admissible_blocks(&self) -> u64 {
        self.data_blocks_total
            .saturating_sub(self.data_blocks_used)
            .saturating_sub(self.data_blocks_reserve)
    }
}

/// Handle to an open device. When the last handle (groups, views and installs count) is gone,
/// what was queued is written and the threads end.
#[derive(Clone)]
pub struct Store {
    _todo: Arc<()>,
}

impl Store {
    /// Opens a formatted device: last checkpoint plus WAL. The groups come back sorted by id.
    pub fn open(
        _disk: Arc<dyn Disk>,
        _options: StoreOptions,
    ) -> Result<(Self, Vec<RecoveredGroup>), StoreError> {
        unimplemented!("follows")
    }

    pub fn superblock(&self) -> &Superblock {
        unimplemented!("follows")
    }

    /// A group that exists.
    pub fn group(&self, _id: CopysetId) -> Option<Group> {
        unimplemented!("follows")
    }

    /// All groups, sorted by id.
    pub fn groups(&self) -> Vec<Group> {
        unimplemented!("follows")
    }

    /// Creates an empty group: usable on return, durable at `done`. An existing one is refused.
    pub fn create_group(&self, _id: CopysetId, _done: Done) -> Result<Group, StoreError> {
        unimplemented!("follows")
    }

    /// Forgets a group and all its data, durable at `done`.
    pub fn remove_group(&self, _id: CopysetId, _done: Done) -> Result<(), StoreError> {
        unimplemented!("follows")
    }

    /// Starts a checkpoint of all groups that covers at least what was applied before the call.
    pub fn checkpoint(&self, _done: Done) {
        unimplemented!("follows")
    }

    pub fn usage(&self) -> Usage {
        unimplemented!("follows")
    }

    /// Called (on the IO thread, must not block) each time the WAL becomes fuller than half, and
    /// again for each further 1/16. The store checkpoints by itself; the host must purge.
    pub fn on_wal_pressure(&self, _callback: Box<dyn Fn() + Send + Sync>) {
        unimplemented!("follows")
    }

    /// Called once when the store fails; at once if it already has.
    pub fn on_failure(&self, _callback: Box<dyn FnOnce(StoreError) + Send>) {
        unimplemented!("follows")
    }

    /// The error that failed the store, if any.
    pub fn failure(&self) -> Option<StoreError> {
        unimplemented!("follows")
    }
}
