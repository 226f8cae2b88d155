//! One Raft group on the device: its log and its chunk space.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use curve_types::{ChunkKey, CopysetId, VolumeId};

use crate::core::Core;
use crate::install::Staged;
use crate::log::index::{Loc, LogIndex, Slot, check_entries};
use crate::payload::{self, Blocks};
use crate::space::{BegunRead, Fetched, Space};
use crate::split::Child;
use crate::store::Owner;
use crate::wal::format::{RawRecord, Record, entry_record_len};
use crate::wal::queue::{Job, Queued};
use crate::wal::space::{Purpose, WalSpace};
use crate::{
    Apply, BlockSet, Done, LogEntry, LogPosition, LogState, StateProvider, StoreError, Vote,
};

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
    pub space: Arc<Space>,
    /// Applied position and state as last captured.
    last_state: Mutex<(Option<LogPosition>, Bytes)>,
    provider: RwLock<Option<Weak<dyn StateProvider>>>,
    /// What left it since the last checkpoint that a recovery finds; see `Apply::split`.
    children: Mutex<Vec<Child>>,
    /// Index of the last entry whose applying was begun since the open; changed under the apply
    /// lock.
    begun: AtomicU64,
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
            space,
            last_state: Mutex::new(state),
            provider: RwLock::new(None),
            children: Mutex::default(),
            begun: AtomicU64::new(0),
        })
    }

    pub fn log(&self) -> MutexGuard<'_, LogIndex> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changed under the apply lock, but for what is done with.
    pub fn children(&self) -> MutexGuard<'_, Vec<Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lock_apply(&self) -> MutexGuard<'_, ()> {
        self.apply.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn created_at(&self, lsn: u64) {
        self.first_lsn.store(lsn, Ordering::Release);
    }

    pub fn first_lsn_is(&self, lsn: u64) -> bool {
        self.first_lsn.load(Ordering::Acquire) == lsn
    }

    /// Applied position and state blob; the apply lock is held. Without a provider it is what was
    /// captured last. `HostGone` if the tables are further than that: to apply the difference again
    /// would copy volumes as they are by then.
    pub fn state(&self) -> Result<(Option<LogPosition>, Bytes), StoreError> {
        for _ in 0..HOST_ENDS_WITHIN.as_millis() {
            if let Some(state) = self.known_state() {
                return Ok(state);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(StoreError::HostGone(self.id))
    }

    /// As captured last.
    pub fn captured_state(&self) -> State {
        self.last_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// None while the provider is ending.
    fn known_state(&self) -> Option<(Option<LogPosition>, Bytes)> {
        let provider = {
            let registered = self.provider.read().unwrap_or_else(PoisonError::into_inner);
            registered.as_ref().map(Weak::upgrade)
        };
        let now = provider.as_ref().map(|alive| alive.as_ref().map(|provider| provider.state()));
        let known = self.newest_state(now);
        // Not before: its end may come with it, which calls `leave_state`.
        drop(provider);
        known
    }

    /// `now` is the provider's answer; the inner None that of one that is ending.
    fn newest_state(&self, now: Option<Option<State>>) -> Option<State> {
        let mut last = self.last_state.lock().unwrap_or_else(PoisonError::into_inner);
        match now {
            None => {}
            // After an install the tables are new before the host has heard of it.
            Some(Some(now)) if index_of(&now) < index_of(&last) => {}
            Some(Some(now)) => *last = now,
            Some(None) if index_of(&last).unwrap_or(0) < self.begun.load(Ordering::Relaxed) => {
                return None;
            }
            Some(None) => {}
        }
        Some(last.clone())
    }

    fn leave_state(&self, state: State) {
        let mut last = self.last_state.lock().unwrap_or_else(PoisonError::into_inner);
        if index_of(&state) >= index_of(&last) {
            *last = state;
        }
    }

    /// Puts an installed state in place; the apply lock is held. False, without effect, if the group
    /// was removed.
    pub fn install(&self, staged: &Staged, applied: LogPosition, state: Bytes) -> bool {
        let installed = self.space.install(staged, applied.index);
        if installed {
            let mut last = self.last_state.lock().unwrap_or_else(PoisonError::into_inner);
            *last = (Some(applied), state);
        }
        installed
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
        core.queue.push(truncate.into_iter().chain([purge]), log);
        Ok(())
    }

    /// A durable checkpoint contains `applied`.
    pub fn checkpointed(&self, core: &Core, applied: Option<LogPosition>) {
        let mut log = self.log();
        log.checkpointed(applied);
        let freed = log.take_freed();
        if !freed.is_empty() {
            // In the queue's order: the purge that dropped them may still be on its way.
            core.queue.push([Queued { freed, ..Queued::new(Job::Nothing, 0) }], log);
        }
    }

    fn provide(&self, provider: &Arc<dyn StateProvider>) {
        let weak = Arc::downgrade(provider);
        *self.provider.write().unwrap_or_else(PoisonError::into_inner) = Some(weak);
    }
}

/// Applied position and the blob that belongs to it.
pub(crate) type State = (Option<LogPosition>, Bytes);

fn index_of(state: &State) -> Option<u64> {
    state.0.map(|applied| applied.index)
}

/// A provider that has no users any more calls `Group::leave_state` by then.
const HOST_ENDS_WITHIN: Duration = Duration::from_secs(2);

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
        core.queue.push(queued, log);
        Ok(())
    }

    fn appendable(&self, log: &LogIndex, entries: &[LogEntry]) -> Result<(), StoreError> {
        match log.removed {
            true => Err(StoreError::NoGroup(self.id())),
            false => check_entries(log.next_index(), entries),
        }
    }

    /// Blocks of a chunk that are not known to be the same in the chunk of that index of `base`;
    /// without a base, all that hold data. It may name a block whose bytes are alike, never miss
    /// one whose bytes differ.
    pub fn changes(&self, key: ChunkKey, base: Option<VolumeId>) -> Result<BlockSet, StoreError> {
        self.core().device.check()?;
        self.inner.space.changes(key, base).ok_or(StoreError::NoGroup(self.id()))
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
        let queued = Queued { job, reserved, freed: log.take_freed(), done: Some(done) };
        core.queue.push([queued], log);
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
    pub(crate) fn read_span(&self, slots: &[Slot]) -> Result<Vec<LogEntry>, StoreError> {
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

    /// To be called by a state provider as it ends, with what it would answer from now on.
    pub fn leave_state(&self, state: (Option<LogPosition>, Bytes)) {
        self.inner.leave_state(state);
    }

    /// Starts applying the entry at `index` (or several up to it that may be seen together). Waits
    /// while the overlay is full. Excludes checkpoints, views and installs until the returned value
    /// is dropped, so they see whole entries; drop it only after the state machine's own applied position moved,
    /// and call nothing of the log part meanwhile (it may wait for a checkpoint).
    pub fn begin_apply(&self, index: u64) -> Result<Apply<'_>, StoreError> {
        let core = self.core();
        core.data.overlay.wait_for_room(&core.device, || {
            core.upkeep.request_flush();
            core.serve();
        })?;
        let excluded = self.inner.lock_apply();
        self.inner.begun.fetch_max(index, Ordering::Relaxed);
        Ok(Apply::new(self, self.inner.space.clone(), index, excluded))
    }

    /// Waits until the entry that is being applied is, if one is.
    pub fn settle(&self) {
        drop(self.inner.lock_apply());
    }

    /// Reads bytes of a chunk; holes read as zeroes. `NoGroup` if the group was removed.
    pub fn read(&self, key: ChunkKey, offset: u32, len: u32) -> Result<Bytes, StoreError> {
        self.core().device.check()?;
        self.inner.space.read(key, offset, len)?.ok_or(StoreError::NoGroup(self.id()))
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
        self.inner.space.begin_read(key, offset, len, fetched)
    }

    /// All chunks that hold data now, in order. `NoGroup` if the group was removed.
    pub fn chunk_keys(&self) -> Result<Vec<ChunkKey>, StoreError> {
        self.inner.space.chunk_keys().ok_or(StoreError::NoGroup(self.id()))
    }

    /// Indices of the chunk's blocks that are not in memory, in order: reads of them go to the
    /// device, or find that they are lost. What it shares with the chunk that it is based on is
    /// left out, as it is met there.
    pub fn table_blocks(&self, key: ChunkKey) -> Vec<u16> {
        self.inner.space.table_blocks(key)
    }

    pub(crate) fn check_exists(&self) -> Result<(), StoreError> {
        match self.inner.log().removed {
            true => Err(StoreError::NoGroup(self.id())),
            false => Ok(()),
        }
    }
}

/// How many slots from the first on can be read with one access.
pub(crate) fn uncached_span(slots: &[Slot]) -> usize {
    let Some(first) = slots.first().and_then(|slot| slot.loc) else { return 1 };
    let near = |slot: &&Slot| {
        slot.cached.is_none()
            && slot.loc.is_some_and(|loc| loc.end() - first.start() <= READ_SPAN_MAX)
    };
    slots.iter().take_while(near).count().max(1)
}
