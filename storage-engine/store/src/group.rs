//! One Raft group on the device: its log and its chunk space.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use bytes::Bytes;
use curve_types::{BLOCK_SIZE, ChunkKey, CopysetId};

use crate::chunk::Place;
use crate::core::{Core, Switch};
use crate::log::index::{Loc, LogIndex, Slot, check_entries};
use crate::payload::{self, Blocks};
use crate::space::{BegunRead, ChunkMap, Fetched, Pin, Space, place, places, read_places};
use crate::store::Owner;
use crate::wal::format::{RawRecord, Record, entry_record_len};
use crate::wal::queue::{Job, Queued};
use crate::wal::space::{Purpose, WalSpace};
use crate::{Apply, Done, LogEntry, LogPosition, LogState, StateProvider, StoreError, Vote};

/// Entries read back from the WAL are read in spans of at most this.
const READ_SPAN_MAX: u64 = 1 << 20;

/// State of a group that handles and threads share.
pub(crate) struct GroupInner {
    pub id: CopysetId,
    /// Position of the record that created it (or from which on its log counts); `u64::MAX`
    /// until it has one.
    first_lsn: AtomicU64,
    log: Mutex<LogIndex>,
    /// Held while an entry is applied, and while anyone looks at state and tables together.
    apply: Mutex<()>,
    space: RwLock<Arc<Space>>,
    /// Applied position and state as last captured.
    last_state: Mutex<(Option<LogPosition>, Bytes)>,
    provider: RwLock<Option<Weak<dyn StateProvider>>>,
}

impl GroupInner {
    pub fn new(
        id: CopysetId,
        first_lsn: u64,
        log: LogIndex,
        space: Arc<Space>,
        state: (Option<LogPosition>, Bytes),
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            first_lsn: AtomicU64::new(first_lsn),
            log: Mutex::new(log),
            apply: Mutex::new(()),
            space: RwLock::new(space),
            last_state: Mutex::new(state),
            provider: RwLock::new(None),
        })
    }

    pub fn log(&self) -> MutexGuard<'_, LogIndex> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lock_apply(&self) -> MutexGuard<'_, ()> {
        self.apply.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn space(&self) -> Arc<Space> {
        self.space.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn created_at(&self, lsn: u64) {
        self.first_lsn.store(lsn, Ordering::Release);
    }

    pub fn first_lsn_is(&self, lsn: u64) -> bool {
        self.first_lsn.load(Ordering::Acquire) == lsn
    }

    /// Applied position and state blob; the apply lock is held. Without a provider it is what was
    /// captured last, which the tables may be ahead of: replaying the difference is idempotent.
    pub fn state(&self) -> (Option<LogPosition>, Bytes) {
        let provider = self.provider.read().unwrap_or_else(PoisonError::into_inner);
        let provider = provider.as_ref().and_then(Weak::upgrade);
        let mut last = self.last_state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(provider) = provider {
            *last = provider.state();
        }
        last.clone()
    }

    /// Puts an installed state in place; the apply lock is held. Returns the old space.
    pub fn replace(&self, space: Arc<Space>, applied: LogPosition, state: Bytes) -> Arc<Space> {
        *self.last_state.lock().unwrap_or_else(PoisonError::into_inner) = (Some(applied), state);
        std::mem::replace(&mut *self.space.write().unwrap_or_else(PoisonError::into_inner), space)
    }

    /// Makes the log continue after an installed snapshot, in memory and in the WAL. `NoGroup` if
    /// the group was removed: its id may be another group's by now.
    pub fn rebase(&self, core: &Core, applied: LogPosition) -> Result<(), StoreError> {
        let cost = WalSpace::cost(Record::LEN_MAX);
        core.reserve(2 * cost, Purpose::Open)?;
        let mut log = self.log();
        if log.removed {
            core.wal.written(0, 2 * cost);
            return Err(StoreError::NoGroup(self.id));
        }
        let truncate = (!log.holds(applied)).then_some(Record::Truncate(Some(applied.index)));
        log.installed(applied);
        if truncate.is_none() {
            core.wal.written(0, cost);
        }
        let purge = Job::Record { group: self.id, record: Record::Purge(applied) };
        let purge = Queued { freed: log.take_freed(), ..Queued::new(purge, cost) };
        let truncate =
            truncate.map(|record| Queued::new(Job::Record { group: self.id, record }, cost));
        core.queue.push(truncate.into_iter().chain([purge]));
        Ok(())
    }

    /// A durable checkpoint contains `applied`.
    pub fn checkpointed(&self, core: &Core, applied: Option<LogPosition>) {
        let mut log = self.log();
        log.checkpointed(applied);
        let freed = log.take_freed();
        if !freed.is_empty() {
            // In the queue's order: the purge that dropped them may still be on its way.
            core.queue.push([Queued { freed, ..Queued::new(Job::Nothing, 0) }]);
        }
    }

    fn provide(&self, provider: &Arc<dyn StateProvider>) {
        let weak = Arc::downgrade(provider);
        *self.provider.write().unwrap_or_else(PoisonError::into_inner) = Some(weak);
    }
}

/// Handle to a group. All methods may be called from any thread.
#[derive(Clone)]
pub struct Group {
    pub(crate) owner: Arc<Owner>,
    pub(crate) inner: Arc<GroupInner>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({})", self.inner.id)
    }
}

impl Group {
    pub fn id(&self) -> CopysetId {
        self.inner.id
    }

    pub(crate) fn core(&self) -> &Core {
        &self.owner.core
    }

    // ---- log: every call below is one step in the disk's single write order ----

    /// Remembers the vote at once, calls `done` when it is durable.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        let result = self.record(Record::Vote(vote), done, |log| {
            log.vote = Some(vote);
            Ok(())
        });
        if let Err((error, done)) = result {
            done(Err(error));
        }
    }

    pub fn vote(&self) -> Option<Vote> {
        self.inner.log().vote
    }

    /// Appends entries that follow the last one. Readable on return, durable at `done`; callbacks
    /// of one store come strictly in the order of the calls. On Err nothing was appended and
    /// `done` was dropped uncalled.
    ///
    /// Waits while more than 64 MiB are queued, and up to `wal_full_wait` for room in a full WAL.
    pub fn append(&self, entries: Vec<LogEntry>, done: Done) -> Result<(), StoreError> {
        let core = self.core();
        check_entries(None, &entries)?;
        core.queue.wait_for_room(&core.device)?;
        let placed: Vec<Option<Blocks>> =
            entries.iter().map(|entry| payload::place(&core.data, &entry.payload)).collect();
        let cost = |(entry, blocks): (&LogEntry, &Option<Blocks>)| {
            WalSpace::cost(entry_record_len(entry, blocks.as_ref()))
        };
        let costs: Vec<u64> = entries.iter().zip(&placed).map(cost).collect();
        let total = costs.iter().sum();
        if let Err(error) = core.reserve(total, Purpose::Entries) {
            payload::let_go(&core.data, placed.iter().flatten());
            return Err(error);
        }
        let mut log = self.inner.log();
        if let Err(error) = self.appendable(&log, &entries) {
            core.wal.written(0, total);
            payload::let_go(&core.data, placed.iter().flatten());
            return Err(error);
        }
        let mut queued: Vec<Queued> = Vec::with_capacity(entries.len() + 1);
        for ((entry, blocks), reserved) in entries.into_iter().zip(placed).zip(costs) {
            let id = log.push(entry.position, entry.len(), Some(entry.clone()), blocks.clone());
            let job = Job::Entry { id, group: self.inner.clone(), entry, blocks };
            queued.push(Queued::new(job, reserved));
        }
        match queued.last_mut() {
            Some(last) => last.done = Some(done),
            None => queued.push(Queued { done: Some(done), ..Queued::new(Job::Nothing, 0) }),
        }
        core.queue.push(queued);
        Ok(())
    }

    fn appendable(&self, log: &LogIndex, entries: &[LogEntry]) -> Result<(), StoreError> {
        match log.removed {
            true => Err(StoreError::NoGroup(self.id())),
            false => check_entries(log.next_index(), entries),
        }
    }

    /// Drops every entry after `last_kept` (`None`: all of them).
    pub fn truncate_after(&self, last_kept: Option<u64>, done: Done) -> Result<(), StoreError> {
        self.record(Record::Truncate(last_kept), done, |log| {
            if !log.can_truncate_after(last_kept) {
                return Err(StoreError::invalid(format!(
                    "truncation after {last_kept:?} would reach into purged entries"
                )));
            }
            log.truncate_after(last_kept);
            Ok(())
        })
        .map_err(|(error, _)| error)
    }

    /// Drops entries up to and including `upto` from the log. They stay on disk, out of sight,
    /// until a durable checkpoint contains their effect: after a crash `LogState::last_purged`
    /// may therefore be lower again, never above `applied`. `upto` may lie past the last entry
    /// (after a snapshot was installed): the log is then empty and continues after `upto`.
    pub fn purge(&self, upto: LogPosition, done: Done) -> Result<(), StoreError> {
        self.record(Record::Purge(upto), done, |log| {
            log.purge(upto);
            Ok(())
        })
        .map_err(|(error, _)| error)?;
        self.core().upkeep.request_advance();
        Ok(())
    }

    /// Changes the log in memory and queues the record of it, in one order for all callers.
    fn record(
        &self,
        record: Record,
        done: Done,
        change: impl FnOnce(&mut LogIndex) -> Result<(), StoreError>,
    ) -> Result<(), (StoreError, Done)> {
        let core = self.core();
        let reserved = WalSpace::cost(Record::LEN_MAX);
        if let Err(error) = core.reserve(reserved, Purpose::Control) {
            return Err((error, done));
        }
        let mut log = self.inner.log();
        let changed = match log.removed {
            true => Err(StoreError::NoGroup(self.id())),
            false => change(&mut log),
        };
        if let Err(error) = changed {
            core.wal.written(0, reserved);
            return Err((error, done));
        }
        let job = Job::Record { group: self.id(), record };
        core.queue.push([Queued { job, reserved, freed: log.take_freed(), done: Some(done) }]);
        Ok(())
    }

    /// Entries of `range` that exist, in order, as many as fit into `bytes_max`, but at least one
    /// if there is one. What was purged or is not there yet is left out.
    pub fn entries(
        &self,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let slots = self.inner.log().select(range, bytes_max);
        let mut entries = Vec::with_capacity(slots.len());
        let mut at = 0;
        while at < slots.len() {
            if let Some(entry) = &slots[at].cached {
                entries.push(entry.clone());
                at += 1;
                continue;
            }
            let span = uncached_span(&slots[at..]);
            match self.read_span(&slots[at..at + span]) {
                Ok(read) => entries.extend(read),
                Err(error) => return self.judge_read_error(&slots[at..at + span], error),
            }
            at += span;
        }
        Ok(entries)
    }

    /// Reads entries that lie near each other in the WAL with one access.
    fn read_span(&self, slots: &[Slot]) -> Result<Vec<LogEntry>, StoreError> {
        let locs: Vec<Loc> = slots.iter().filter_map(|slot| slot.loc).collect();
        let (Some(first), Some(last)) = (locs.first(), locs.last()) else { return Ok(Vec::new()) };
        let (bytes, start) = self.core().ring.read_span(first.start(), last.end())?;
        slots
            .iter()
            .zip(&locs)
            .map(|(slot, loc)| {
                let at = start + (loc.start() - first.start()) as usize;
                let entry = RawRecord::split(&bytes[at..])
                    .and_then(|(record, _)| Ok((record.group, record.entry()?)));
                match entry {
                    Ok((group, entry)) if group == self.id() && entry.position == slot.position => {
                        let Some(blocks) = &slot.blocks else { return Ok(entry) };
                        Ok(LogEntry { payload: payload::read(&self.core().data, blocks)?, ..entry })
                    }
                    other => {
                        let why = other.err().map_or("another record is there", |e| e.0);
                        Err(StoreError::corrupt(format!(
                            "log entry {} of copyset {} at position {}: {why}",
                            slot.position,
                            self.id(),
                            loc.start()
                        )))
                    }
                }
            })
            .collect()
    }

    /// An entry that was purged while it was read is no damage: it is left out.
    fn judge_read_error(
        &self,
        slots: &[Slot],
        error: StoreError,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let log = self.inner.log();
        let gone = slots.iter().any(|slot| !log.holds(slot.position));
        match gone && matches!(error, StoreError::Corrupt { .. }) {
            true => Ok(Vec::new()),
            false => Err(error),
        }
    }

    pub fn log_state(&self) -> LogState {
        self.inner.log().state()
    }

    // ---- chunk space ----

    /// Registers who answers for the applied position and state at checkpoints; only a weak
    /// reference is kept. Until then a checkpoint repeats what was recovered. Register before the
    /// first `begin_apply`.
    pub fn set_state_provider(&self, provider: &Arc<dyn StateProvider>) {
        self.inner.provide(provider);
    }

    /// Starts applying one entry (or several that may be seen together). Waits while the overlay
    /// is full. Excludes checkpoints, views and installs until the returned value is dropped, so
    /// they see whole entries; drop it only after the state machine's own applied position moved,
    /// and call nothing of the log part meanwhile (it may wait for a checkpoint).
    pub fn begin_apply(&self) -> Result<Apply<'_>, StoreError> {
        let core = self.core();
        core.data.overlay.wait_for_room(&core.device, || core.upkeep.request_flush())?;
        let excluded = self.inner.lock_apply();
        Ok(Apply::new(self, self.inner.space(), excluded))
    }

    /// Reads bytes of a chunk; holes read as zeroes. `NoGroup` if the group was removed.
    pub fn read(&self, key: ChunkKey, offset: u32, len: u32) -> Result<Bytes, StoreError> {
        self.core().device.check()?;
        self.in_space(|space| space.read(key, offset, len))
    }

    /// What `look` finds in the group's space; it answers None if that one is retired.
    fn in_space<T>(
        &self,
        look: impl Fn(&Arc<Space>) -> Result<Option<T>, StoreError>,
    ) -> Result<T, StoreError> {
        loop {
            if let Some(found) = look(&self.inner.space())? {
                return Ok(found);
            }
            // If the group is there, an install has put another space in the place of that one.
            self.check_exists()?;
        }
    }

    /// As `read`, without a thread that waits for the disk: `fetched` is called by whoever reaps
    /// `Store::async_reads`, and must not block. Not every read can be made that way.
    pub fn begin_read(
        &self,
        key: ChunkKey,
        offset: u32,
        len: u32,
        fetched: Box<dyn FnOnce(Fetched) + Send>,
    ) -> Result<BegunRead, StoreError> {
        self.core().device.check()?;
        self.inner.space().begin_read(key, offset, len, fetched)
    }

    /// All chunks that hold data now, in order. `NoGroup` if the group was removed.
    pub fn chunk_keys(&self) -> Result<Vec<ChunkKey>, StoreError> {
        self.in_space(|space| Ok(space.chunk_keys()))
    }

    /// Indices of the chunk's blocks that are not in memory, in order: reads of them go to the
    /// device, or find that they are lost.
    pub fn table_blocks(&self, key: ChunkKey) -> Vec<u16> {
        self.inner.space().table_blocks(key)
    }

    fn check_exists(&self) -> Result<(), StoreError> {
        match self.inner.log().removed {
            true => Err(StoreError::NoGroup(self.id())),
            false => Ok(()),
        }
    }

    /// The group's state now, held still for a Raft snapshot. Asks the state provider. `NoGroup`
    /// if the group was removed.
    pub fn view(&self) -> Result<ChunkView, StoreError> {
        self.core().device.check()?;
        let _whole_entries = self.inner.lock_apply();
        let (applied, state) = self.inner.state();
        let pin = self.inner.space().pin();
        let chunks = pin.space.snapshot();
        // A removed group's tables may have been empty already.
        self.check_exists()?;
        let shared = ViewInner { pin, chunks, applied, state, _owner: self.owner.clone() };
        Ok(ChunkView { shared: Arc::new(shared) })
    }

    /// Starts receiving a snapshot into shadow tables. The present state stays in use.
    pub fn begin_install(&self) -> Result<Install, StoreError> {
        let core = self.core();
        core.device.check()?;
        let space = Space::new(core.data.clone(), ChunkMap::new());
        let mut installing = core.installing.lock().unwrap_or_else(PoisonError::into_inner);
        installing.push(Arc::downgrade(&space));
        Ok(Install { group: self.clone(), space: Some(space) })
    }
}

/// How many slots from the first on can be read with one access.
fn uncached_span(slots: &[Slot]) -> usize {
    let Some(first) = slots.first().and_then(|slot| slot.loc) else { return 1 };
    let near = |slot: &&Slot| {
        slot.cached.is_none()
            && slot.loc.is_some_and(|loc| loc.end() - first.start() <= READ_SPAN_MAX)
    };
    slots.iter().take_while(near).count().max(1)
}

struct ViewInner {
    pin: Pin,
    chunks: ChunkMap,
    applied: Option<LogPosition>,
    state: Bytes,
    _owner: Arc<Owner>,
}

/// A pinned, immutable state of a group. Blocks it refers to are not reused while it lives.
#[derive(Clone)]
pub struct ChunkView {
    shared: Arc<ViewInner>,
}

impl ChunkView {
    /// Applied position that belongs to the tables.
    pub fn applied(&self) -> Option<LogPosition> {
        self.shared.applied
    }

    /// State blob that belongs to the tables.
    pub fn state(&self) -> &Bytes {
        &self.shared.state
    }

    /// All chunks that hold at least one block, in order.
    pub fn chunks(&self) -> Vec<ChunkKey> {
        self.shared.chunks.keys().copied().collect()
    }

    /// Runs of blocks that hold data, in order. Everything else of the chunk is holes.
    pub fn block_ranges(&self, key: ChunkKey) -> Vec<Range<u32>> {
        let Some(chunk) = self.shared.chunks.get(&key) else { return Vec::new() };
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for index in chunk.occupied().into_iter().map(u32::from) {
            match ranges.last_mut() {
                Some(last) if last.end == index => last.end = index + 1,
                _ => ranges.push(index..index + 1),
            }
        }
        ranges
    }

    pub(crate) fn place(&self, key: ChunkKey, index: u16) -> Place {
        place(&self.shared.chunks, key, index)
    }

    pub(crate) fn is_of(&self, space: &Arc<Space>) -> bool {
        Arc::ptr_eq(&self.shared.pin.space, space)
    }

    /// Bytes of a run of blocks.
    pub fn read(&self, key: ChunkKey, blocks: Range<u32>) -> Result<Bytes, StoreError> {
        let end = u64::from(blocks.end) * BLOCK_SIZE;
        if blocks.start > blocks.end || end > curve_types::CHUNK_SIZE {
            return Err(StoreError::invalid(format!("blocks {blocks:?} of a chunk of 1024")));
        }
        let (offset, len) =
            (blocks.start * BLOCK_SIZE as u32, blocks.len() as u32 * BLOCK_SIZE as u32);
        let found = self.shared.chunks.get(&key).map(|chunk| places(chunk, offset, len));
        read_places(&self.shared.pin.space.data, found, key, offset, len)
    }
}

/// A snapshot on its way in. Dropped without `commit`, it leaves no trace: its blocks count as
/// unused at once, and are free with the next checkpoint.
pub struct Install {
    group: Group,
    /// Taken by `commit`.
    space: Option<Arc<Space>>,
}

impl Install {
    /// Stores received bytes; `offset` and length are multiples of 4096. Waits while the overlay
    /// is full. `NoSpace` (without effect, and the store goes on) if writes of that size would not
    /// be admitted either: the present state keeps its blocks until `commit`, so a device must
    /// have room for both. Every block counts as new.
    pub fn put(&self, key: ChunkKey, offset: u32, data: Bytes) -> Result<(), StoreError> {
        let core = self.group.core();
        if !u64::from(offset).is_multiple_of(BLOCK_SIZE)
            || !(data.len() as u64).is_multiple_of(BLOCK_SIZE)
        {
            let len = data.len();
            return Err(StoreError::invalid(format!(
                "installed bytes at {offset}, {len} long, are not whole blocks"
            )));
        }
        core.data.overlay.wait_for_room(&core.device, || core.upkeep.request_flush())?;
        let Some(space) = &self.space else { return Ok(()) };
        let one_at_a_time = core.installing.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = data.len() as u64 / BLOCK_SIZE;
        let room = core.usage().admissible_blocks();
        if blocks > room {
            let what = format!("a snapshot needs {blocks} more blocks, room is for {room}");
            return Err(StoreError::NoSpace { what });
        }
        space.write(key, offset, data)?;
        drop(one_at_a_time);
        if core.data.overlay.wants_flush() {
            core.upkeep.request_flush();
        }
        Ok(())
    }

    /// Replaces the group's chunk space, applied position, state and log base in one durable
    /// step. The log keeps entries after `applied` if it holds `applied` itself; otherwise it is
    /// emptied and continues after it. The switch is visible when `done` is called; until then
    /// (and after a crash before it) the old state holds. Nothing may be applied or appended
    /// between this call and `done`, and the provider must answer with the new state before
    /// `begin_apply` is called again. `done` runs on the upkeep thread.
    pub fn commit(mut self, applied: LogPosition, state: Bytes, done: Done) {
        let core = &self.group.owner.core;
        let Some(space) = self.space.take() else { return };
        if let Err(error) = core.device.check() {
            done(Err(error));
            return;
        }
        core.upkeep.switch(Switch { group: self.group.inner.clone(), space, applied, state, done });
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        if let Some(space) = self.space.take() {
            self.group.core().retire(space);
        }
    }
}
